"""How many texts there are, and those where the model is confidently wrong."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captum_attnflow.summary.folder import Row
from captum_attnflow.summary.word_shares import WordShares

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
            all scores of their words are 0, or some are not finite.
        n_truncated (int): Explained rows of texts that were cut off.
        n_expected (int, optional): The texts that the manifest promises.
        failed (mapping): Failed rows by reason, the most frequent first.
        labels (mapping): Explained rows by label.
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
        _count(self.labels, row.label)
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
        text (WordShares): The text with its explanation, for :attr:`Row.label`.
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
