"""Queries that are shorter texts, for a forward function that takes texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_attnflow._options import check_type
from captum_attnflow.targets import Target
from captum_attnflow.texts.texts import Absence, Query, in_order_of_appearance
from captum_attnflow.texts.token_axis import rows_of


class DeletableWords:
    """Texts, cut into words at white space; a query joins words by spaces.

    Args:
        texts (sequence of str): The texts.
        additional (tuple, optional): The forward function's further arguments.

    Raises:
        ValueError: If a text has no word.
    """

    absence: Absence = "deleted"
    max_rows: int | None = None

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

    def move_target(self, target: Target, text: int, query: Query) -> Target:
        """Return the target: black boxes of texts have no positions."""
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
