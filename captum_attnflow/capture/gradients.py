"""Gradients of one output per row, and which dimension of a tensor holds the rows.

Sizes do not tell: there may be as many heads, or tokens, as rows, and heads that share
a dimension with the rows come before or after them. The gradient does: the output of a
row has none in other rows. So where the output of row :math:`b` is weighted by
:math:`w_b`, the gradient in row :math:`b` of a tensor is :math:`w_b` times the plain
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_attnflow.capture.entries import Entry
from captum_attnflow.capture.graph import Stack
from captum_attnflow.capture.maps import (
    AttentionCall,
    AttentionLayer,
    RowLayout,
    layouts_of_tokens,
)
from captum_attnflow.capture.record import (
    ALL_KEYS_AT_ONCE,
    UnsupportedAttentionError,
)

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
            "are and where the heads: the output's gradient in them is 0, or that of "
            "an example depends on other examples. Pass one example at a time "
            "(internal_batch_size=1)"
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
    _refuse_parts_of_a_layer(stacks, calls)
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
        for call in stack.calls:
            rows[call] = slice(start, start + size)
        start += size
    fits = all(
        calls[i].layouts(rows[i].stop - rows[i].start)
        for stack in stacks
        for i in stack.calls
    )
    if start != n_rows or not fits:
        seen = sum(calls[stack.calls[0]].n_rows() for stack in stacks)
        n_keys = {calls[stack.calls[0]].lengths()[1] for stack in stacks}
        is_swapped = any(of.shape[1:2] == (seen,) for of in inputs)
        if seen < n_rows or (is_swapped and n_keys == {n_rows}):
            raise UnsupportedAttentionError(
                f"attention ran over {seen} rows for {n_rows} inputs, which seem to "
                "have their tokens first, in dimension 0. The batch comes first: pass "
                "them transposed, input.transpose(0, 1), and a forward_func that "
                "transposes them back"
            )
        raise UnsupportedAttentionError(
            f"{len(stacks)} stacks of attention ran over {seen} rows in all for "
            f"{n_rows} inputs: {_why_other_rows(len(stacks))}. It is not known which "
            "pass a token's score belongs to: attribute to one pass at a time. Inputs "
            "that have their tokens first go in transposed"
        )
    return rows


def _refuse_parts_of_a_layer(stacks: list[Stack], calls: list[AttentionCall]) -> None:
    """Refuse a layer whose attention runs in several calls, and say over what parts.

    Their values are the same tensor, or parts of one.
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
    if not beside:
        return
    parts = beside[0]
    lengths = [call.lengths() for call in parts]
    first, *others = (call.values for call in parts)
    if all(other.data_ptr() == first.data_ptr() for other in others):
        kind = "queries"
    elif sum(keys for _, keys in lengths) == lengths[0][0]:
        kind = "keys"
    else:
        kind = "heads or examples"
    sizes = [f"{n_queries} x {n_keys}" for n_queries, n_keys in lengths[:3]]
    if len(lengths) > 3:
        sizes.append("...")
    way_out = {
        "queries": "Let it have all queries at once, such as by a chunk size of the "
        'number of tokens or by attn_implementation="eager" or "sdpa"; AttnLRP takes '
        "the model as it is",
        "keys": ALL_KEYS_AT_ONCE,
        "heads or examples": "Let it have all heads and examples at once, as "
        'attn_implementation="eager" and "sdpa" do; AttnLRP takes the model as it is',
    }[kind]
    raise UnsupportedAttentionError(
        f"a layer attends in {len(parts)} calls, each over a part of its {kind}, as in "
        f"a Python loop over chunks ({', '.join(sizes)} queries x keys). Flows need "
        f"all of a layer in one call. {way_out}"
    )


def _why_other_rows(n_stacks: int) -> str:
    if n_stacks > 1:
        return (
            "several passes per input, such as those of two towers that meet behind "
            "their attention (CLIP: wrap get_image_features or get_text_features), of "
            "siamese models, or of reentrant gradient checkpointing"
        )
    return (
        "several passes per input in one batch, as of windowed attention (Swin), of "
        "channels that are sequences of their own (PatchTST: pass one channel as one "
        "example), or of texts joined in the batch"
    )
