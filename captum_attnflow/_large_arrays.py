"""Uninitialised arrays, in large pages where they are large.

The system hands out fresh memory page by page, zeroed, which can take longer than the
arithmetic that fills it. NumPy asks it for large pages; torch does not unless told to
by its environment.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# NumPy asks for large pages from this size on.
_LARGE_BYTES = 1 << 22
_LINE_BYTES = 64


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an array of a shape, with the dtype and the device of another."""
    n_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or n_bytes < _LARGE_BYTES:
        return like.new_empty(shape)
    with torch.inference_mode(False):
        return empty_bytes(n_bytes).view(like.dtype).view(shape)


def empty_bytes(number: int) -> Tensor:
    """Return memory of the CPU, ``(number,)``, as a tensor for any later use.

    It begins with a line of the cache.
    """
    # Whoever is first may work under inference mode, and others not.
    with torch.inference_mode(False):
        memory = np.empty(number + _LINE_BYTES, np.uint8)
        start = -memory.ctypes.data % _LINE_BYTES
        return torch.from_numpy(memory[start : start + number])
