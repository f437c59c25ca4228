"""Means over texts with their intervals, from a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]

_UPPER_TAIL = 0.975  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean over texts with its 95 % interval.

    Attributes:
        mean (float): The mean; NaN of no text.
        low (float): Lower end of Student's interval; minus infinity of one text.
        high (float): Upper end; infinity of one text.
        n (int): Texts.

    Examples::

        >>> estimate = Estimate.of(4, mean=0.2, squares=0.02)
        >>> round(estimate.low, 3), round(estimate.high, 3)
        (0.07, 0.33)
    """

    mean: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(n: int, mean: float, squares: float) -> Estimate:
        """Estimate from what a stream kept.

        Args:
            n (int): Texts.
            mean (float): Their mean.
            squares (float): The sum of squared differences to it.
        """
        if n == 0:
            return Estimate(math.nan, -math.inf, math.inf, 0)
        if n == 1:
            return Estimate(mean, -math.inf, math.inf, 1)
        quantile = float(stdtrit(n - 1, _UPPER_TAIL))
        half = quantile * math.sqrt(squares / (n - 1) / n)
        return Estimate(mean, mean - half, mean + half, n)


class Moments:
    """Means and squared differences of vectors, one text at a time (Welford 1962).

    Successive vectors of one row are of one text, and count once, by their mean: they
    depend on each other, which Student's interval does not allow for.

    Args:
        size (int): Entries of a vector.
    """

    def __init__(self, size: int) -> None:
        self._n = np.zeros(size, dtype=np.int64)
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)
        self._row: int | None = None
        self._row_sum = np.zeros(size)
        self._row_n = np.zeros(size, dtype=np.int64)

    def add(self, row: int, values: Floats) -> None:
        """Take a vector of a row in; an entry that is NaN has no value."""
        if row != self._row:
            self._end_row()
            self._row = row
        known = ~np.isnan(values)
        self._row_n += known
        self._row_sum += np.where(known, values, 0.0)

    def _end_row(self) -> None:
        known = self._row_n > 0
        values = self._row_sum / np.maximum(self._row_n, 1)
        self._n += known
        difference = np.where(known, values - self._mean, 0.0)
        self._mean += difference / np.maximum(self._n, 1)
        self._squares += difference * np.where(known, values - self._mean, 0.0)
        self._row = None
        self._row_sum[:] = 0
        self._row_n[:] = 0

    def estimates(self) -> tuple[Estimate, ...]:
        """Return an estimate per entry, over all rows so far."""
        self._end_row()
        return tuple(
            Estimate.of(int(n), float(mean), float(squares))
            for n, mean, squares in zip(self._n, self._mean, self._squares, strict=True)
        )
