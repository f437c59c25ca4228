"""Queries that are real shorter inputs: columns of ids or embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from captum._utils.common import _run_forward
from torch import Tensor

from captum_attnflow.targets import Target
from captum_attnflow.texts.texts import (
    Absence,
    Query,
    check_masks,
    check_tokens,
    explained_positions,
    in_order_of_appearance,
)
from captum_attnflow.texts.token_axis import TokenAxis, rows_of


class DeletableColumns:
    """Token ids ``(B, T)`` or embeddings ``(B, T, D)`` with columns to delete.

    A type is a distinct id or a distinct embedding. Padding is deleted from every
    query; tokens to keep stay in every query, and the others stay between the kept
    ones that they stand between in the text.

    Args:
        inputs (Tensor): Shape ``(B, T)`` or ``(B, T, D)``.
        additional (tuple, optional): The forward function's further arguments.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
        named_by (tuple of int): Which indices of a target name a position, among the
            tokens to keep.
        whole (frozenset of int): Which of the further arguments have tokens of their
            own, such as a decoder's, and stay as they are.

    Raises:
        ValueError: If a text has no token to explain.
    """

    absence: Absence = "deleted"
    max_rows: int | None = None

    def __init__(
        self,
        inputs: Tensor,
        additional: tuple[Any, ...] | None,
        keep: Tensor,
        padding: Tensor,
        named_by: tuple[int, ...] = (),
        whole: frozenset[int] = frozenset(),
    ) -> None:
        check_masks(keep, padding)
        check_tokens("inputs", inputs, padding)
        self._inputs = inputs
        self._additional = additional
        self._named_by, self._whole = named_by, whole
        self._token_axis = TokenAxis(padding)
        self.n_positions = inputs.shape[1]
        self.positions = explained_positions(keep, padding)
        self.types = [
            in_order_of_appearance(row[positions].tolist())
            for row, positions in zip(
                _number_tokens(inputs), self.positions, strict=True
            )
        ]
        self._kept: list[list[int]] = []
        self._order: list[list[int]] = []
        for kept in (keep & ~padding).tolist():
            self._kept.append([index for index, stays in enumerate(kept) if stays])
            # Kept tokens end segments of the others; within one the query decides.
            segments = accumulate(kept)
            self._order.append(
                [2 * seg - stays for seg, stays in zip(segments, kept, strict=True)]
            )

    def length(self, text: int, query: Query) -> int:
        """Return the number of tokens, kept ones included."""
        return len(self._kept[text]) + len(query)

    def move_target(self, target: Target, text: int, query: Query) -> Target:
        """Return the target with named positions where they are in the query."""
        if not self._named_by:
            return target
        columns, moved = self._columns(text, query), list(target)
        for index in self._named_by:
            moved[index] = columns.index(target[index] % self.n_positions)
        return tuple(moved)

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on the columns of each query."""
        rows = torch.tensor(texts)
        columns = torch.tensor(
            [self._columns(*asked) for asked in zip(texts, queries, strict=True)]
        )
        device = self._inputs.device
        inputs = self._inputs[rows.to(device)[:, None], columns.to(device)]
        additional = self._additional and tuple(
            rows_of(argument, len(self._inputs), rows)
            if number in self._whole
            else self._token_axis.take(argument, rows, columns)
            for number, argument in enumerate(self._additional)
        )
        return _run_forward(forward_func, inputs, None, additional)

    def _columns(self, text: int, query: Query) -> list[int]:
        positions = self.positions[text]
        columns = self._kept[text] + [positions[index] for index in query]
        return sorted(columns, key=self._order[text].__getitem__)


def _number_tokens(inputs: Tensor) -> Tensor:
    """Give equal ids or equal embeddings the same number, ``(B, T)``."""
    if inputs.dim() == 2:
        return inputs.cpu()
    rows = inputs.detach().flatten(0, 1).flatten(1)
    numbers: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return numbers.view(inputs.shape[:2]).cpu()
