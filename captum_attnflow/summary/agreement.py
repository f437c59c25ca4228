"""How far methods agree on the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest

import numpy as np

from captum_attnflow.scored_tokens import printable
from captum_attnflow.summary.estimates import Estimate, Floats, Moments
from captum_attnflow.summary.positions import FEWEST_WORDS, standardized_ranks
from captum_attnflow.summary.words import WordShares

_MOST_WAITING = 10_000_000  # words of texts that not all folders have given yet
_SHOWN_CHARACTERS = 60

Key = tuple[int, str, tuple[int, ...]]  # row, label and place


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
    text: int
    beginning: str
    words: int
    shares: Floats

    @staticmethod
    def of(text: WordShares) -> _Given:
        row = text.row
        whole = (row.text, row.text_pair)
        folded = tuple(word.casefold() for word in text.words)
        beginning = row.text[:_SHOWN_CHARACTERS]
        return _Given(
            row.row, hash(whole), beginning, hash(folded), np.array(text.shares)
        )


@dataclass
class _Pair:
    use_absolute: bool
    # Of the rank correlation, the overlap and that of random scores.
    moments: Moments = field(default_factory=lambda: Moments(3))

    def add(self, row: int, first: Floats, second: Floats, top_k: int) -> None:
        n = len(first)
        rho = overlap = chance = np.nan
        if n >= FEWEST_WORDS:
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
            key = text.row.row, text.row.label, text.row.place
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
        if given.text != first.text:
            raise ValueError(
                f"{names[one]} and {names[other]} are of different data: row {row} is "
                f"{printable(first.beginning)!r} in the one and "
                f"{printable(given.beginning)!r} in the other. Give folders of the "
                "same data to compare methods, or summarize each alone"
            )
