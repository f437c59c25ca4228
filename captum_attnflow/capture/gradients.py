"""Calls of attention, gradients in them, and which dimension holds the rows.

Sizes do not tell: there may be as many heads, or tokens, as rows, and heads that share
a dimension with the rows come before or after them. The gradient does: the output of a
row has none in other rows. So where the output of row :math:`b` is weighted by
:math:`w_b`, the gradient in row :math:`b` of a tensor is :math:`w_b` times the plain
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_attnflow.capture.entries import Entry
from captum_attnflow.capture.graph import Stack
from captum_attnflow.capture.record import (
    AttentionLayer,
    DenseLayer,
    FusedLayer,
    FusedOperands,
    UnsupportedAttentionError,
)
from captum_attnflow.capture.refusals import (
    refuse_other_rows,
    refuse_parts_of_a_layer,
)


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention.

    Attributes:
        probed (Tensor): What ran through the probe: the map, or the output of a fused
            kernel, as the rest of the model uses it.
        values (Tensor): What the map weighs, with the keys last but one.
        n_heads (int, optional): Heads, where batch and heads share a dimension.
        rows_outside (bool): Whether it is known that the heads come after the batch
            there.
        fused (Callable, optional): Makes the layer of the gradient in ``probed``;
            None where that is the map.
        scores (Tensor, optional): The product of queries and keys behind a map, where
            rules propagate relevance through it.
        score_axes (tuple of int): The axes of that product in the order of the map's:
            queries last but one, keys last.
        share_of_weights (float): See :meth:`AttentionLayer.messages`.
        mixed (list of GradientEdge): Where the mixed values are in the graph.
        operands (tuple of Tensor): Queries, keys and values of a fused kernel, each
            with a place of its own in the graph, where sums of messages are wanted and
            all depend on the tokens.
    """

    probed: Tensor
    values: Tensor
    n_heads: int | None
    rows_outside: bool = False
    fused: Callable[[Tensor], FusedLayer] | None = None
    scores: Tensor | None = None
    score_axes: tuple[int, ...] = ()
    share_of_weights: float = 0.0
    mixed: list[GradientEdge] = field(default_factory=list)
    operands: tuple[Tensor, ...] = ()

    def n_rows(self) -> int:
        """Rows of a part of the batch, where dimension 0 tells."""
        folded, heads = len(self.probed), self.n_heads
        return folded // heads if self.probed.dim() == 3 and heads else folded

    def lengths(self) -> tuple[int, int]:
        """Queries and keys."""
        if self.fused is None:
            return self.probed.shape[-2], self.probed.shape[-1]
        return self.probed.shape[-2], self.values.shape[-2]

    def layouts(self, n_rows: int) -> list[RowLayout]:
        """List where so many rows of a batch may be in the probed tensor."""
        known = self.n_heads if self.rows_outside else None
        return layouts_of_map(self.probed.shape, n_rows, known)

    def layer(
        self,
        gradient: Tensor,
        layout: RowLayout,
        score_gradient: Tensor | None = None,
        operand_gradients: Sequence[Tensor] = (),
    ) -> AttentionLayer:
        """Return the layer's attention, given gradients in what it keeps."""
        if self.fused is not None:
            fused = self.fused(gradient)
            if operand_gradients:
                operands = FusedOperands(self.probed.detach(), *operand_gradients)
                fused = replace(fused, operands=operands)
            return fused.transposed() if layout.axis else fused

        def heads_of_rows(tensor: Tensor) -> Tensor:
            rows = layout.rows_first(tensor)
            # Heads come in any dimensions.
            return rows.reshape(len(rows), -1, *rows.shape[-2:])

        relevance = None
        if self.scores is not None and score_gradient is not None:
            # A mask that was added in place leaves -inf. Scores there have no gradient,
            # and 0 times -inf is NaN.
            scores = self.scores.detach().masked_fill(score_gradient == 0, 0)
            relevance = (scores * score_gradient).permute(self.score_axes)
            relevance = heads_of_rows(relevance.reshape(self.probed.shape))
        return DenseLayer(
            heads_of_rows(self.probed.detach()),
            heads_of_rows(gradient),
            relevance,
            self.share_of_weights,
            self._values(heads_of_rows),
        )

    def _values(self, heads_of_rows: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Lay out the values as the map; heads may share them."""
        leading, n_features = self.probed.shape[:-2], self.values.shape[-1]
        if self.values.dim() != self.probed.dim() or any(
            size not in (1, wanted)
            for size, wanted in zip(self.values.shape, leading, strict=False)
        ):
            return None
        values = self.values.detach().expand(*leading, -1, n_features)
        return heads_of_rows(values)


@dataclass(frozen=True)
class RowLayout:
    """Where the rows are.

    Attributes:
        axis (int): The dimension of the rows, after unfolding.
        unfolded (tuple of int, optional): Sizes into which dimension 0 unfolds, where
            it holds rows and heads.
    """

    axis: int
    unfolded: tuple[int, int] | None = None

    def rows_first(self, tensor: Tensor) -> Tensor:
        """Unfold a tensor and move its rows into dimension 0."""
        if self.unfolded is not None:
            tensor = tensor.unflatten(0, self.unfolded)
        return tensor.movedim(self.axis, 0)


def layouts_of_map(
    shape: torch.Size, n_rows: int, n_heads: int | None
) -> list[RowLayout]:
    """List where the rows may be in a map ``(..., Tq, Tk)`` or what a kernel put out.

    Args:
        shape (Size): Its shape.
        n_rows (int): Rows of the batch.
        n_heads (int, optional): Heads, where they are known to come after the rows in
            one dimension.
    """
    if len(shape) > 3:
        fitting = [axis for axis in range(len(shape) - 2) if shape[axis] == n_rows]
        # With one row any axis of size 1 holds the same numbers.
        return [RowLayout(axis) for axis in (fitting[:1] if n_rows == 1 else fitting)]
    folded = shape[0]
    if folded % n_rows or n_heads not in (None, folded // n_rows):
        return []
    in_each = folded // n_rows
    rows_outside = RowLayout(0, (n_rows, in_each))
    if n_heads is not None or n_rows == 1 or in_each == 1:
        return [rows_outside]
    return [rows_outside, RowLayout(1, (in_each, n_rows))]


def layouts_of_tokens(
    shape: Sequence[int], n_rows: int, n_tokens: int | None = None
) -> list[RowLayout]:
    """List where the rows may be in a tensor ``(rows, T, ...)`` or ``(T, rows, ...)``.

    Args:
        shape (sequence of int): Its shape.
        n_rows (int): Rows of the batch.
        n_tokens (int, optional): ``T``, if it is known.
    """
    if len(shape) < 2:
        return []
    fitting = [
        axis
        for axis in (0, 1)
        if shape[axis] == n_rows and n_tokens in (None, shape[1 - axis])
    ]
    if tuple(shape[:2]) == (1, 1):
        fitting = fitting[:1]  # one token of one row
    return [RowLayout(axis) for axis in fitting]


# Of the plain gradient's norm: rows in another order leave more.
_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Placement:
    """A tensor of the graph whose rows are looked for.

    Attributes:
        tensor (Tensor): The tensor.
        rows (slice): Which rows of the batch it has.
        layouts (list of RowLayout): Where they may be, by the sizes.
    """

    tensor: Tensor
    rows: slice
    layouts: list[RowLayout]

    @property
    def is_certain(self) -> bool:
        """Whether sizes leave nothing, or only the usual place: before all else."""
        return not self.layouts or (
            len(self.layouts) == 1 and self.layouts[0].axis == 0
        )


def find_layouts(
    placements: Sequence[Placement],
    gradients: Sequence[Tensor],
    output: Tensor,
    retain_graph: bool,
) -> list[RowLayout | None]:
    """Find where the rows are, by a backward pass from a weighted sum of outputs.

    Args:
        placements (sequence of Placement): What is asked.
        gradients (sequence of Tensor): Of the sum of outputs, in their tensors.
        output (Tensor): Shape ``(B,)``, in the graph.
        retain_graph (bool): Whether the graph is needed afterwards.

    Returns:
        list: Of each the layout; None if none is possible, or several are, as where
        the gradient is 0.
    """
    layouts = [given.layouts[0] if given.layouts else None for given in placements]
    open_ones = [i for i, given in enumerate(placements) if not given.is_certain]
    if not open_ones:
        return layouts
    # Powers of two scale without rounding, in any precision.
    weights = 2.0 ** (torch.arange(len(output), device=output.device) % 3).to(output)
    weighted = torch.autograd.grad(
        (weights * output).sum(),
        [placements[i].tensor for i in open_ones],
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    for i, gradient in zip(open_ones, weighted, strict=True):
        layouts[i] = _layout_by_gradient(
            placements[i], gradients[i].double(), gradient.double(), weights
        )
    return layouts


def _layout_by_gradient(
    given: Placement, plain: Tensor, weighted: Tensor, weights: Tensor
) -> RowLayout | None:
    known = plain.isfinite() & weighted.isfinite()  # rows may hold NaN, not all of them
    plain, weighted = plain.where(known, 0), weighted.where(known, 0)
    if not bool(known.all() | plain.any()):
        return given.layouts[0]  # NaN everywhere, which is refused behind
    right = []
    for layout in given.layouts:
        rows = layout.rows_first(plain)
        of_rows = weights[given.rows].to(rows).reshape(-1, *(1 for _ in rows.shape[1:]))
        left = layout.rows_first(weighted) - of_rows * rows
        if bool(left.norm() <= _TOLERANCE * plain.norm()):
            right.append(layout)
    return right[0] if len(right) == 1 else None


@dataclass(frozen=True)
class OutputGradients:
    """Gradients of one output per row.

    Attributes:
        layers (list of AttentionLayer): The attention of each call.
        streams (dict): Relevance ``(rows, Tq)`` of the residual stream behind the last
            call of a stack, by call.
        inputs (list of Tensor): In what stands for the inputs, or in the points of a
            path.
        layer_layouts (list of RowLayout or None): Where the rows are in each tensor of
            a watched layer.
    """

    layers: list[AttentionLayer]
    streams: dict[int, Tensor]
    inputs: list[Tensor]
    layer_layouts: list[RowLayout | None]


class WantedGradients:
    """What an output is differentiated in.

    Args:
        calls (list of AttentionCall): All of them.
        rows (list of slice): Which rows of the batch each has.
        streams (dict): Residual streams behind the last call of a stack, by call.
        inputs (list of Tensor): What stands for the inputs, or the points of a path.
        at_layer (list of Tensor): What a watched layer takes or puts out.
        square (dict): What stands for inputs of as many tokens as rows, by where to
            look for these.
    """

    def __init__(
        self,
        calls: list[AttentionCall],
        rows: list[slice],
        streams: dict[int, Tensor],
        inputs: list[Tensor],
        at_layer: list[Tensor],
        square: dict[Placement, Entry],
    ) -> None:
        self._calls, self._streams = calls, streams
        self._inputs, self._at_layer = inputs, at_layer
        self._scores = {
            i: call.scores for i, call in enumerate(calls) if call.scores is not None
        }
        whole = slice(0, max(part.stop for part in rows))
        of_maps = [
            Placement(call.probed, part, call.layouts(part.stop - part.start))
            for call, part in zip(calls, rows, strict=True)
        ]
        of_streams = [
            Placement(
                stream,
                rows[call],
                layouts_of_tokens(
                    stream.shape,
                    rows[call].stop - rows[call].start,
                    calls[call].probed.shape[-2],
                ),
            )
            for call, stream in streams.items()
        ]
        of_layer = [
            Placement(tensor, whole, layouts_of_tokens(tensor.shape, whole.stop))
            for tensor in at_layer
        ]
        self._operands = [part for call in calls for part in call.operands]
        self._square = square
        self._placements = of_maps + of_streams + of_layer + list(square)
        self._layouts: list[RowLayout | None] | None = None  # of the first output

    def differentiate(
        self, selected: Tensor, is_last: bool, grad_kwargs: dict[str, Any]
    ) -> OutputGradients:
        """Run one backward pass from one output per row."""
        maps, streams = [call.probed for call in self._calls], self._streams
        tensors = [*maps, *streams.values(), *self._at_layer]
        tensors += [placement.tensor for placement in self._square]
        tensors += self._scores.values()
        tensors += self._operands
        is_asked = not all(placement.is_certain for placement in self._placements)
        is_kept = (self._layouts is None and is_asked) or not is_last
        options = {
            **grad_kwargs,
            "allow_unused": True,
            "materialize_grads": True,
            "retain_graph": is_kept or grad_kwargs.get("retain_graph"),
        }
        of_all = torch.autograd.grad(
            torch.unbind(selected),
            tensors + self._inputs,
            **options,
        )
        gradients = [gradient.detach() for gradient in of_all]
        if self._layouts is None:
            self._layouts = find_layouts(
                self._placements, gradients, selected, retain_graph=not is_last
            )
            n_square = len(self._square)
            of_square = self._layouts[len(self._placements) - n_square :]
            refuse_tokens_first(self._square.values(), of_square)
        n_calls = len(maps)
        n_before = n_calls + len(streams)
        layouts = self._layouts
        of_scores = dict(
            zip(self._scores, gradients[len(self._placements) :], strict=False)
        )
        of_operands = iter(gradients[len(self._placements) + len(self._scores) :])
        of_streams = zip(
            streams.items(),
            gradients[n_calls:n_before],
            layouts[n_calls:n_before],
            strict=True,
        )
        return OutputGradients(
            layers=[
                call.layer(
                    gradient,
                    self._layout_of_map(i),
                    of_scores.get(i),
                    [next(of_operands) for _ in call.operands],
                )
                for i, (call, gradient) in enumerate(
                    zip(self._calls, gradients, strict=False)
                )
            ],
            streams={
                call: layout.rows_first(stream.detach() * gradient).double().sum(-1)
                for (call, stream), gradient, layout in of_streams
                if layout is not None
            },
            inputs=gradients[len(tensors) :],
            layer_layouts=layouts[n_before : n_before + len(self._at_layer)],
        )

    def _layout_of_map(self, call: int) -> RowLayout:
        """Return where the rows are in a map; by other maps if its gradient is 0.

        Raises:
            UnsupportedAttentionError: If nothing tells.
        """
        assert self._layouts is not None
        own = self._layouts[call]
        if own is not None:
            return own
        possible = self._placements[call].layouts
        of_others = {
            layout
            for layout in self._layouts[: len(self._calls)]
            if layout in possible and layout is not None
        }
        if len(of_others) == 1:
            return of_others.pop()
        shape = tuple(self._calls[call].probed.shape)
        raise UnsupportedAttentionError(
            f"in attention maps of shape {shape} it does not show where the examples "
            "are and where the heads. If the output's gradient in them is 0, take one "
            "example at a time (internal_batch_size=1). If the gradient of an "
            "example's output leads to other examples, take what mixes them, such as "
            "y - y.mean(0), out of forward_func, and call model.eval()"
        )


def square_entries(entries: Iterable[Entry], n_rows: int) -> dict[Placement, Entry]:
    """Return what stands for inputs of as many tokens as rows, and where to look.

    Args:
        entries (iterable of Entry): What stands for the inputs.
        n_rows (int): Rows of the batch.
    """
    placed = {
        Placement(
            entry.tensor,
            slice(0, n_rows),
            layouts_of_tokens(entry.tensor.shape, n_rows),
        ): entry
        for entry in entries
        if entry.axes in ("same", "swapped") and entry.tensor.dim() in (2, 3)
    }
    return {
        placement: entry
        for placement, entry in placed.items()
        if not placement.is_certain
    }


def refuse_tokens_first(
    entries: Iterable[Entry], layouts: Iterable[RowLayout | None]
) -> None:
    """Refuse inputs that turned out to have their rows in dimension 1.

    Args:
        entries (iterable of Entry): What stands for the inputs.
        layouts (iterable of RowLayout): Where the rows are in each, if it shows.

    Raises:
        ValueError: If there is one.
    """
    for entry, layout in zip(entries, layouts, strict=True):
        usual = 1 if entry.axes == "swapped" else 0
        if layout is not None and layout.axis != usual:
            raise ValueError(
                "an input has its tokens in dimension 0 and its examples in dimension "
                "1; the batch comes first: give input.transpose(0, 1), and a "
                "forward_func that transposes it back"
            )


def rows_of_calls(
    stacks: list[Stack],
    calls: list[AttentionCall],
    inputs: tuple[Tensor, ...],
    n_rows: int,
) -> list[slice]:
    """Tell which rows of the batch each call has.

    There is one stack, or those of consecutive mini-batches.

    Raises:
        UnsupportedAttentionError: If stacks differ, or have other rows in all.
    """
    groups: dict[int, list[tuple[int, AttentionCall]]] = {}
    for number, stack in enumerate(stacks):
        for call in (calls[i] for i in stack.calls):
            storage = call.values.untyped_storage().data_ptr()
            groups.setdefault(storage, []).append((number, call))
    beside = [
        [call for _, call in group]
        for group in groups.values()
        if len({number for number, _ in group}) > 1
    ]
    if beside:
        refuse_parts_of_a_layer(beside[0])
    depths = sorted({len(stack.calls) for stack in stacks})
    if len({stack.routes for stack in stacks}) > 1:
        raise UnsupportedAttentionError(
            f"the attention calls form {len(stacks)} stacks, of {depths} layers, that "
            "do not feed on each other, such as two models, or heads or examples that "
            "a Python loop attends to one by one. One stack, or an encoder and a "
            "decoder that attends to it, is supported: attribute to one model at a "
            "time, and let a call of attention have all heads and examples"
        )
    sizes = [n_rows]
    if len(stacks) > 1:
        sizes = [calls[stack.calls[0]].n_rows() for stack in stacks]
    rows, start = [slice(0, 0)] * len(calls), 0
    for stack, size in zip(stacks, sizes, strict=True):
        for index in stack.calls:
            rows[index] = slice(start, start + size)
        start += size
    fits = all(
        calls[i].layouts(rows[i].stop - rows[i].start)
        for stack in stacks
        for i in stack.calls
    )
    if start != n_rows or not fits:
        refuse_other_rows(
            len(stacks),
            sum(calls[stack.calls[0]].n_rows() for stack in stacks),
            {calls[stack.calls[0]].lengths()[1] for stack in stacks},
            inputs,
            n_rows,
        )
    return rows
