"""What a study keeps on disk by line, and the same in memory by column.

Every line is safe against a kill. A part of a study has files of its own, and so has
each worker of Ray; when all is there, they are merged.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout

from captum_attnflow._checks import counted
from captum_attnflow._files import named_in_errors, read_json
from captum_attnflow.runs.folder import LineFile, lock_of_part
from captum_attnflow.study.settings import Study

COSTS = ("forward_rows", "backward_rows", "seconds")
_OF_PART = r"-([0-9]+)-of-([0-9]+)(-worker-[0-9a-f]+)?"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Record:
    """One method on one text.

    Attributes:
        model (str): The model's name in the study.
        method (str): A key of :data:`captum_attnflow.study.methods.METHODS`.
        row (int): Row of the data, counted from 0.
        predicted (int): The predicted class.
        values (dict): By removal mode, then metric; empty after a failure.
        tied (bool): Whether all tokens that can be removed have one score.
        forward_rows (float): Rows of forward passes that the attribution took. A batch
            is shared out evenly among its texts, as seconds are.
        backward_rows (float): Rows of backward passes. Where a batch has as many texts
            as a captured tensor has heads, tokens or features, one more pass finds
            which axis is that of the texts, and the rows are twice as many.
        seconds (float): Wall time of the attribution, without the first call of the
            method by a model in a process, which compiles and counts for no text.
        failure (str, optional): What went wrong.
    """

    model: str
    method: str
    row: int
    predicted: int
    values: dict[str, dict[str, float]]
    tied: bool = False
    forward_rows: float = 0.0
    backward_rows: float = 0.0
    seconds: float = 0.0
    failure: str | None = None

    @property
    def key(self) -> tuple[tuple[str, str], int]:
        """What there is one record of."""
        return (self.model, self.method), self.row

    def __post_init__(self) -> None:
        """Refuse values that no table can hold, such as NaN.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(*self.key)
        if not isinstance(self.predicted, int) or self.predicted < 0:
            raise ValueError(f"predicted is {self.predicted!r} and no class")
        for name in COSTS:
            _check_number(name, getattr(self, name))
        if (self.failure is None) != bool(self.values):
            raise ValueError("there are values, or a failure says why there are none")
        for removal, metrics in self.values.items():
            for metric, value in metrics.items():
                _check_number(f"values, {removal}, {metric}", value)


@dataclass(frozen=True)
class Bounds:
    """The bounds of one text's AOPC, which all methods share.

    Attributes:
        model (str): The model's name in the study.
        removal (str): ``"replace"`` or ``"delete"``.
        row (int): Row of the data, counted from 0.
        lower (float): AOPC of the worst order that was found.
        upper (float): AOPC of the best one.
    """

    model: str
    removal: str
    row: int
    lower: float
    upper: float

    @property
    def key(self) -> tuple[tuple[str, str], int]:
        """What there is one record of."""
        return (self.model, self.removal), self.row

    def __post_init__(self) -> None:
        """Refuse bounds that are not finite numbers.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(*self.key)
        _check_number("lower", self.lower)
        _check_number("upper", self.upper)


def _check_key(names: Sequence[object], row: object) -> None:
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{names} are no names")
    if not isinstance(row, int) or row < 0:
        raise ValueError(f"row is {row!r} and no row, counted from 0")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r} and no finite number")


Kind = TypeVar("Kind", Record, Bounds)


class RecordFile(Generic[Kind]):
    """An append-only file of records.

    Only complete lines count: a killed run may leave an unfinished last one, which the
    first that is appended replaces.

    Args:
        path (Path): The file; made when the first record comes.
        kind (type): Of the records, :class:`Record` or :class:`Bounds`.
        makes (bool): Whether it is made. A worker's file is there: one that is not was
            merged, or is on another machine.
    """

    def __init__(self, path: Path, kind: type[Kind], makes: bool = True) -> None:
        self.path = path
        self._kind: type[Kind] = kind
        self._lines = LineFile(path, makes)

    def read(self) -> Iterator[Kind]:
        """Read the records, one at a time.

        Raises:
            ValueError: If a line is not a record.
        """
        for _, record in self._lines_with_records():
            yield record

    def _lines_with_records(self) -> Iterator[tuple[bytes, Kind]]:
        for number, line in enumerate(self._lines, 1):
            try:
                yield line, self._kind(**read_json(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is no result of a study "
                    f"({error}); delete the line, and it is computed again"
                ) from error

    def append(self, records: Iterable[Kind]) -> None:
        """Add records; they are on disk when this returns.

        Raises:
            OSError: If they cannot be written, naming the file.
        """
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
        self._lines.append([lines.encode()])

    def absorb(self, others: Sequence[Path]) -> None:
        """Take over the records of other files that are not here, and remove those.

        Some are in two files where a run was killed in the middle of this, or a worker
        behind a line, so that another one did its task again. The first one counts.

        Raises:
            OSError: If they cannot be written, naming this file.
            ValueError: If a line is not a record.
        """
        rows: dict[tuple[str, str], set[int]] = defaultdict(set)
        for record in self.read() if others else ():
            names, row = record.key
            rows[names].add(row)

        def new_lines(other: Path) -> Iterator[bytes]:
            file = RecordFile(other, self._kind)
            for line, record in file._lines_with_records():
                names, row = record.key
                if row not in rows[names]:
                    rows[names].add(row)
                    yield line

        for other in others:
            lines = new_lines(other)
            for first in lines:  # without any, no file is made
                self._lines.append(chain([first], lines))
            other.unlink()


@dataclass(frozen=True)
class PartedFile(Generic[Kind]):
    """Records in one file, or while a study runs in one for each part and worker.

    Attributes:
        folder (Path): Where they are.
        name (str): Of the one file, without its ending.
        kind (type): Of the records.
        part (tuple of int): Which part of how many this run writes.
    """

    folder: Path
    name: str
    kind: type[Kind]
    part: tuple[int, int]

    @property
    def whole(self) -> Path:
        """The one file, of a study without parts or after their end."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def own(self) -> RecordFile[Kind]:
        """The file that this run writes."""
        if self.part == (1, 1):
            return RecordFile(self.whole, self.kind)
        return RecordFile(self.folder / f"{self._own_name}.jsonl", self.kind)

    @property
    def _own_name(self) -> str:
        return "{}-{}-of-{}".format(self.name, *self.part)

    def of_new_worker(self) -> RecordFile[Kind]:
        """Make a file that one worker of this run writes, wherever it is.

        No other has its name. So a worker that outlives its run, which was killed,
        writes to no file of the next one: it finds its own one merged and stops.
        """
        name = f"{self._own_name}-worker-{uuid4().hex[:12]}.jsonl"
        path = self.folder.absolute() / name
        with named_in_errors(path):
            path.touch(exist_ok=False)
        return RecordFile(path, self.kind, makes=False)

    def of_parts(self) -> dict[Path, tuple[int, int]]:
        """The files of parts and workers that are there, each with its part."""
        found = {}
        for path in sorted(self.folder.glob(f"{self.name}-*.jsonl")):
            part = re.fullmatch(rf"{self.name}{_OF_PART}\.jsonl", path.name)
            if part is not None:
                found[path] = (int(part[1]), int(part[2]))
        return found

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that may be there."""
        return (self.whole, *self.of_parts())

    def read(self) -> Iterator[tuple[Path, Kind]]:
        """Read all records that are there, each with the file that it is from."""
        for path in self.paths:
            for record in RecordFile(path, self.kind).read():
                yield path, record

    def gather(self) -> None:
        """Move the records of this part's workers, which have ended, to its file."""
        own = self.own
        own.absorb(
            [
                path
                for path, part in self.of_parts().items()
                if part == self.part and path != own.path
            ]
        )

    def merge(self) -> None:
        """Move the records of parts to the one file, but of those that are written."""
        there = self.of_parts()
        with ExitStack() as held:
            free = {self.part}
            for part in set(there.values()) - free:
                with suppress(Timeout):
                    held.enter_context(lock_of_part(self.folder, part))
                    free.add(part)
            RecordFile(self.whole, self.kind).absorb(
                [path for path, part in there.items() if part in free]
            )


@contextmanager
def no_merge_meanwhile(folder: Path) -> Iterator[None]:
    """Keep other runs in a folder from merging files that are being read."""
    with FileLock(folder / ".merge.lock"):
        yield


@dataclass(frozen=True, eq=False)
class Column:
    """What one method did on all texts, some 100 bytes for each.

    Attributes:
        values (array): Shape ``(n_texts, removals, metrics)``, float64; NaN where there
            is none.
        costs (array): Shape ``(n_texts, 3)``, float64, by :data:`COSTS`.
        predicted (array): Shape ``(n_texts,)``, int64; -1 where nothing is known.
        is_tied (array): Shape ``(n_texts,)``, bool.
        failures (dict): By a text's place among all, what went wrong.
    """

    values: Array
    costs: Array
    predicted: Array
    is_tied: Array
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def is_done(self) -> Array:
        """Which texts it was run on, shape ``(n_texts,)``."""
        return self.predicted >= 0

    @property
    def is_measured(self) -> Array:
        """Which texts it did not fail on, shape ``(n_texts,)``."""
        done = self.is_done
        done[list(self.failures)] = False
        return done


class Results:
    """The results of a study's methods on its models.

    Args:
        study (Study): Names methods, removal modes and metrics.
        models (sequence of str): The models' names.
        rows (sequence of int): Of the texts in the data, ascending.
    """

    def __init__(
        self, study: Study, models: Sequence[str], rows: Sequence[int]
    ) -> None:
        self._study = study
        self.rows = np.array(rows)
        n_texts = len(rows)
        shape = (n_texts, len(study.removals), len(study.metrics))
        self.columns: Mapping[tuple[str, str], Column] = {
            (model, method): Column(
                np.full(shape, np.nan),
                np.zeros((n_texts, len(COSTS))),
                np.full(n_texts, -1),
                np.zeros(n_texts, dtype=bool),
            )
            for model in models
            for method in study.methods
        }

    def add(self, record: Record) -> bool:
        """Take in a record; of two of a model, method and text the first counts.

        Returns:
            bool: Whether it is new, and of a model and a method of this study.

        Raises:
            ValueError: If it lacks a value, or there is no such text.
        """
        column = self.columns.get((record.model, record.method))
        if column is None:
            return False
        place = _place_of(record.row, self.rows)
        if column.predicted[place] >= 0:
            return False
        if record.failure is None:
            column.values[place] = self._values_of(record)
        else:
            column.failures[place] = record.failure
        column.costs[place] = [getattr(record, name) for name in COSTS]
        column.is_tied[place] = record.tied
        column.predicted[place] = record.predicted
        return True

    def _values_of(self, record: Record) -> list[list[float]]:
        for removal in self._study.removals:
            there = record.values.get(removal, {}).keys()
            missing = set(self._study.metrics) - there
            if missing:
                raise ValueError(
                    f"there is no {', '.join(sorted(missing))} ({removal}) of "
                    f"{record.method} on row {record.row} by the model "
                    f"{record.model!r}"
                )
        return [
            [record.values[removal][metric] for metric in self._study.metrics]
            for removal in self._study.removals
        ]


class KnownBounds:
    """The bounds of AOPC that were found, by model, removal mode and text.

    A text's bounds depend on no other text, so that figures do not depend on which of
    them were there already.

    Args:
        models (sequence of str): The models' names.
        removals (sequence of str): ``"replace"``, ``"delete"`` or both.
        rows (sequence of int): Of the texts in the data, ascending.
    """

    def __init__(
        self, models: Sequence[str], removals: Sequence[str], rows: Sequence[int]
    ) -> None:
        self._removals = removals
        self._rows = np.array(rows)
        self._ends = {
            (model, removal): np.full((len(rows), 2), np.nan)
            for model in models
            for removal in removals
        }

    def add(self, bounds: Bounds) -> None:
        """Take in the bounds of a text; the first ones count."""
        ends = self._ends.get((bounds.model, bounds.removal))
        if ends is not None:
            place = _place_of(bounds.row, self._rows)
            if np.isnan(ends[place]).any():
                ends[place] = bounds.lower, bounds.upper

    def of(self, model: str, rows: Sequence[int]) -> dict[tuple[str, int], Bounds]:
        """The bounds that are known of some texts, by removal mode and row."""
        found = {}
        for removal in self._removals:
            for row in rows:
                place = _place_of(row, self._rows)
                lower, upper = self._ends[model, removal][place].tolist()
                if not math.isnan(lower):
                    known = Bounds(model, removal, row, lower, upper)
                    found[removal, row] = known
        return found


def _place_of(row: int, rows: Array) -> int:
    place = int(np.searchsorted(rows, row))
    if place == len(rows) or rows[place] != row:
        raise ValueError(
            f"it is of row {row}, which is none of the "
            f"{counted(len(rows), 'row')} with a text"
        )
    return place
