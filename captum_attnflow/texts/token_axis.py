"""Arguments of a forward function that follow its texts and their tokens.

Where columns of the input are taken away or repeated, so are those of every argument
that shares its token axis, and positions are counted anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenAxis:
    """The token axis of a batch of texts.

    Attributes:
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
    """

    padding: Tensor

    def is_shared(self, argument: Any) -> bool:
        """Whether an argument looks as if it had these tokens, by its shape."""
        if not isinstance(argument, Tensor):
            return False
        return bool(_token_axes(argument, *self.padding.shape))

    def take(self, argument: Any, rows: Tensor, columns: Tensor) -> Any:
        """Take rows of an argument, and columns where it shares the token axis.

        A mask of at least three dimensions that ends in ``(T, T)`` or ``(1, T)`` has
        its tokens there, whatever its heads; every other tensor ``(B, T, ...)`` or
        ``(1, T, ...)`` in dimension 1; a mask ``(B, H, S, T)`` last. Integers
        ``(B, T)`` that go up by 1 from token to token are positions: they are counted
        anew from the first one of the text.

        Args:
            argument (Any): An additional argument of the forward function.
            rows (Tensor): Shape ``(N,)``, int64, text of each row to be made.
            columns (Tensor): Shape ``(N, L)``, int64, its positions in the text.

        Returns:
            Any: The argument for ``N`` texts of ``L`` tokens; as it was given where it
            has neither texts nor tokens.
        """
        n_texts = len(self.padding)
        if not isinstance(argument, Tensor):
            return argument
        rows, columns = rows.to(argument.device), columns.to(argument.device)
        axes = _token_axes(argument, *self.padding.shape)
        if not axes:
            return rows_of(argument, n_texts, rows)
        argument = argument.expand(n_texts, *argument.shape[1:])
        if self._are_positions(argument):
            padding = self.padding.to(argument.device)[rows]
            first = (~padding).int().argmax(1, keepdim=True)
            count = torch.arange(columns.shape[1], device=argument.device)
            return argument[rows].gather(1, first) + count
        return columns_of(argument[rows], columns, axes)

    def _are_positions(self, argument: Tensor) -> bool:
        # Two tokens do not tell: 0 and 1 may be types as well.
        if argument.dim() != 2 or argument.dtype not in (torch.int32, torch.int64):
            return False
        padding = self.padding.to(argument.device)
        neighbours = ~(padding[:, 1:] | padding[:, :-1])
        if not neighbours.numel() or int(neighbours.sum(1).max()) < 2:
            return False
        return bool((argument.diff(dim=1) == 1)[neighbours].all())


def has_rows(argument: Any, n_texts: int) -> bool:
    """Whether an argument is a tensor with one row per text."""
    is_array = isinstance(argument, Tensor) and argument.dim() > 0
    return is_array and len(argument) == n_texts


def rows_of(argument: Any, n_texts: int, rows: Tensor | slice) -> Any:
    """Take the rows of an argument that has one per text; others pass through."""
    if not has_rows(argument, n_texts):
        return argument
    return argument[rows if isinstance(rows, slice) else rows.to(argument.device)]


def columns_of(tensor: Tensor, columns: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Take each row's own columns along the token axes.

    Args:
        tensor (Tensor): Shape ``(N, ...)``.
        columns (Tensor): Shape ``(N, L)``, int64.
        axes (tuple of int): Dimensions of ``tensor`` that are tokens.
    """
    for axis in axes:
        shape = [1] * tensor.dim()
        shape[0], shape[axis] = columns.shape
        tensor = tensor.take_along_dim(columns.reshape(shape), axis)
    return tensor


def _token_axes(argument: Tensor, n_texts: int, n_tokens: int) -> tuple[int, ...]:
    """Dimensions that are tokens; see :meth:`TokenAxis.take`."""
    if argument.dim() < 2 or len(argument) not in (1, n_texts):
        return ()
    last_two = (argument.dim() - 2, argument.dim() - 1)
    pairwise = tuple(axis for axis in last_two if argument.shape[axis] == n_tokens)
    ends_as_mask = argument.shape[-1] == n_tokens and argument.shape[-2] in (
        1,
        n_tokens,
    )
    if argument.dim() > 2 and ends_as_mask:
        return pairwise
    if argument.shape[1] == n_tokens:
        return (1,)
    return pairwise if argument.dim() == 4 else ()
