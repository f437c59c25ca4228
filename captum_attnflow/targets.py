"""Captum's targets: one for all examples of a batch, or one for each."""

from __future__ import annotations

from captum._utils.typing import TargetType
from torch import Tensor


def is_per_example(target: TargetType) -> bool:
    """Whether each example has its own: a list, or a tensor of several numbers."""
    return isinstance(target, list) or (
        isinstance(target, Tensor) and target.numel() > 1
    )


def target_of_rows(target: TargetType, rows: Tensor | slice) -> TargetType:
    """Take the targets of rows ``(N,)`` of the batch, if there is one per example."""
    if not is_per_example(target):
        return target
    if isinstance(rows, slice):
        return target[rows]
    if isinstance(target, list):
        return [target[row] for row in rows.tolist()]
    return target[rows.to(target.device)]


def repeat_target(target: TargetType, times: int) -> TargetType:
    """Repeat targets, if there is one per example, block after block."""
    if not is_per_example(target):
        return target
    return target * times if isinstance(target, list) else target.repeat(times)
