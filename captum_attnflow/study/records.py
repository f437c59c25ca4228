"""Results on disk, one line per model, method and example, safe against a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

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

    @property
    def key(self) -> Key:
        """What there is one record of."""
        return self.model, self.removal, self.example


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
                record = kind(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {path} is no result of a study ({error}); "
                    "delete the line, and it is computed again"
                ) from error
            self.records.setdefault(record.key, record)

    def append(self, records: Iterable[Kind]) -> None:
        """Add those that are not there yet; they are on disk when this returns."""
        new = [record for record in records if record.key not in self.records]
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in new)
        with self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.key, record) for record in new)
