"""A table of texts: where it comes from, what it holds, and its rows.

A first pass counts the rows, hashes the file and finds the kinds of what is carried
along; a second one reads. Neither keeps rows in memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from captum_attnflow._checks import check_column
from captum_attnflow._files import named_in_errors, refuse_other_content
from captum_attnflow.runs.readers import (
    Broken,
    Cells,
    Rows,
    is_text,
    names_of_delimited,
    read_delimited,
    read_hub,
    read_jsonl,
    read_parquet,
    schema_of_parquet,
)

INPUT_FORMATS = ("csv", "tsv", "jsonl", "parquet")
_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
_EXTRA = 'pip install "captum-attnflow[tables]"'
_DIALECTS: dict[str, dict[str, Any]] = {
    "csv": {},
    # Quotes are text: the format has no way to quote.
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
_BLOCK = 1 << 20
_MAGIC = 8  # bytes that tell what a file is
_MOST_NAMES = 100
_HEAD = 1000  # rows that tell whether a column holds numbers


@dataclass(frozen=True)
class Source:
    """Where rows come from, and which of their columns are read.

    Attributes:
        name (str): A file (CSV, TSV, JSONL or Parquet), the hub id of a data set, or
            ``"-"`` for standard input, which is copied to a temporary file first.
        text_column (str): The column of the texts.
        pair_column (str, optional): The column of the second sentences of pairs.
        id_column (str, optional): The column whose values name the rows.
        columns (tuple of str): Columns to carry along.
        input_format (str, optional): One of :data:`INPUT_FORMATS`; by the file's ending
            by default. Standard input is JSONL if it begins with a brace, else CSV.
        split (str): Split of a hub data set.
        subset (str, optional): Subset (configuration) of a hub data set.
    """

    name: str
    text_column: str
    pair_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    input_format: str | None = None
    split: str = "test"
    subset: str | None = None

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """The columns that are read, without those that are not given."""
        named = (self.text_column, self.pair_column, self.id_column, *self.columns)
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True)
class Row:
    """One row of the data.

    Attributes:
        number (int): Which one, counted from 0; a header line is none.
        id (str, optional): What the column of ids holds; of a row that cannot be read
            what is left of it, or else ``"row 7"`` and the like.
        carried (tuple): Values of the columns to carry along.
        text (str, optional): The text. What is no character is replaced by U+FFFD, so
            that any file can hold it; the row then has a fault.
        text_pair (str, optional): The second sentence of a pair.
        fault (str, optional): Why it cannot be explained.
    """

    number: int
    id: str | None
    carried: tuple[Any, ...]
    text: str | None
    text_pair: str | None
    fault: str | None


@dataclass(frozen=True)
class TableData:
    """A table of texts that was looked through.

    Attributes:
        source (Source): What was asked for.
        name (str): The file's or data set's name.
        hash (str): SHA-256 of the file; of a data set its commit on the hub.
        format (str): One of :data:`INPUT_FORMATS`, or ``"hub"``.
        n_rows (int): How many rows it has, broken ones included.
        kinds (mapping): By carried column ``"string"``, ``"int64"``, ``"double"``,
            ``"bool"``, ``"json"`` or a type of Arrow.
        cells (Callable): Begins to read its rows.
        header (tuple of str): Of CSV and TSV, the names of all columns.
    """

    source: Source
    name: str
    hash: str
    format: str
    n_rows: int
    kinds: Mapping[str, Any]
    cells: Callable[[], Rows]
    header: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """Read the rows, each with what is wrong with it.

        Raises:
            ValueError: If a file is damaged inside, naming it.
        """
        try:
            for number, cells in enumerate(self.cells()):
                if isinstance(cells, Broken):
                    yield self._broken(number, cells)
                else:
                    yield _to_row(number, cells, self.source, self.kinds)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def _broken(self, number: int, broken: Broken) -> Row:
        carried = (None,) * len(self.source.columns)
        name = self._id_of_broken(number, broken)
        return Row(number, name, carried, None, None, broken.reason)

    def _id_of_broken(self, number: int, broken: Broken) -> str | None:
        """Find the id beside what is broken, which most often is the text.

        A separator within a text moves what is right of it, and nothing left of it.
        """
        column = self.source.id_column
        if column is None:
            return None
        texts = {self.source.text_column, self.source.pair_column}
        places = [place for place, name in enumerate(self.header) if name in texts]
        if places:
            place = self.header.index(column)
            is_left = place < min(places)
            cells = broken.left if is_left else broken.right
            if place < len(cells) and (is_left or place > max(places)):
                return _storable(cells[place])
        return f"row {number}"


def open_data(source: Source) -> TableData:
    """Find a table and look through it.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read, lacks a column or has no texts.
    """
    path = Path(source.name)
    if source.name == "-":
        return _of_file(_standard_input(), "standard input", source)
    if path.is_file():
        return _of_file(lambda: path.open("rb"), path.name, source)
    if path.exists() or path.suffix or not _HUB_ID.fullmatch(source.name):
        found = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(
            f"the file {source.name!r} {found}. Give a file "
            f"({', '.join(f'.{name}' for name in INPUT_FORMATS)}), - for standard "
            'input, or the hub id of a data set such as "owner/name"'
        )
    return _of_hub(source)


def _standard_input() -> Callable[[], BinaryIO]:
    """Copy standard input to a file without a name, which can be read twice."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it is read
    with named_in_errors(f"a copy of standard input in {tempfile.gettempdir()}"):
        while block := sys.stdin.buffer.read(_BLOCK):
            copy.write(block)
        copy.flush()

    def again() -> BinaryIO:
        copy.seek(0)
        return os.fdopen(os.dup(copy.fileno()), "rb")

    return again


def _of_file(open_file: Callable[[], BinaryIO], name: str, source: Source) -> TableData:
    kind = _format_of(open_file, name, source)
    digest = hashlib.sha256()
    with open_file() as file:
        if kind != "parquet":
            refuse_other_content(name, file.read(_MAGIC))
            file.seek(0)
        while block := file.read(_BLOCK):
            digest.update(block)
    try:
        if kind == "parquet":
            return _of_parquet(open_file, name, digest.hexdigest(), source)
        if kind == "jsonl":
            names = None

            def cells() -> Rows:
                return read_jsonl(open_file())
        else:
            dialect = _DIALECTS[kind]
            names = names_of_delimited(open_file(), **dialect)

            def cells() -> Rows:
                return read_delimited(open_file(), **dialect)

        profile = _Profile(name, source, names)
        for row in cells():
            profile.add(row)
        n_rows, kinds = profile.result()
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    return TableData(
        source, name, digest.hexdigest(), kind, n_rows, kinds, cells, tuple(names or ())
    )


def _format_of(open_file: Callable[[], BinaryIO], name: str, source: Source) -> str:
    if source.input_format is not None:
        return source.input_format
    if source.name == "-":
        with open_file() as file:
            begin = file.read(_BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip()
        return "jsonl" if begin.startswith(b"{") else "csv"
    ending = Path(name).suffix[1:].lower()
    if ending not in INPUT_FORMATS:
        raise ValueError(
            f"{name} is of an unknown format; give a file that ends in "
            f"{', '.join(f'.{known}' for known in INPUT_FORMATS)}, or --input-format"
        )
    return ending


def _of_parquet(
    open_file: Callable[[], BinaryIO], name: str, sha256: str, source: Source
) -> TableData:
    _import("pyarrow", "Parquet files")
    with open_file() as file:
        schema, n_rows = schema_of_parquet(file)
    _check_names(name, schema.names, source)
    _check_types(name, schema, source)
    if n_rows == 0:
        raise ValueError(f"{name} holds no rows; give at least one text")

    def cells() -> Rows:
        return read_parquet(open_file(), source.needed_columns)

    kinds = _arrow_kinds(schema, source)
    return TableData(source, name, sha256, "parquet", n_rows, kinds, cells)


def _of_hub(source: Source) -> TableData:
    """Stream a data set of the hub at its newest commit, or at the newest cached one.

    The cache is read with ``HF_HUB_OFFLINE=1`` alone: without a word, an older commit
    would stand for the newest whenever the network fails.
    """
    datasets = _import("datasets", "data sets of the hub")
    from huggingface_hub import dataset_info

    is_offline = datasets.config.HF_HUB_OFFLINE
    try:
        if is_offline:
            builder = datasets.load_dataset_builder(source.name, source.subset)
            commit = str(builder.hash)
        else:
            commit = str(dataset_info(source.name).sha)

        def load() -> Any:
            if is_offline:
                return builder.as_streaming_dataset(source.split)
            return datasets.load_dataset(
                source.name,
                source.subset,
                split=source.split,
                revision=commit,
                streaming=True,
            )

        stream = load()
    except Exception as error:  # of the network, of the hub, of the data set
        where = (
            "is not in the cache, which HF_HUB_OFFLINE=1 asks for"
            if is_offline
            else "on the hub cannot be read, for which HF_HUB_OFFLINE=1 would ask the "
            "cache"
        )
        raise ValueError(
            f"there is no file {source.name!r}, and the data set of this name {where} "
            f"({error}); give a file, or a data set with its --split and --subset"
        ) from error

    def cells() -> Rows:
        return read_hub(load, source.needed_columns)

    splits = stream.info.splits or {}
    n_rows = splits[source.split].num_examples if source.split in splits else None
    if stream.features is not None:
        schema = stream.features.arrow_schema
        _check_names(source.name, schema.names, source)
        _check_types(source.name, schema, source)
        kinds = _arrow_kinds(schema, source)
        if not n_rows:
            n_rows = sum(1 for _ in cells())
    else:
        profile = _Profile(source.name, source, None)
        for row in cells():
            profile.add(row)
        n_rows, kinds = profile.result()
    return TableData(source, source.name, commit, "hub", n_rows, kinds, cells)


def _import(package: str, purpose: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f"{purpose} need {package}: {_EXTRA}") from error


def _check_names(name: str, there: list[str], source: Source) -> None:
    named_by = {
        source.text_column: "text_column",
        source.pair_column: "pair_column",
        source.id_column: "id_column",
    }
    for column in source.needed_columns:
        check_column(name, column, there, named_by.get(column))


def _check_types(name: str, schema: Any, source: Source) -> None:
    for column in (source.text_column, source.pair_column):
        if column is not None and not is_text(schema.field(column).type):
            texts = [field.name for field in schema if is_text(field.type)]
            raise ValueError(
                f"the column {column!r} of {name} holds {schema.field(column).type} "
                f"and no texts; "
                + (
                    f"give one of {', '.join(map(repr, texts))}"
                    if texts
                    else "no other column does; write one as strings"
                )
            )


def _arrow_kinds(schema: Any, source: Source) -> dict[str, Any]:
    types = {column: schema.field(column).type for column in source.columns}
    return {name: "string" if is_text(kind) else kind for name, kind in types.items()}


@dataclass
class _Profile:
    """What a pass over rows without a schema finds out.

    Attributes:
        name (str): Of the data, for errors.
        source (Source): Names the columns.
        header (list of str, optional): The columns, where a header names them. All
            cells are texts then.
    """

    name: str
    source: Source
    header: list[str] | None
    n_rows: int = 0
    seen: dict[str, None] = field(default_factory=dict)
    types: dict[str, set[type]] = field(default_factory=dict)
    n_numbers: dict[str, int] = field(default_factory=dict)
    n_others: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.header is not None:
            _check_names(self.name, self.header, self.source)

    def add(self, cells: Cells | Broken) -> None:
        """Look at a row."""
        self.n_rows += 1
        if isinstance(cells, Broken):
            return
        if self.header is None:
            for column in self.source.needed_columns:
                if column in cells:
                    self.seen[column] = None
            if len(self.seen) < _MOST_NAMES:
                self.seen.update(dict.fromkeys(cells))
            for column in self.source.columns:
                kind = type(cells.get(column))
                if kind is int and not -(2**63) <= cells[column] < 2**63:
                    kind = object
                self.types.setdefault(column, set()).add(kind)
        for name in (self.source.text_column, self.source.pair_column):
            if name is not None and self.n_rows <= _HEAD:
                self._count(name, cells.get(name))

    def _count(self, column: str, value: Any) -> None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return
        found = self.n_numbers if _is_number(value) else self.n_others
        found[column] = found.get(column, 0) + 1

    def result(self) -> tuple[int, dict[str, Any]]:
        """Return the number of rows, and the kinds of carried columns.

        Raises:
            ValueError: If there is no row, or no such column, or it holds numbers.
        """
        if not self.n_rows:
            raise ValueError(f"{self.name} holds no rows; give at least one text")
        if self.header is None and not self.seen:
            raise ValueError(
                f"{self.name} holds no JSON object in a line of its own, such as "
                f'{{"{self.source.text_column}": "a text"}}; write one for each row'
            )
        there = list(self.seen) if self.header is None else self.header
        _check_names(self.name, there, self.source)
        for column, n_numbers in self.n_numbers.items():
            if not self.n_others.get(column):
                others = [repr(other) for other in there if other != column]
                raise ValueError(
                    f"the column {column!r} of {self.name} holds numbers (all "
                    f"{n_numbers} of its first values); give a column of texts: there "
                    f"{'are' if others else 'is none but this'} {', '.join(others)}"
                )
        if self.header is not None:
            return self.n_rows, dict.fromkeys(self.source.columns, "string")
        return self.n_rows, {name: _kind(of) for name, of in self.types.items()}


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(types: set[type]) -> str:
    found = types - {type(None)}
    if found <= {str}:
        return "string"
    if found == {bool}:
        return "bool"
    if found == {int}:
        return "int64"
    return "double" if found <= {int, float} else "json"


def _to_row(number: int, cells: Cells, source: Source, kinds: Mapping[str, Any]) -> Row:
    given = {"text": source.text_column, "pair": source.pair_column}
    faults = [
        _fault(name, column, cells)
        for name, column in given.items()
        if column is not None
    ]
    name = None if source.id_column is None else cells.get(source.id_column)
    pair = None if source.pair_column is None else cells.get(source.pair_column)
    return Row(
        number=number,
        id=None if name is None else _storable(str(name)),
        carried=tuple(_carried(cells.get(c), kinds[c]) for c in source.columns),
        text=_shown(cells.get(source.text_column)),
        text_pair=_shown(pair),
        fault=next((fault for fault in faults if fault is not None), None),
    )


def _fault(name: str, column: str, cells: Cells) -> str | None:
    """Say why a cell cannot be explained, without quoting it: reasons are counted."""
    value = cells.get(column)
    if column not in cells or value is None:
        return f"there is no {name}"
    if not isinstance(value, str):
        return f"the {name} is of type {type(value).__name__}"
    if not value.strip():
        return f"the {name} is blank"
    if _storable(value) != value:
        return f"the {name} is no UTF-8, or holds half a character (a lone surrogate)"
    return None


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    return _storable(value if isinstance(value, str) else str(value))


def _storable(text: str) -> str:
    """Replace lone surrogates, which no file holds, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _carried(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if kind == "string":
        return _storable(str(value))
    if kind == "double":
        return float(value)
    if kind == "json":
        return _storable(json.dumps(value))
    return value
