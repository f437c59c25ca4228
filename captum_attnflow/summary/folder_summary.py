"""One folder of explained texts, seen as a whole: counts, words, positions, errors."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from captum_attnflow._checks import counted
from captum_attnflow.scored_tokens import printable
from captum_attnflow.summary.folder import Row, ScoreFolder
from captum_attnflow.summary.ranks import Positions, PositionTable
from captum_attnflow.summary.words import (
    Estimate,
    LabelWords,
    Moments,
    Tokenization,
    WordShares,
    WordTable,
    add_examples,
    read_words,
)

_SAMPLE = 1000  # explained rows in which the convention of the tokens is looked for
_N_EXAMPLES = 3
_ROUNDING = 1e-6  # of shares; methods without a sign may give -1e-17
_MOST_NAMES = 1000  # distinct reasons, labels...; further ones are counted together
OTHERS = "others"
"""Under which name further reasons and labels are counted."""


@dataclass(frozen=True)
class Counts:
    """The rows of a folder.

    Attributes:
        n_rows (int): Rows of the table, one per explanation or failed text.
        n_texts (int): Rows of the data; successive rows of one number are one text.
        n_explained (int): Rows that were explained.
        n_without_shares (int): Explained rows that are left out of the rest, since
            the model knows no word of theirs, or all scores of words are 0.
        n_truncated (int): Explained rows of texts that were cut off.
        n_expected (int, optional): The texts that the manifest promises.
        failed (mapping): Failed rows by reason, the most frequent first.
        labels (mapping): Explained rows by what they explain: a label, or one rather
            than another.
        predicted (mapping): Explained rows by predicted label.
    """

    n_rows: int
    n_texts: int
    n_explained: int
    n_without_shares: int
    n_truncated: int
    n_expected: int | None
    failed: Mapping[str, int]
    labels: Mapping[str, int]
    predicted: Mapping[str, int]

    @property
    def n_failed(self) -> int:
        """Rows that failed."""
        return sum(self.failed.values())


@dataclass
class RowCounter:
    """What is counted so far."""

    n_rows: int = 0
    n_texts: int = 0
    n_explained: int = 0
    n_without_shares: int = 0
    n_truncated: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    _last: int | None = None

    def add(self, row: Row, has_shares: bool) -> None:
        """Count a row."""
        self.n_rows += 1
        self.n_texts += row.row != self._last
        self._last = row.row
        if row.reason is not None:
            _count(self.failed, row.reason)
            return
        self.n_explained += 1
        self.n_without_shares += not has_shares
        self.n_truncated += row.n_truncated > 0
        _count(self.labels, row.explained)
        _count(self.predicted, row.predicted)

    def counts(self, manifest: Mapping[str, Any]) -> Counts:
        """Return the counts, with what the manifest promises."""
        expected = manifest.get("n_rows")
        is_count = isinstance(expected, int) and not isinstance(expected, bool)
        return Counts(
            self.n_rows,
            self.n_texts,
            self.n_explained,
            self.n_without_shares,
            self.n_truncated,
            expected if is_count else None,
            dict(self.failed.most_common()),
            dict(self.labels.most_common()),
            dict(self.predicted.most_common()),
        )


def _count(counter: Counter[str], name: str) -> None:
    known = name in counter or len(counter) < _MOST_NAMES
    counter[name if known else OTHERS] += 1


@dataclass(frozen=True)
class WrongText:
    """A text whose predicted label is not the true one.

    Attributes:
        true_label (str): What the data says.
        text (WordShares): The text with its explanation, for :attr:`Row.explained`.
    """

    true_label: str
    text: WordShares


@dataclass(frozen=True)
class WrongTexts:
    """Where the model is confidently wrong.

    Attributes:
        label_column (str): The column of true labels.
        n_compared (int): Texts with a true and a predicted label.
        n_wrong (int): Those where they differ.
        texts (tuple of WrongText): Those of the highest probability.
    """

    label_column: str
    n_compared: int
    n_wrong: int
    texts: tuple[WrongText, ...]


class WrongTable:
    """The most probable wrong predictions so far.

    Args:
        label_column (str): The column of true labels.
        class_names (sequence of str): The model's labels by index, where they are
            known: a true label may then be an index.
        top (int): How many are kept.
    """

    def __init__(self, label_column: str, class_names: Sequence[str], top: int) -> None:
        self._label_column = label_column
        self._top = top
        self._name_of = {str(i): name for i, name in enumerate(class_names)}
        self._name_of |= {name: name for name in class_names}
        self._true: Counter[str] = Counter()
        # What a true label may be: a label of the model that was seen or is known.
        self._labels = Counter(dict.fromkeys(class_names, 0))
        self._n_compared = self._n_wrong = 0
        # Of a text that is explained for several labels, one row is kept.
        self._last: tuple[int, str] | None = None
        self._kept: list[tuple[float, bool, int, WrongText]] = []

    def add(self, row: Row, text: WordShares | None) -> None:
        """Compare a row's predicted label with the true one."""
        if row.reason is not None or row.true_label is None:
            return
        true_label = self._name_of.get(row.true_label, row.true_label)
        is_same_text = self._last == (row.row, row.predicted)
        self._last = row.row, row.predicted
        if not is_same_text:
            _count(self._true, true_label)
            _count(self._labels, row.predicted)
            _count(self._labels, row.label)
            self._n_compared += 1
            self._n_wrong += true_label != row.predicted
        if true_label == row.predicted or text is None or row.probability is None:
            return
        # The explanation of what was predicted, where there are others.
        place = row.probability, row.label == row.predicted, -row.row
        entry = (*place, WrongText(true_label, text))
        same = [at for at, kept in enumerate(self._kept) if kept[2] == -row.row]
        if same:
            if place > self._kept[same[0]][:3]:
                self._kept[same[0]] = entry
                heapq.heapify(self._kept)
        elif len(self._kept) < self._top:
            heapq.heappush(self._kept, entry)
        elif place > self._kept[0][:3]:
            heapq.heapreplace(self._kept, entry)

    def wrong_texts(self) -> WrongTexts:
        """Return the most probable wrong predictions, the most probable first.

        Raises:
            ValueError: If no true label is a label of the model.
        """
        if not self._true:
            raise ValueError(
                f"the column {self._label_column!r} is empty in all explained rows; "
                "give a column of true labels"
            )
        if not {*self._true} & {*self._labels}:
            raise ValueError(
                f"the column {self._label_column!r} holds {_some(self._true)}, but the "
                f"model's labels are {_some(self._labels)}; give a column of the same "
                "names"
            )
        ranked = sorted(self._kept, key=lambda entry: entry[:3], reverse=True)
        return WrongTexts(
            self._label_column,
            self._n_compared,
            self._n_wrong,
            tuple(wrong for *_, wrong in ranked),
        )


def _some(names: Counter[str]) -> str:
    shown = [repr(name) for name, _ in names.most_common(5)]
    return ", ".join(shown) + ", ..." * (len(names) > 5)


@dataclass(frozen=True)
class Settings:
    """What a summary shows.

    Attributes:
        label_column (str, optional): The column of true labels.
        top (int): How many words on each side of a label, and how many wrong texts.
        min_texts (int): A word in fewer texts of a label is left out.
        max_words (int): Distinct words by label that are counted at once.
    """

    label_column: str | None
    top: int
    min_texts: int
    max_words: int


@dataclass(frozen=True)
class FolderSummary:
    """One folder of explained texts, seen as a whole.

    Attributes:
        name (str): Its method, or its path where methods are the same.
        path (Path): The folder.
        manifest (mapping): What its manifest says.
        counts (Counts): Its rows.
        tokenization (Tokenization): How its tokens became words.
        is_signed (bool): Whether there are negative scores of words.
        special_share (Estimate): The special tokens' share of a text's absolute
            scores.
        labels (tuple of LabelWords): The words for and against every label, the most
            frequent label first.
        min_texts (int): Words in fewer texts are left out.
        floor (int): The most texts of a word that was dropped since there were too many
            words; 0 if none was.
        positions (Positions): Where in a text the scores are.
        wrong (WrongTexts, optional): Where the model is confidently wrong; None without
            a label column.
    """

    name: str
    path: Path
    manifest: Mapping[str, Any]
    counts: Counts
    tokenization: Tokenization
    is_signed: bool
    special_share: Estimate
    labels: tuple[LabelWords, ...]
    min_texts: int
    floor: int
    positions: Positions
    wrong: WrongTexts | None


def explained_texts(
    folder: ScoreFolder, tokenization: Tokenization
) -> Iterator[WordShares]:
    """Yield a folder's explained texts as words, but those without shares."""
    for row in folder.rows():
        if row.reason is None:
            text = read_words(row, tokenization)
            if text is not None:
                yield text


def summarize_folder(
    folder: ScoreFolder, name: str, settings: Settings
) -> FolderSummary:
    """Read a folder twice: to count its words, and for examples of those shown.

    Raises:
        ValueError: If it holds no explained text, or is damaged.
    """
    label_column, top = settings.label_column, settings.top
    explained: Iterator[Row] = (row for row in folder.rows() if row.reason is None)
    tokenization = Tokenization.of(folder.manifest, islice(explained, _SAMPLE))
    counter, positions = RowCounter(), PositionTable()
    words = WordTable(settings.max_words)
    special_share, is_signed, wrong = Moments(1), False, None
    if label_column is not None:
        wrong = WrongTable(label_column, folder.class_names, top)
    for number, rows in groupby(folder.rows(label_column), lambda row: row.row):
        texts: list[WordShares] = []
        for row in rows:
            text = None if row.reason is not None else read_words(row, tokenization)
            counter.add(row, text is not None)
            if wrong is not None:
                wrong.add(row, text)
            if text is not None:
                texts.append(text)
                positions.add(text)
                special_share.add(number, np.array([text.special_share]))
                is_signed = is_signed or min(text.shares) < -_ROUNDING
        words.add(texts)
    counts = counter.counts(folder.manifest)
    _check_explained(folder, counts)
    labels = add_examples(
        words.by_label(settings.min_texts, top),
        explained_texts(folder, tokenization),
        _N_EXAMPLES,
    )
    return FolderSummary(
        name=name,
        path=folder.path,
        manifest=folder.manifest,
        counts=counts,
        tokenization=tokenization,
        is_signed=is_signed,
        special_share=special_share.estimates()[0],
        labels=labels,
        min_texts=settings.min_texts,
        floor=words.floor,
        positions=positions.positions(),
        wrong=None if wrong is None else wrong.wrong_texts(),
    )


def _check_explained(folder: ScoreFolder, counts: Counts) -> None:
    if counts.n_explained > counts.n_without_shares:
        return
    if counts.n_explained:
        reason = "the model knows no word, or all scores of words are 0"
    elif counts.failed:
        most, n_failed = next(iter(counts.failed.items()))
        reason = f"{n_failed} failed with: {printable(most)}"
    else:
        reason = "its part files are empty"
    raise ValueError(
        f"{folder.path} holds {counted(counts.n_rows, 'row')} and no explained text to "
        f"summarize: {reason}. Give a folder with explained texts"
    )


def percent(share: float) -> str:
    """Write a share with its sign."""
    return f"{100 * share:+.1f} %"


def facts(counts: Counts) -> dict[str, str]:
    """Say what is counted, by name."""
    found = {"texts": f"{counts.n_texts:,}"}
    if counts.n_expected is not None and counts.n_expected > counts.n_texts:
        found["texts"] += f" of {counts.n_expected:,}: the run is not complete"
    if counts.n_rows != counts.n_texts:
        found["rows of the table"] = f"{counts.n_rows:,}"
    found["explained"] = f"{counts.n_explained:,}"
    found["failed"] = f"{counts.n_failed:,}"
    found["truncated"] = f"{counts.n_truncated:,}"
    if counts.n_without_shares:
        found["left out, as the model knows no word or all scores of words are 0"] = (
            f"{counts.n_without_shares:,}"
        )
    return found
