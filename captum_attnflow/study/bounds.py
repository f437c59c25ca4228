"""The bounds of every text's AOPC, searched for once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from captum_attnflow.metrics import AOPCBounds, aopc_bounds
from captum_attnflow.study.batch import TextBatch
from captum_attnflow.study.records import Bounds, RecordFile

ROWS_AT_ONCE = 64
"""Rows in one forward pass of a metric."""


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
