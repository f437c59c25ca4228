"""Records the shapes of what a user's layers take in or put out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    layers: Sequence[nn.Module], of_input: bool
) -> Iterator[dict[nn.Module, list[tuple[TensorLike, ...]]]]:
    """Describe, call by call, the tensors at each layer while active.

    Args:
        layers (sequence of Module): The layers to watch.
        of_input (bool): Watch the positional inputs instead of the outputs.

    Yields:
        dict: For each layer that ran, one tuple of descriptions per call.
    """
    seen: dict[nn.Module, list[tuple[TensorLike, ...]]] = {}

    def hook(module: nn.Module, taken: tuple[Any, ...], put_out: Any = None) -> None:
        tensors = taken if of_input else put_out
        tensors = tensors if isinstance(tensors, (tuple, list)) else (tensors,)
        seen.setdefault(module, []).append(
            tuple(TensorLike.of(item) for item in tensors if isinstance(item, Tensor))
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
