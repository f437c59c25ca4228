"""What is to be explained and how, checked before any work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from captum_attnflow._checks import (
    DTYPES,
    check_choice,
    check_integer,
    check_type,
    described,
)
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS
from captum_attnflow.runs.data import INPUT_FORMATS, Source
from captum_attnflow.runs.sharing import check_engine, check_part

OUTPUT_FORMATS = ("parquet", "csv", "jsonl")
Truncation = Literal["truncate", "window", "refuse"]
OWN_COLUMNS = (
    *("row", "id", "text", "text_pair", "status", "reason", "target", "predicted"),
    *("probability", "value", "n_truncated", "n_windows", "tokens", "scores"),
)
"""The columns of the output; carried ones stand behind ``id``. A similarity has no
``n_windows``, as a text has one embedding."""
TASK_COLUMNS: dict[str, tuple[str, ...]] = {
    "text-classification": (),
    "token-classification": ("index", "word", "start", "end"),
    "question-answering": ("index", "part", "start", "end"),
    "sentence-similarity": ("index", "part"),
}
"""What a task's output has behind these: a row of several lines counts them."""
TASK_OPTIONS: dict[str, tuple[str, ...]] = {
    "text-classification": ("stride",),
    "token-classification": ("stride", "unit"),
    "question-answering": ("stride", "max_answer_tokens"),
    "sentence-similarity": (),
}
"""Options of a task beside those of the method."""
_TASKS_OF_PAIRS = ("question-answering", "sentence-similarity")


@dataclass(frozen=True)
class TableJob:
    """A table of texts, the model and method that explain them, and where to write.

    Attributes:
        data (str or Path): A file (CSV, TSV, JSONL or Parquet), the hub id of a data
            set, or ``"-"`` for standard input, which is copied to a temporary file
            first.
        output (str or Path): A folder; a run that was begun there is continued.
        text_column (str): The column of the texts, of question answering the questions.
        pair_column (str, optional): The column of the second sentences of pairs, of
            question answering the contexts.
        id_column (str, optional): The column whose values name the rows.
        columns (tuple of str): Columns to carry along, under other names than
            :data:`OWN_COLUMNS`. Of JSONL, a column of mixed kinds is carried as JSON.
        model (str or Path): Model folder or hub id; the model in the package by
            default.
        method (str): A key of :data:`captum_attnflow.pipelines.methods.METHODS`.
        target (str or int, optional): Label or index to attribute, or another answer;
            what the model predicts of each text by default.
        options (mapping): Options of the method, and of the task those in
            :data:`TASK_OPTIONS`; values that JSON can hold.
        against (str or int, optional): A label; scores are of the target's output less
            this one's.
        truncation (str): What becomes of texts longer than the model's limit:
            ``"truncate"``, ``"window"`` or ``"refuse"``, see
            :meth:`captum_attnflow.TextClassifier.explain`. Refused ones fail alone.
        device (str, optional): Where the model runs; the CPU by default.
        dtype (str): Of the model's weights.
        device_map (str, optional): How accelerate splits the model over devices.
        format (str): Of the output: ``"parquet"``, ``"csv"`` or ``"jsonl"``.
        input_format (str, optional): ``"csv"``, ``"tsv"``, ``"jsonl"`` or
            ``"parquet"``; by the file's ending by default. Standard input is JSONL if
            it begins with a brace, else CSV.
        part (tuple of int): ``(i, n)``: which share of how many this run explains. The
            part files are dealt out in turn. Shares may run at once or in any order.
        limit (int, optional): Only so many rows: the first, or with a shuffle seed a
            random sample.
        shuffle_seed (int, optional): Explains the rows in a random order, so that what
            is there early is a sample of all. The rows that are read are kept in a
            temporary file in the output folder, not in memory.
        split (str): Split of a hub data set.
        subset (str, optional): Subset (configuration) of a hub data set.
        rows_per_part (int): Rows in a part file. Batches are formed within them.
        batch_size (int): Most texts that are attributed together.
        batch_tokens (int): Most tokens of a batch, padding included.
        engine (str): ``"local"`` or ``"ray"``.
        workers (int): Of Ray, actors of one thread that each hold the model.
        gpus_per_worker (float): Of Ray, GPUs of each; above 0 the model is on one.
        task (str): A key of :data:`TASK_COLUMNS`. Of words, a row of the data has a
            line for each labelled one; of an answer, one for its start and one for its
            end; of a similarity, one for each text.
    """

    data: str | Path
    output: str | Path
    text_column: str = "text"
    pair_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    model: str | Path = DEMO_MODEL_PATH
    method: str = DEFAULT_METHOD
    target: str | int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str | int | None = None
    truncation: Truncation = "truncate"
    device: str | None = None
    dtype: str = "float32"
    device_map: str | None = None
    format: str = "parquet"
    input_format: str | None = None
    part: tuple[int, int] = (1, 1)
    limit: int | None = None
    shuffle_seed: int | None = None
    split: str = "test"
    subset: str | None = None
    rows_per_part: int = 1024
    batch_size: int = 16
    batch_tokens: int = 4096
    engine: str = "local"
    workers: int = 1
    gpus_per_worker: float = 0
    task: str = "text-classification"

    def check(self) -> None:
        """Refuse wrong settings before any work.

        Raises:
            ValueError: Saying what was given, what is accepted and what to do.
        """
        for name in ("data", "model"):
            check_type(name, getattr(self, name), (str, Path), "a str or a path")
        for name in ("text_column", "split"):
            check_type(name, getattr(self, name), str, "a str")
        for name in ("pair_column", "id_column", "subset", "device", "device_map"):
            if getattr(self, name) is not None:
                check_type(name, getattr(self, name), str, "a str, or None")
        check_type("output", self.output, (str, Path), "the path of a folder")
        for name in ("target", "against"):
            given = getattr(self, name)
            if given is not None:
                check_type(name, given, (str, int), "a label, an index or None")
        check_choice("truncation", self.truncation, get_args(Truncation))
        check_choice("dtype", self.dtype, DTYPES)
        check_type("columns", self.columns, tuple, "a tuple of names")
        check_type("options", self.options, Mapping, "a dict of the method's options")
        check_choice("method", self.method, METHODS)
        check_choice("format", self.format, OUTPUT_FORMATS)
        if self.input_format is not None:
            check_choice("input_format", self.input_format, INPUT_FORMATS)
        for name in ("rows_per_part", "batch_size", "batch_tokens"):
            check_integer(name, getattr(self, name), 1)
        if self.limit is not None:
            check_integer("limit", self.limit, 1)
        if self.shuffle_seed is not None:
            check_integer("shuffle_seed", self.shuffle_seed, 0)
            if self.shuffle_seed >= 1 << 32:
                raise ValueError(
                    f"shuffle_seed={self.shuffle_seed} must be less than {1 << 32}"
                )
        check_part(self.part)
        check_choice("task", self.task, TASK_COLUMNS)
        self._check_task()
        self._check_columns()
        check_engine(self.engine, self.workers, self.gpus_per_worker)
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"options={described(dict(self.options))} cannot stand in the manifest "
                f"({error}); give numbers, texts, True, False or None"
            ) from None
        if self.format == "parquet" and find_spec("pyarrow") is None:
            raise ValueError(
                "Parquet files need pyarrow, which is not installed: pip install "
                '"captum-attnflow[tables]", or give --format jsonl'
            )

    def _check_task(self) -> None:
        """Refuse what a task does not have."""
        if self.task == "text-classification":
            return
        if Path(self.model) == DEMO_MODEL_PATH:
            raise ValueError(
                f"the package holds no model for task={self.task!r}; give the folder "
                "or the hub id of one, --model"
            )
        if self.against is not None:
            raise ValueError(
                f"against={described(self.against)} is of text-classification; leave "
                f"it out for {self.task}"
            )
        if (self.pair_column is not None) != (self.task in _TASKS_OF_PAIRS):
            needed = "needs pairs: give" if self.pair_column is None else "has no"
            raise ValueError(
                f"task={self.task!r} {needed} pair_column, the column of second texts "
                f"(--pair-column); here it is {self.pair_column!r}"
            )
        if self.task == "sentence-similarity":
            check_choice("truncation", self.truncation, ("truncate", "refuse"))
            if self.target is not None:
                raise ValueError(
                    f"target={described(self.target)} names a label, and a similarity "
                    "has none; leave it out"
                )

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns of the output but those that are carried along."""
        left_out = {"n_windows"} if self.task == "sentence-similarity" else {}
        own = tuple(name for name in OWN_COLUMNS if name not in left_out)
        return own + TASK_COLUMNS[self.task]

    def _check_columns(self) -> None:
        for column in self.columns:
            check_type("a name in columns", column, str, "a str")
            if column in self.own_columns:
                raise ValueError(
                    f"the column {column!r} cannot be carried along, as the output has "
                    "one of this name; rename it in the data. The output's own: "
                    f"{', '.join(self.own_columns)}"
                )
            if self.columns.count(column) > 1:
                raise ValueError(f"columns names {column!r} twice; give it once")

    @property
    def source(self) -> Source:
        """Where the rows come from, and the columns that are read."""
        return Source(
            str(self.data),
            self.text_column,
            self.pair_column,
            self.id_column,
            self.columns,
            self.input_format,
            self.split,
            self.subset,
        )
