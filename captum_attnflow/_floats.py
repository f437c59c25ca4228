"""Floats that were given where the forward function takes token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._captum import run_forward
from captum_attnflow._memory import is_out_of_memory


@contextmanager
def naming_ids(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional: tuple[Any, ...] | None,
) -> Iterator[None]:
    """Say that ids are needed, where a forward function fails on floats for that.

    A run on the ids 0 tells: any other error passes on as it is.

    Args:
        forward_func (Callable): The forward function.
        inputs (tuple[Tensor, ...]): What it is given.
        additional (tuple, optional): Its further arguments.

    Raises:
        ValueError: If it fails on floats, and takes ids instead.
    """
    try:
        yield
    except Exception as error:
        shape = tuple(inputs[0].shape)
        is_floats = inputs[0].is_floating_point() and 2 <= len(shape) <= 3
        if not is_floats or is_out_of_memory(error):
            raise
        ids = torch.zeros(shape[:2], dtype=torch.long, device=inputs[0].device)
        try:
            with torch.no_grad():
                run_forward(forward_func, (ids, *inputs[1:]), None, additional)
        except Exception:
            raise error from None
        raise ValueError(
            f"forward_func takes token ids (B, T), integers, but failed on floats of "
            f"shape {shape}: {type(error).__name__}: {error}. Give the ids; or, for "
            "embeddings, a function of these, such as lambda embeddings: "
            "model(inputs_embeds=embeddings).logits. Attributions at embeddings are "
            "those of the Layer... class, which takes ids and the embeddings module"
        ) from error
