"""One method on a batch of texts: attributed, timed, counted, measured."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._memory import is_out_of_memory
from captum_attnflow.metrics import (
    METRICS,
    AOPCBounds,
    aopc_bounds,
    faithfulness,
    naopc,
)
from captum_attnflow.study.batch import TextBatch, count_passes
from captum_attnflow.study.methods import METHODS
from captum_attnflow.study.records import Bounds, Record, RecordFile
from captum_attnflow.study.settings import Study

ROWS_AT_ONCE = 64
"""Rows in one forward pass of a metric."""
_NAOPC = "naopc"
# Captum's word about its hooks, and ours about zeros, which a record counts as ties.
_KNOWN_WARNINGS = "Setting forward, backward hooks|all token scores of the examples"


class BoundsCache:
    """Bounds of AOPC by model, removal mode and text, on disk once they are known.

    A text's bounds depend on no other text, so that figures do not depend on which of
    them were there already.

    Args:
        path (Path): The file; made when the first bounds are known.

    Raises:
        ValueError: If a line of it holds no bounds.
    """

    def __init__(self, path: Path) -> None:
        self._file = RecordFile(path, Bounds)

    def of(
        self, model: str, removal: str, batch: TextBatch, rows: Sequence[int]
    ) -> AOPCBounds:
        """Return the bounds of a batch, after a search for those that are missing.

        Args:
            model (str): Name of the batch's model.
            removal (str): ``"replace"`` or ``"delete"``.
            batch (TextBatch): The texts.
            rows (sequence of int): Their places among the texts, counted from 1.
        """
        for position, row in enumerate(rows):
            if (model, removal, row) not in self._file.records:
                lower, upper = _search(batch.rows([position]), removal)
                found = Bounds(model, removal, row, lower.item(), upper.item())
                self._file.append([found])
        known = [self._file.records[model, removal, row] for row in rows]
        return AOPCBounds(
            torch.tensor([bounds.lower for bounds in known], dtype=torch.float64),
            torch.tensor([bounds.upper for bounds in known], dtype=torch.float64),
        )


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
    bounds: BoundsCache,
) -> list[Record]:
    """Attribute and measure texts together; one by one if that fails.

    Args:
        study (Study): The settings.
        model (str): Name of the batch's model.
        method (str): Name of the method.
        batch (TextBatch): The texts.
        rows (sequence of int): Their places among the texts, counted from 1.
        bounds (BoundsCache): The bounds of their AOPC, searched for when first asked.

    Returns:
        list[Record]: One per text; a text on which the method fails says why.
    """
    try:
        return _evaluate_together(study, model, method, batch, rows, bounds)
    # Whatever a method of a peer raises is a result of the study.
    except Exception as error:
        if is_out_of_memory(error):
            raise  # of the machine, and gone when the study is continued
        if len(rows) == 1:
            failure = f"{type(error).__name__}: {error}"
            predicted = int(batch.predicted[0])
            return [Record(model, method, rows[0], predicted, {}, failure=failure)]
    parts = (
        evaluate(study, model, method, batch.rows([position]), [row], bounds)
        for position, row in enumerate(rows)
    )
    return list(chain.from_iterable(parts))


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
    bounds: BoundsCache,
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
            bounds.of(model, removal, batch, rows) if _NAOPC in study.metrics else None,
        )
        for removal in study.removals
    }
    removable = ~(batch.special | batch.padding).cpu()
    return [
        Record(
            model=model,
            method=method,
            example=row,
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


def _attribute(
    study: Study, method: str, batch: TextBatch, row: int
) -> list[_Attribution]:
    """Attribute a batch in one call; random numbers follow from its first row."""
    # A seed is one of all GPUs, too; to ask those not in use would start them.
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
    digest = hashlib.sha256(f"{seed}/{method}/{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
