r"""The straight path from a baseline to the input, all its points in one batch.

The relevance of an input along the path is that of Integrated Gradients
(Sundararajan et al. 2017, Eq. 3), by a quadrature with weights :math:`w_k` at the
fractions :math:`\alpha_k`:

.. math::
    (x - x') \odot \sum_k w_k
        \frac{\partial y}{\partial x}\left(x' + \alpha_k (x - x')\right).

The last point is the input itself, whose attention is captured in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_attnflow.capture.entries import in_this_thread
from captum_attnflow.capture.torch_calls import Softmaxes, begins_attention, eager
from captum_attnflow.targets import check_baseline_ids, run_forward


class InputPath:
    """Points on the straight path, as blocks of rows of one batch.

    The path leads through the output of a layer, as that of LayerIntegratedGradients;
    where none is given, or attention comes before it, through embeddings and pixels
    where they enter, and token ids where the model looks them up in an embedding, since
    there is nothing between two ids.

    Args:
        start (Tensor): Baseline ``(B, ...)``.
        end (Tensor): The input, of the same shape.
        fractions (Tensor): Shape ``(P,)``, positions of the points along the path.
        weights (Tensor): Shape ``(P,)``, of the gradients at the points.
        layer (Module, optional): A layer in front of the attention.

    Attributes:
        on_entry (Callable, optional): Called with the points where they enter.
    """

    def __init__(
        self,
        start: Tensor,
        end: Tensor,
        fractions: Tensor,
        weights: Tensor,
        layer: nn.Module | None = None,
    ) -> None:
        self._start, self._end = start, end
        self._fractions, self._weights = fractions, weights
        self._layer = layer
        self._lookups: list[_Lookup] = []  # of the baseline
        self._at_baseline: Tensor | None = None  # the layer's output, rows first
        self._layer_axis = 0  # of the rows in it
        self._displacement: Tensor | None = None
        self._points: Tensor | None = None  # (P * B, ...), a leaf
        self.on_entry: Callable[[Tensor], None] | None = None

    @property
    def n_examples(self) -> int:
        """Examples, each of which has all points."""
        return len(self._end)

    def enter(
        self,
        forward_func: Callable[..., Any],
        others: tuple[Tensor, ...],
        additional: tuple[Any, ...] | None,
    ) -> Tensor:
        """Return the rows to pass on as the first input.

        Args:
            forward_func (Callable): Run on the baseline as far as the path's place.
            others (tuple[Tensor, ...]): The other inputs, one row per point.
            additional (tuple, optional): Further arguments of the same rows.
        """
        is_ids = not self._end.is_floating_point()
        if is_ids or self._layer is not None:
            baselines = self._repeat(self._start)

            def run(rows: Tensor) -> None:
                run_forward(forward_func, (rows, *others), None, additional)

            output, self._lookups = self._scout(run, baselines)
            if output is not None:
                axis = self._axis_of_layer(output, run, baselines)
                if axis is not None:
                    self._layer_axis = axis
                    self._at_baseline = output.movedim(axis, 0)
        if is_ids or self._at_baseline is not None:
            return self._repeat(self._end)
        return self._place(self._start, self._end)

    def _scout(
        self, run: Callable[[Tensor], None], rows: Tensor
    ) -> tuple[Tensor | None, list[_Lookup]]:
        """Run as far as the layer, or the attention, if that comes first.

        Returns:
            tuple: The layer's output, if it was reached, and the lookups on the way.
        """
        mode = _LookupsBeforeAttention(self._lookup_axis)
        try:
            with eager(), torch.no_grad(), mode, self._at_layer(self._leave):
                run(rows)
        except _AtLayer as reached:
            return reached.output, mode.lookups
        except _AtAttention:
            pass
        return None, mode.lookups

    def _axis_of_layer(
        self, output: Tensor, run: Callable[[Tensor], None], baselines: Tensor
    ) -> int | None:
        """Tell which dimension of the layer's output holds the rows.

        Where not only the first may, a block of inputs in place of baselines shows it.

        Args:
            output (Tensor): What the layer puts out where all rows are baselines.
            run (Callable): Runs the forward function over rows.
            baselines (Tensor): These rows.
        """
        fitting = [axis for axis in (0, 1) if output.shape[axis] == len(baselines)]
        if fitting == [0]:
            return 0
        block = self.n_examples
        partly, _ = self._scout(run, torch.cat([self._end, baselines[block:]]))
        assert partly is not None
        changed = (output != partly).reshape(*output.shape[:2], -1).any(-1)
        fitting = [
            axis
            for axis in fitting
            if bool(changed.any()) and not bool(changed.movedim(axis, 0)[block:].any())
        ]
        if len(fitting) > 1:
            raise ValueError(
                f"the layer's output of shape {tuple(output.shape)} does not show "
                "which dimension holds the examples and which the tokens. Pass another "
                "number of examples, such as by internal_batch_size, or path_steps=0"
            )
        return fitting[0] if fitting else None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While active, the layer puts out the points, if the path leads there."""
        leads = self._at_baseline is not None
        with self._at_layer(self._replace) if leads else nullcontext():
            yield

    def enter_lookup(self, output: Tensor, args: Sequence[Any]) -> Tensor:
        """Return the points in place of what a lookup found, if it is the input's."""
        placed = self._points is not None or self._at_baseline is not None
        axis = None if placed else self._lookup_axis(args)
        if axis is None:
            return output
        # Positions and token types are looked up too, the same ones for the baseline.
        is_moved = not torch.equal(self._start, self._end)
        for ids, table, start in self._lookups:
            # Offloaded tables are loaded anew for every pass: rows tell them.
            same_table = table is args[1] or (
                table.shape == args[1].shape
                and torch.equal(F.embedding(ids, args[1]), start)
            )
            if same_table and torch.equal(ids, args[0]) != is_moved:
                return self._place_output(start, output, axis)
        return output

    def points_entered(self) -> Tensor:
        """Return the points, a leaf of shape ``(P * B, ...)``.

        Raises:
            ValueError: If the model never looked the input up.
        """
        if self._points is None:
            raise ValueError(
                f"an input of dtype {self._end.dtype} and shape "
                f"{tuple(self._end.shape)} was never looked up in an embedding of "
                "shape (examples, tokens, ...), so there is no path to it. Pass "
                "embeddings as the input, or path_steps=0, which takes no path"
            )
        return self._points

    def relevance(self, gradient: Tensor) -> Tensor:
        """Integrate gradient times displacement, shape ``(B, ...)``.

        Args:
            gradient (Tensor): Of the output in the points.
        """
        assert self._displacement is not None
        n_points = len(self._fractions)
        blocks = gradient.reshape(n_points, -1, *gradient.shape[1:])
        weights = self._weights.to(blocks).reshape(-1, *(1 for _ in gradient.shape))
        return (weights * blocks).sum(0) * self._displacement

    @contextmanager
    def _at_layer(self, visit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Pass the layer's output on to a visitor while active."""

        def hook(module: nn.Module, taken: tuple[Any, ...], output: Any) -> Any:
            n_rows = len(self._fractions) * self.n_examples
            fits = isinstance(output, Tensor) and output.is_floating_point()
            fits = fits and output.dim() > 1 and n_rows in output.shape[:2]
            return visit(output) if fits else output

        if self._layer is None:
            yield
            return
        # Before hooks that watch the layer, which are to see the points.
        handle = self._layer.register_forward_hook(
            in_this_thread(self._layer, hook), prepend=True
        )
        try:
            yield
        finally:
            handle.remove()

    def _leave(self, output: Tensor) -> Tensor:
        raise _AtLayer(output)

    def _replace(self, output: Tensor) -> Tensor:
        if self._points is not None or self._at_baseline is None:
            return output
        start = self._at_baseline.movedim(0, self._layer_axis)
        return self._place_output(start, output, self._layer_axis)

    def _place_output(self, start: Tensor, end: Tensor, axis: int) -> Tensor:
        start, end = (rows.movedim(axis, 0)[: self.n_examples] for rows in (start, end))
        # A clone, since models add to their embeddings in place.
        return self._place(start, end).movedim(0, axis).clone()

    def _place(self, start: Tensor, end: Tensor) -> Tensor:
        start, end = start.detach().to(end), end.detach()
        self._displacement = end - start
        weight = self._fractions.to(end).reshape(-1, *(1 for _ in end.shape))
        # Exactly the input at the end, whatever the baseline is, NaN included.
        points = torch.where(weight == 1, end, torch.lerp(start, end, weight))
        points = points.flatten(0, 1)
        self._points = points.requires_grad_()
        if self.on_entry is not None:
            self.on_entry(self._points)
        return self._points

    def _repeat(self, tensor: Tensor) -> Tensor:
        return tensor.repeat(len(self._fractions), *(1 for _ in tensor.shape[1:]))

    def _lookup_axis(self, args: Sequence[Any]) -> int | None:
        """Return the dimension of the rows in ids that are looked up.

        They are (examples, tokens), the same block for every point, or the input's
        own with the tokens first. Positions come in one row, and are told by that.
        """
        ids = args[0] if args else None
        n_rows = len(self._fractions) * self.n_examples
        if not isinstance(ids, Tensor) or ids.dim() < 2:
            return None
        if len(ids) == n_rows and torch.equal(
            ids, self._repeat(ids[: self.n_examples])
        ):
            return 0
        if ids.dim() != 2 or ids.shape[1] != n_rows or self._end.dim() != 2:
            return None
        given = (self._repeat(rows).mT.to(ids) for rows in (self._start, self._end))
        return 1 if any(torch.equal(ids, rows) for rows in given) else None


_Lookup = tuple[Tensor, Tensor, Tensor]
"""Ids, the table they are looked up in, and what was found."""


class _AtLayer(BaseException):
    """Leaves the forward function at the layer; no error, hence no Exception."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


class _AtAttention(BaseException):
    """Leaves the forward function where attention begins."""


class _LookupsBeforeAttention(TorchFunctionMode):
    """Notes the embedding lookups of the baseline up to its first attention."""

    def __init__(self, lookup_axis: Callable[[Sequence[Any]], int | None]) -> None:
        super().__init__()
        self.lookups: list[_Lookup] = []
        self._lookup_axis = lookup_axis
        self._softmaxes = Softmaxes()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A path behind it would cut its gradient off.
        if begins_attention(self._softmaxes, func, args, kwargs):
            raise _AtAttention
        try:
            output = func(*args, **kwargs)
        except IndexError:
            if func is not F.embedding or self._lookup_axis(args) is None:
                raise
            ids, table = args[:2]
            check_baseline_ids(ids, len(table))
            raise
        self._softmaxes.note(func, args, kwargs, output)
        if func is F.embedding and self._lookup_axis(args) is not None:
            self.lookups.append((args[0], args[1], output))
        return output
