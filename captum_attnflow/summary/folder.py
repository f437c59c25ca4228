"""Folders of explained texts, read as a stream.

A folder holds a manifest and part files, Parquet, CSV or JSONL, of which one batch of
rows at a time is in memory.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from captum_attnflow._checks import counted, described, index_of_label
from captum_attnflow.runs.folder import Checksums

FORMAT = 1
"""The version of the folder's format that is read."""

_NEEDED = ("row", "text", "status", "target", "tokens", "scores")
_OPTIONAL = (
    *("id", "text_pair", "reason", "predicted", "probability", "value"),
    *("n_truncated", "n_windows"),
)
_ONE_LINE = (None, "text-classification")  # tasks; earlier manifests name none
_OF_TASKS = ("index", "word", "part", "start", "end")
_LISTS = ("tokens", "scores")
_PART_FILE = re.compile(r"part-(\d+)\.(parquet|csv|jsonl)")
_ROWS_AT_ONCE = 1024
_CSV_BLOCK_BYTES = 1 << 25  # a row has to fit into a block
# Of what is not as written: cut off, edited, or of another program.
_DAMAGE = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OSError, RecursionError),
)
_EXTRA = 'pip install "captum-attnflow[tables]"'

Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Row:
    """One row of a folder: a text, explained for one label, or failed.

    Attributes:
        row (int): The number of the row in the data.
        id (str, optional): Its name in the data.
        text (str): The text.
        text_pair (str, optional): The second text.
        reason (str, optional): Why it failed; None of an explained row.
        label (str): The label that the scores belong to.
        predicted (str): The predicted label.
        probability (float, optional): Its probability; None in regression.
        n_truncated (int): Tokens that were cut off.
        tokens (list of str): The tokens; empty of a failed row.
        scores (list of float): One per token.
        true_label (str, optional): What the data says, where its column is read.
        place (tuple of int): Which of several explanations of a row and label it is:
            the characters of a labelled word, or a number. Empty where there is one.
        against (str, optional): The label whose output was taken off that of ``label``;
            None without contrast.
    """

    row: int
    id: str | None
    text: str
    text_pair: str | None
    reason: str | None
    label: str
    predicted: str
    probability: float | None
    n_truncated: int
    tokens: list[str]
    scores: list[float]
    true_label: str | None = None
    place: tuple[int, ...] = ()
    against: str | None = None

    @property
    def explained(self) -> str:
        """What the scores explain, in words: a label, or one rather than another."""
        if self.against is None:
            return self.label
        return f"{self.label} rather than {self.against}"


@dataclass(frozen=True)
class ScoreFolder:
    """A folder that ``captum-attnflow explain --data`` has written.

    Attributes:
        path (Path): The folder.
        manifest (mapping): What its ``manifest.json`` says.
        part_files (tuple of Path): In order.
        carried (tuple of str): Columns of the data that were carried along.
    """

    path: Path
    manifest: Mapping[str, Any]
    part_files: tuple[Path, ...]
    carried: tuple[str, ...]

    @staticmethod
    def open(path: str | PathLike[str]) -> ScoreFolder:
        """Read a folder's manifest and the names of its columns.

        Raises:
            FileNotFoundError: If there is no such folder, or no manifest or part file
                in it.
            ValueError: If they are of another format, or damaged.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        part_files = _find_part_files(folder)
        _check_whole(folder, part_files)
        there = _column_names(part_files[0])
        missing = [name for name in _NEEDED if name not in there]
        if missing:
            raise ValueError(
                f"{part_files[0]} has no column {', '.join(map(repr, missing))}; it "
                f"has {', '.join(map(repr, there)) or 'none'}. Give a folder that "
                "captum-attnflow explain --data has written"
            )
        known = {*_NEEDED, *_OPTIONAL}
        if manifest.get("task") not in _ONE_LINE:
            known |= {*_OF_TASKS}
        carried = tuple(name for name in there if name not in known)
        return ScoreFolder(folder, manifest, part_files, carried)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's labels by index; empty where the manifest names none."""
        labels = self.manifest.get("labels")
        return tuple(map(str, labels)) if isinstance(labels, list) else ()

    @property
    def against(self) -> str | None:
        """The label whose output was taken off; None without contrast."""
        given = self.manifest.get("against")
        index = index_of_label(given, self.class_names)
        if index is not None:
            return self.class_names[index]
        return None if given is None else str(given)

    def check_label_column(self, name: str) -> None:
        """Refuse a column that was not carried along, or says nothing of the task.

        Raises:
            ValueError: Saying which there are, or what the task lacks.
        """
        task = self.manifest.get("task")
        if task not in _ONE_LINE:
            raise ValueError(
                f"label_column={described(name)} holds a true label for each text, and "
                f"{self.path} is of {task}, which predicts none for a text as a whole; "
                "leave it out"
            )
        if name in self.carried:
            return
        there = ", ".join(map(repr, self.carried)) or "none"
        raise ValueError(
            f"label_column={described(name)} is no column of the data that {self.path} "
            f"carries along; it carries {there}. Give one of these, or explain anew "
            "with --columns and the column's name"
        )

    def rows(self, label_column: str | None = None) -> Iterator[Row]:
        """Yield all rows, in the order of the part files.

        Args:
            label_column (str, optional): The column of ``true_label``.

        Raises:
            ValueError: If a part file is damaged, naming it.
        """
        places = self._place_columns()
        names = [*_NEEDED, *_OPTIONAL, *places, *filter(None, [label_column])]
        for part in self.part_files:
            read = _READERS[part.suffix]
            for columns in read(part, names):
                yield from _rows_of(part, columns, places, label_column, self.against)

    def _place_columns(self) -> tuple[str, ...]:
        """The columns that tell a row's explanations for one label apart."""
        task = self.manifest.get("task")
        if task in _ONE_LINE:
            return ()
        # Models may label different words, so that a count of them says little.
        return ("start", "end") if task == "token-classification" else ("index",)


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "is not there"
        raise FileNotFoundError(
            f"{str(folder)!r} {found}; give a folder that captum-attnflow explain "
            "--data has written"
        )
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no manifest.json; give a folder that captum-attnflow "
            "explain --data has written"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; give a folder whose manifest is whole"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        if isinstance(manifest, dict) and "settings" in manifest:
            raise ValueError(
                f"{folder} is the folder of a study; give one that captum-attnflow "
                "explain --data has written"
            )
        version = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(
            f"{path} has the format {described(version)}; this version reads {FORMAT}. "
            "Give a folder of that format, or take the version of captum-attnflow that "
            "wrote it"
        )
    return manifest


def _find_part_files(folder: Path) -> tuple[Path, ...]:
    found = {
        path: match
        for path in folder.iterdir()
        if (match := _PART_FILE.fullmatch(path.name)) and path.is_file()
    }
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no part files, such as part-000000.parquet; let "
            "captum-attnflow explain --data write some first"
        )
    formats = sorted({match[2] for match in found.values()})
    if len(formats) > 1:
        raise ValueError(
            f"{folder} holds part files of the formats {' and '.join(formats)}, so "
            "that rows may be there twice; leave those of one format"
        )
    return tuple(sorted(found, key=lambda path: (int(found[path][1]), path.name)))


def _check_whole(folder: Path, part_files: tuple[Path, ...]) -> None:
    """Refuse a part file that was changed after it was written."""
    checksums = Checksums(folder)
    for part in part_files:
        if not checksums.agree(part):
            raise ValueError(
                f"{part} was changed or cut off after it was written, as its checksum "
                f"in {Checksums.name} says. Run captum-attnflow explain --data again, "
                "which writes the file anew; if you changed it yourself, remove its "
                f"line from {Checksums.name}"
            )


def _column_names(part: Path) -> tuple[str, ...]:
    """Names of the columns, of a JSONL file those of its first line."""
    if part.suffix == ".parquet":
        parquet = _pyarrow(".parquet")
        with _damage_named(part), parquet.ParquetFile(part) as file:
            return tuple(file.schema_arrow.names)
    with _damage_named(part), part.open(encoding="utf-8", newline="") as lines:
        if part.suffix == ".csv":
            return tuple(next(csv.reader(lines), ()))
        return tuple(json.loads(next(lines, "{}")))


@contextmanager
def _damage_named(part: Path) -> Iterator[None]:
    """Say which part file is damaged."""
    try:
        yield
    except Exception as error:
        of_pyarrow = type(error).__module__.startswith("pyarrow")
        if not (of_pyarrow or isinstance(error, _DAMAGE)):
            raise
        raise ValueError(
            f"{part} is damaged, or no part file of a table of scores: {error}. Remove "
            "it and run captum-attnflow explain --data again, which writes it anew"
        ) from error


def _pyarrow(module: str) -> Any:
    try:
        return import_module(f"pyarrow{module}")
    except ImportError as error:
        raise ValueError(f"tables of scores need pyarrow: {_EXTRA}") from error


def _batches_of_parquet(part: Path, names: list[str]) -> Iterator[Columns]:
    parquet = _pyarrow(".parquet")
    with _damage_named(part), parquet.ParquetFile(part) as file:
        there = [name for name in names if name in file.schema_arrow.names]
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=there):
            yield batch.to_pydict()


def _batches_of_csv(part: Path, names: list[str]) -> Iterator[Columns]:
    pyarrow, arrow_csv = _pyarrow(""), _pyarrow(".csv")
    header = _column_names(part)
    there = [name for name in names if name in header]
    with _damage_named(part):
        # As strings: what looks like a number in a column of the data may be a name.
        reader = arrow_csv.open_csv(
            part,
            read_options=arrow_csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=there,
                column_types={name: pyarrow.string() for name in header},
            ),
        )
        for block in reader:
            for start in range(0, block.num_rows, _ROWS_AT_ONCE):
                columns = block.slice(start, _ROWS_AT_ONCE).to_pydict()
                for name in _LISTS:
                    columns[name] = [
                        json.loads(cell) if cell else [] for cell in columns[name]
                    ]
                yield columns


def _batches_of_jsonl(part: Path, names: list[str]) -> Iterator[Columns]:
    with _damage_named(part), part.open(encoding="utf-8") as lines:
        while rows := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
            yield {name: [row.get(name) for row in rows] for name in names}


_READERS: dict[str, Callable[[Path, list[str]], Iterator[Columns]]] = {
    ".parquet": _batches_of_parquet,
    ".csv": _batches_of_csv,
    ".jsonl": _batches_of_jsonl,
}


def _rows_of(
    part: Path,
    columns: Columns,
    places: tuple[str, ...],
    label_column: str | None,
    against: str | None,
) -> Iterator[Row]:
    n_rows = len(columns["row"])
    absent: list[Any] = [None] * n_rows
    with _damage_named(part):
        for index in range(n_rows):
            cell = {
                name: columns.get(name, absent)[index]
                for name in (
                    *(*_NEEDED, *_OPTIONAL, *places),
                    *filter(None, [label_column]),
                )
            }
            yield _row_of(cell, places, label_column, against)


def _row_of(
    cell: Mapping[str, Any],
    places: tuple[str, ...],
    label_column: str | None,
    against: str | None,
) -> Row:
    number = int(cell["row"])
    if cell["status"] not in ("explained", "failed"):
        raise ValueError(f"row {number} has the status {described(cell['status'])}")
    explained = cell["status"] == "explained"
    tokens = [str(token) for token in cell["tokens"] or ()] if explained else []
    scores = [
        float("nan") if score is None else float(score)
        for score in (cell["scores"] or () if explained else ())
    ]
    if len(tokens) != len(scores):
        raise ValueError(
            f"row {number} has {counted(len(tokens), 'token')} and "
            f"{counted(len(scores), 'score')}"
        )
    true_label = cell[label_column] if label_column else None
    return Row(
        row=number,
        id=_text_or_none(cell["id"]),
        text=cell["text"] or "",
        text_pair=_text_or_none(cell["text_pair"]),
        reason=None if explained else str(cell["reason"] or "no reason given"),
        label=str(cell["target"] or ""),
        predicted=str(cell["predicted"] or ""),
        probability=_number_or_none(cell["probability"]),
        n_truncated=int(cell["n_truncated"] or 0),
        tokens=tokens,
        scores=scores,
        true_label=_text_or_none(true_label),
        # A failed row has none, and is not compared.
        place=tuple(int(cell[name]) for name in places) if explained else (),
        against=against,
    )


def _text_or_none(given: object) -> str | None:
    return None if given is None or given == "" else str(given)


def _number_or_none(given: Any) -> float | None:
    return None if given is None or given == "" else float(given)
