"""Where a model's answer is read: which token the target names, which lie behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_attnflow.texts import PerturbableTexts, Target, ask, run_queries

# Answers that differ by less are equal, in multiples of the dtype's rounding: kernels
# sum in another order over inputs of another length.
_ROUNDINGS = 64
_LARGEST_ROUNDING = 2e-2


def axes_of_tokens(
    forward_func: Callable[..., Any], texts: PerturbableTexts, n_indices: int
) -> tuple[int, ...]:
    """Tell which indices of a target are token positions, from inputs of two lengths.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): Texts whose tokens are deleted.
        n_indices (int): Indices of a target.

    Returns:
        tuple of int: Numbers of those indices; the last index is the class.

    Raises:
        ValueError: If an axis follows the tokens, but is of another length.
    """
    full = tuple(range(len(texts.types[0])))
    lengths, shapes = [], []
    for query in (full, full[:-1] or full):
        output = run_queries(forward_func, texts, [0], [query])
        if not isinstance(output, Tensor) or output.dim() != n_indices + 1:
            return ()
        lengths.append(texts.length(0, query))
        shapes.append(output.shape[1:-1])
    found = []
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        if list(sizes) == lengths:
            found.append(axis)
        elif sizes[0] != sizes[1]:
            raise ValueError(
                f"forward_func returned outputs of shape (rows, "
                f"{', '.join(map(str, output.shape[1:]))}) for {lengths[1]} tokens, so "
                f"that the token that index {axis} of the target names is not known "
                'once tokens are deleted; give absence="baseline", which deletes none'
            )
    return tuple(found)


def named_positions(
    targets: Sequence[Target], axes: Sequence[int], padding: Tensor
) -> Tensor:
    """Mark the positions that targets name, ``(B, T)``.

    Raises:
        ValueError: If one is padding, or none of the text's.
    """
    n_positions = padding.shape[1]
    named = torch.zeros_like(padding)
    for text, target in enumerate(targets):
        for position in (target[axis] for axis in axes):
            inside = -n_positions <= position < n_positions
            if not inside or bool(padding[text, position]):
                raise ValueError(
                    f"target {target} of text {text + 1} names position {position}, "
                    f"which is {'padding' if inside else 'out of range'}: the text has "
                    f"{int((~padding[text]).sum())} tokens in {n_positions} positions"
                )
            named[text, position] = True
    return named


def without_effect(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    targets: Sequence[Target] | None,
    first_behind: Sequence[int] | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Mark tokens at the end that no answer depends on, as behind a causal read-out.

    Answers with and without them are compared in the company of all tokens before
    them, of the first half and of the first one; where these are equal, also of as
    many of the first and of the last tokens before them as there can be.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        targets (sequence of tuple, optional): Per text.
        first_behind (sequence of int, optional): Per text, the index of the first
            explained token behind the position that its target names; without it, it
            is searched for by bisection.
        internal_batch_size (int, optional): Most rows per forward pass.

    Returns:
        Tensor: Shape ``(B, T)``, bool.
    """
    sizes = [len(types) for types in texts.types]

    def are_idle(starts: dict[int, int], company: Company) -> set[int]:
        """Texts whose tokens from ``start`` on change nothing."""
        queries = [
            _pairs(company(starts[text] or size), starts[text], size)
            if text in starts
            else []
            for text, size in enumerate(sizes)
        ]
        outputs = ask(forward_func, texts, queries, targets, internal_batch_size)
        return {text for text in starts if _equal_in_pairs(outputs[text])}

    low = [0 if first_behind else 1] * len(sizes)
    idle_from = list(sizes)
    tried = dict(enumerate(first_behind or (size - 1 for size in sizes)))
    tried = {
        text: start
        for text, start in tried.items()
        # A token alone has nothing to be compared with.
        if low[text] <= start < sizes[text] and sizes[text] > 1
    }
    while tried:
        idle = are_idle(tried, _few)
        idle = are_idle({text: tried[text] for text in idle}, _many) if idle else idle
        for text, start in tried.items():
            if text in idle:
                idle_from[text] = start
            else:
                low[text] = start + 1
        tried = {
            text: (low[text] + idle_from[text]) // 2
            for text in tried
            if first_behind is None and low[text] < idle_from[text] < sizes[text]
        }
    behind = torch.zeros(len(sizes), texts.n_positions, dtype=torch.bool)
    for text, start in enumerate(idle_from):
        behind[text, texts.positions[text][start:]] = True
    return behind


Company = Callable[[int], list[tuple[int, ...]]]


def _pairs(
    company: list[tuple[int, ...]], start: int, size: int
) -> list[tuple[int, ...]]:
    """Queries two by two that differ by tokens from ``start`` on, none empty."""
    if start == 0:  # all of them, and parts of them
        return [query for part in company[1:] for query in (company[0], part)]
    behind = tuple(range(start, size))
    return [query for others in company for query in ((*others, *behind), others)]


def _few(start: int) -> list[tuple[int, ...]]:
    before = tuple(range(start))
    return list(dict.fromkeys([before, before[: (start + 1) // 2], before[:1]]))


def _many(start: int) -> list[tuple[int, ...]]:
    before = tuple(range(start))
    firsts = [before[:size] for size in range(1, start)]
    return [before, *firsts, *(before[-size:] for size in range(1, start))]


def _equal_in_pairs(outputs: Tensor) -> bool:
    tolerance = min(_ROUNDINGS * torch.finfo(outputs.dtype).eps, _LARGEST_ROUNDING)
    difference = (outputs[0::2] - outputs[1::2]).abs().max()
    return bool(difference <= tolerance * outputs.abs().max())
