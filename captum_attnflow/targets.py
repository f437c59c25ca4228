"""Captum's targets: one for all examples of a batch, or one for each."""

from __future__ import annotations

from operator import index as as_index
from typing import Any

from captum._utils.typing import TargetType
from torch import Tensor

from captum_attnflow._options import check_integer
from captum_attnflow._tensors import check_dense

Target = tuple[int, ...]


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


def targets_of_texts(target: TargetType, n_texts: int) -> list[Target] | None:
    """Read a target as Captum does, one tuple of indices per text.

    Args:
        target (int, tuple, Tensor or list, optional): As in ``IntegratedGradients``.
        n_texts (int): Texts in the batch.

    Raises:
        ValueError: If the targets are not one per text, or no indices.
    """
    check_integer("n_texts", n_texts, 1)
    if target is None:
        return None
    if isinstance(target, Tensor):
        check_dense("target", target, "one integer for all texts, or one for each")
    each: Any = target if is_per_example(target) else [target] * n_texts
    if len(each) != n_texts:
        raise ValueError(
            f"{len(each)} targets were given for {n_texts} texts; give one per text, "
            "or one for all"
        )
    try:
        return [
            tuple(map(as_index, index if isinstance(index, tuple) else (index,)))
            for index in each
        ]
    except TypeError as error:
        raise ValueError(
            f"target={target!r} is no index: {error}. Give an integer, a tuple of "
            "integers, or a list or tensor of one for each text"
        ) from error
