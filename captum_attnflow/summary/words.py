"""The words that speak for and against every label, counted in a stream.

Means and intervals are over the texts that hold a word, never over tokens, and never
over the several explanations that a text may have for one label.
"""

from __future__ import annotations

import csv
import heapq
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from captum_attnflow.scored_tokens import printable
from captum_attnflow.summary.estimates import Estimate
from captum_attnflow.summary.word_shares import (
    Example,
    WordShares,
    shares_by_word,
)


@dataclass(frozen=True)
class WordEvidence:
    """What a word says of a label, over the texts that hold it.

    Attributes:
        word (str): The word.
        share (Estimate): Its mean share, with ``n`` the number of texts.
        n_missed (int): At most so many earlier texts with the word were not counted,
            since the table of words was full.
        examples (tuple of Example): Texts where its share is largest.
    """

    word: str
    share: Estimate
    n_missed: int = 0
    examples: tuple[Example, ...] = ()

    @property
    def speaks(self) -> str:
        """``"for"``, ``"against"``, or ``"unclear"`` where the interval holds 0."""
        if self.share.low > 0:
            return "for"
        return "against" if self.share.high < 0 else "unclear"


@dataclass(frozen=True)
class LabelWords:
    """The words of the texts that were explained for one label.

    Attributes:
        label (str): The label.
        n_texts (int): Texts explained for it.
        words (tuple of WordEvidence): Those in enough texts, those that speak most for
            the label first, those that speak most against it last.
        top (int): How many are shown on each side.
    """

    label: str
    n_texts: int
    words: tuple[WordEvidence, ...]
    top: int

    @property
    def speak_for(self) -> tuple[WordEvidence, ...]:
        """The words of the highest lower bounds above 0, the highest first."""
        found = [word for word in self.words if word.speaks == "for"]
        return tuple(sorted(found, key=lambda word: -word.share.low)[: self.top])

    @property
    def speak_against(self) -> tuple[WordEvidence, ...]:
        """The words of the lowest upper bounds below 0, the lowest first."""
        found = [word for word in self.words if word.speaks == "against"]
        return tuple(sorted(found, key=lambda word: word.share.high)[: self.top])


@dataclass
class _Tally:
    """Texts with a word, the mean of its shares and their squared differences."""

    n_missed: int
    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, share: float) -> None:
        self.n += 1
        difference = share - self.mean
        self.mean += difference / self.n
        self.squares += difference * (share - self.mean)


@dataclass
class WordTable:
    """Tallies by label and word, of bounded size.

    When it is full, the rarest entries are dropped, as in lossy counting (Manku and
    Motwani 2002): a word that comes back may have been in ``n_missed`` texts before.

    Attributes:
        max_words (int): The most entries.
        n_texts (Counter): Texts by label.
        floor (int): The most texts of a word that was dropped, 0 if none was.
    """

    max_words: int
    n_texts: Counter[str] = field(default_factory=Counter)
    floor: int = 0
    _tallies: dict[tuple[str, str], _Tally] = field(default_factory=dict)

    def add(self, texts: Sequence[WordShares]) -> None:
        """Count the words of a text.

        Args:
            texts (sequence of WordShares): All its explanations; a word counts once for
                a label, by its mean share.
        """
        shares: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for text in texts:
            for word, share in shares_by_word(text).items():
                shares[text.row.label, word].append(share)
        self.n_texts.update({text.row.label for text in texts})
        for key, of_text in shares.items():
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = _Tally(self.floor)
            tally.add(fmean(of_text))
        if len(self._tallies) > self.max_words:
            self._drop_rare()

    def _drop_rare(self) -> None:
        # Down to three quarters, as each dropping looks at all entries.
        while len(self._tallies) > 0.75 * self.max_words:
            self.floor = min(t.n + t.n_missed for t in self._tallies.values())
            self._tallies = {
                key: tally
                for key, tally in self._tallies.items()
                if tally.n + tally.n_missed > self.floor
            }

    def by_label(self, min_texts: int, top: int) -> tuple[LabelWords, ...]:
        """Rank the words in at least ``min_texts`` texts, the most common label first.

        Args:
            min_texts (int): A word in fewer texts is left out.
            top (int): How many are shown on each side.
        """
        found: dict[str, list[WordEvidence]] = {label: [] for label in self.n_texts}
        for (label, word), tally in self._tallies.items():
            if tally.n >= min_texts:
                share = Estimate.of(tally.n, tally.mean, tally.squares)
                found[label].append(WordEvidence(word, share, tally.n_missed))
        return tuple(
            LabelWords(label, n_texts, tuple(sorted(found[label], key=_rank)), top)
            for label, n_texts in sorted(
                self.n_texts.items(), key=lambda item: (-item[1], item[0])
            )
        )


def _rank(word: WordEvidence) -> tuple[int, float, str]:
    """For by the lower bound, then unclear by the mean, then against."""
    share = word.share
    bounds = {"for": -share.low, "unclear": -share.mean, "against": -share.high}
    return (
        ("for", "unclear", "against").index(word.speaks),
        bounds[word.speaks],
        (word.word),
    )


def add_examples(
    labels: Sequence[LabelWords], texts: Iterable[WordShares], n_examples: int
) -> tuple[LabelWords, ...]:
    """Find the texts where the words that are shown have their largest shares.

    Args:
        labels (sequence of LabelWords): What was ranked.
        texts (iterable of WordShares): All texts, once more.
        n_examples (int): Examples for each word.
    """
    sides = {
        (of.label, evidence.word): sign
        for of in labels
        for sign, side in ((1, of.speak_for), (-1, of.speak_against))
        for evidence in side
    }
    found: dict[tuple[str, str], list[tuple[float, int, Example]]] = {
        key: [] for key in sides
    }
    for number, text in enumerate(texts):
        for word, share in shares_by_word(text).items():
            key = text.row.label, word
            strength = sides.get(key, 0) * share
            if strength <= 0:
                continue
            kept = found[key]
            # Of equal shares the earlier text is kept.
            if len(kept) == n_examples and (strength, -number) < kept[0][:2]:
                continue
            # Of a text with several explanations, one is an example.
            same = [at for at, entry in enumerate(kept) if entry[2].row == text.row.row]
            if same and kept[same[0]][0] >= strength:
                continue
            if same:
                del kept[same[0]]
                heapq.heapify(kept)
            heapq.heappush(kept, (strength, -number, Example.of(text, word, share)))
            if len(kept) > n_examples:
                heapq.heappop(kept)
    examples = {
        key: tuple(example for *_, example in sorted(kept, reverse=True))
        for key, kept in found.items()
    }
    return tuple(
        replace(
            of,
            words=tuple(
                replace(word, examples=examples.get((of.label, word.word), ()))
                for word in of.words
            ),
        )
        for of in labels
    )


_CSV_COLUMNS = (
    *("folder", "label", "word", "speaks", "n_texts"),
    *("mean_share", "low", "high", "n_missed_at_most"),
)


def words_csv(folders: Iterable[tuple[str, Sequence[LabelWords]]]) -> str:
    """Write one line per folder, label and word, with all digits.

    Args:
        folders (iterable of (str, sequence of LabelWords)): By folder's name.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    writer.writerows(_csv_lines(folders))
    return stream.getvalue()


def _csv_lines(
    folders: Iterable[tuple[str, Sequence[LabelWords]]],
) -> Iterator[list[str | float]]:
    for name, labels in folders:
        for of in labels:
            for word in of.words:
                share = word.share
                names = [printable(given) for given in (name, of.label, word.word)]
                numbers = [share.mean, share.low, share.high, word.n_missed]
                yield [*names, word.speaks, share.n, *numbers]
