"""Which dimension of a tensor holds the rows of the batch.

Sizes do not tell: there may be as many heads, or tokens, as rows, and heads that share
a dimension with the rows come before or after them. The gradient does: the output of a
row has none in other rows. So where the output of row :math:`b` is weighted by
:math:`w_b`, the gradient in row :math:`b` of a tensor is :math:`w_b` times the plain
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the plain gradient's norm: rows in another order leave more.
_TOLERANCE = 0.02


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
        # One row is all that there is, wherever it stands.
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
