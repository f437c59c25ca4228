"""Cells of CSV, TSV, JSONL, Parquet and hub data sets, in a stream.

A row that cannot be read is handed on as :class:`Broken`, and the next one follows: no
row ends a run, and none is left out.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from captum_attnflow._checks import described
from captum_attnflow._files import RepeatedKeyError, read_json

LONGEST_LINE = 1 << 24
"""Characters; what is behind them is passed over, as memory has to end."""
LONGEST_CELL = 1 << 17
"""Characters of a cell of CSV that goes over several lines, by default of Python."""
_LINE_TOO_LONG = f"the line is longer than {LONGEST_LINE:,} characters"
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read.

    Attributes:
        reason (str): Why; equal faults have equal reasons, so that they can be counted.
        left (tuple of str): Of a line of CSV or TSV its cells, from the left, those in
            front of a quote that is not closed.
        right (tuple of str): Its cells, of as many as there are names, from the right;
            empty if it has fewer.
    """

    reason: str
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


Cells = Mapping[str, Any]
Rows = Iterator[Cells | Broken]


class _Lines:
    """Lines of a text file, of which some can be put back.

    Attributes:
        taken (list of str): Those that were read since it was last emptied.
    """

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file
        self.returned: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.returned.popleft() if self.returned else self._read()
        if not line:
            raise StopIteration
        self.taken.append(line)
        return line

    def _read(self) -> str:
        line = piece = self.file.readline(LONGEST_LINE)
        while len(piece) == LONGEST_LINE and piece[-1] not in "\r\n":
            piece = self.file.readline(LONGEST_LINE)
        return line

    def put_back_all_but_first(self) -> None:
        self.returned.extendleft(reversed(self.taken[1:]))


def _opened(file: BinaryIO, newline: str) -> io.TextIOWrapper:
    # A byte that is no UTF-8 becomes a lone surrogate, which its row is refused for.
    return io.TextIOWrapper(
        file, encoding="utf-8-sig", errors="surrogateescape", newline=newline
    )


def names_of_delimited(file: BinaryIO, **dialect: Any) -> list[str]:
    """Return the header of CSV or TSV.

    Raises:
        ValueError: If there is none, or it is broken.
    """
    with _opened(file, "") as text:
        try:
            header = next(csv.reader(text, strict=True, **dialect), None)
            if not header:
                first = "it is empty" if header is None else "its first line is blank"
                raise ValueError(f"{first}; give a header line and rows")
            "".join(header).encode()
        except (csv.Error, UnicodeEncodeError) as error:
            raise ValueError(
                f"its header cannot be read: {error}; give names of columns in UTF-8"
            ) from None
    return header


def read_delimited(file: BinaryIO, **dialect: Any) -> Rows:
    """Yield the rows of CSV or TSV behind the header.

    Where a quote is not closed, the first of the lines that it takes with it is broken,
    and the others are read again. So that a quote takes few of them, a cell of several
    lines has at most :data:`LONGEST_CELL` characters; one of a single line may be as
    long as the line.
    """
    with _opened(file, "") as text:
        lines = _Lines(text)
        reader = csv.reader(lines, strict=True, **dialect)
        header = next(reader, [])
        while True:
            lines.taken.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines.put_back_all_but_first()
                first = lines.taken[0]
                found = _cells_of_long_line(first, dialect)
                if found is None:
                    *before, _ = first.partition('"')[0].split(reader.dialect.delimiter)
                    yield Broken(_reason(first, error), tuple(before))
                    continue
                cells = found
            if not cells and len(header) == 1:
                cells = [""]
            if not cells:
                yield Broken("the line is blank")
            elif len(cells) != len(header):
                n_more = len(cells) - len(header)
                yield Broken(
                    f"the line has {'more' if n_more > 0 else 'fewer'} cells than the "
                    "header names",
                    tuple(cells),
                    tuple(cells[n_more:]) if n_more > 0 else (),
                )
            else:
                yield dict(zip(header, cells, strict=True))


def _cells_of_long_line(line: str, dialect: dict[str, Any]) -> list[str] | None:
    """Cells of a line that is a whole row; None of one whose quote goes on."""
    if not LONGEST_CELL < len(line) < LONGEST_LINE:
        return None
    limit = csv.field_size_limit(LONGEST_LINE)
    try:
        return next(csv.reader([line], strict=True, **dialect))
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)


def _reason(line: str, error: csv.Error) -> str:
    if len(line) == LONGEST_LINE:
        return _LINE_TOO_LONG
    if "field limit" in str(error):
        return (
            f"a cell of several lines is longer than {LONGEST_CELL:,} characters, or "
            "its quote is not closed; JSONL and Parquet hold such texts"
        )
    return f"the line cannot be read: {error}"


def read_jsonl(file: BinaryIO) -> Rows:
    """Yield the objects of JSONL."""
    with _opened(file, "\n") as text:
        lines = _Lines(text)
        for line in lines:
            lines.taken.clear()
            if not line.strip():
                yield Broken("the line is blank")
                continue
            if len(line) == LONGEST_LINE:
                yield Broken(_LINE_TOO_LONG)
                continue
            try:
                cells = read_json(line)
            except RepeatedKeyError as error:
                yield Broken(f"the line names the key {described(error.key)} twice")
                continue
            except ValueError:
                yield Broken("the line is no JSON")
                continue
            if isinstance(cells, dict):
                yield cells
            else:
                yield Broken("the line is no JSON object")


def schema_of_parquet(file: BinaryIO) -> tuple[Any, int]:
    """Return the Arrow schema and the number of rows of a Parquet file.

    Raises:
        ValueError: If it is none.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            return parquet.schema_arrow, parquet.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"it is no Parquet file, or damaged: {error}; write it anew"
        ) from error


def read_parquet(file: BinaryIO, columns: Sequence[str]) -> Rows:
    """Yield the rows of a Parquet file, a row group at a time.

    Raises:
        ValueError: If the file is damaged inside.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with file, pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
                named = [_values(batch.column(name)) for name in columns]
                for values in zip(*named, strict=True):
                    yield dict(zip(columns, values, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"it is damaged as a Parquet file: {error}; write it anew"
        ) from error


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts, written out or numbered."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _values(column: Any) -> list[Any]:
    """Cells of an Arrow column. Parquet does not check that texts are UTF-8."""
    import pyarrow
    from pyarrow import types

    if not is_text(column.type):
        found: list[Any] = column.to_pylist()
        return found
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    binary = pyarrow.large_binary()
    if types.is_string(column.type):
        binary = pyarrow.binary()
    return [
        None if value is None else value.decode("utf-8", "surrogateescape")
        for value in column.cast(binary).to_pylist()
    ]


def read_hub(load: Callable[[], Any], columns: Sequence[str]) -> Rows:
    """Yield the rows of a data set of the hub, as they are downloaded."""
    for cells in load():
        yield {name: cells[name] for name in columns if name in cells}
