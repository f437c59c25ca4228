"""Memory for the arrays of a solve, kept for the next one of the same thread.

Fresh memory costs more time than the arithmetic that fills it: the system hands it out
page by page, zeroed, whenever it was given back in between.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from captum_attnflow._large_arrays import empty, empty_bytes

# Of what is needed at a time, no more is kept.
_MOST_KEPT_BYTES = 1 << 27
_ALIGNMENT = 64


class Workspace:
    """Hands out uninitialised arrays, and takes those of a frame back at its end.

    Of what the largest frame asked for, up to 128 MiB of the CPU's memory are kept for
    the next one. Beyond what a frame announced, arrays are ordinary memory.
    """

    def __init__(self) -> None:
        self._memory = empty_bytes(0)
        self._used = 0
        self._n_frames = 0

    @contextmanager
    def frame(self, n_bytes: int = 0) -> Iterator[None]:
        """Give back at the end what was handed out within.

        No array from within may be used, or seen by anybody, after that.

        Args:
            n_bytes (int): What will be handed out; of no effect within another frame.
        """
        before = self._used
        if not self._n_frames and self._memory.numel() < n_bytes:
            self._memory = empty_bytes(0)  # given back first
            self._memory = empty_bytes(n_bytes)
        self._n_frames += 1
        try:
            yield
        finally:
            self._n_frames -= 1
            self._used = before
            if not self._n_frames and self._memory.numel() > _MOST_KEPT_BYTES:
                self._memory = empty_bytes(0)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an array of a shape, with the dtype and the device of another.

        Outside of all frames it is ordinary memory.
        """
        start = self._used
        end = start + math.prod(shape) * like.element_size()
        is_kept = self._n_frames and end <= self._memory.numel()
        if like.device.type != "cpu" or not is_kept:
            return empty(shape, like)
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start:end].view(like.dtype).view(shape)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.workspace = Workspace()


_THREAD = _Thread()


def workspace() -> Workspace:
    """Return the workspace of this thread."""
    return _THREAD.workspace
