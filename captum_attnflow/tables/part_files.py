"""Part files: the explanations of a chunk as Parquet, CSV or JSONL."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_attnflow._files import replace_file
from captum_attnflow.tables.chunks import arrow_type
from captum_attnflow.tables.settings import OWN_COLUMNS

EXPLAINED, FAILED = "explained", "failed"
_LISTS = ("tokens", "scores")
_OWN_KINDS = {
    "row": "int64",
    "probability": "double",
    "value": "double",
    "n_truncated": "int64",
    "index": "int64",
    "start": "int64",
    "end": "int64",
}

Line = dict[str, Any]


@dataclass(frozen=True)
class PartFiles:
    """The part files of a folder.

    Attributes:
        folder (Path): Where they are.
        format (str): ``"parquet"``, ``"csv"`` or ``"jsonl"``.
        kinds (mapping): Of the columns that are carried along, in their order.
        own (tuple of str): The other columns.
    """

    folder: Path
    format: str
    kinds: Mapping[str, Any]
    own: tuple[str, ...] = OWN_COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order."""
        row, name, *others = self.own
        return (row, name, *self.kinds, *others)

    def path(self, chunk: int) -> Path:
        """Where the explanations of a chunk are."""
        return self.folder / f"part-{chunk:06d}.{self.format}"

    def write(self, chunk: int, lines: Sequence[Line]) -> None:
        """Write the explanations of a chunk, whole or not at all.

        Args:
            chunk (int): Its number.
            lines (sequence of dict): One per row of the output, by column.

        Raises:
            OSError: If they cannot be written, naming the file.
        """
        encode: dict[str, Callable[[Sequence[Line]], str | bytes]] = {
            "parquet": self._to_parquet,
            "csv": self._to_csv,
            "jsonl": self._to_jsonl,
        }
        replace_file(self.path(chunk), encode[self.format](lines))

    def read_outcomes(
        self, chunk: int, numbers: Sequence[int]
    ) -> list[str | None] | None:
        """Read of a file why rows failed; None where the file is not there or whole.

        Args:
            chunk (int): Its number.
            numbers (sequence of int): The rows that it has to hold, in order.

        Returns:
            list[str | None]: Per row of the data None, or the reason.
        """
        path = self.path(chunk)
        if not path.is_file():
            return None
        read = {
            "parquet": _read_parquet,
            "csv": _read_csv,
            "jsonl": _read_jsonl,
        }
        try:
            lines = read[self.format](path)
            found = {
                int(row): reason if status == FAILED else None
                for row, status, reason in lines
            }
        # Whatever a parser says of half a file; it is written anew then.
        except Exception:
            return None
        return list(found.values()) if list(found) == list(numbers) else None

    def _to_parquet(self, lines: Sequence[Line]) -> bytes:
        import pyarrow
        import pyarrow.parquet

        lists = {
            "tokens": pyarrow.list_(pyarrow.string()),
            "scores": pyarrow.list_(pyarrow.float64()),
        }
        types = {
            name: lists.get(name)
            or arrow_type(self.kinds.get(name) or _OWN_KINDS.get(name, "string"))
            for name in self.columns
        }
        arrays = [
            pyarrow.array([line[name] for line in lines], kind)
            for name, kind in types.items()
        ]
        table = pyarrow.Table.from_arrays(
            arrays, schema=pyarrow.schema(list(types.items()))
        )
        with pyarrow.BufferOutputStream() as stream:
            pyarrow.parquet.write_table(table, stream, compression="zstd")
            content: bytes = stream.getvalue().to_pybytes()
        return content

    def _to_csv(self, lines: Sequence[Line]) -> str:
        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(self.columns)
        for line in lines:
            writer.writerow(
                _to_json(value)
                if name in _LISTS and value is not None
                else _cell(value)
                for name, value in _ordered(line, self.columns)
            )
        return content.getvalue()

    def _to_jsonl(self, lines: Sequence[Line]) -> str:
        return "".join(
            f"{_to_json(dict(_ordered(line, self.columns)))}\n" for line in lines
        )


def _ordered(line: Line, columns: Sequence[str]) -> list[tuple[str, Any]]:
    return [(name, line[name]) for name in columns]


def _cell(value: Any) -> Any:
    return _to_json(value) if isinstance(value, (dict, list, bool)) else value


def _to_json(value: Any) -> str:
    """Types that Parquet has beside JSON, such as dates, are written as texts."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _read_parquet(path: Path) -> list[tuple[Any, Any, Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["row", "status", "reason"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _read_csv(path: Path) -> list[tuple[Any, Any, Any]]:
    content = path.read_text("utf-8")
    if not content.endswith("\n"):
        raise ValueError("the last line is cut off")
    # Lists of a long text, as JSON, exceed the greatest cell that csv reads.
    limit = csv.field_size_limit(len(content) + 1)
    try:
        rows = list(csv.DictReader(io.StringIO(content, newline=""), strict=True))
    finally:
        csv.field_size_limit(limit)
    return [(row["row"], row["status"], row["reason"]) for row in rows]


def _read_jsonl(path: Path) -> list[tuple[Any, Any, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        rows = [json.loads(line) for line in file]
    return [(row["row"], row["status"], row["reason"]) for row in rows]
