"""One method on a batch of texts: attributed, timed, counted, measured."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._memory import is_out_of_memory
from captum_attnflow.flow import compile_kernels
from captum_attnflow.metrics import (
    METRICS,
    AOPCBounds,
    aopc_bounds,
    faithfulness,
    naopc,
)
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.runs.sharing import check_shared
from captum_attnflow.study.adapters import TextBatch, count_passes
from captum_attnflow.study.methods import METHODS
from captum_attnflow.study.records import Bounds, Record, RecordFile
from captum_attnflow.study.settings import Study

ROWS_AT_ONCE = 64
"""Rows in one forward pass of a metric."""
TRUNCATED = ".*is truncated to the model's limit"
"""How the warning of a text that is too long begins."""
_NAOPC = "naopc"
# Captum's warning of its hooks, and ours of zeros, which a record counts as ties.
_KNOWN_WARNINGS = "Setting forward, backward hooks|all token scores of the examples"


@dataclass(frozen=True)
class Task:
    """A method to run on some texts by a model, or bounds to search for.

    Attributes:
        model (str): The model's name in the study.
        method (str, optional): The method; None for the bounds of AOPC.
        rows (tuple of int): The texts' rows in the data, counted from 0.
        texts (tuple of str): The texts.
        missing (tuple of int): Those of the rows whose records are to be written; a run
            that was killed may have written the others.
        bounds (mapping): By removal mode and row, the bounds that are known.
    """

    model: str
    method: str | None
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    missing: tuple[int, ...]
    bounds: Mapping[tuple[str, int], Bounds]


class TaskRunner:
    """Models that do tasks of a study, which hold texts, and write records.

    Args:
        study (Study): The settings.
        classifiers (mapping): The models by their names.
        records (RecordFile): Where what methods give is written.
        bounds (RecordFile): Where bounds of AOPC are.
    """

    def __init__(
        self,
        study: Study,
        classifiers: Mapping[str, TextClassifier],
        records: RecordFile[Record],
        bounds: RecordFile[Bounds],
    ) -> None:
        self._study = study
        self._classifiers = classifiers
        self._records = records
        self._bounds = bounds
        self._last: tuple[tuple[str, tuple[int, ...]], TextBatch] | None = None
        self._warm: set[tuple[str, str]] = set()

    @staticmethod
    def load(
        study: Study,
        names: Sequence[str],
        records: RecordFile[Record],
        bounds: RecordFile[Bounds],
    ) -> TaskRunner:
        """Load a study's models, which have such names in it, in a worker.

        Raises:
            ValueError: If the worker does not see the files that it is to write.
        """
        for file in (records, bounds):
            check_shared(file.path)
        classifiers = {
            name: TextClassifier.load(
                model, study.device, study.dtype, study.device_map
            )
            for name, model in zip(names, study.models, strict=True)
        }
        return TaskRunner(study, classifiers, records, bounds)

    def __call__(self, task: Task) -> Sequence[Record] | Sequence[Bounds]:
        """Do a task; what is returned is on disk.

        Raises:
            OSError: If it cannot be written, naming the file.
        """
        batch = self._batch(task)
        if task.method is None:
            bounds = _search_missing(self._study, task, batch)
            self._bounds.append(bounds)
            return bounds
        if (task.model, task.method) not in self._warm:
            self._warm.add((task.model, task.method))
            if METHODS[task.method].solves_flows:
                compile_kernels()
            _warm_up(self._study, task.method, batch, task.rows[0])
        found = evaluate(
            self._study, task.model, task.method, batch, task.rows, task.bounds
        )
        records = [record for record in found if record.row in task.missing]
        self._records.append(records)
        return records

    def _batch(self, task: Task) -> TextBatch:
        """Encode and predict once for the methods that follow each other."""
        key = task.model, task.rows
        if self._last is None or self._last[0] != key:
            with warnings.catch_warnings():
                # Said of all texts together, when their lengths were looked at.
                warnings.filterwarnings("ignore", message=TRUNCATED)
                batch = TextBatch.encode(
                    self._classifiers[task.model],
                    task.texts,
                    self._study.reference_token,
                )
            self._last = key, batch.predict()
        return self._last[1]


def _search_missing(study: Study, task: Task, batch: TextBatch) -> list[Bounds]:
    """Search for bounds; where it fails, the methods that need them will say so."""
    found = []
    for removal in study.removals:
        for position, row in enumerate(task.rows):
            if (removal, row) in task.bounds:
                continue
            try:
                found.append(_bounds(task.model, removal, batch.rows([position]), row))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
    return found


def _bounds(model: str, removal: str, text: TextBatch, row: int) -> Bounds:
    lower, upper = _search(text, removal)
    return Bounds(model, removal, row, lower.item(), upper.item())


def _search(text: TextBatch, removal: str) -> tuple[Tensor, Tensor]:
    bounds: AOPCBounds = aopc_bounds(
        text.forward,
        text.ids,
        text.reference_id,
        text.predicted,
        text.arguments,
        removal=removal,
        keep=text.special,
        padding=text.padding,
        internal_batch_size=ROWS_AT_ONCE,
    )
    return bounds


def evaluate(
    study: Study,
    model: str,
    method: str,
    batch: TextBatch,
    rows: Sequence[int],
    bounds: Mapping[tuple[str, int], Bounds],
) -> list[Record]:
    """Attribute and measure texts together; one by one if that fails.

    Args:
        study (Study): The settings.
        model (str): Name of the batch's model.
        method (str): Name of the method.
        batch (TextBatch): The texts.
        rows (sequence of int): Their rows in the data, counted from 0.
        bounds (mapping): The bounds of their AOPC, by removal mode and row; those that
            are not there are searched for.

    Returns:
        list[Record]: One per text; a text on which the method fails says why.
    """
    try:
        return _evaluate_together(study, model, method, batch, rows, bounds)
    # Any error of a compared method is a result of the study.
    except Exception as error:
        if is_out_of_memory(error):
            raise  # depends on the machine; a continued study may succeed
        if len(rows) == 1:
            failure = f"{type(error).__name__}: {error}"
            predicted = int(batch.predicted[0])
            return [Record(model, method, rows[0], predicted, {}, failure=failure)]
    alone = (
        evaluate(study, model, method, batch.rows([position]), [row], bounds)
        for position, row in enumerate(rows)
    )
    return list(chain.from_iterable(alone))


@dataclass(frozen=True)
class _Attribution:
    """Scores of one text ``(n,)``, without padding, and its share of the cost."""

    scores: Tensor
    forward_rows: float
    backward_rows: float
    seconds: float


def _evaluate_together(
    study: Study,
    model: str,
    method: str,
    batch: TextBatch,
    rows: Sequence[int],
    bounds: Mapping[tuple[str, int], Bounds],
) -> list[Record]:
    if METHODS[method].batched:
        attributions = _attribute(study, method, batch, rows[0])
    else:
        attributions = [
            _attribute(study, method, batch.rows([position]), row)[0]
            for position, row in enumerate(rows)
        ]
    scores = torch.zeros(batch.ids.shape, dtype=torch.float64)
    scores[~batch.padding.cpu()] = torch.cat([item.scores for item in attributions])
    measured = {
        removal: _measure(
            study,
            batch,
            scores,
            removal,
            _of_batch(model, removal, batch, rows, bounds)
            if _NAOPC in study.metrics
            else None,
        )
        for removal in study.removals
    }
    removable = ~(batch.special | batch.padding).cpu()
    return [
        Record(
            model=model,
            method=method,
            row=row,
            predicted=int(batch.predicted[position]),
            values={
                removal: {name: of[position].item() for name, of in metrics.items()}
                for removal, metrics in measured.items()
            },
            tied=len(scores[position][removable[position]].unique()) < 2,
            forward_rows=item.forward_rows,
            backward_rows=item.backward_rows,
            seconds=item.seconds,
        )
        for position, (row, item) in enumerate(zip(rows, attributions, strict=True))
    ]


def _of_batch(
    model: str,
    removal: str,
    batch: TextBatch,
    rows: Sequence[int],
    known: Mapping[tuple[str, int], Bounds],
) -> AOPCBounds:
    found = [
        known.get((removal, row))
        or _bounds(model, removal, batch.rows([position]), row)
        for position, row in enumerate(rows)
    ]
    return AOPCBounds(
        torch.tensor([bounds.lower for bounds in found], dtype=torch.float64),
        torch.tensor([bounds.upper for bounds in found], dtype=torch.float64),
    )


def _warm_up(study: Study, method: str, batch: TextBatch, row: int) -> None:
    """Call a method once for nothing: a first call loads code, and fills caches.

    That of flows takes a second, which is the time of no text.
    """
    first = batch if METHODS[method].batched else batch.rows([0])
    try:
        _attribute(study, method, first, row)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # What fails does so again, and is recorded, when it is measured.


def _attribute(
    study: Study, method: str, batch: TextBatch, row: int
) -> list[_Attribution]:
    """Attribute a batch in one call; random numbers follow from its first row."""
    # A seed is set on every GPU. Saving the state of an unused one would start it.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (
        torch.random.fork_rng(devices=gpus),
        warnings.catch_warnings(),
        count_passes(batch.model) as count,
    ):
        torch.manual_seed(_seed(study.seed, method, row))
        warnings.filterwarnings("ignore", message=_KNOWN_WARNINGS)
        start = time.perf_counter()
        scores = METHODS[method].scores(batch, **METHODS[method].settings)
        seconds = time.perf_counter() - start
    share = 1 / len(batch)
    return [
        _Attribution(
            text_scores.detach().double().cpu()[~padding],
            forward_rows=count.forward * share,
            backward_rows=count.backward * share,
            seconds=seconds * share,
        )
        for text_scores, padding in zip(scores, batch.padding.cpu(), strict=True)
    ]


def _measure(
    study: Study,
    batch: TextBatch,
    scores: Tensor,
    removal: str,
    bounds: AOPCBounds | None,
) -> dict[str, Tensor]:
    arguments = (
        *(batch.forward, batch.ids, scores),
        *(batch.reference_id, batch.predicted, batch.arguments),
    )
    options: dict[str, Any] = {
        "removal": removal,
        "keep": batch.special,
        "padding": batch.padding,
        "internal_batch_size": ROWS_AT_ONCE,
        "seed": study.seed,
    }
    plain = [name for name in study.metrics if name in METRICS]
    values: dict[str, Tensor] = faithfulness(*arguments, plain, **options)
    if bounds is not None:
        values[_NAOPC] = naopc(*arguments, bounds=bounds, **options)
    return values


def _seed(seed: int, method: str, row: int) -> int:
    # Counted from 1 here, as rows once were: figures of a seed stay what they are.
    digest = hashlib.sha256(f"{seed}/{method}/{row + 1}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
