"""The texts of a study, from a file or from the hub."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_attnflow._checks import check_column, check_type
from captum_attnflow._files import read_json, refuse_other_content, sha256_of_file
from captum_attnflow.pipelines.pretrained import check_encodable

Rows = Iterator[Mapping[str, Any]]

_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
_EXTRA = 'pip install "captum-attnflow[study]"'


@dataclass(frozen=True)
class DataSource:
    """Where texts come from, and which of them.

    Attributes:
        name (str): A file (TSV, CSV, JSONL or Parquet) or the hub id of a data set.
        text_column (str): The column of texts.
        label_column (str, optional): The column of labels.
        limit (int, optional): The size of a random sample of rows, in their order;
            data are often sorted by label, so that the first rows would mislead.
        seed (int): Draws the sample.
        split (str): Split of a hub data set.
        subset (str, optional): Subset (configuration) of a hub data set.
    """

    name: str
    text_column: str = "text"
    label_column: str | None = None
    limit: int | None = None
    seed: int = 0
    split: str = "test"
    subset: str | None = None


@dataclass(frozen=True)
class TextData:
    """Texts, with labels if there are any.

    Attributes:
        texts (tuple of str): None of them empty.
        labels (tuple of str, optional): As the data writes them.
        rows (tuple of int): Their row numbers in the data, counted from 1.
        sha256 (str): Of the file; of all texts, for a hub data set.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: tuple[int, ...]
    sha256: str

    def class_indices(self, classes: Sequence[str]) -> list[int] | None:
        """Find the labels among a model's classes, by name or else by index.

        Raises:
            ValueError: If one is not there.
        """
        if self.labels is None:
            return None
        index_of = {str(index): index for index in range(len(classes))}
        index_of |= {name: index for index, name in enumerate(classes)}
        for row, label in zip(self.rows, self.labels, strict=True):
            if label not in index_of:
                raise ValueError(
                    f"the label {label!r} of row {row} is none of the model's "
                    f"classes {list(classes)} nor an index from 0 to "
                    f"{len(classes) - 1}; mend it, or leave labels out"
                )
        return [index_of[label] for label in self.labels]


def read_data(source: DataSource) -> TextData:
    """Read texts and labels. All rows are checked, also those outside the sample.

    Rows are counted from 1, a header line is none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a text is empty, or the file cannot be read.
    """
    check_type("source", source, DataSource, "a DataSource")
    if source.limit is not None and source.limit < 1:
        raise ValueError(f"limit={source.limit} must be at least 1")
    path = Path(source.name)
    if path.is_file():
        rows, sha256 = _rows_of_file(path), sha256_of_file(path)
    elif path.exists() or path.suffix or not _HUB_ID.fullmatch(source.name):
        found = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(
            f"the file {source.name!r} {found}. Give a file "
            f"({', '.join(_FORMATS)}), or the hub id of a data set such as "
            '"owner/name"'
        )
    else:
        rows, sha256 = _rows_of_hub(source), None
    texts: list[str] = []
    labels: list[str] = []
    for number, row in enumerate(rows, 1):
        text = _cell(row, source.text_column, number, source.name)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"row {number} of {source.name} has no text in {source.text_column!r} "
                f"({text!r}); remove the row"
            )
        check_encodable(f"row {number} of {source.name}", text)
        texts.append(text)
        if source.label_column is not None:
            labels.append(str(_cell(row, source.label_column, number, source.name)))
    if not texts:
        raise ValueError(f"{source.name} holds no rows; give at least one text")
    chosen: Sequence[int] = range(len(texts))
    if source.limit is not None and source.limit < len(texts):
        chosen = sorted(random.Random(source.seed).sample(chosen, source.limit))
    return TextData(
        texts=tuple(texts[row] for row in chosen),
        labels=tuple(labels[row] for row in chosen) if labels else None,
        rows=tuple(row + 1 for row in chosen),
        sha256=sha256 or hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    )


def _cell(row: Mapping[str, Any], column: str, number: int, name: str) -> Any:
    if column not in row:
        check_column(f"row {number} of {name}", column, list(row))
    return row[column]


def _rows_of_file(path: Path) -> Rows:
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise ValueError(
            f"{path} is of an unknown format; give a file that ends in "
            f"{', '.join(_FORMATS)}"
        )
    try:
        if ending != ".parquet":
            with path.open("rb") as file:
                refuse_other_content(str(path), file.read(8))
        yield from _FORMATS[ending](path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 {ending[1:]} file: {error}; save it as UTF-8"
        ) from error


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """A row would keep the last of equal columns, whatever the others hold."""
    for column in columns:
        if columns.count(column) > 1:
            raise ValueError(
                f"{path} has the column {column!r} more than once; rename or remove "
                "all but one"
            )


def _rows_of_table(path: Path, **dialect: Any) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, **dialect)
        try:
            _refuse_twice(path, reader.fieldnames or ())
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"line {reader.line_num} of {path} has more cells than the "
                        f"header names, {reader.fieldnames}. Where a text holds the "
                        "separator itself, write .csv and put the text into double "
                        'quotes: "a, b"'
                    )
                yield row
        except csv.Error as error:
            raise ValueError(
                f"line {reader.reader.line_num} of {path} is no {path.suffix[1:]}: "
                f"{error}. A cell has at most {csv.field_size_limit():,} characters, "
                "and double quotes come in pairs; .jsonl takes texts of any length"
            ) from error


def _rows_of_tsv(path: Path) -> Rows:
    """Quotes are text: the format has no way to quote."""
    return _rows_of_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _rows_of_jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                row = read_json(line)
            except ValueError as error:
                raise ValueError(
                    f"line {number} of {path} is no JSON of one text: {error}; mend "
                    "or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"line {number} of {path} is no JSON object, such as "
                    '{"text": "so sad"}; write one for each row'
                )
            yield row


def _rows_of_parquet(path: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"Parquet files need pyarrow: {_EXTRA}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    # pyarrow raises an OSError for a file that is damaged inside.
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is no Parquet file, or damaged: {error}; write it anew"
        ) from error


def _rows_of_hub(source: DataSource) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"data sets of the hub need datasets: {_EXTRA}") from error
    return iter(datasets.load_dataset(source.name, source.subset, split=source.split))


_FORMATS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _rows_of_table,
    ".jsonl": _rows_of_jsonl,
    ".parquet": _rows_of_parquet,
    ".tsv": _rows_of_tsv,
}
