"""Floats that were given where the forward function takes token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._captum import run_forward
from captum_attnflow._memory import is_out_of_memory


def ids_needed(
    error: Exception,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional: tuple[Any, ...] | None,
) -> ValueError | None:
    """Say that ids are needed, where a forward function failed on floats for that.

    A run on the ids 0 tells.

    Args:
        error (Exception): With which it failed.
        forward_func (Callable): The forward function.
        inputs (tuple[Tensor, ...]): What it was given.
        additional (tuple, optional): Its further arguments.

    Returns:
        ValueError: To be raised from the error; None if that has another reason.
    """
    first, *others = inputs
    shape = tuple(first.shape)
    is_floats = first.is_floating_point() and 2 <= len(shape) <= 3
    if not is_floats or is_out_of_memory(error):
        return None
    ids = torch.zeros(shape[:2], dtype=torch.long, device=first.device)
    try:
        with torch.no_grad():
            run_forward(forward_func, (ids, *others), None, additional)
    except Exception:
        return None
    return ValueError(
        f"forward_func takes token ids (B, T), integers, but failed on floats of shape "
        f"{shape}: {type(error).__name__}: {error}. Give the ids; or, for embeddings, "
        "a function of these, such as lambda embeddings: "
        "model(inputs_embeds=embeddings).logits. Attributions at embeddings are those "
        "of the Layer... class, which takes ids and the embeddings module"
    )
