"""Explains a table, or what is missing of it.

Chunks are explained in batches of like length, and each faulty text alone. What is
explained of each row is a task: a label, the labels of words, an answer, a similarity.
It takes the rows' texts to attributions, each with the row that it is of and what its
line says beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from captum_attnflow._captum import NullProgress, progress
from captum_attnflow._checks import (
    check_contrast,
    check_type,
    counted,
)
from captum_attnflow._warnings import stopped_in_words
from captum_attnflow.pipelines.methods import METHODS, compile_for, find_method
from captum_attnflow.pipelines.predictions import find_target
from captum_attnflow.pipelines.question_answering import Part, QuestionAnswerer
from captum_attnflow.pipelines.sentence_similarity import (
    SentenceSimilarity,
    pooling_file,
)
from captum_attnflow.pipelines.text_classification import (
    TextAttribution,
    TextClassifier,
)
from captum_attnflow.pipelines.token_classification import TokenClassifier
from captum_attnflow.runs.data import Row, TableData, open_data
from captum_attnflow.runs.folder import (
    check_format,
    check_writable,
    is_hashed_later,
    manifest_lock,
    model_hashes,
    read_manifest,
    there_and_now,
    write_manifest,
    writing_part,
)
from captum_attnflow.runs.sharing import (
    device_of_worker,
    seen_from_anywhere,
    work_by_ray,
)
from captum_attnflow.tables.chunks import (
    EXPLAINED,
    FAILED,
    Chunk,
    ChunkFiles,
    ChunkPlan,
    Line,
    RowWarnings,
    kind_of,
    reason_of,
)
from captum_attnflow.tables.settings import TASK_OPTIONS, TableJob

FORMAT = 1
"""Of the manifest and the files of chunks."""
_PACKAGES = ("captum", "captum-attnflow", "numpy", "scipy", "torch", "transformers")
_NOT_COMPARED = ("package", "model", "data", "files", "own_columns")
"""Copies of a model and of a file may lie elsewhere; their hashes say what they are.
A folder keeps the columns that it was begun with."""
_WEIGHTS = re.compile(r"config\.json|[^/]*\.safetensors(\.index\.json)?")
_MOST_REASONS = 1000
_OTHER_REASONS = "other reasons"
_FEWEST_THAT_PROVE = 8


@dataclass
class TableOutcome:
    """What a run left in its folder.

    Attributes:
        n_rows (int): Rows of the data in this run's files: all, or those of its part.
        n_failed (int): Those of them that have no explanation.
        reasons (Counter): Of the failed rows, by how many share its first sentence.
        n_files (int): How many these are.
        n_kept (int): Those of them that an earlier run had written.
        warned (RowWarnings): What rows that were explained now came with.
    """

    n_rows: int = 0
    n_failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    n_files: int = 0
    n_kept: int = 0
    warned: RowWarnings = field(default_factory=RowWarnings, repr=False, compare=False)
    _kinds: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def warnings(self) -> list[str]:
        """The warnings that came up, each kind once, with the rows it is of."""
        return self.warned.sentences()

    def add(self, reasons: Iterable[str | None]) -> None:
        """Count rows, each with the reason why it failed or None."""
        for reason in reasons:
            self.n_rows += 1
            if reason is not None:
                self.n_failed += 1
                kind = kind_of(reason)
                if kind not in self._kinds and len(self._kinds) < _MOST_REASONS:
                    self._kinds[kind] = reason
                self.reasons[self._kinds.get(kind, _OTHER_REASONS)] += 1
        self.n_files += 1


def explain_table(job: TableJob, show_progress: bool = False) -> TableOutcome:
    r"""Explain a table of texts, or what is missing of it.

    Writes ``part-000000.parquet`` and so on, each whole or not at all, and
    ``manifest.json``; empty lock files, whose names begin with a dot, stay. A run that
    was killed continues where it stopped, and the files are those that it would have
    written: batches are formed within a part file. So it is with parts and workers, on
    the same kind of machine and with as many threads.

    Args:
        job (TableJob): The table, the model and the method.
        show_progress (bool): Show rows, rows a second and the time left on standard
            error, if that is a terminal.

    Returns:
        TableOutcome: Counts of rows, and of those that failed by reason.

    Raises:
        OSError: If a file is not there or cannot be written, naming it.
        ValueError: If anything given is wrong, the folder holds another run or one
            that goes on, or no text can be explained.

    Examples::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = Path(folder, "texts.csv")
        ...     _ = data.write_text("text\na funny film\n\n")
        ...     outcome = explain_table(TableJob(str(data), Path(folder, "scores")))
        >>> outcome.n_rows, dict(outcome.reasons)
        (2, {'the text is blank': 1})
    """
    check_type("job", job, TableJob, "a TableJob")
    job.check()
    check_writable(Path(job.output))
    data = open_data(job.source)
    explainer = ChunkExplainer.load(job)
    explainer.check()
    plan = ChunkPlan.of(job, data.n_rows)
    folder = Path(job.output)
    files = ChunkFiles(
        folder,
        job.format,
        {name: data.kinds[name] for name in job.columns},
        job.own_columns,
    )
    manifest = _describe(job, data, plan, files, explainer.pipeline)
    outcome = TableOutcome()
    with writing_part(folder, job.part):
        with manifest_lock(folder):
            begun = _check_manifest(folder, manifest)
        if begun is not None:
            files = replace(files, own=tuple(begun["own_columns"]))
        index, n_parts = job.part
        missing = set()
        for chunk in range(index - 1, plan.n_chunks, n_parts):
            reasons = files.read_outcomes(chunk, plan.numbers(chunk))
            if reasons is None:
                missing.add(chunk)
            else:
                outcome.add(reasons)
                outcome.n_kept += 1
        if missing:
            compile_for(job.method, job.options, show_progress)
        chunks = plan.read(job, data, missing)
        explained: Iterator[ExplainedChunk]
        if job.engine == "ray" and missing:
            del explainer  # each worker has its own
            device = device_of_worker(job.device, job.device_map, job.gpus_per_worker)
            model = seen_from_anywhere(str(job.model))
            make = partial(
                ChunkExplainer.load, replace(job, device=device, model=model)
            )
            explained = work_by_ray([make] * job.workers, chunks, job.gpus_per_worker)
        else:
            explained = map(explainer, chunks)
        bar: Callable[..., Any] = progress if show_progress else NullProgress
        n_missing = sum(len(plan.numbers(chunk)) for chunk in missing)
        n_rows = outcome.n_rows + n_missing
        with (
            stopped_in_words(
                lambda: (
                    f"stopped with {counted(outcome.n_rows, 'row')} of {n_rows:,} in "
                    f"{counted(outcome.n_files, 'part file')}: {folder}; the same "
                    "command, or call, continues there"
                    + "".join(f"\nwarning: {said}" for said in outcome.warnings)
                )
            ),
            bar(
                desc="explaining",
                total=n_rows,
                initial=outcome.n_rows,
                unit="row",
                file=sys.stderr,
                disable=None,  # where standard error is no terminal
            ) as shown,
        ):
            for each in explained:
                if not outcome.n_files:
                    _check_any(each)
                    _begin_manifest(folder, manifest)
                files.write(each.number, each.lines)
                n_before = outcome.n_rows
                outcome.add(_reasons(each))
                shown.update(outcome.n_rows - n_before)
                outcome.warned.update(each.warned)
    return outcome


def _reasons(chunk: ExplainedChunk) -> list[str | None]:
    found: dict[int, str | None] = {}
    for line in chunk.lines:
        failed = line["status"] == FAILED
        found[line["row"]] = line["reason"] if failed else None
    return list(found.values())


def _check_any(chunk: ExplainedChunk) -> None:
    """Refuse what fails for every text, such as a model without attention.

    Raises:
        ValueError: With the first reason.
    """
    explained = any(line["status"] == EXPLAINED for line in chunk.lines)
    if not explained and chunk.n_reached >= _FEWEST_THAT_PROVE:
        failed = TableOutcome()
        failed.add(line["reason"] for line in chunk.lines if line["text"] is not None)
        common, _ = failed.reasons.most_common(1)[0]
        raise ValueError(
            f"none of the first {chunk.n_reached} texts can be explained: {common}. "
            "Nothing was written; mend the settings or the data"
        )


def _describe(
    job: TableJob,
    data: TableData,
    plan: ChunkPlan,
    files: ChunkFiles,
    pipeline: Any,
) -> dict[str, Any]:
    """What the explanations depend on, as JSON values."""
    hashes = model_hashes(str(job.model), TASKS[job.task].files(str(job.model)))
    others = {name: of for name, of in hashes.items() if is_hashed_later(name)}
    first = {name: of for name, of in hashes.items() if name not in others}
    weights = {name: of for name, of in first.items() if _WEIGHTS.fullmatch(name)}
    companion = {name: of for name, of in first.items() if name not in weights}
    described = {
        "format": FORMAT,
        "package": "captum-attnflow",
        "versions": {package: version(package) for package in _PACKAGES},
        "model": Path(job.model).resolve().name
        if Path(job.model).is_dir()
        else str(job.model),
        "model_hash": _hash(weights),
        "tokenizer_hash": _hash(companion),
        "other_files": others,
        "method": job.method,
        "options": dict(job.options),
        "target": job.target,
        "against": job.against,
        "truncation": job.truncation,
        "dtype": job.dtype,
        "task": job.task,
        "labels": getattr(pipeline, "labels", []),
        "special_tokens": pipeline.tokenizer.all_special_tokens,
        "data": data.name,
        "data_hash": data.hash,
        "input_format": data.format,
        "subset": job.subset if data.format == "hub" else None,
        "split": job.split if data.format == "hub" else None,
        "text_column": job.text_column,
        "pair_column": job.pair_column,
        "id_column": job.id_column,
        "columns": list(job.columns),
        "own_columns": list(files.own),
        "file_format": job.format,
        "limit": job.limit,
        "shuffle_seed": job.shuffle_seed,
        "rows_per_part": job.rows_per_part,
        "batch_size": job.batch_size,
        "batch_tokens": job.batch_tokens,
        "n_rows": plan.n_rows,
        "files": [files.path(chunk).name for chunk in range(plan.n_chunks)],
    }
    same: dict[str, Any] = json.loads(json.dumps(described))
    return same


def _hash(content: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuse a folder of another run; returns the manifest that it has already.

    What was not noted when the folder was begun, by the same version of the package,
    agrees, and is noted now. Another version may explain otherwise, and is refused.
    """
    earlier = read_manifest(
        folder, "a table of explanations", ("rows_per_part",), folder.glob("part-*")
    )
    if earlier is None:
        return None
    check_format(folder, earlier.get("format"), FORMAT)
    assumed = {
        "task": "text-classification",  # there was one when none was named
        "other_files": manifest["other_files"],
        "own_columns": [c for c in manifest["own_columns"] if c != "n_windows"],
    }
    noted = assumed | earlier
    different = [
        name
        for name in sorted(noted.keys() | manifest.keys())
        if name not in _NOT_COMPARED and noted.get(name) != manifest.get(name)
    ]
    if different:
        name = different[0]
        both = {
            each: there_and_now(
                noted.get(each),
                manifest.get(each),
                TableJob,
                each.removeprefix("file_"),  # "format" is that of the manifest
            )
            for each in different
        }
        others = "".join(
            f" {each} differs, too: {both[each]}." for each in different[1:]
        )
        raise ValueError(
            f"{folder} holds explanations by another {name!r}: {both[name]}.{others} "
            "They cannot be mixed with new ones: give the same settings, model and "
            "data, or another --output"
        )
    if noted.keys() != earlier.keys():
        write_manifest(folder, noted)
    return noted


def _begin_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest before the first chunk's file, or check that it agrees."""
    with manifest_lock(folder):
        if _check_manifest(folder, manifest) is None:
            write_manifest(folder, manifest)


Found = Iterator[tuple[int, TextAttribution, Mapping[str, Any]]]
"""The place of a row, an attribution, and the task's own columns."""


@dataclass(frozen=True)
class Task:
    """A kind of model, and how it explains texts.

    Attributes:
        load (Callable): Takes a model's name, and where it runs.
        explain (Callable): Takes the model, texts or pairs, the job and the options of
            both method and task.
        nothing (str): Why a row may have no attribution.
        files (Callable): Takes a model's name, and returns what is read of its
            sub-folders.
    """

    load: Callable[..., Any]
    explain: Callable[[Any, Sequence[Any], TableJob, Mapping[str, Any]], Found]
    nothing: str
    files: Callable[[str], list[str]] = lambda model: []


def _label(
    classifier: TextClassifier,
    texts: Sequence[Any],
    job: TableJob,
    options: Mapping[str, Any],
) -> Found:
    for each in classifier.explain(
        texts,
        job.method,
        job.target,
        against=job.against,
        truncation=job.truncation,
        **options,
    ):
        yield each.index, each, {}


def _words(
    classifier: TokenClassifier,
    texts: Sequence[Any],
    job: TableJob,
    options: Mapping[str, Any],
) -> Found:
    for result in classifier.explain(
        texts, job.method, job.target, truncation=job.truncation, **options
    ):
        for index, each in enumerate(result.attributions):
            word = each.word
            own = {"word": word.text, "start": word.start, "end": word.end}
            yield result.index, each, {"index": index, **own}


def _answer(
    answerer: QuestionAnswerer,
    pairs: Sequence[Any],
    job: TableJob,
    options: Mapping[str, Any],
) -> Found:
    """The same answer twice: what its start rests on, and its end."""
    target = None if job.target is None else str(job.target)
    parts: tuple[Part, ...] = ("start", "end")
    for index, part in enumerate(parts):
        for each in answerer.explain(
            pairs,
            job.method,
            target,
            part=part,
            truncation=job.truncation,
            **options,
        ):
            own = {"part": part, "start": each.start, "end": each.end}
            yield each.index, each, {"index": index, **own}


def _similarity(
    encoder: SentenceSimilarity,
    pairs: Sequence[Any],
    job: TableJob,
    options: Mapping[str, Any],
) -> Found:
    """What the similarity rests on in each of the two texts."""
    for result in encoder.explain(
        pairs, job.method, truncation=job.truncation, **options
    ):
        for index, part in enumerate(("first", "second")):
            own = {"index": index, "part": part}
            yield result.index, getattr(result, part), own


TASKS: dict[str, Task] = {
    "text-classification": Task(
        TextClassifier.load, _label, "no label is above a probability of 0.5"
    ),
    "token-classification": Task(
        TokenClassifier.load, _words, "no word has another label than O"
    ),
    "question-answering": Task(QuestionAnswerer.load, _answer, "there is no answer"),
    "sentence-similarity": Task(
        SentenceSimilarity.load,
        _similarity,
        "there is no similarity",
        lambda model: [pooling_file(model)],
    ),
}
"""By their names, those of :data:`captum_attnflow.tables.settings.TASK_COLUMNS`."""


@dataclass(frozen=True)
class ExplainedChunk:
    """The lines of a chunk's file.

    Attributes:
        number (int): Of the chunk.
        lines (list of dict): By row, then by label; what failed has one.
        n_reached (int): How many rows had a text to explain.
        warned (RowWarnings): What its rows came with, except of truncation, which a
            column counts.
    """

    number: int
    lines: list[Line]
    n_reached: int
    warned: RowWarnings


@dataclass(frozen=True)
class ChunkExplainer:
    """A model that explains chunks.

    Attributes:
        pipeline (ModelOfTexts): The model with its tokenizer.
        job (TableJob): What is explained and how.
    """

    pipeline: Any
    job: TableJob

    @staticmethod
    def load(job: TableJob) -> ChunkExplainer:
        """Load the model of a job to where it is to run.

        Raises:
            FileNotFoundError: As :meth:`captum_attnflow.TextClassifier.load`.
            ValueError: As :meth:`captum_attnflow.TextClassifier.load`.
        """
        load = TASKS[job.task].load
        pipeline = load(str(job.model), job.device, job.dtype, job.device_map)
        return ChunkExplainer(pipeline, job)

    def check(self) -> None:
        """Refuse what would fail for every text.

        Raises:
            ValueError: If an option of the method or the target is unknown.
        """
        of_task = TASK_OPTIONS[self.job.task]
        options = {k: v for k, v in self.job.options.items() if k not in of_task}
        make = find_method(self.job.method, options, METHODS)
        made = make(self.pipeline.model, **options)
        for name in ("target", "against"):
            given = getattr(self.job, name)
            if given is not None and hasattr(self.pipeline, "labels"):
                find_target(given, self.pipeline.labels, name)
        if self.job.against is not None:
            check_contrast(made)

    def __call__(self, chunk: Chunk) -> ExplainedChunk:
        """Explain a chunk, by the same code in every process."""
        compile_for(self.job.method, self.job.options)
        whole = [row for row in chunk.rows if row.fault is None]
        lines = {
            row.number: [self._failed(row, row.fault)]
            for row in chunk.rows
            if row.fault is not None
        }
        warned = RowWarnings()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tokenizers, on texts too long for them
            for batch in self._batches(whole):
                lines.update(self._explain(batch, warned))
        return ExplainedChunk(
            chunk.number,
            [line for row in chunk.rows for line in lines[row.number]],
            len(whole),
            warned,
        )

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[tuple[Row, int]]]:
        """Yield rows of like length, each with its number of tokens."""
        batch: list[tuple[Row, int]] = []
        lengths = self._lengths(rows)
        for place in sorted(range(len(rows)), key=lambda place: lengths[place]):
            n_tokens = (len(batch) + 1) * lengths[place]
            is_full = len(batch) == self.job.batch_size
            if batch and (is_full or n_tokens > self.job.batch_tokens):
                yield batch
                batch = []
            batch.append((rows[place], lengths[place]))
        if batch:
            yield batch

    def _lengths(self, rows: Sequence[Row]) -> list[int]:
        def count(some: Sequence[Row]) -> list[int]:
            texts = [row.text for row in some]
            pairs = None
            if self.job.pair_column is not None:
                pairs = [row.text_pair for row in some]
            ids = self.pipeline.tokenizer(texts, pairs, verbose=False)["input_ids"]
            return [len(each) for each in ids]

        return _at_once_or_one_by_one(count, rows, lambda row, error: [0])

    def _explain(
        self, batch: Sequence[tuple[Row, int]], warned: RowWarnings
    ) -> Iterator[tuple[int, list[Line]]]:
        task = TASKS[self.job.task]

        def explain(some: Sequence[tuple[Row, int]]) -> list[list[Line]]:
            given: list[Any] = [
                row.text if row.text_pair is None else (row.text, row.text_pair)
                for row, _ in some
            ]
            lines: list[list[Line]] = [[] for _ in some]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for place, result, own in task.explain(
                    self.pipeline, given, self.job, self.job.options
                ):
                    row, _ = some[place]
                    lines[place].append(self._explained(row, result, own))
            # Windows and several labels are examples of their own.
            is_by_row = all(
                len(of_row) == 1 and of_row[0].get("n_windows") in (None, 1)
                for of_row in lines
            )
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                if "truncated" not in message:
                    warned.note(message, [row.number for row, _ in some], is_by_row)
            return [
                of_row or [self._failed(row, task.nothing)]
                for of_row, (row, _) in zip(lines, some, strict=True)
            ]

        def failed(of: tuple[Row, int], error: Exception) -> list[list[Line]]:
            return [[self._failed(of[0], reason_of(error))]]

        found = _at_once_or_one_by_one(explain, batch, failed)
        yield from zip((row.number for row, _ in batch), found, strict=True)

    def _explained(
        self, row: Row, result: TextAttribution, own: Mapping[str, Any]
    ) -> Line:
        if not all(map(math.isfinite, result.scores)):
            return self._failed(row, "its scores are not all finite")
        return self._line(
            row,
            status=EXPLAINED,
            target=result.target,
            predicted=result.predicted,
            probability=result.probability,
            value=result.value,
            n_truncated=result.n_truncated,
            n_windows=result.n_windows,
            tokens=list(result.tokens),
            scores=list(result.scores),
            **own,
        )

    def _failed(self, row: Row, reason: str | None) -> Line:
        return self._line(row, status=FAILED, reason=reason)

    def _line(self, row: Row, **found: Any) -> Line:
        return {
            **dict.fromkeys(self.job.own_columns),
            "row": row.number,
            "id": row.id,
            **dict(zip(self.job.columns, row.carried, strict=True)),
            "text": row.text,
            "text_pair": row.text_pair,
            **found,
        }


def _at_once_or_one_by_one(
    work: Callable[[Sequence[Any]], list[Any]],
    items: Sequence[Any],
    failed: Callable[[Any, Exception], list[Any]],
) -> list[Any]:
    """Let only those fail that are at fault, whatever a tokenizer or a model raises."""
    try:
        return work(items) if items else []
    except Exception as error:
        if len(items) == 1:
            return failed(items[0], error)
    return [
        result
        for item in items
        for result in _at_once_or_one_by_one(work, [item], failed)
    ]
