"""Ids that no row of an embedding stands for, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@contextmanager
def vocabulary_in_words(
    inputs: Tensor | tuple[Any, ...], additional: tuple[Any, ...] | None = None
) -> Iterator[None]:
    """Say which of the given ids an embedding has no row for.

    Torch says "index out of range in self". What was looked up stands in the failed
    call itself, so that this costs nothing where all is well. Errors of other lookups,
    such as of too many positions, pass on as they are.

    Args:
        inputs (Tensor or tuple): The inputs of a forward function.
        additional (tuple, optional): Its further arguments.

    Raises:
        ValueError: If a lookup of given ids fails.
    """
    try:
        yield
    except IndexError as error:
        lookup = _failed_lookup(error)
        if lookup is None:
            raise
        ids, n_rows = lookup
        beyond = ids[(ids < 0) | (ids >= n_rows)]
        of_inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        given = (*of_inputs, *(additional or ()))
        if not any(_holds(tensor, beyond) for tensor in given):
            raise
        which = ", ".join(map(str, sorted(set(beyond.tolist()))[:5]))
        raise ValueError(
            f"the ids {which} were given, but the embedding that they are looked up in "
            f"has {n_rows} rows; give ids from 0 to {n_rows - 1}, such as those of the "
            "model's own tokenizer. After adding tokens to it, call "
            "model.resize_token_embeddings(len(tokenizer))"
        ) from error


def _failed_lookup(error: IndexError) -> tuple[Tensor, int] | None:
    """Find the ids and the rows of a lookup in which an error was raised."""
    last = None
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is F.embedding.__code__:
            last = frame.f_locals
    if last is None or not isinstance(last.get("input"), Tensor):
        return None
    return last["input"], len(last["weight"])


def _holds(given: Any, ids: Tensor) -> bool:
    """Whether a tensor holds just these ids, however often it is laid out anew."""
    if not isinstance(given, Tensor) or given.is_floating_point() or not len(ids):
        return False
    return all(
        int((given == one).sum()) == int((ids == one).sum()) for one in ids.unique()
    )
