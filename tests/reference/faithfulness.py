"""Faithfulness metrics from their definitions: one text, one order, one set at a time.

A tie is broken at random, so a metric is its mean over all orders of the tokens in
which the scores never increase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, permutations


def orders(tokens: Sequence[int], scores: Sequence[float]) -> list[tuple[int, ...]]:
    """All orders of the tokens, highest score first."""
    return [
        order
        for order in permutations(tokens)
        if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]


def n_highest(level: float, n_tokens: int) -> int:
    return math.ceil(Fraction(str(level)) * n_tokens)


def curve(
    metric: str,
    probability: Callable[[tuple[int, ...]], float],
    ids: Sequence[int],
    scores: Sequence[float],
    keep: Sequence[bool],
    reference: int | None,
    levels: Sequence[float],
) -> list[float]:
    """Value of a metric at each level; ``reference`` None deletes tokens."""
    tokens = [t for t in range(len(ids)) if not keep[t]]
    all_orders = orders(tokens, scores)

    def without(gone: Sequence[int]) -> float:
        if reference is None:
            return probability(tuple(ids[t] for t in range(len(ids)) if t not in gone))
        return probability(
            tuple(reference if t in gone else ids[t] for t in range(len(ids)))
        )

    def value(order: tuple[int, ...], level: float) -> float:
        k = n_highest(level, len(tokens))
        highest, rest = order[:k], order[k:]
        p = without(())
        if metric in ("aopc", "comprehensiveness"):
            return p - without(highest)
        if metric == "log_odds":
            return math.log(without(highest) / p)
        if metric == "sufficiency":
            return p - without(rest)
        if metric == "deletion":
            return without(highest)
        assert metric == "insertion"
        return without(rest)

    return [
        sum(value(order, level) for order in all_orders) / len(all_orders)
        for level in levels
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def area(values: Sequence[float], levels: Sequence[float]) -> float:
    total = 0.0
    for i in range(len(levels) - 1):
        total += (levels[i + 1] - levels[i]) * (values[i] + values[i + 1]) / 2
    return total / (levels[-1] - levels[0])


def aopc_of_order(
    probability: Callable[[tuple[int, ...]], float],
    ids: Sequence[int],
    order: Sequence[int],
    reference: int | None,
    with_last: bool = False,
) -> float:
    """Mean fall as the tokens go one by one, up to the last or with it."""
    falls = []
    for k in range(1, len(order) + with_last):
        gone = order[:k]
        kept = [t for t in range(len(ids)) if t not in gone]
        if reference is None:
            left = tuple(ids[t] for t in kept)
        else:
            left = tuple(ids[t] if t in kept else reference for t in range(len(ids)))
        falls.append(probability(tuple(ids)) - probability(left))
    return mean(falls) if falls else 0.0
