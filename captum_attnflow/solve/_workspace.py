"""Memory for the arrays of a solve, kept for the next one of the same thread.

Fresh memory costs more time than the arithmetic that fills it: the system hands it out
page by page, zeroed, whenever it was given back in between.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A thread that needs more at a time keeps none of what is beyond.
_MOST_KEPT_BYTES = 1 << 27
_ALIGNMENT = 64


class Workspace(threading.local):
    """Hands out uninitialised arrays, and takes those of a frame back at its end.

    Of what a thread asks for at a time, up to 128 MiB of the CPU's memory are kept for
    the next time. Everything else is ordinary memory.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._used = 0
        self._most_used = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Give back at the end what was handed out within.

        No array from within may be used, or seen by anybody, after that.
        """
        before = self._used
        try:
            yield
        finally:
            self._used = before
            if not before:
                self._keep_what_was_needed()

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an array of a shape, with the dtype and the device of another."""
        n_bytes = math.prod(shape) * like.element_size()
        start, end = self._used, self._used + n_bytes
        if like.device.type == "cpu":
            self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
            self._most_used = max(self._most_used, self._used)
        if like.device.type != "cpu" or end > self._memory.numel():
            return like.new_empty(shape)
        return self._memory[start:end].view(like.dtype).view(shape)

    def _keep_what_was_needed(self) -> None:
        needed = min(self._most_used, _MOST_KEPT_BYTES)
        if self._memory.numel() < needed:
            # Whoever is first may work under inference mode, and others not.
            with torch.inference_mode(False):
                self._memory = torch.empty(needed, dtype=torch.uint8, device="cpu")


WORKSPACE = Workspace()
