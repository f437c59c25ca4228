"""Results on disk, one line per model, method and example, safe against a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from captum_attnflow._files import named_in_errors
from captum_attnflow.study.strict_json import read_json

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Record:
    """One method on one text.

    Attributes:
        model (str): The model's name in the study.
        method (str): A key of :data:`captum_attnflow.study.methods.METHODS`.
        example (int): Row of the data, counted from 1.
        predicted (int): The predicted class.
        values (dict): By removal mode, then metric; empty after a failure.
        tied (bool): Whether all tokens that can be removed have one score.
        forward_rows (float): Rows of forward passes that the attribution took. A batch
            is shared out evenly among its texts, as seconds are.
        backward_rows (float): Rows of backward passes.
        seconds (float): Wall time of the attribution.
        failure (str, optional): What went wrong.
    """

    model: str
    method: str
    example: int
    predicted: int
    values: dict[str, dict[str, float]]
    tied: bool = False
    forward_rows: float = 0.0
    backward_rows: float = 0.0
    seconds: float = 0.0
    failure: str | None = None

    def __post_init__(self) -> None:
        """Refuse what a table could not be made of, such as NaN.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(self.model, self.method, self.example)
        for name in ("forward_rows", "backward_rows", "seconds"):
            _check_number(name, getattr(self, name))
        if (self.failure is None) != bool(self.values):
            raise ValueError("there are values, or a failure says why there are none")
        for removal, metrics in self.values.items():
            for metric, value in metrics.items():
                _check_number(f"values, {removal}, {metric}", value)

    @property
    def key(self) -> Key:
        """What there is one record of."""
        return self.model, self.method, self.example


@dataclass(frozen=True)
class Bounds:
    """The bounds of one text's AOPC, which all methods share.

    Attributes:
        model (str): The model's name in the study.
        removal (str): ``"replace"`` or ``"delete"``.
        example (int): Row of the data, counted from 1.
        lower (float): AOPC of the worst order that was found.
        upper (float): AOPC of the best one.
    """

    model: str
    removal: str
    example: int
    lower: float
    upper: float

    def __post_init__(self) -> None:
        """Refuse bounds that are no numbers.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(self.model, self.removal, self.example)
        _check_number("lower", self.lower)
        _check_number("upper", self.upper)

    @property
    def key(self) -> Key:
        """What there is one record of."""
        return self.model, self.removal, self.example


def _check_key(*key: object) -> None:
    *names, example = key
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{names} are no names")
    if not isinstance(example, int) or example < 1:
        raise ValueError(f"example is {example!r} and no row, counted from 1")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r} and no finite number")


Kind = TypeVar("Kind", Record, Bounds)


class RecordFile(Generic[Kind]):
    """An append-only file of records.

    A line counts once it ends: what a kill left behind the last line feed is cut off
    when the file is opened. Of two records of a key, the first counts.

    Args:
        path (Path): The file; made when the first record comes.
        kind (type): Of the records, :class:`Record` or :class:`Bounds`.

    Raises:
        ValueError: If a line is no record.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self.path = path
        self.records: dict[Key, Kind] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = kind(**read_json(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {path} is no result of a study ({error}); "
                    "delete the line, and it is computed again"
                ) from error
            self.records.setdefault(record.key, record)

    def append(self, records: Iterable[Kind]) -> None:
        """Add those that are not there yet; they are on disk when this returns.

        Raises:
            OSError: If they cannot be written, naming the file.
        """
        new = [record for record in records if record.key not in self.records]
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in new)
        with named_in_errors(self.path), self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.key, record) for record in new)
