"""The output of a forward function that is explained."""

from __future__ import annotations

from typing import Any

from captum._utils.common import _select_targets
from captum._utils.typing import TargetType
from torch import Tensor

from captum_attnflow._tensors import check_dense
from captum_attnflow.targets import target_of_rows


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
