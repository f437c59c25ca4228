"""The rows of a table, cut into chunks, and the file that each is written to.

A chunk is the same whatever else is explained, before or beside it. So are the batches
within it, and with them the last digits of scores. Its explanations are in one file,
Parquet, CSV or JSONL.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from captum_attnflow._checks import OneTextError, counted
from captum_attnflow._files import named_in_errors, replace_file
from captum_attnflow._warnings import warn_caller
from captum_attnflow.runs.data import Row, TableData
from captum_attnflow.runs.folder import Checksums
from captum_attnflow.tables.settings import OWN_COLUMNS, TableJob

EXPLAINED, FAILED = "explained", "failed"
_LISTS = ("tokens", "scores")
_OWN_KINDS = {
    "row": "int64",
    "probability": "double",
    "value": "double",
    "n_truncated": "int64",
    "n_windows": "int64",
    "index": "int64",
    "start": "int64",
    "end": "int64",
}
_ROWS_AT_ONCE = 1024

Line = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Rows that are explained together and written to one file.

    Attributes:
        number (int): Which one, counted from 0.
        rows (tuple of Row): In the order of the output.
    """

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """Which rows are in which chunk.

    Attributes:
        n_rows (int): Rows in all chunks.
        size (int): Rows of every chunk but the last.
        order (array, optional): Row numbers, int64 of shape ``(n_rows,)``; None for
            the order of the data.
    """

    n_rows: int
    size: int
    order: np.ndarray[Any, Any] | None

    @staticmethod
    def of(job: TableJob, n_data_rows: int) -> ChunkPlan:
        """Draw the order, if one is asked for. It takes 16 bytes a row."""
        n_rows = min(job.limit or n_data_rows, n_data_rows)
        order = None
        if job.shuffle_seed is not None:
            # The one generator of NumPy whose numbers no release may change.
            order = np.random.RandomState(job.shuffle_seed).permutation(n_data_rows)
            order = order[:n_rows]
        return ChunkPlan(n_rows, job.rows_per_part, order)

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.n_rows // self.size)

    def numbers(self, chunk: int) -> list[int]:
        """The row numbers of a chunk, in order."""
        first, end = chunk * self.size, min((chunk + 1) * self.size, self.n_rows)
        if self.order is None:
            return list(range(first, end))
        found: list[int] = self.order[first:end].tolist()
        return found

    def read(self, job: TableJob, data: TableData, wanted: Set[int]) -> Iterator[Chunk]:
        """Read some of the chunks, in ascending order.

        Raises:
            ValueError: If the data have fewer rows than before.
        """
        if not wanted:
            return
        rows = (
            self._in_order(data, wanted)
            if self.order is None
            else self._shuffled(job, data, wanted)
        )
        for number in sorted(wanted):
            found = tuple(islice(rows, len(self.numbers(number))))
            if [row.number for row in found] != self.numbers(number):
                raise ValueError(
                    f"{data.name} has changed since its rows were counted; run again "
                    "when nothing writes to it"
                )
            yield Chunk(number, found)

    def _in_order(self, data: TableData, wanted: Set[int]) -> Iterator[Row]:
        for row in islice(data.rows(), self.n_rows):
            if row.number // self.size in wanted:
                yield row

    def _shuffled(
        self, job: TableJob, data: TableData, wanted: Set[int]
    ) -> Iterator[Row]:
        """Copy the rows to a file of Arrow, and take them out of it in their order.

        The file is mapped to memory, of which the system keeps as much as it likes.
        """
        import pyarrow

        assert self.order is not None
        needed = np.zeros(data.n_rows, dtype=bool)
        chosen = np.concatenate([self.numbers(number) for number in sorted(wanted)])
        needed[chosen] = True
        place = np.cumsum(needed) - 1  # of a row among those that are copied
        schema = _row_schema(job, data)
        rows = (row for row in data.rows() if needed[row.number])
        path = _copy_rows(rows, schema, Path(job.output))
        try:
            with pyarrow.memory_map(os.fspath(path)) as mapped:
                if os.name == "posix":  # where a kill then leaves nothing behind
                    path.unlink()
                table = pyarrow.ipc.open_file(mapped).read_all()
                for start in range(0, len(chosen), _ROWS_AT_ONCE):
                    numbers = chosen[start : start + _ROWS_AT_ONCE]
                    taken = table.take(pyarrow.array(place[numbers]))
                    columns = [column.to_pylist() for column in taken.columns]
                    for number, name, text, pair, fault, *carried in zip(
                        *columns, strict=True
                    ):
                        yield Row(number, name, tuple(carried), text, pair, fault)
        finally:
            path.unlink(missing_ok=True)


def arrow_type(kind: Any) -> Any:
    """The type of Arrow that a carried column has."""
    import pyarrow

    named = {
        "string": pyarrow.string(),
        "json": pyarrow.string(),
        "int64": pyarrow.int64(),
        "double": pyarrow.float64(),
        "bool": pyarrow.bool_(),
    }
    return named[kind] if isinstance(kind, str) else kind


def _row_schema(job: TableJob, data: TableData) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(
            "shuffling needs pyarrow, which is not installed: pip install "
            '"captum-attnflow[tables]", or leave --shuffle-seed out'
        ) from error
    own = {"id": "string", "text": "string", "text_pair": "string", "fault": "string"}
    return pyarrow.schema(
        [
            ("", pyarrow.int64()),
            *((f" {name}", arrow_type(kind)) for name, kind in own.items()),
            *((name, arrow_type(data.kinds[name])) for name in job.columns),
        ]
    )


def _copy_rows(rows: Iterator[Row], schema: Any, folder: Path) -> Path:
    import pyarrow

    handle, name = tempfile.mkstemp(".tmp", ".shuffled-", folder)
    try:
        with (
            named_in_errors(name),
            os.fdopen(handle, "wb") as file,
            pyarrow.ipc.new_file(file, schema) as writer,
        ):
            while window := list(islice(rows, _ROWS_AT_ONCE)):
                values = [
                    (
                        row.number,
                        row.id,
                        row.text,
                        row.text_pair,
                        row.fault,
                        *row.carried,
                    )
                    for row in window
                ]
                writer.write_batch(
                    pyarrow.record_batch(
                        [
                            pyarrow.array(column, kind)
                            for column, kind in zip(
                                zip(*values, strict=True), schema.types, strict=True
                            )
                        ],
                        schema=schema,
                    )
                )
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


@dataclass(frozen=True)
class ChunkFiles:
    """The files of the chunks: ``part-000000.parquet`` and so on, called part files.

    A *part* of a run is another thing: a share of its chunks, given by ``--part``.

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

    @cached_property
    def _checksums(self) -> Checksums:
        return Checksums(self.folder)

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
        path, content = self.path(chunk), encode[self.format](lines)
        data = content.encode() if isinstance(content, str) else content
        self._checksums.note(path.name, data)
        replace_file(path, data)

    def read_outcomes(
        self, chunk: int, numbers: Sequence[int]
    ) -> list[str | None] | None:
        """Read of a file why rows failed; None where the file is not there or whole.

        A file that is not what was written is warned of, as it may have been edited.
        One that is whole and has no checksum gets one: parts of several machines, which
        were copied into one folder, brought the list of one machine.

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
        content = path.read_bytes()
        if not self._checksums.agree(path, content):
            warn_caller(
                f"{path} was changed or cut off after it was written, as its checksum "
                f"in {Checksums.name} says; it is explained anew"
            )
            return None
        try:
            lines = read[self.format](content)
            found = {
                int(row): reason if status == FAILED else None
                for row, status, reason in lines
            }
        # Whatever a parser says of half a file; it is written anew then.
        except Exception:
            return None
        if list(found) != list(numbers):
            return None
        if path.name not in self._checksums:
            self._checksums.note(path.name, content)
        return list(found.values())

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


def _read_parquet(content: bytes) -> list[tuple[Any, Any, Any]]:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(
        pyarrow.BufferReader(content), columns=["row", "status", "reason"]
    )
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _read_csv(content: bytes) -> list[tuple[Any, Any, Any]]:
    text = content.decode()
    if not text.endswith("\n"):
        raise ValueError("the last line is cut off")
    # Lists of a long text, as JSON, exceed the greatest cell that csv reads.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    finally:
        csv.field_size_limit(limit)
    return [(row["row"], row["status"], row["reason"]) for row in rows]


def _read_jsonl(content: bytes) -> list[tuple[Any, Any, Any]]:
    rows = [json.loads(line) for line in content.splitlines()]
    return [(row["row"], row["status"], row["reason"]) for row in rows]


_LONGEST_REASON = 300  # characters
_NUMBERS = re.compile(r"\[[\d, ]+\]|(?<![\w.])[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?")


def reason_of(error: Exception) -> str:
    """Say why a row failed, in a first sentence that every such row has.

    What a solver or torch says at run time has numbers of the text, such as those of
    iterations or of memory; dots take their place. What to do about it follows as it
    was said.

    Examples::

        >>> reason_of(RuntimeError("stopped in 1,213 steps, at [0, 2]: no. Take 1e-20"))
        'stopped in ... steps, at ...: no. Take 1e-20'
    """
    said = error.reason if isinstance(error, OneTextError) else str(error)
    if isinstance(error, RuntimeError):
        kind = kind_of(said)
        said = _NUMBERS.sub("...", kind) + said[len(kind) :]
    return shorten(said or type(error).__name__, _LONGEST_REASON)


def kind_of(reason: str) -> str:
    """The first sentence of a reason, by which rows are counted."""
    return reason.partition(". ")[0]


_EXAMPLES = re.compile(r"\bthe examples \[([\d, ]+)\]")
_OF_ONE_TEXT = re.compile(r"""\[[^\]]*\]|[-+]?\d+(\.\d+)?|'[^']*'|"[^"]*\"""")
_MOST_KINDS = 10
_MOST_ROWS_NAMED = 5


class RowWarnings:
    """Warnings that rows came with: of each kind the first, and which rows.

    Those that differ in numbers and quoted texts alone are of one kind.

    Examples::

        >>> warned = RowWarnings()
        >>> warned.note("the fit misses the examples [1]: it says [0.5]", [7, 4], True)
        >>> warned.note("the fit misses the examples [0]: it says [0.2]", [9, 3], True)
        >>> warned.sentences()
        ['rows 4, 9: the fit misses the text: it says [0.5]']
    """

    def __init__(self) -> None:
        # By the message without what is of one text, the first of its kind, its rows.
        self._kinds: dict[tuple[bool, str], tuple[str, set[int]]] = {}
        self._others: set[int] = set()

    def note(self, message: str, rows: Sequence[int], is_by_row: bool) -> None:
        """Note a warning of rows that were explained together.

        Args:
            message (str): The warning.
            rows (sequence of int): Their numbers, in the order of the batch.
            is_by_row (bool): Whether the examples that a message names are these rows;
                if not, it is of some of them.
        """
        is_among = len(rows) > 1
        if is_by_row and (named := _EXAMPLES.search(message)) is not None:
            rows = [rows[int(index)] for index in named[1].split(",")]
            message = _EXAMPLES.sub("the text", message)
            is_among = False
        self._add((is_among, _OF_ONE_TEXT.sub("", message)), message, rows)

    def update(self, others: RowWarnings) -> None:
        """Take in those of further rows."""
        for kind, (message, rows) in others._kinds.items():
            self._add(kind, message, rows)
        self._others |= others._others

    def _add(self, kind: tuple[bool, str], message: str, rows: Iterable[int]) -> None:
        if kind not in self._kinds and len(self._kinds) == _MOST_KINDS:
            self._others.update(rows)
        else:
            self._kinds.setdefault(kind, (message, set()))[1].update(rows)

    def sentences(self) -> list[str]:
        """Say each kind once, with its rows; of very many kinds the first."""
        said = []
        for (is_among, _), (message, rows) in self._kinds.items():
            first = ", ".join(map(str, sorted(rows)[:_MOST_ROWS_NAMED]))
            n_more = len(rows) - _MOST_ROWS_NAMED
            more = f" and {n_more:,} more" if n_more > 0 else ""
            place = "among rows" if is_among else "row" if len(rows) == 1 else "rows"
            said.append(f"{place} {first}{more}: {message}")
        if self._others:
            n = counted(len(self._others), "row")
            said.append(f"warnings of further kinds came up with {n}")
        return said
