"""Runs a study, a part of it, or what is missing of it."""

from __future__ import annotations

import json
import platform
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captum_attnflow._captum import NullProgress, progress
from captum_attnflow._checks import counted
from captum_attnflow._files import replace_file
from captum_attnflow._warnings import warn_caller
from captum_attnflow.flow import compile_kernels
from captum_attnflow.metrics.normalized import BEAM_WIDTH
from captum_attnflow.pipelines.predictions import problem_type
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.runs.folder import (
    MANIFEST,
    check_format,
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
from captum_attnflow.study.adapters import find_token
from captum_attnflow.study.evaluate import TRUNCATED, Task, TaskRunner
from captum_attnflow.study.methods import METHODS, Method
from captum_attnflow.study.records import (
    Bounds,
    KnownBounds,
    PartedFile,
    Record,
    Results,
    no_merge_meanwhile,
)
from captum_attnflow.study.settings import DataSource, Study, TextData, read_data
from captum_attnflow.study.table import FORMATS, Table, save_plot

_PACKAGES = (
    "captum",
    "captum-attnflow",
    "networkx",
    "numpy",
    "scipy",
    "torch",
    "transformers",
)
_FORMAT = 2
"""Of the manifest and the results. Format 1 counted rows from 1, and did not say so."""
_SETTINGS = ("data", "settings", "versions")
_NAMED = ("models", "methods")
"""A later run may name other models and methods; shared ones must be unchanged."""
_MOST_FAILURES = 1000
_MOST_REASONS = 5
_SECONDS_BETWEEN_LOG_LINES = 30
_TEXTS_AT_ONCE = 1024  # whose lengths are counted

Chunk = tuple[int, ...]
"""Texts that are attributed together, by their places among all."""
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
    done, without its first call of each method, which loads code. Parts and workers of
    Ray give these figures too, on the same kind of machine and with as many threads.

    Rows of the data that hold no text, or no label where labels are read, are left
    out. A warning counts them, and the manifest names them.

    A part writes ``results-2-of-4.jsonl`` and the like. The one that ends last moves
    all lines to ``results.jsonl`` and writes the table; so does a run without parts.
    Each worker of Ray writes a file of its own, so that all machines have to share the
    output folder. Its lines are moved to the file of the part at the end of the run, or
    when the next one begins.
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
    if data.left_out:
        warn_caller(_said_of_left_out(data))
    on_ray = study.engine == "ray"
    classifiers = _load(
        replace(study, device=None, device_map=None) if on_ray else study
    )
    models = tuple(classifiers)
    labels = {
        model: data.class_indices(classifier.labels)
        for model, classifier in classifiers.items()
    }
    for classifier in classifiers.values():
        find_token(classifier.tokenizer, study.reference_token)
    folder = Path(study.output)
    records = PartedFile(folder, "results", Record, study.part)
    bounds = PartedFile(folder, "bounds", Bounds, study.part)
    with writing_part(folder, study.part):
        description = _describe(study, data, models)
        files = [path for each in (records, bounds) for path in each.paths]
        description = _agreed_manifest(folder, description, files)
        results = Results(study, models, data.rows)
        known = KnownBounds(models, study.removals, data.rows)
        with no_merge_meanwhile(folder):
            for each in (records, bounds):
                if study.part == (1, 1):  # no other one runs
                    each.merge()
                else:
                    each.gather()
            _take_in(records, results.add)
            _take_in(bounds, known.add)
        chunks = {
            model: _chunks(study, data.texts, classifier)
            for model, classifier in classifiers.items()
        }
        run = _Run(study, data, chunks, results, known)
        work: Work
        if on_ray:
            work = partial(_work_by_ray, study, models, records, bounds)
        else:
            work = partial(map, TaskRunner(study, classifiers, records.own, bounds.own))
        del classifiers  # of Ray each worker has its own
        run.search_bounds(work, show_progress)
        run.measure(work, show_progress)
        with no_merge_meanwhile(folder):
            if on_ray or study.part != (1, 1):
                # Of a task that was done twice, as a worker died, the first one counts.
                results = Results(study, models, data.rows)
                _take_in(records, results.add)
                if not all(column.is_done.all() for column in results.columns.values()):
                    if study.part == (1, 1):
                        raise ValueError(
                            f"{folder} does not hold all that workers of Ray wrote, "
                            "maybe as the machines see it differently; run again, or "
                            "give another --output"
                        )
                    return None
                for each in (records, bounds):
                    each.merge()
            table = Table.of(study, models, results)
            for ending, written in FORMATS.items():
                replace_file(folder / f"table.{ending}", written(table))
            save_plot(table, folder / "plot.png")
            outcome = _outcome(study, data, labels, results)
            _agreed_manifest(folder, {**description, "results": outcome}, ())
    return table


def _work_by_ray(
    study: Study,
    models: Sequence[str],
    records: PartedFile[Record],
    bounds: PartedFile[Bounds],
    tasks: Iterable[Task],
) -> Iterator[Any]:
    """Do tasks by workers of Ray, each of which writes to files of its own.

    At the end, also that of a run which fails, these are moved to the part's own.
    """
    there = replace(
        study,
        device=device_of_worker(study.device, study.device_map, study.gpus_per_worker),
        models=tuple(map(seen_from_anywhere, study.models)),
    )
    makers = [
        partial(
            TaskRunner.load,
            *(there, models, records.of_new_worker(), bounds.of_new_worker()),
        )
        for _ in range(study.workers)
    ]
    try:
        yield from work_by_ray(makers, tasks, study.gpus_per_worker)
    finally:
        with no_merge_meanwhile(Path(study.output)):
            for each in (records, bounds):
                each.gather()


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
        data (TextData): All texts.
        chunks (mapping): By model, those of this part, in their order.
        results (Results): What is known, also by other parts.
        known (KnownBounds): Bounds of AOPC that are.
    """

    study: Study
    data: TextData
    chunks: Mapping[str, Sequence[Chunk]]
    results: Results
    known: KnownBounds

    def search_bounds(self, work: Work, show_progress: bool) -> None:
        """Search for the bounds that methods need which are missing, once for all."""
        if "naopc" not in self.study.metrics:
            return
        tasks = [
            (model, chunk)
            for model, chunk in self._all_chunks()
            if self._missing_methods(model, chunk)
            and len(self.known.of(model, self._rows(chunk)))
            < len(chunk) * self._n_removals
        ]
        if not tasks:
            return
        n_bounds = sum(len(chunk) for _, chunk in tasks) * self._n_removals
        with _bar(show_progress, "bounds of naopc", n_bounds, 0) as shown:
            for found in work(self._task(model, None, chunk) for model, chunk in tasks):
                for bounds in found:
                    self.known.add(bounds)
                shown.update(len(found))

    def measure(self, work: Work, show_progress: bool) -> None:
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
        solves_flows = any(METHODS[name].solves_flows for name in self.study.methods)
        if solves_flows and n_done < n_attributions:
            compile_kernels(show_progress)
        with _bar(show_progress, "attributions", n_attributions, n_done) as shown:
            # Ray is not started for nothing.
            for found in work(tasks) if n_done < n_attributions else ():
                for record in found:
                    self.results.add(record)
                shown.update(len(found))

    @property
    def _n_removals(self) -> int:
        return len(self.study.removals)

    def _all_chunks(self) -> Iterator[tuple[str, Chunk]]:
        for model, chunks in self.chunks.items():
            for chunk in chunks:
                yield model, chunk

    def _is_done(self, model: str, method: str, chunk: Chunk) -> Any:
        return self.results.columns[model, method].is_done[list(chunk)]

    def _missing_methods(self, model: str, chunk: Chunk) -> list[str]:
        return [
            method
            for method in self.study.methods
            if not self._is_done(model, method, chunk).all()
        ]

    def _rows(self, chunk: Chunk) -> tuple[int, ...]:
        return tuple(self.data.rows[place] for place in chunk)

    def _task(self, model: str, method: str | None, chunk: Chunk) -> Task:
        rows = self._rows(chunk)
        texts = tuple(self.data.texts[place] for place in chunk)
        bounds = self.known.of(model, rows) if "naopc" in self.study.metrics else {}
        missing = rows
        if method is not None:
            is_done = self._is_done(model, method, chunk)
            missing = tuple(compress(rows, ~is_done))
        return Task(model, method, rows, texts, missing, bounds)


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
    """Texts of similar length, in an order that mixes lengths; those of this part.

    The chunks are the same whatever has been done before, and so are the figures: a
    text's values depend on its company in the last digits.
    """
    lengths = _lengths(texts, classifier)
    order = sorted(range(len(texts)), key=lambda place: (lengths[place], place))
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
        classifier = TextClassifier.load(
            name, study.device, study.dtype, study.device_map
        )
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


def _said_of_left_out(data: TextData) -> str:
    n_rows = len(data.left_out)
    reasons = data.reasons.most_common()
    said = "; ".join(
        f"{count:,}: {reason}" for reason, count in reasons[:_MOST_REASONS]
    )
    more = "; and others" if len(reasons) > _MOST_REASONS else ""
    return (
        f"{counted(n_rows, 'row')} of {data.name} left out, by reason: {said}{more}; "
        f"{MANIFEST} names the rows"
    )


def _describe(study: Study, data: TextData, models: Sequence[str]) -> dict[str, Any]:
    """What the results depend on, as JSON values."""
    source = study.data
    is_file = source.name == "-" or Path(source.name).is_file()
    return {
        "format": _FORMAT,
        "data": {
            "name": data.name,
            "subset": None if is_file else source.subset,
            "split": None if is_file else source.split,
            "sha256": data.sha256,
            "text_column": source.text_column,
            "label_column": source.label_column,
            "n_texts": len(data.texts),
            "rows": list(data.rows) if study.data.limit else "all",
        },
        "settings": {
            "metrics": list(study.metrics),
            "removals": list(study.removals),
            "reference_token": study.reference_token,
            "seed": study.seed,
            "batch_size": study.batch_size,
            # What was the only one when it was not recorded yet is left out.
            **({"dtype": study.dtype} if study.dtype != "float32" else {}),
            **({"beam_width": BEAM_WIDTH} if "naopc" in study.metrics else {}),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "models": {
            label: model_hashes(name)
            for label, name in zip(models, study.models, strict=True)
        },
        "methods": {name: _describe_method(METHODS[name]) for name in study.methods},
        "against": study.against,
        "threads": 1 if study.engine == "ray" else torch.get_num_threads(),
    }


def _describe_method(method: Method) -> dict[str, Any]:
    described = {"description": method.description, "settings": dict(method.settings)}
    if method.needs is not None:
        described["versions"] = {method.needs: version(method.needs)}
    return described


def _agreed_manifest(
    folder: Path, manifest: dict[str, Any], results: Sequence[Path]
) -> dict[str, Any]:
    """Write the manifest of a new study, or check that a resumed one agrees.

    Args:
        folder (Path): Where it is.
        manifest (dict): As :func:`_describe` makes it.
        results (sequence of Path): What it describes, if it is there.

    Returns:
        dict: The manifest, with the models and methods of earlier runs.

    Raises:
        ValueError: If the study in this folder was another one, or unknown.
    """
    with manifest_lock(folder) as path:
        earlier = read_manifest(folder, "a study", (*_SETTINGS, *_NAMED), results)
        if earlier is not None:
            _check_objects(path, earlier)
            check_format(folder, earlier.get("format", 1), _FORMAT)
            _check_same(folder, earlier, manifest)
            manifest = {**manifest, **{p: earlier[p] | manifest[p] for p in _NAMED}}
        write_manifest(folder, manifest)
    return manifest


def _check_objects(path: Path, found: Mapping[str, Any]) -> None:
    sections = [found[name] for name in (*_SETTINGS, *_NAMED)]
    named = [
        each
        for name in _NAMED
        if isinstance(found[name], dict)
        for each in found[name].values()
    ]
    if not all(isinstance(each, dict) for each in (*sections, *named)):
        raise ValueError(
            f"{path} is no manifest of a study ({', '.join((*_SETTINGS, *_NAMED))} "
            "must be objects); give another --output"
        )


def _check_same(folder: Path, old: dict[str, Any], new: Mapping[str, Any]) -> None:
    found = json.loads(json.dumps(new))
    pairs = [(section, old[section], found[section]) for section in _SETTINGS]
    for section in _NAMED:
        for name in old[section].keys() & found[section].keys():
            before, now = old[section][name], found[section][name]
            if section == "models":  # files that were not hashed yet are noted now
                late = {file: of for file, of in now.items() if is_hashed_later(file)}
                before = late | before
            pairs.append((f"{section} {name}", before, now))
    for where, before, now in pairs:
        for name in sorted(before.keys() | now.keys()):
            if name == "label_column" and None in (before.get(name), now.get(name)):
                # Rows without a label are left out: two columns may leave out as many,
                # but others. None leaves out no row, or n_texts differs as well.
                continue
            if before.get(name) != now.get(name):
                source = DataSource if where == "data" else Study
                left_out = getattr(Study, name, None)  # a dtype that is the default
                there, here = before.get(name, left_out), now.get(name, left_out)
                raise ValueError(
                    f"{folder} holds a study with another {name!r} ({where}): "
                    f"{there_and_now(there, here, source, name)}. Its results cannot "
                    "be mixed with new ones: give the same settings, or another "
                    "--output"
                )


def _outcome(
    study: Study,
    data: TextData,
    labels: Mapping[str, list[int] | None],
    results: Results,
) -> dict[str, Any]:
    """Accuracy, texts without an order, and the first failures and rows left out."""
    of_model = {
        model: [results.columns[model, method] for method in study.methods]
        for model in labels
    }
    failures = [
        {"model": model, "method": method, "row": data.rows[place], "error": error}
        for (model, method), column in sorted(results.columns.items())
        for place, error in sorted(column.failures.items())
    ]
    return {
        "accuracy": {
            model: float(np.mean(of_model[model][0].predicted == known))
            for model, known in labels.items()
            if known is not None
        },
        "texts_of_one_score": {
            model: {
                method: int(column.is_tied.sum())
                for method, column in zip(study.methods, of_model[model], strict=True)
            }
            for model in labels
        },
        "n_failures": len(failures),
        "failures": failures[:_MOST_FAILURES],
        "n_left_out": len(data.left_out),
        "left_out": [
            {"row": row, "reason": reason}
            for row, reason in islice(data.left_out.items(), _MOST_FAILURES)
        ],
    }
