"""Ranks of the shares of a text's words: what orders them, and how far methods agree.

Positions are where in a text the shares are, and how much position alone explains of
their ranks. Agreement is of the ranks and the highest words of several folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, zip_longest
from unicodedata import normalize

import numpy as np

from captum_attnflow.summary.words import Estimate, Floats, Moments, WordShares

_N_TENTHS = 10
_N_FROM_ENDS = 10
_FEWEST_WORDS = 3  # of two words, ranks agree or disagree by chance
_FEWEST_TEXTS = 10  # of fewer, chance may order the words alike
_ONLY, _MOSTLY, _PARTLY = 0.9, 0.5, 0.1  # of the variance of the ranks
_MOST_WAITING = 10_000_000  # words of texts that not all folders have given yet
_KEPT_CHARACTERS = 2000  # of a text that waits
_SHOWN_CHARACTERS = 60
_BEFORE_DIFFERENCE = 20  # of them

Key = tuple[int, str, tuple[int, ...]]  # row, what is explained, and place


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
        self._moments = Moments(2 * (_N_TENTHS + 2 * _N_FROM_ENDS) + 3)
        self._ranks = np.zeros(_N_TENTHS)  # sums of standardized ranks
        self._words = np.zeros(_N_TENTHS)

    def add(self, text: WordShares) -> None:
        """Take an explanation of a text in; those of one row follow each other."""
        shares = np.array(text.shares)
        absolute, n = np.abs(shares), len(shares)
        tenths = (_N_TENTHS * (np.arange(n) + 0.5) / n).astype(int)
        counts = np.bincount(tenths, minlength=_N_TENTHS)
        ends = np.full((2, _N_FROM_ENDS), np.nan)
        n_there = min(n, _N_FROM_ENDS)
        ends[0, :n_there] = absolute[:n_there]
        ends[1, :n_there] = absolute[::-1][:n_there]
        even_ends = np.where(np.isnan(ends), np.nan, 1 / n)
        rho = absolute_rho = own_order = np.nan
        if n >= _FEWEST_WORDS:
            places = standardized_ranks(np.arange(n, dtype=np.float64))
            ranks = standardized_ranks(absolute)
            rho = float(standardized_ranks(shares) @ places) / n
            absolute_rho = float(ranks @ places) / n
            # Of n random ranks the expectation of rho squared is 1 / (n - 1).
            chance = 1 / (n - 1)
            own_order = (absolute_rho**2 - chance) / (1 - chance)
            if not np.isnan(absolute_rho):
                self._ranks += np.bincount(tenths, ranks, _N_TENTHS)
                self._words += counts
        self._moments.add(
            text.row.row,
            np.concatenate(
                [
                    *(np.bincount(tenths, absolute, _N_TENTHS), counts / n),
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

        relative = profile(_N_TENTHS)
        from_start, from_end = profile(_N_FROM_ENDS), profile(_N_FROM_ENDS)
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


@dataclass(frozen=True)
class PairAgreement:
    """How far two folders agree.

    Attributes:
        first (str): The name of one.
        second (str): The name of the other.
        compared (str): ``"scores"``, or ``"absolute scores"`` where one of them gives
            no negative scores.
        rank_correlation (Estimate): Spearman's rho over the words of a text.
        top_overlap (Estimate): How many of the ``k`` words of the highest absolute
            scores are the same, as a fraction, over texts of more than ``k`` words.
        chance_overlap (float): What random scores would give on these texts.
    """

    first: str
    second: str
    compared: str
    rank_correlation: Estimate
    top_overlap: Estimate
    chance_overlap: float


@dataclass(frozen=True)
class Agreement:
    """How far folders agree, on the texts that all of them explain for a label.

    Attributes:
        names (tuple of str): The folders.
        pairs (tuple of PairAgreement): Every two of them.
        top_k (int): How many highest words are compared.
        n_compared (int): Texts that all folders explain for the same label, by the same
            words; one with several such explanations counts once, by their mean.
        n_other_words (int): Texts with explanations whose words differ between folders,
            such as by the tokenizer; these are not compared.
        n_unmatched (int): Explanations of single folders that some other folder does
            not have.
    """

    names: tuple[str, ...]
    pairs: tuple[PairAgreement, ...]
    top_k: int
    n_compared: int
    n_other_words: int
    n_unmatched: int


@dataclass(frozen=True)
class _Given:
    """What is kept of a text until all folders have given it."""

    row: int
    whole: int
    text: str
    text_pair: str | None
    words: int
    shares: Floats

    @staticmethod
    def of(text: WordShares) -> _Given:
        row, pair = text.row, text.row.text_pair
        folded = tuple(word.casefold() for word in text.words)
        return _Given(
            row.row,
            hash((row.text, pair)),
            row.text[:_KEPT_CHARACTERS],
            None if pair is None else pair[:_KEPT_CHARACTERS],
            hash(folded),
            np.array(text.shares),
        )


@dataclass
class _Pair:
    use_absolute: bool
    # Of the rank correlation, the overlap and that of random scores.
    moments: Moments = field(default_factory=lambda: Moments(3))

    def add(self, row: int, first: Floats, second: Floats, top_k: int) -> None:
        n = len(first)
        rho = overlap = chance = np.nan
        if n >= _FEWEST_WORDS:
            one, other = (
                standardized_ranks(np.abs(shares) if self.use_absolute else shares)
                for shares in (first, second)
            )
            rho = float(one @ other) / n
        if n > top_k:
            in_both = _in_top(first, top_k) @ _in_top(second, top_k)
            overlap, chance = float(in_both) / top_k, top_k / n
        self.moments.add(row, np.array([rho, overlap, chance]))


def _in_top(shares: Floats, k: int) -> Floats:
    """How likely each word is among the k highest, with ties broken at random."""
    absolute = np.abs(shares)
    lowest = np.partition(absolute, -k)[-k]
    above, tied = absolute > lowest, absolute == lowest
    chances: Floats = above + tied * ((k - above.sum()) / tied.sum())
    return chances


def compare(
    names: Sequence[str],
    texts: Sequence[Iterator[WordShares]],
    are_signed: Sequence[bool],
    top_k: int,
) -> Agreement:
    """Compare folders, reading all of them side by side.

    Folders in the same order of rows need hardly any memory. Of others, texts wait for
    their counterparts; if too many wait, the ones that wait longest are given up. A
    row's explanations are of one text where they find their counterparts one after
    another, as they do in folders of the same order.

    Args:
        names (sequence of str): The folders.
        texts (sequence of iterator of WordShares): The texts of each.
        are_signed (sequence of bool): Whether each has negative scores.
        top_k (int): How many highest words are compared.

    Raises:
        ValueError: If the folders are of different data.
    """
    pairs = {
        (one, other): _Pair(not (are_signed[one] and are_signed[other]))
        for one, other in combinations(range(len(names)), 2)
    }
    n_compared = n_other_words = n_unmatched = 0
    last_compared = last_other = None
    for given in _matched(names, texts):
        if isinstance(given, int):
            n_unmatched += given
            continue
        row = given[0].row
        if len({(text.words, len(text.shares)) for text in given}) > 1:
            n_other_words += row != last_other
            last_other = row
        else:
            n_compared += row != last_compared
            last_compared = row
            for (one, other), pair in pairs.items():
                pair.add(row, given[one].shares, given[other].shares, top_k)
    if not n_compared + n_other_words:
        raise ValueError(
            f"{', '.join(names)} have no row that all of them explain for the same "
            "label: they are of different data, or of models that name their labels "
            "differently. Give folders of the same data and labels to compare methods, "
            "or summarize each alone"
        )
    return Agreement(
        tuple(names),
        tuple(
            _pair_agreement(names[one], names[other], pair)
            for (one, other), pair in pairs.items()
        ),
        top_k,
        n_compared,
        n_other_words,
        n_unmatched,
    )


def _pair_agreement(first: str, second: str, pair: _Pair) -> PairAgreement:
    rank_correlation, top_overlap, chance_overlap = pair.moments.estimates()
    compared = "absolute scores" if pair.use_absolute else "scores"
    return PairAgreement(
        first, second, compared, rank_correlation, top_overlap, chance_overlap.mean
    )


def _matched(
    names: Sequence[str], texts: Sequence[Iterator[WordShares]]
) -> Iterator[list[_Given] | int]:
    """Yield texts that all folders have given, and how many were given up."""
    waiting: dict[Key, dict[int, _Given]] = {}
    n_words = 0
    for side_by_side in zip_longest(*texts):
        for folder, text in enumerate(side_by_side):
            if text is None:
                continue
            key = text.row.row, text.row.explained, text.row.place
            there = waiting.setdefault(key, {})
            if folder in there:
                # A damaged folder gives a line twice: the later one counts.
                n_words -= len(there[folder].shares)
                yield 1
            there[folder] = _Given.of(text)
            n_words += len(text.shares)
            _check_same_text(names, text.row.row, there)
            if len(there) == len(names):
                del waiting[key]
                n_words -= sum(len(given.shares) for given in there.values())
                yield [there[each] for each in range(len(names))]
        while n_words > _MOST_WAITING:
            longest = waiting.pop(next(iter(waiting)))
            n_words -= sum(len(given.shares) for given in longest.values())
            yield len(longest)
    yield sum(map(len, waiting.values()))


def _check_same_text(names: Sequence[str], row: int, there: dict[int, _Given]) -> None:
    (one, first), *others = there.items()
    for other, given in others:
        if given.whole != first.whole:
            difference = _difference(row, {names[one]: first, names[other]: given})
            raise ValueError(
                f"{names[one]} and {names[other]} are of different data: {difference}. "
                "Give folders of the same data to compare methods, or summarize each "
                "alone"
            )


def _difference(row: int, by_name: dict[str, _Given]) -> str:
    """Say in which text of a row two folders differ, and how."""
    first, second = (given.text for given in by_name.values())
    if first != second:
        one, other = _apart(first, second)
        return f"row {row} is {one} in the one and {other} in the other"
    pairs = {
        name: given.text_pair
        for name, given in by_name.items()
        if given.text_pair is not None
    }
    if len(pairs) == 1:
        [(name, pair)] = pairs.items()
        shown, _ = _apart(pair, "")
        return f"row {row} has a second text, {shown}, in {name} alone (--pair-column)"
    first, second = pairs.values() if pairs else ("", "")
    if first != second:
        one, other = _apart(first, second)
        return (
            f"the second text of row {row} is {one} in the one and {other} in the other"
        )
    return f"row {row} differs behind the first {_KEPT_CHARACTERS:,} characters"


def _apart(one: str, other: str) -> tuple[str, str]:
    """Quote two texts where they differ, in ASCII what looks the same."""
    pairs = enumerate(zip_longest(one, other))
    at = next((place for place, (a, b) in pairs if a != b), 0)
    start = 0 if at < _SHOWN_CHARACTERS // 2 else at - _BEFORE_DIFFERENCE
    end = start + _SHOWN_CHARACTERS
    look_alike = normalize("NFKC", one[start:end]) == normalize(
        "NFKC", other[start:end]
    )
    quote = ascii if look_alike else repr

    def shown(text: str) -> str:
        return "..." * (start > 0) + quote(text[start:end]) + "..." * (len(text) > end)

    return shown(one), shown(other)
