"""What is explained of each row: a label, the labels of words, an answer, a similarity.

A task takes the rows' texts to attributions, each with the row that it is of and what
its line says beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captum_attnflow.pipelines.question_answering import Part, QuestionAnswerer
from captum_attnflow.pipelines.sentence_similarity import SentenceSimilarity
from captum_attnflow.pipelines.text_classification import (
    TextAttribution,
    TextClassifier,
)
from captum_attnflow.pipelines.token_classification import TokenClassifier
from captum_attnflow.tables.settings import TableJob

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
