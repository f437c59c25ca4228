"""Runs a study, or what is missing of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from captum_attnflow._captum import NullProgress, progress
from captum_attnflow._files import replace_file
from captum_attnflow.pipelines.pretrained import problem_type
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.study.batch import TextBatch, find_token
from captum_attnflow.study.data import TextData, read_data
from captum_attnflow.study.evaluate import BoundsCache, evaluate
from captum_attnflow.study.plot import save_plot
from captum_attnflow.study.records import (
    Record,
    RecordFile,
    begin_manifest,
    describe_study,
    study_outcome,
    write_manifest,
)
from captum_attnflow.study.settings import Study
from captum_attnflow.study.table import FORMATS, Table

_SECONDS_BETWEEN_LOG_LINES = 30


def run_study(study: Study, show_progress: bool = False) -> Table:
    """Run a study, or what is missing of it, and write table and plot.

    Writes ``results.jsonl`` (one line per model, method and text, as they are done),
    ``manifest.json``, ``table.md``, ``table.csv``, ``table.tex`` and ``plot.png`` into
    the output folder; with the metric ``naopc`` also ``bounds.jsonl`` (one line per
    model, removal mode and text). A study that was killed continues where it stopped
    and gives the figures that it would have given: texts are batched in the same way,
    and a method with random numbers has a seed for each text. Seconds are those of the
    run in which a text was done.

    Args:
        study (Study): The study.
        show_progress (bool): Show progress and the time left on standard error.

    Returns:
        Table: The table.

    Raises:
        OSError: If the output folder cannot be written to, or a file is not there.
        ValueError: If anything given is wrong, or the folder holds another study.
    """
    study.check()
    data = read_data(study.data)
    classifiers = _load(study.models)
    labels = {
        model: data.class_indices(classifier.labels)
        for model, classifier in classifiers.items()
    }
    for classifier in classifiers.values():
        find_token(classifier.tokenizer, study.reference_token)
    path, results = study.output / "manifest.json", study.output / "results.jsonl"
    found = study.output / "bounds.jsonl"
    description = describe_study(study, data, tuple(classifiers))
    description = begin_manifest(path, description, (results, found))
    file, bounds = RecordFile(results, Record), BoundsCache(found)
    _check_complete(study, file)
    _run(study, data, classifiers, file, bounds, show_progress)
    table = Table.of(study, tuple(classifiers), file.records)
    for ending, written in FORMATS.items():
        replace_file(study.output / f"table.{ending}", written(table))
    save_plot(table, study.output / "plot.png")
    description["results"] = study_outcome(study, labels, file.records)
    write_manifest(path, description)
    return table


def _check_complete(study: Study, file: RecordFile[Record]) -> None:
    """Refuse records that lack a value before any work is done for the table."""
    for record in file.records.values():
        for removal in study.removals if record.failure is None else ():
            missing = set(study.metrics) - record.values.get(removal, {}).keys()
            if missing:
                raise ValueError(
                    f"{file.path} has no {', '.join(sorted(missing))} ({removal}) of "
                    f"{record.method} on row {record.example} by the model "
                    f"{record.model!r}; delete its line, and it is computed again"
                )


def _run(
    study: Study,
    data: TextData,
    classifiers: dict[str, TextClassifier],
    file: RecordFile[Record],
    bounds: BoundsCache,
    show_progress: bool,
) -> None:
    keys = [
        (model, method, row)
        for model in classifiers
        for method in study.methods
        for row in range(1, len(data.texts) + 1)
    ]
    bar: Callable[..., Any] = progress if show_progress else NullProgress
    with bar(
        desc="attributions",
        total=len(keys),
        initial=sum(key in file.records for key in keys),
        smoothing=0,  # methods differ a hundredfold; only their mean predicts
        mininterval=0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LOG_LINES,
        file=sys.stderr,
    ) as shown:
        for model, classifier in classifiers.items():
            everything = TextBatch.encode(classifier, data.texts, study.reference_token)
            for rows in _chunks(everything, study):
                missing = [
                    method
                    for method in study.methods
                    if any((model, method, row) not in file.records for row in rows)
                ]
                if not missing:
                    continue
                batch = everything.rows([row - 1 for row in rows]).predict()
                for method in missing:
                    n_before = len(file.records)
                    file.append(evaluate(study, model, method, batch, rows, bounds))
                    shown.update(len(file.records) - n_before)


def _chunks(texts: TextBatch, study: Study) -> Iterator[list[int]]:
    """Yield rows of similar length, counted from 1, in an order that mixes lengths.

    The chunks are the same whatever has been done before, and so are the figures: a
    text's values depend on its company in the last digits.
    """
    lengths = dict(enumerate(texts.lengths, 1))
    order = sorted(lengths, key=lambda row: (lengths[row], row))
    size = study.batch_size
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    random.Random(study.seed).shuffle(chunks)
    yield from chunks


def _load(names: tuple[str, ...]) -> dict[str, TextClassifier]:
    """Load models, named by the last part of a folder or by hub id."""
    classifiers: dict[str, TextClassifier] = {}
    for name in names:
        label = Path(name).resolve().name if Path(name).is_dir() else name
        if label in classifiers:
            raise ValueError(
                f"two models are called {label!r}; the table could not tell them "
                "apart. Rename a folder"
            )
        classifier = TextClassifier.load(name)
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
