"""How many threads Numba may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import torch

# Fewer edges are not worth a second thread.
_EDGES_A_THREAD = 1 << 15
# Tasks a thread at least, for an even share.
_TASKS_A_THREAD = 4
# OpenMP ends a process that uses it, was forked, and uses it again.
_PROCESS = os.getpid()


def n_threads(n_edges: int) -> int:
    """As many as torch uses, but one where more are not safe or not worth it."""
    most = min(
        torch.get_num_threads(),
        numba.config.NUMBA_NUM_THREADS,
        -(-n_edges // _EDGES_A_THREAD),
    )
    return most if most > 1 and _are_safe() else 1


def n_blocks(number: int, n_layers: int, n_tokens: int) -> int:
    """Blocks of a layer's heads, for tasks enough for so many threads."""
    return min(n_tokens, -(-_TASKS_A_THREAD * number // n_layers))


def _are_safe() -> bool:
    """Whether any of Python's threads may start Numba's, in this process."""
    if os.getpid() != _PROCESS:
        return False
    try:
        # Which layer of threads there is shows once it is up.
        numba.set_num_threads(numba.get_num_threads())
        return bool(numba.threading_layer() != "workqueue")
    except (ImportError, ValueError):
        # The layer that the user chose is not there.
        return False


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let Numba use so many threads within."""
    if number == 1:
        yield
        return
    before = numba.get_num_threads()
    numba.set_num_threads(number)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def run_in_parts(
    number: int,
    serial: Callable[..., None],
    parallel: Callable[..., None],
    *arguments: object,
) -> None:
    """Run a kernel whose work is cut into parts, in so many threads.

    Args:
        number (int): Threads, and parts.
        serial (Callable): Does one part: which, of how many, and the arguments.
        parallel (Callable): Does all parts: of how many, and the arguments.
        arguments (object): Passed on.
    """
    if number == 1:
        serial(0, 1, *arguments)
        return
    with threads(number):
        parallel(number, *arguments)
