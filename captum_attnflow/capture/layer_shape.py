"""Records the shapes of what a user's layer takes in or puts out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TensorLike:
    """Shape, dtype and device of a tensor, without its data.

    Attributes:
        shape (tuple of int): With the batch in dimension 0.
        dtype (dtype): Its dtype.
        device (device): Its device.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> TensorLike:
        """Describe a tensor."""
        return TensorLike(tuple(tensor.shape), tensor.dtype, tensor.device)


@contextmanager
def record_layer_tensors(
    layer: nn.Module, of_input: bool
) -> Iterator[list[tuple[TensorLike, ...]]]:
    """Describe, call by call, the tensors at a layer while active.

    Args:
        layer (Module): The layer to watch.
        of_input (bool): Watch the positional inputs instead of the outputs.

    Yields:
        list: One tuple of descriptions per call; empty while the layer has not run.
    """
    calls: list[tuple[TensorLike, ...]] = []

    def hook(module: nn.Module, taken: tuple[Any, ...], put_out: Any = None) -> None:
        tensors = taken if of_input else put_out
        tensors = tensors if isinstance(tensors, (tuple, list)) else (tensors,)
        calls.append(
            tuple(TensorLike.of(item) for item in tensors if isinstance(item, Tensor))
        )

    if of_input:
        handle = layer.register_forward_pre_hook(hook)
    else:
        handle = layer.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()
