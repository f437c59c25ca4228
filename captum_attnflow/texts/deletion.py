"""Shorter inputs: token ids or embeddings without some columns, texts without words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._checks import check_type
from captum_attnflow.targets import Target, run_forward
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
    query. Tokens to keep stay in every query, and each other token stays between the
    same kept tokens as in the text.

    Args:
        inputs (Tensor): Shape ``(B, T)`` or ``(B, T, D)``.
        additional (tuple, optional): The forward function's further arguments.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
        named_by (tuple of int): Which indices of a target name a position. The tokens
            there are among those to keep.
        whole (frozenset of int): Which of the further arguments have tokens of their
            own, such as a decoder's, and lose no column.

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
        is_floating = inputs.is_floating_point()
        self.float_shape = tuple(inputs.shape) if is_floating else None
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
            # Each kept token ends a segment. Sorting by segment keeps the query's order
            # within one.
            segments = accumulate(kept)
            self._order.append(
                [2 * seg - stays for seg, stays in zip(segments, kept, strict=True)]
            )

    def length(self, text: int, query: Query) -> int:
        """Return the number of tokens, kept ones included."""
        return len(self._kept[text]) + len(query)

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return the target with positions counted in the query's columns."""
        if not self._named_by:
            return target
        columns, counted = self._columns(text, query), list(target)
        for index in self._named_by:
            counted[index] = columns.index(target[index] % self.n_positions)
        return tuple(counted)

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on the columns of each query."""
        rows = torch.tensor(texts)
        columns = torch.tensor(
            [self._columns(*pair) for pair in zip(texts, queries, strict=True)]
        )
        device = self._inputs.device
        inputs = self._inputs[rows.to(device)[:, None], columns.to(device)]
        additional = self._token_axis.take_arguments(
            self._additional, rows, columns, self._whole
        )
        return run_forward(forward_func, inputs, None, additional)

    def _columns(self, text: int, query: Query) -> list[int]:
        positions = self.positions[text]
        columns = self._kept[text] + [positions[index] for index in query]
        return sorted(columns, key=self._order[text].__getitem__)


class DeletableWords:
    """Texts of words, split at white space; a query's words are joined by spaces.

    Args:
        texts (sequence of str): The texts.
        additional (tuple, optional): The forward function's further arguments.

    Raises:
        ValueError: If a text has no word.
    """

    absence: Absence = "deleted"
    max_rows: int | None = None
    float_shape: tuple[int, ...] | None = None

    def __init__(
        self, texts: Sequence[str], additional: tuple[Any, ...] | None
    ) -> None:
        accepted = "a list of at least one str"
        check_type("texts", texts, (list, tuple), accepted)
        if not texts:
            raise ValueError(f"texts={texts!r} are none; give {accepted}")
        for text in texts:
            check_type("a text", text, str, accepted)
        kinds = (tuple, list, type(None))
        check_type("additional", additional, kinds, "a tuple of arguments, or None")
        self._additional = additional or ()
        self._words = [text.split() for text in texts]
        for row, words in enumerate(self._words):
            if not words:
                raise ValueError(
                    f"text {row + 1} of {len(texts)} has no word; remove it"
                )
        self.types = [in_order_of_appearance(words) for words in self._words]
        self.positions = [list(range(len(words))) for words in self._words]
        self.n_positions = max(len(words) for words in self._words)

    def length(self, text: int, query: Query) -> int:
        """Return the number of words."""
        return len(query)

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return the target: outputs of a function of texts have no positions."""
        return target

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on a list of shorter texts."""
        rows = torch.tensor(texts)
        n_texts = len(self._words)
        joined = [
            " ".join(self._words[text][index] for index in query)
            for text, query in zip(texts, queries, strict=True)
        ]
        further = (rows_of(argument, n_texts, rows) for argument in self._additional)
        return forward_func(joined, *further)


def _number_tokens(inputs: Tensor) -> Tensor:
    """Give equal ids or equal embeddings the same number, ``(B, T)``."""
    if inputs.dim() == 2:
        return inputs.cpu()
    rows = inputs.detach().flatten(0, 1).flatten(1)
    numbers: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return numbers.view(inputs.shape[:2]).cpu()
