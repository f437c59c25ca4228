"""Records what a user's layers take in or put out, without keeping it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def record_layer_tensors(
    layers: Sequence[nn.Module], of_input: bool
) -> Iterator[dict[nn.Module, list[tuple[Tensor, ...]]]]:
    """Collect, call by call, the detached tensors at each layer while active.

    Args:
        layers (sequence of Module): The layers to watch.
        of_input (bool): Watch the positional inputs instead of the outputs.

    Yields:
        dict: For each layer that ran, one tuple of tensors per call.
    """
    seen: dict[nn.Module, list[tuple[Tensor, ...]]] = {}

    def hook(module: nn.Module, taken: tuple[Any, ...], put_out: Any = None) -> None:
        tensors = taken if of_input else put_out
        tensors = tensors if isinstance(tensors, (tuple, list)) else (tensors,)
        seen.setdefault(module, []).append(
            tuple(item.detach() for item in tensors if isinstance(item, Tensor))
        )

    handles = [
        layer.register_forward_pre_hook(hook)
        if of_input
        else layer.register_forward_hook(hook)
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
