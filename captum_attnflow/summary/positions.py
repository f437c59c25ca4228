"""Where in a text the scores are, and how much position alone explains of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from captum_attnflow.summary.estimates import Estimate, Floats, Moments
from captum_attnflow.summary.words import WordShares

N_TENTHS = 10
N_FROM_ENDS = 10
FEWEST_WORDS = 3
"""Of two words, ranks agree or disagree by chance."""
_FEWEST_TEXTS = 10  # of fewer, chance may order the words alike
_ONLY, _MOSTLY, _PARTLY = 0.9, 0.5, 0.1  # of the variance of the ranks


@dataclass(frozen=True)
class Profile:
    """Mean absolute shares by position.

    Attributes:
        shares (tuple of Estimate): One per position.
        even (tuple of float): What each would be if all words of a text had the same
            share.
    """

    shares: tuple[Estimate, ...]
    even: tuple[float, ...]


@dataclass(frozen=True)
class Positions:
    """Shares by position, over all explained texts.

    A text that was explained several times, such as for two labels, counts once in
    every mean, by the mean of its explanations.

    Attributes:
        relative (Profile): By tenth of the text, over all texts; they sum to 1.
        from_start (Profile): Of the first, second, third... word, over the texts that
            have it.
        from_end (Profile): Of the last, the last but one...
        rank_correlation (Estimate): Spearman's rho of score and position; positive
            where later words have the higher scores. Over texts of at least 3 words
            whose scores are not all the same.
        absolute_rank_correlation (Estimate): Of absolute score and position.
        own_order (float, optional): How much of the variance of the ranks of the
            absolute scores the order of the words explains within each text, whichever
            way: the mean of rho squared, less what chance gives. None of no text.
        common_profile (float, optional): How much one profile, the mean rank by tenth
            of the text, explains in all texts, less what chance gives. It sees a
            profile that is high at both ends, too. None of too few words.
    """

    relative: Profile
    from_start: Profile
    from_end: Profile
    rank_correlation: Estimate
    absolute_rank_correlation: Estimate
    own_order: float | None
    common_profile: float | None

    @property
    def explained(self) -> float | None:
        """The larger of :attr:`own_order` and :attr:`common_profile`."""
        known = [
            part for part in (self.own_order, self.common_profile) if part is not None
        ]
        return max(known, default=None)

    @property
    def verdict(self) -> str:
        """A sentence that says whether the method looks at position only."""
        if self.explained is None:
            return (
                "There are too few words to say whether the method looks at position "
                "only."
            )
        if self.rank_correlation.n < _FEWEST_TEXTS:
            return (
                f"There are too few texts ({self.rank_correlation.n}, of at least "
                f"{_FEWEST_TEXTS}) to say whether the method looks at position only."
            )
        explains = (
            f"position alone explains {100 * self.explained:.0f} % of the variance of "
            "the ranks of the scores"
        )
        if self.explained >= _ONLY:
            return f"The method looks at position only: {explains}."
        if self.explained >= _MOSTLY:
            return f"The method looks mostly at position: {explains}."
        if self.explained >= _PARTLY:
            return (
                f"The method does not look at position only, but {explains}. Some of "
                "this may be language, such as full stops at the end."
            )
        return f"The method does not look at position only: {explains}."


class PositionTable:
    """What is known of the positions so far, one text at a time."""

    def __init__(self) -> None:
        # Shares and even shares of the three profiles, then three numbers.
        self._moments = Moments(2 * (N_TENTHS + 2 * N_FROM_ENDS) + 3)
        self._ranks = np.zeros(N_TENTHS)  # sums of standardized ranks
        self._words = np.zeros(N_TENTHS)

    def add(self, text: WordShares) -> None:
        """Take an explanation of a text in; those of one row follow each other."""
        shares = np.array(text.shares)
        absolute, n = np.abs(shares), len(shares)
        tenths = (N_TENTHS * (np.arange(n) + 0.5) / n).astype(int)
        counts = np.bincount(tenths, minlength=N_TENTHS)
        ends = np.full((2, N_FROM_ENDS), np.nan)
        n_there = min(n, N_FROM_ENDS)
        ends[0, :n_there] = absolute[:n_there]
        ends[1, :n_there] = absolute[::-1][:n_there]
        even_ends = np.where(np.isnan(ends), np.nan, 1 / n)
        rho = absolute_rho = own_order = np.nan
        if n >= FEWEST_WORDS:
            places = standardized_ranks(np.arange(n, dtype=np.float64))
            ranks = standardized_ranks(absolute)
            rho = float(standardized_ranks(shares) @ places) / n
            absolute_rho = float(ranks @ places) / n
            # Of n random ranks the expectation of rho squared is 1 / (n - 1).
            chance = 1 / (n - 1)
            own_order = (absolute_rho**2 - chance) / (1 - chance)
            if not np.isnan(absolute_rho):
                self._ranks += np.bincount(tenths, ranks, N_TENTHS)
                self._words += counts
        self._moments.add(
            text.row.row,
            np.concatenate(
                [
                    *(np.bincount(tenths, absolute, N_TENTHS), counts / n),
                    *(ends[0], even_ends[0], ends[1], even_ends[1]),
                    [rho, absolute_rho, own_order],
                ]
            ),
        )

    def positions(self) -> Positions:
        """Return the profiles and what position explains."""
        estimates = iter(self._moments.estimates())

        def profile(size: int) -> Profile:
            shares = tuple(islice(estimates, size))
            return Profile(shares, tuple(even.mean for even in islice(estimates, size)))

        relative = profile(N_TENTHS)
        from_start, from_end = profile(N_FROM_ENDS), profile(N_FROM_ENDS)
        rho, absolute_rho, own_order = estimates
        return Positions(
            relative,
            from_start,
            from_end,
            rho,
            absolute_rho,
            max(0.0, own_order.mean) if own_order.n else None,
            self._common_profile(),
        )

    def _common_profile(self) -> float | None:
        """Eta squared of the ranks by tenth, adjusted for its degrees of freedom."""
        n_words, there = self._words.sum(), self._words > 0
        freedom = n_words - there.sum()
        if freedom <= 0:
            return None
        between = (self._ranks[there] ** 2 / self._words[there]).sum() / n_words
        adjusted = 1 - (1 - between) * (n_words - 1) / freedom
        return max(0.0, float(adjusted))


def standardized_ranks(values: Floats) -> Floats:
    """Rank values, ties by their mean rank, with mean 0 and variance 1.

    Returns:
        ndarray: The mean of the products of two of them is Spearman's rho. NaN if all
        values are the same.
    """
    # scipy.stats.rankdata gives the same, at ten times the time for a short text.
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group] - (len(values) + 1) / 2
    deviation = np.sqrt(ranks @ ranks / len(ranks))
    with np.errstate(invalid="ignore"):
        standardized: Floats = ranks / deviation
    return standardized
