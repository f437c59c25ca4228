"""The words of explained texts, and what they say of every label, from a stream.

Tokens become words with shares of the text's absolute scores. Means and intervals are
over the texts that hold a word, never over tokens, and never over the several
explanations that a text may have for one label.
"""

from __future__ import annotations

import csv
import heapq
import io
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from captum_attnflow.scored_tokens import printable
from captum_attnflow.show.text import shown_tokens
from captum_attnflow.summary.folder import Row
from captum_attnflow.texts.units import PIECES, Pieces

Floats = npt.NDArray[np.float64]

_MARKS: dict[Pieces, str] = {"wordpiece": "##", "sentencepiece": "▁", "byte-level": "Ġ"}
_WORDS_AROUND = 12  # of an example, on each side of the word
_LOOKS_SPECIAL = re.compile(r"\[[^\[\]\s]+\]|<[^<>\s]+>")
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


@dataclass(frozen=True)
class Tokenization:
    """How tokens become words.

    Attributes:
        pieces (str, optional): The convention of the pieces, see
            :func:`captum_attnflow.show.merge_words`; None where each token is a word.
        special_tokens (frozenset of str): Tokens that are no words.
        found_in (str): Where the special tokens were found: ``"manifest"`` or
            ``"texts"``.
    """

    pieces: Pieces | None
    special_tokens: frozenset[str]
    found_in: str

    @staticmethod
    def of(manifest: Mapping[str, Any], rows: Iterable[Row]) -> Tokenization:
        """Read it from a manifest, or find it in explained texts.

        The manifest's ``pieces`` and ``special_tokens`` go first. Else the convention
        is the one whose marks are in most texts. Special is then what looks like
        ``[X]`` or ``<x>`` and is in every text.

        Args:
            manifest (mapping): The folder's.
            rows (iterable of Row): Explained rows, the first of the folder.
        """
        texts = [set(row.tokens) for row in rows]
        given = manifest.get("special_tokens")
        in_manifest = isinstance(given, list)
        special = (
            frozenset(map(str, given or ()))
            if in_manifest
            else frozenset(
                token
                for token in set.intersection(*texts or [set()])
                if _LOOKS_SPECIAL.fullmatch(token)
            )
        )
        found_in = "manifest" if in_manifest else "texts"
        pieces = manifest.get("pieces")
        if pieces not in PIECES:
            pieces = _most_marked(texts)
        return Tokenization(pieces, special, found_in)


def _most_marked(texts: Sequence[set[str]]) -> Pieces | None:
    n_marked = {
        pieces: sum(any(token.startswith(mark) for token in text) for text in texts)
        for pieces, mark in _MARKS.items()
    }
    best = max(_MARKS, key=lambda pieces: n_marked[pieces])
    return best if n_marked[best] else None


@dataclass(frozen=True)
class WordShares:
    """One explained text, as words with their shares.

    Attributes:
        row (Row): The row that it is from.
        words (tuple of str): Its words, in order.
        shares (tuple of float): Their shares; their absolute values sum to 1.
        special_share (float): The special tokens' absolute scores over those of all
            tokens.
    """

    row: Row
    words: tuple[str, ...]
    shares: tuple[float, ...]
    special_share: float


def read_words(row: Row, tokenization: Tokenization) -> WordShares | None:
    """Merge a row's tokens to words and divide their scores by their absolute sum.

    Returns:
        WordShares: None where there are no shares: all scores of words are 0, or one is
        not finite.
    """
    special = tokenization.special_tokens
    words, scores = shown_tokens(
        row.tokens, row.scores, tokenization.pieces, None, special, "hidden"
    )
    of_words = math.fsum(map(abs, scores))
    of_special = math.fsum(
        abs(score)
        for token, score in zip(row.tokens, row.scores, strict=True)
        if token in special
    )
    if not (0 < of_words < math.inf and math.isfinite(of_special)):
        return None
    return WordShares(
        row,
        tuple(words),
        tuple(score / of_words for score in scores),
        of_special / (of_special + of_words),
    )


def shares_by_word(text: WordShares) -> dict[str, float]:
    """Sum the shares of a text by word; white space is no word."""
    total: dict[str, float] = {}
    for word, share in zip(text.words, text.shares, strict=True):
        if word:
            total[word] = total.get(word, 0.0) + share
    return total


@dataclass(frozen=True)
class Passage:
    """Successive words of a text with their shares.

    Attributes:
        words (tuple of str): The words, as they stand in the text.
        shares (tuple of float): Their shares of the whole text.
        spaced (tuple of bool): Whether white space stands before each in the text.
        marked (tuple of bool): Whether each is the word that is pointed at.
        is_cut (tuple of bool): Whether the text goes on before it, and after it.
    """

    words: tuple[str, ...]
    shares: tuple[float, ...]
    spaced: tuple[bool, ...]
    marked: tuple[bool, ...]
    is_cut: tuple[bool, bool]

    @staticmethod
    def of(
        text: WordShares, start: int, stop: int, marked: str | None = None
    ) -> Passage:
        """Cut a passage out of a text.

        Args:
            text (WordShares): The text.
            start (int): Its first word.
            stop (int): The word behind its last one.
            marked (str, optional): The word that is pointed at.
        """
        whole = " ".join(filter(None, [text.row.text, text.row.text_pair]))
        shown = _as_written(whole, text.words[:stop])[start:]
        return Passage(
            tuple(word for word, _ in shown),
            text.shares[start:stop],
            tuple(is_spaced for _, is_spaced in shown),
            tuple(word == marked for word in text.words[start:stop]),
            (start > 0, stop < len(text.words)),
        )


def _as_written(text: str, words: Sequence[str]) -> list[tuple[str, bool]]:
    """Each word as the text has it, and whether white space stands before it.

    A tokenizer may have changed the text, to lower case without accents. A word that is
    not found, even so, is shown as the tokenizer has it, and apart.
    """
    folded, origin = "", []
    for place, character in enumerate(text):
        plain = _folded(character)
        folded += plain
        origin += [place] * len(plain)
    origin.append(len(text))
    position = 0
    found = []
    for word in words:
        sought = _folded(word)
        # Of a mark alone nothing is left to be sought.
        start = folded.find(sought, position) if sought else -1
        if start < 0:
            found.append((word, True))
            continue
        position = start + len(sought)
        own = text[origin[start] : origin[position]]
        found.append((own, start == 0 or folded[start - 1].isspace()))
    return found


def _folded(text: str) -> str:
    """Leave case and accents out, as uncased tokenizers do."""
    apart = unicodedata.normalize("NFD", text)
    return "".join(each for each in apart if not unicodedata.combining(each)).casefold()


@dataclass(frozen=True)
class Example:
    """A passage around a word that speaks for or against a label.

    Attributes:
        row (int): The row in the data.
        id (str, optional): Its name in the data.
        share (float): The word's share of the text.
        predicted (str): The predicted label.
        probability (float, optional): Its probability.
        passage (Passage): Around the word where its share is largest.
    """

    row: int
    id: str | None
    share: float
    predicted: str
    probability: float | None
    passage: Passage

    @staticmethod
    def of(text: WordShares, word: str, share: float) -> Example:
        """Cut out the passage around a word."""
        at = [place for place, other in enumerate(text.words) if other == word]
        centre = max(at, key=lambda place: abs(text.shares[place]))
        start, stop = max(0, centre - _WORDS_AROUND), centre + _WORDS_AROUND + 1
        passage = Passage.of(text, start, stop, word)
        row = text.row
        return Example(row.row, row.id, share, row.predicted, row.probability, passage)


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
        label (str): The label, or of a contrast one rather than another.
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
                shares[text.row.explained, word].append(share)
        self.n_texts.update({text.row.explained for text in texts})
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
            key = text.row.explained, word
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
