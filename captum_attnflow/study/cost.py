"""What an attribution costs, in rows through the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class PassCount:
    """Rows, one text each, that went through a model.

    A batch of eight is eight rows in one call; a text that is attributed by 50 steps
    is 50 rows.

    Attributes:
        forward (int): Rows of forward passes.
        backward (int): Rows whose gradient came back into the model.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[PassCount]:
    """Count the rows through a transformers classifier while active.

    Args:
        model (Module): Returns an object with ``logits``.

    Yields:
        PassCount: Grows as the model runs.
    """
    count = PassCount()

    def count_backward(gradient: Tensor) -> None:
        count.backward += len(gradient)

    def count_forward(module: nn.Module, taken: Any, output: Any) -> None:
        count.forward += len(output.logits)
        if output.logits.requires_grad:
            output.logits.register_hook(count_backward)

    handle = model.register_forward_hook(count_forward)
    try:
        yield count
    finally:
        handle.remove()
