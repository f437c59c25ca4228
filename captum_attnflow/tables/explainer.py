"""Explains a chunk: in batches of like length, and each faulty text alone.

What is explained of each row is a task: a label, the labels of words, an answer, a
similarity. It takes the rows' texts to attributions, each with the row that it is of
and what its line says beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from captum_attnflow.pipelines.methods import METHODS, find_method
from captum_attnflow.pipelines.predictions import find_target
from captum_attnflow.pipelines.question_answering import Part, QuestionAnswerer
from captum_attnflow.pipelines.sentence_similarity import SentenceSimilarity
from captum_attnflow.pipelines.text_classification import (
    TextAttribution,
    TextClassifier,
)
from captum_attnflow.pipelines.token_classification import TokenClassifier
from captum_attnflow.runs.data import Row
from captum_attnflow.tables.chunks import EXPLAINED, FAILED, Chunk, Line
from captum_attnflow.tables.settings import TASK_OPTIONS, TableJob

_LONGEST_REASON = 300  # characters
_MOST_WARNINGS = 10

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
    """

    load: Callable[..., Any]
    explain: Callable[[Any, Sequence[Any], TableJob, Mapping[str, Any]], Found]
    nothing: str


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
        SentenceSimilarity.load, _similarity, "there is no similarity"
    ),
}
"""By their names, those of :data:`captum_attnflow.tables.settings.TASK_COLUMNS`."""


@dataclass(frozen=True)
class ExplainedChunk:
    """The lines of a part file.

    Attributes:
        number (int): Of the chunk.
        lines (list of dict): By row, then by label; what failed has one.
        n_reached (int): How many rows had a text to explain.
        warnings (tuple of str): Different ones that came up, except of truncation,
            which a column counts.
    """

    number: int
    lines: list[Line]
    n_reached: int
    warnings: tuple[str, ...]


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
        pipeline = load(job.model, job.device, job.dtype, job.device_map)
        return ChunkExplainer(pipeline, job)

    def check(self) -> None:
        """Refuse what would fail for every text.

        Raises:
            ValueError: If an option of the method or the target is unknown.
        """
        of_task = TASK_OPTIONS[self.job.task]
        options = {k: v for k, v in self.job.options.items() if k not in of_task}
        make = find_method(self.job.method, options, METHODS)
        make(self.pipeline.model, **options)
        for name in ("target", "against"):
            given = getattr(self.job, name)
            if given is not None and hasattr(self.pipeline, "labels"):
                find_target(given, self.pipeline.labels, name)

    def __call__(self, chunk: Chunk) -> ExplainedChunk:
        """Explain a chunk."""
        whole = [row for row in chunk.rows if row.fault is None]
        lines = {
            row.number: [self._failed(row, row.fault)]
            for row in chunk.rows
            if row.fault is not None
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in self._batches(whole):
                lines.update(self._explain(batch))
        said = (str(warning.message) for warning in caught)
        kept = dict.fromkeys(text for text in said if "truncated" not in text)
        return ExplainedChunk(
            chunk.number,
            [line for row in chunk.rows for line in lines[row.number]],
            len(whole),
            tuple(kept)[:_MOST_WARNINGS],
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
        self, batch: Sequence[tuple[Row, int]]
    ) -> Iterator[tuple[int, list[Line]]]:
        task = TASKS[self.job.task]

        def explain(some: Sequence[tuple[Row, int]]) -> list[list[Line]]:
            given: list[Any] = [
                row.text if row.text_pair is None else (row.text, row.text_pair)
                for row, _ in some
            ]
            lines: list[list[Line]] = [[] for _ in some]
            for place, result, own in task.explain(
                self.pipeline, given, self.job, self.job.options
            ):
                row, _ = some[place]
                lines[place].append(self._explained(row, result, own))
            return [
                of_row or [self._failed(row, task.nothing)]
                for of_row, (row, _) in zip(lines, some, strict=True)
            ]

        def failed(of: tuple[Row, int], error: Exception) -> list[list[Line]]:
            reason = shorten(str(error) or type(error).__name__, _LONGEST_REASON)
            return [[self._failed(of[0], reason)]]

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
