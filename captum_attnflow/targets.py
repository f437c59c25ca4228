"""Captum's targets, one for all examples or one for each, and what they select."""

from __future__ import annotations

from operator import index as as_index
from typing import Any

from captum._utils.common import _select_targets
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


def select_output(
    output: Any, target: TargetType, n_rows: int, n_examples: int
) -> Tensor:
    """Select one number per row of what a forward function returned.

    Args:
        output (Any): What it returned.
        target (int, tuple, Tensor or list, optional): As Captum reads it.
        n_rows (int): Rows that went in.
        n_examples (int): Examples that the caller knows of; a path has several rows for
            each.

    Returns:
        Tensor: Shape ``(n_rows,)``, in the autograd graph.

    Raises:
        ValueError: If the output is no tensor of so many rows, has no such target, or
            no gradient.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"forward_func returned a {type(output).__name__}; Captum needs a tensor. "
            "Wrap the model, for example: lambda ids: model(ids).logits"
        )
    shape = tuple(output.shape)
    if output.dim() == 0 or shape[0] != n_rows:
        raise ValueError(
            f"forward_func returned shape {shape} for {n_rows} inputs; the first "
            "dimension must be the batch, one row per input. Inputs that have their "
            "tokens first go in transposed"
        )
    if isinstance(target, Tensor):
        check_dense("target", target, "one class per example, (B,)")
    # The caller knows of the examples, not of the points of their paths.
    given, shape = target_of_rows(target, slice(n_examples)), (n_examples, *shape[1:])
    try:
        selected = _select_targets(output, target)
    except (
        AssertionError,
        IndexError,
        RuntimeError,
        TypeError,
    ) as error:
        raise ValueError(
            f"target={given!r} does not select from an output of shape {shape}: "
            f"{error}. Give one index per example into the dimensions after the first "
            f"(for classes: 0 to {shape[-1] - 1})"
        ) from error
    if selected[0].numel() != 1:
        raise ValueError(
            f"target={given!r} leaves shape {(n_examples, *selected.shape[1:])} of the "
            f"output {shape}; one number per example is needed. Pass target, for "
            "example the predicted class: output.argmax(-1)"
        )
    if not selected.requires_grad:
        raise ValueError(
            "the output does not depend on the inputs through autograd; forward_func "
            "must not run under torch.no_grad() or detach its output, and attribute() "
            "must not be called under torch.inference_mode(). Kernels quantised to "
            "integers have no gradient: load the model in float32 or bfloat16"
        )
    per_example: Tensor = selected.reshape(n_rows)
    return per_example
