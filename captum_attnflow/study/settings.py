"""The settings of a study, checked before any work, and the texts that they name."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

from captum_attnflow._checks import (
    DTYPES,
    check_choice,
    check_integer,
    check_strings,
    check_type,
)
from captum_attnflow.runs.data import INPUT_FORMATS, Source, open_data
from captum_attnflow.runs.folder import check_writable
from captum_attnflow.runs.sharing import check_engine, check_part
from captum_attnflow.study.methods import METHODS

REMOVALS = ("replace", "delete")
"""How a study removes tokens: a baseline replaces them, or the text gets shorter."""
BETTER: dict[str, Literal["higher", "lower"]] = {
    "aopc": "higher",
    "log_odds": "lower",
    "comprehensiveness": "higher",
    "sufficiency": "lower",
    "deletion_area": "lower",
    "insertion_area": "higher",
    "naopc": "higher",
}
"""The metrics of a study, and which of their values are more faithful.

They stand here in words, so that a help text can list them without torch. A test holds
them to :data:`captum_attnflow.metrics.METRICS`.
"""
_MODULES = {"scikit-learn": "sklearn.linear_model"}


@dataclass(frozen=True)
class DataSource:
    """Where texts come from, and which of them.

    Attributes:
        name (str or Path): A file (TSV, CSV, JSONL or Parquet), the hub id of a data
            set, or ``"-"`` for standard input.
        text_column (str): The column of texts.
        label_column (str, optional): The column of labels.
        limit (int, optional): The size of a random sample of texts, in their order;
            data are often sorted by label, so that the first rows would mislead.
        seed (int): Draws the sample.
        split (str): Split of a hub data set.
        subset (str, optional): Subset (configuration) of a hub data set.
        input_format (str, optional): ``"csv"``, ``"tsv"``, ``"jsonl"`` or
            ``"parquet"``; by the file's ending by default.
    """

    name: str | Path
    text_column: str = "text"
    label_column: str | None = None
    limit: int | None = None
    seed: int = 0
    split: str = "test"
    subset: str | None = None
    input_format: str | None = None

    def check(self) -> None:
        """Refuse wrong settings before any file is read.

        Raises:
            ValueError: Saying what was given, what is accepted and what to do.
        """
        check_type("name", self.name, (str, Path), "a str or a path")
        for name in ("text_column", "split"):
            check_type(name, getattr(self, name), str, "a str")
        for name in ("label_column", "subset"):
            if getattr(self, name) is not None:
                check_type(name, getattr(self, name), str, "a str, or None")
        if self.limit is not None:
            check_integer("limit", self.limit, 1)
        if self.input_format is not None:
            check_choice("input_format", self.input_format, INPUT_FORMATS)


@dataclass(frozen=True)
class TextData:
    """Texts, with labels if there are any.

    Attributes:
        texts (tuple of str): None of them blank.
        labels (tuple of str, optional): As the data writes them.
        rows (tuple of int): Their row numbers in the data, ascending, counted from 0
            as ``explain --data`` does it.
        sha256 (str): Of the file; of a hub data set its commit.
        name (str): The file's or data set's name.
        left_out (mapping): Rows of the data that hold no text to measure, or no label
            where labels are read, each with the reason.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: tuple[int, ...]
    sha256: str
    name: str
    left_out: Mapping[int, str]

    @property
    def reasons(self) -> Counter[str]:
        """How many rows are left out, by reason."""
        return Counter(self.left_out.values())

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
    """Read texts and labels, as ``explain --data`` reads them.

    Rows are counted from 0, a header line is none. Those that cannot be read, hold no
    text or lack a label are left out; a sample is drawn from the others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, the file cannot be read, or no row is left.
    """
    check_type("source", source, DataSource, "a DataSource")
    source.check()
    label = source.label_column
    data = open_data(
        Source(
            str(source.name),
            source.text_column,
            columns=() if label is None else (label,),
            input_format=source.input_format,
            split=source.split,
            subset=source.subset,
        )
    )
    # Labels as they are written, whatever else stands in their column.
    data = replace(data, kinds=dict.fromkeys(data.kinds, "string"))
    texts: dict[int, str] = {}
    labels: dict[int, str] = {}
    left_out: dict[int, str] = {}
    for row in data.rows():
        fault = row.fault
        if fault is None and label is not None and not row.carried[0]:
            fault = "there is no label"
        if fault is not None:
            left_out[row.number] = fault
            continue
        texts[row.number] = row.text or ""
        if label is not None:
            labels[row.number] = row.carried[0]
    if not texts:
        reason, count = Counter(left_out.values()).most_common(1)[0]
        raise ValueError(
            f"none of the rows of {data.name} holds a text to measure; of "
            f"{data.n_rows:,}, {count:,} are left out since {reason}. Give another "
            "file or column"
        )
    chosen: Sequence[int] = list(texts)
    if source.limit is not None and source.limit < len(chosen):
        places = random.Random(source.seed).sample(range(len(chosen)), source.limit)
        chosen = [chosen[place] for place in sorted(places)]
    return TextData(
        texts=tuple(texts[row] for row in chosen),
        labels=None if label is None else tuple(labels[row] for row in chosen),
        rows=tuple(chosen),
        sha256=data.hash,
        name=data.name,
        left_out=left_out,
    )


@dataclass(frozen=True)
class Study:
    """The models, data, methods and metrics of a study, and its output folder.

    Attributes:
        models (tuple of str): Model folders or hub ids.
        data (DataSource): The texts.
        methods (tuple of str): Keys of :data:`captum_attnflow.study.methods.METHODS`.
        output (str or Path): A folder; a study that was begun there is continued.
        against (str, optional): One of the methods; the others are compared with it.
        metrics (tuple of str): Keys of :data:`BETTER`: those of
            :data:`captum_attnflow.metrics.METRICS`, and ``"naopc"``, whose bounds take
            2,000 rows for a text of 20 tokens, once for all methods.
        removals (tuple of str): ``"replace"``, ``"delete"`` or both.
        reference_token (str): ``"mask"``, ``"pad"``, ``"unk"`` or a token as written:
            what replaces a token, in metrics and as the baseline of methods.
        seed (int): Of methods with random numbers, ties and bootstrap.
        batch_size (int): Texts that are attributed together.
        device (str, optional): Where the models run; the CPU by default.
        dtype (str): Of the models' weights.
        device_map (str, optional): How accelerate splits each model over devices, in
            place of ``device``.
        part (tuple of int): ``(i, n)``: which part of how many this run does, the same
            texts by all models and methods. Parts may run at once or in any order; the
            one that ends last merges their files and writes the table.
        engine (str): ``"local"`` or ``"ray"``.
        workers (int): Of Ray, actors of one thread that each hold the models and write
            to the output folder, which all machines have to share.
        gpus_per_worker (float): Of Ray, GPUs of each; above 0 the models are on one.
    """

    models: tuple[str, ...]
    data: DataSource
    methods: tuple[str, ...]
    output: str | Path
    against: str | None = None
    metrics: tuple[str, ...] = ("aopc", "log_odds", "comprehensiveness", "sufficiency")
    removals: tuple[str, ...] = REMOVALS
    reference_token: str = "mask"
    seed: int = 0
    batch_size: int = 16
    device: str | None = None
    dtype: str = "float32"
    device_map: str | None = None
    part: tuple[int, int] = (1, 1)
    engine: str = "local"
    workers: int = 1
    gpus_per_worker: float = 0

    def check(self) -> None:
        """Refuse wrong settings before any work.

        Raises:
            ValueError: If a name is unknown or given twice, a number is out of range,
                or a package is missing.
            OSError: If the output folder cannot be written to.
        """
        for name, given, accepted in (
            ("method", self.methods, METHODS),
            ("metric", self.metrics, BETTER),
            ("removal", self.removals, REMOVALS),
        ):
            check_type(f"{name}s", given, (tuple, list), "a tuple of names")
            for choice in given:
                check_choice(name, choice, accepted)
        check_strings("models", self.models, "a tuple of names, each a str")
        for name in ("models", "methods", "metrics", "removals"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={given}; give at least one, and none twice")
        if self.against is not None:
            check_type("against", self.against, str, "the name of a method")
            if self.against in METHODS and self.against not in self.methods:
                raise ValueError(
                    f"against={self.against!r} is not among the methods that are "
                    f"compared, {', '.join(self.methods)}; add it to them"
                )
            check_choice("against", self.against, self.methods)
        check_type("data", self.data, DataSource, "a DataSource")
        self.data.check()
        check_integer("batch_size", self.batch_size, 1)
        for name in ("device", "device_map"):
            if getattr(self, name) is not None:
                check_type(name, getattr(self, name), str, "a str, or None")
        check_choice("dtype", self.dtype, DTYPES)
        check_part(self.part)
        check_engine(self.engine, self.workers, self.gpus_per_worker)
        for method in self.methods:
            _check_package(method, METHODS[method].needs)
        check_writable(Path(self.output))


def _check_package(method: str, package: str | None) -> None:
    """Import a method's package, so that the method's time excludes the import."""
    try:
        if package is not None:
            import_module(_MODULES[package])
    except ImportError as error:
        raise ValueError(
            f"{method} needs {package}, which is not installed: "
            'pip install "captum-attnflow[study]"'
        ) from error
