"""Means, standard errors and paired bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A mean over examples.

    Attributes:
        mean (float): The mean.
        standard_error (float): Standard deviation (of ``n - 1``) over the root of
            ``n``; NaN of a single example.
        n (int): Examples.
    """

    mean: float
    standard_error: float
    n: int

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Estimate from values ``(n,)``."""
        n = len(values)
        error = values.std().item() / math.sqrt(n) if n > 1 else math.nan
        return Estimate(values.mean().item(), error, n)


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % paired bootstrap interval.

    Attributes:
        mean (float): The mean difference.
        low (float): Lower end.
        high (float): Upper end.
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(differences: Tensor, seed: int, n_resamples: int = 10_000) -> Interval:
        """Percentile interval of the mean of resampled pairs.

        Args:
            differences (Tensor): Shape ``(n,)``, float64, one per example: a method
                minus the one that it is compared with.
            seed (int): Seed of the resampling, which is the same for all methods.
            n_resamples (int): Bootstrap samples.

        Examples::

            >>> interval = Interval.of(torch.tensor([0.1, 0.3, 0.2, 0.2]).double(), 0)
            >>> round(interval.mean, 3), interval.low > 0.1, interval.high < 0.3
            (0.2, True, True)
        """
        n = len(differences)
        generator = torch.Generator().manual_seed(seed)
        means = [
            differences[torch.randint(n, (size, n), generator=generator)].mean(1)
            for size in _chunks(n_resamples, max(1, _AT_ONCE // n))
        ]
        ends = torch.tensor([0.025, 0.975], dtype=differences.dtype)
        low, high = torch.cat(means).quantile(ends).tolist()
        return Interval(differences.mean().item(), low, high)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
