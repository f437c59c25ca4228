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

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _run_forward
from torch import Tensor
from torch.overrides import TorchFunctionMode


class InputPath:
    """Points on the straight path, as blocks of rows of one batch.

    Embeddings and pixels are moved where they enter; token ids where the model looks
    them up in an embedding, since there is nothing between two ids.

    Args:
        start (Tensor): Baseline ``(B, ...)``.
        end (Tensor): The input, of the same shape.
        fractions (Tensor): Shape ``(P,)``, positions of the points along the path.
        weights (Tensor): Shape ``(P,)``, of the gradients at the points.
    """

    def __init__(
        self, start: Tensor, end: Tensor, fractions: Tensor, weights: Tensor
    ) -> None:
        self._start, self._end = start, end
        self._fractions, self._weights = fractions, weights
        self._lookup: _LookedUp | None = None  # of the baseline
        self._displacement: Tensor | None = None
        self._points: Tensor | None = None  # (P * B, ...), a leaf

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
            forward_func (Callable): Run on the baseline ids up to their lookup.
            others (tuple[Tensor, ...]): The other inputs, one row per point.
            additional (tuple, optional): Further arguments of the same rows.
        """
        if self._end.is_floating_point():
            return self._place(self._start, self._end)
        start = self._repeat(self._start)
        try:
            with torch.no_grad(), _StopAtLookup(self._is_lookup):
                _run_forward(forward_func, (start, *others), None, additional)
        except _LookedUp as reached:
            self._lookup = reached
        return self._repeat(self._end)

    def enter_lookup(
        self, lookup: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run an embedding lookup; return the points if it is the input's."""
        output = lookup(*args, **kwargs)
        start = self._lookup
        if start is None or self._points is not None or not self._is_lookup(args):
            return output
        # Token types, say, are the same for the baseline.
        if torch.equal(start.ids, args[0]) != torch.equal(self._start, self._end):
            return output
        examples = slice(self.n_examples)
        return self._place(start.output[examples], output[examples])

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

    def _place(self, start: Tensor, end: Tensor) -> Tensor:
        start, end = start.detach(), end.detach()
        self._displacement = end - start
        weight = self._fractions.to(end).reshape(-1, *(1 for _ in end.shape))
        # lerp ends at exactly the input, where start + 1 * (end - start) may not.
        points = torch.lerp(start, end, weight).flatten(0, 1)
        self._points = points.requires_grad_()
        return self._points

    def _repeat(self, tensor: Tensor) -> Tensor:
        return tensor.repeat(len(self._fractions), *(1 for _ in tensor.shape[1:]))

    def _is_lookup(self, args: Sequence[Any]) -> bool:
        """Whether these are ids (examples, tokens), the same block for every point.

        Positions come in one row, or with the tokens first, and are told by that.
        """
        ids = args[0] if args else None
        n_rows = len(self._fractions) * self.n_examples
        if not isinstance(ids, Tensor) or ids.dim() < 2 or len(ids) != n_rows:
            return False
        return torch.equal(ids, self._repeat(ids[: self.n_examples]))


class _LookedUp(BaseException):
    """Leaves the forward function; no error, hence no Exception."""

    def __init__(self, ids: Tensor, output: Tensor) -> None:
        self.ids, self.output = ids, output


class _StopAtLookup(TorchFunctionMode):
    def __init__(self, is_lookup: Callable[[Sequence[Any]], bool]) -> None:
        super().__init__()
        self._is_lookup = is_lookup

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.embedding and self._is_lookup(args):
            raise _LookedUp(args[0], output)
        return output
