r"""Which tokens are removed at each level of a metric, and with which weight.

All metrics of this package remove the tokens of highest score, or all others. The order
of a sort must not matter: if only some tokens of a group with equal scores are among
the highest ``k``, every choice among the group is equally likely, and a metric is its
expectation over these choices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from captum_attnflow.metrics.arguments import n_of_share

Part = Literal["highest", "rest"]


class Level(NamedTuple):
    """What is removed at one level.

    Attributes:
        fraction (float): Share of the removable tokens, in [0, 1]; of ``n`` tokens it
            means the ``k = ceil(fraction * n)`` highest, so that a positive fraction
            means at least one.
        part (str): ``"highest"`` removes these tokens, ``"rest"`` all others.
    """

    fraction: float
    part: Part

    def n_highest(self, n_tokens: int) -> int:
        """Return how many of ``n_tokens`` tokens are the highest."""
        return n_of_share(self.fraction, n_tokens)


class Count(NamedTuple):
    """What is removed at one level, by number.

    Attributes:
        tokens (int): Number of the highest removable tokens; at least one token is
            left.
        part (str): ``"highest"`` removes these tokens, ``"rest"`` all others.
    """

    tokens: int
    part: Part

    def n_highest(self, n_tokens: int) -> int:
        """Return how many of ``n_tokens`` tokens are the highest."""
        return max(0, min(self.tokens, n_tokens - 1))


AnyLevel = Level | Count
NOTHING = Level(0.0, "highest")


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Distinct sets of tokens to remove.

    Attributes:
        example (Tensor): Shape ``(S,)``, int64, row of the batch that a set belongs to.
        removed (Tensor): Shape ``(S, T)``, bool.
    """

    example: Tensor
    removed: Tensor


@dataclass(frozen=True, eq=False)
class Removals(TokenSets):
    """Sets of tokens, and the weight of each at each level.

    Attributes:
        term_set (Tensor): Shape ``(N,)``, int64, set of each term of the expectations.
        term_level (Tensor): Shape ``(N,)``, int64, level of each term.
        term_weight (Tensor): Shape ``(N,)``, float64, probability of each term; those
            of one example and level sum to 1.
        shape (tuple of int): Examples ``B`` and levels ``K``.
    """

    term_set: Tensor
    term_level: Tensor
    term_weight: Tensor
    shape: tuple[int, int]

    def expectation(self, values: Tensor) -> Tensor:
        """Average a value per set over the choices of each example and level.

        Args:
            values (Tensor): Shape ``(S,)``, float64.

        Returns:
            Tensor: Shape ``(B, K)``.
        """
        terms = self.term_weight * values[self.term_set]
        where = (self.example[self.term_set], self.term_level)
        return values.new_zeros(self.shape).index_put(where, terms, accumulate=True)


def plan_removals(
    scores: Tensor,
    removable: Tensor,
    levels: Sequence[AnyLevel],
    n_tie_samples: int,
    seed: int,
) -> Removals:
    """List the sets of tokens that every level needs.

    Args:
        scores (Tensor): Shape ``(B, T)``, one score per token.
        removable (Tensor): Shape ``(B, T)``, bool; the tokens that count.
        levels (sequence of Level or Count): The levels.
        n_tie_samples (int): If there are at most this many choices among tied tokens,
            all are taken; otherwise this many are drawn.
        seed (int): Seed of the draws. They depend only on it and on the numbers of tied
            and of chosen tokens.

    Returns:
        Removals: On the CPU; a set that serves several levels is listed once.
    """
    sets: dict[tuple[int, tuple[int, ...]], int] = {}
    terms: list[tuple[int, int, float]] = []
    for example, (row, allowed) in enumerate(zip(scores, removable, strict=True)):
        positions = allowed.nonzero()[:, 0].tolist()
        score_of = dict(zip(positions, row[allowed].tolist(), strict=True))
        for number, level in enumerate(levels):
            n_highest = level.n_highest(len(positions))
            choices = list(_highest(score_of, n_highest, n_tie_samples, seed))
            for highest in choices:
                if level.part == "rest":
                    highest = tuple(p for p in positions if p not in highest)
                index = sets.setdefault((example, highest), len(sets))
                terms.append((index, number, 1 / len(choices)))
    removed = torch.zeros(len(sets), scores.shape[1], dtype=torch.bool)
    for index, (_, positions) in enumerate(sets):
        removed[index, list(positions)] = True
    term_set, term_level, term_weight = zip(*terms, strict=True)
    return Removals(
        example=torch.tensor([example for example, _ in sets]),
        removed=removed,
        term_set=torch.tensor(term_set),
        term_level=torch.tensor(term_level),
        term_weight=torch.tensor(term_weight, dtype=torch.float64),
        shape=(len(scores), len(levels)),
    )


def _highest(
    score_of: dict[int, float], n_highest: int, n_tie_samples: int, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yield equally likely choices of the positions of the highest scores, in order."""
    if n_highest == 0:
        yield ()
        return
    threshold = sorted(score_of.values(), reverse=True)[n_highest - 1]
    certain = [p for p, score in score_of.items() if score > threshold]
    tied = [p for p, score in score_of.items() if score == threshold]
    n_chosen = n_highest - len(certain)
    for chosen in _choices(tied, n_chosen, n_tie_samples, seed):
        yield tuple(sorted((*certain, *chosen)))


def _choices(
    tied: list[int], n_chosen: int, n_tie_samples: int, seed: int
) -> Iterator[tuple[int, ...]]:
    if math.comb(len(tied), n_chosen) <= n_tie_samples:
        yield from itertools.combinations(tied, n_chosen)
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_tie_samples):
        order = torch.randperm(len(tied), generator=generator).tolist()
        yield tuple(tied[index] for index in order[:n_chosen])
