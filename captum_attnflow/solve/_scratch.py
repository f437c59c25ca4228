"""Scratch memory, kept between the solves of a thread.

Fresh memory costs more time than the arithmetic that fills it: the system hands it out
page by page, zeroed, whenever it was given back in between.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# More than this is asked for and given back each time.
_MOST_KEPT_BYTES = 1 << 26


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")


_KEPT = _Kept()


def scratch_like(array: Tensor, count: int) -> Tensor:
    """Uninitialised arrays, valid until the next call in the same thread.

    Args:
        array (Tensor): Gives their shape, dtype and device.
        count (int): How many.

    Returns:
        Tensor: Shape ``(count, *array.shape)``.
    """
    n_bytes = count * array.numel() * array.element_size()
    if array.device.type != "cpu" or n_bytes > _MOST_KEPT_BYTES:
        return array.new_empty(count, *array.shape)
    if _KEPT.memory.numel() < n_bytes:
        # Whoever is first may work under inference mode, and others not.
        with torch.inference_mode(False):
            _KEPT.memory = torch.empty(n_bytes, dtype=torch.uint8, device="cpu")
    return _KEPT.memory[:n_bytes].view(array.dtype).view(count, *array.shape)
