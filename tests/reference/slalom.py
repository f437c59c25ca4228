"""SLALOM's function and scores, written out token by token."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

Function = tuple[Sequence[float], Sequence[float]]


def slalom(tokens: Sequence[int], function: Function, sink=None) -> float:
    """Weighted mean of the values of a sequence of types."""
    value, importance = function
    pairs = [(exp(importance[token]), value[token]) for token in tokens]
    if sink is not None:
        pairs.append((exp(sink[1]), sink[0]))
    return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)


def removal(tokens: Sequence[int], place: int, function: Function, sink=None) -> float:
    """Fall of the function when the token at one place is left out."""
    rest = [token for index, token in enumerate(tokens) if index != place]
    return slalom(tokens, function, sink) - slalom(rest, function, sink)
