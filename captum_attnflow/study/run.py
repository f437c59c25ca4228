"""Runs a study, a part of it, or what is missing of it."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from captum_attnflow._captum import NullProgress, progress
from captum_attnflow._files import replace_file
from captum_attnflow._warnings import warn_caller
from captum_attnflow.pipelines.pretrained import problem_type
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.study.batch import find_token
from captum_attnflow.study.data import read_data
from captum_attnflow.study.evaluate import TRUNCATED, Task, TaskRunner
from captum_attnflow.study.manifest import (
    begin_manifest,
    describe_study,
    study_outcome,
)
from captum_attnflow.study.plot import save_plot
from captum_attnflow.study.records import (
    Bounds,
    KnownBounds,
    PartedFile,
    Record,
    Results,
    no_merge_meanwhile,
)
from captum_attnflow.study.settings import Study
from captum_attnflow.study.table import FORMATS, Table
from captum_attnflow.tables.manifest import writing_part
from captum_attnflow.tables.ray_engine import device_of_worker, work_by_ray

_SECONDS_BETWEEN_LOG_LINES = 30
_TEXTS_AT_ONCE = 1024  # whose lengths are counted

Chunk = tuple[int, ...]
"""Rows that are attributed together, counted from 1."""
Work = Callable[[Iterable[Task]], Iterator[Any]]
"""Does tasks, in any order."""


def run_study(study: Study, show_progress: bool = False) -> Table | None:
    """Run a study, a part of it, or what is missing of it, and write table and plot.

    Writes ``results.jsonl`` (one line per model, method and text, as they are done),
    ``manifest.json``, ``table.md``, ``table.csv``, ``table.tex`` and ``plot.png`` into
    the output folder; with the metric ``naopc`` also ``bounds.jsonl`` (one line per
    model, removal mode and text). Empty lock files, whose names begin with a dot, stay.
    A study that was killed continues where it stopped and gives the figures that it
    would have given: texts are batched in the same way, and a method with random
    numbers has a seed for each text. Seconds are those of the run in which a text was
    done. Parts and workers of Ray give these figures too, on the same kind of machine
    and with as many threads.

    A part writes ``results-2-of-4.jsonl`` and the like. The one that ends last moves
    all lines to ``results.jsonl`` and writes the table; so does a run without parts.
    Texts are encoded some at a time. In memory are the texts, and of each, model and
    method some hundred bytes.

    Args:
        study (Study): The study.
        show_progress (bool): Show progress and the time left on standard error.

    Returns:
        Table, optional: The table; None where other parts have not ended.

    Raises:
        OSError: If the output folder cannot be written to, or a file is not there.
        ValueError: If anything given is wrong, the folder holds another study, or
            another run writes there.
    """
    study.check()
    data = read_data(study.data)
    on_ray = study.engine == "ray"
    classifiers = _load(replace(study, device=None) if on_ray else study)
    models = tuple(classifiers)
    labels = {
        model: data.class_indices(classifier.labels)
        for model, classifier in classifiers.items()
    }
    for classifier in classifiers.values():
        find_token(classifier.tokenizer, study.reference_token)
    folder = study.output
    records = PartedFile(folder, "results", Record, study.part)
    bounds = PartedFile(folder, "bounds", Bounds, study.part)
    with writing_part(folder, study.part):
        path = folder / "manifest.json"
        description = describe_study(study, data, models)
        files = [path for each in (records, bounds) for path in each.paths]
        description = begin_manifest(path, description, files)
        results = Results(study, models, len(data.texts))
        known = KnownBounds(models, study.removals, len(data.texts))
        with no_merge_meanwhile(folder):
            if study.part == (1, 1):  # no other one runs
                records.merge()
                bounds.merge()
            _take_in(records, results.add)
            _take_in(bounds, known.add)
        chunks = {
            model: _chunks(study, data.texts, classifier)
            for model, classifier in classifiers.items()
        }
        run = _Run(study, data.texts, chunks, results, known)
        runner = TaskRunner(study, classifiers)
        del classifiers
        work: Work = partial(map, runner)
        if on_ray:
            del runner  # each worker has its own
            device = device_of_worker(study.device, study.gpus_per_worker)
            work = partial(
                work_by_ray,
                partial(TaskRunner.load, replace(study, device=device), models),
                workers=study.workers,
                gpus_per_worker=study.gpus_per_worker,
            )
        run.search_bounds(work, bounds, show_progress)
        run.measure(work, records, show_progress)
        with no_merge_meanwhile(folder):
            if study.part != (1, 1):
                results = Results(study, models, len(data.texts))
                _take_in(records, results.add)
                if not all(column.is_done.all() for column in results.columns.values()):
                    return None
                records.merge()
                bounds.merge()
            table = Table.of(study, models, results)
            for ending, written in FORMATS.items():
                replace_file(folder / f"table.{ending}", written(table))
            save_plot(table, folder / "plot.png")
            outcome = study_outcome(study, labels, results)
            begin_manifest(path, {**description, "results": outcome}, ())
    return table


def _take_in(records: PartedFile[Any], add: Callable[[Any], object]) -> None:
    for path, record in records.read():
        try:
            add(record)
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}; delete its line, and it is computed again"
            ) from error


@dataclass(frozen=True, eq=False)
class _Run:
    """What is to be done, and what is known.

    Attributes:
        study (Study): The study.
        texts (tuple of str): All of them.
        chunks (mapping): By model, those of this part, in their order.
        results (Results): What is known, also by other parts.
        known (KnownBounds): Bounds of AOPC that are.
    """

    study: Study
    texts: tuple[str, ...]
    chunks: Mapping[str, Sequence[Chunk]]
    results: Results
    known: KnownBounds

    def search_bounds(
        self, work: Work, file: PartedFile[Bounds], show_progress: bool
    ) -> None:
        """Search for the bounds that methods need which are missing, once for all."""
        if "naopc" not in self.study.metrics:
            return
        tasks = [
            (model, chunk)
            for model, chunk in self._all_chunks()
            if self._missing_methods(model, chunk)
            and len(self.known.of(model, chunk)) < len(chunk) * self._n_removals
        ]
        n_bounds = sum(len(chunk) for _, chunk in tasks) * self._n_removals
        with _bar(show_progress, "bounds of naopc", n_bounds, 0) as shown:
            own = file.own
            for found in work(self._task(model, None, chunk) for model, chunk in tasks):
                own.append(found)
                for bounds in found:
                    self.known.add(bounds)
                shown.update(len(found))

    def measure(
        self, work: Work, file: PartedFile[Record], show_progress: bool
    ) -> None:
        """Run every method on every chunk where its results are missing."""
        n_attributions = sum(len(chunk) for _, chunk in self._all_chunks()) * len(
            self.study.methods
        )
        tasks = (
            self._task(model, method, chunk)
            for model, chunk in self._all_chunks()
            for method in self._missing_methods(model, chunk)
        )
        n_done = sum(
            int(self._is_done(model, method, chunk).sum())
            for model, chunk in self._all_chunks()
            for method in self.study.methods
        )
        with _bar(show_progress, "attributions", n_attributions, n_done) as shown:
            own = file.own
            for found in work(tasks):
                new = [record for record in found if self.results.add(record)]
                own.append(new)
                shown.update(len(new))

    @property
    def _n_removals(self) -> int:
        return len(self.study.removals)

    def _all_chunks(self) -> Iterator[tuple[str, Chunk]]:
        for model, chunks in self.chunks.items():
            for chunk in chunks:
                yield model, chunk

    def _is_done(self, model: str, method: str, chunk: Chunk) -> Any:
        predicted = self.results.columns[model, method].predicted
        return predicted[np.array(chunk) - 1] >= 0

    def _missing_methods(self, model: str, chunk: Chunk) -> list[str]:
        return [
            method
            for method in self.study.methods
            if not self._is_done(model, method, chunk).all()
        ]

    def _task(self, model: str, method: str | None, chunk: Chunk) -> Task:
        texts = tuple(self.texts[row - 1] for row in chunk)
        bounds = self.known.of(model, chunk) if "naopc" in self.study.metrics else {}
        return Task(model, method, chunk, texts, bounds)


def _bar(show: bool, what: str, total: int, n_done: int) -> Any:
    bar: Callable[..., Any] = progress if show else NullProgress
    return bar(
        desc=what,
        total=total,
        initial=n_done,
        smoothing=0,  # methods differ a hundredfold; only their mean predicts
        mininterval=0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LOG_LINES,
        file=sys.stderr,
    )


def _chunks(
    study: Study, texts: Sequence[str], classifier: TextClassifier
) -> list[Chunk]:
    """Rows of similar length, in an order that mixes lengths; those of this part.

    The chunks are the same whatever has been done before, and so are the figures: a
    text's values depend on its company in the last digits.
    """
    lengths = dict(enumerate(_lengths(texts, classifier), 1))
    order = sorted(lengths, key=lambda row: (lengths[row], row))
    size = study.batch_size
    chunks = [
        tuple(order[start : start + size]) for start in range(0, len(order), size)
    ]
    random.Random(study.seed).shuffle(chunks)
    index, n_parts = study.part
    return chunks[index - 1 :: n_parts]


def _lengths(texts: Sequence[str], classifier: TextClassifier) -> list[int]:
    """Tokens of each text, as the model sees it."""
    lengths: list[int] = []
    n_truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=TRUNCATED)
            encoded = classifier.encoder.encode(some)
        lengths += encoded.mask.sum(1).tolist()
        n_truncated += sum(map(bool, encoded.n_truncated))
    if n_truncated:
        warn_caller(
            f"{n_truncated} of {len(texts)} texts are longer than the model's limit of "
            f"{classifier.encoder.limit} tokens, and are truncated to it"
        )
    return lengths


def _load(study: Study) -> dict[str, TextClassifier]:
    """Load models, named by the last part of a folder or by hub id."""
    classifiers: dict[str, TextClassifier] = {}
    for name in study.models:
        label = Path(name).resolve().name if Path(name).is_dir() else name
        if label in classifiers:
            raise ValueError(
                f"two models are called {label!r}; the table could not tell them "
                "apart. Rename a folder"
            )
        classifier = TextClassifier.load(name, study.device, study.dtype)
        try:
            problem = problem_type(classifier.model)
        except ValueError as error:
            raise ValueError(f"the model {label!r}: {error}") from error
        if problem != "single_label_classification":
            raise ValueError(
                f"{label!r} predicts no one class per text, whose probability a study "
                f"measures, but is a model of {problem} (problem_type and id2label in "
                "its config.json); give a classifier of one label, or measure the "
                "outputs by the functions of captum_attnflow.metrics"
            )
        classifiers[label] = classifier
    return classifiers
