"""How functions are compiled by Numba, and sums over vectors that all of them use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba import njit

from captum_attnflow.flow.solvers.barrier.compilation import undisturbed


def compiled(
    any_order: bool = False, parallel: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function at its first call, and keep the result on disk.

    Args:
        any_order (bool): Whether arithmetic may be reordered and fused, as vector
            instructions need for sums. Without, equal expressions have equal results.
        parallel (bool): Whether its ``prange`` loops run in threads.
    """
    options = {
        "error_model": "numpy",
        "fastmath": {"contract", "nsz", "reassoc"} if any_order else set(),
        "nogil": True,
        "parallel": parallel,
    }

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Any
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:
            # No cache folder is writable.
            kernel = njit(**options)(function)
        else:
            _compile_one_at_a_time(kernel)
        kernel.compile = partial(undisturbed, kernel.compile)
        dispatcher: Callable[..., Any] = kernel
        return dispatcher

    return decorate


# Part of the kernels that call it, with their options. LLVM does not see to that: a sum
# of short rows took half of its time to be called.
inlined = njit(inline="always")


def _compile_one_at_a_time(kernel: Any) -> None:
    """Lock the cache while a process reads or writes it.

    Numba does not see to that: of two that keep the same function for different types,
    one may later load the code of the other, which ends the process.
    """
    compile_for = kernel.compile

    @wraps(compile_for)
    def locked(signature: Any) -> Any:
        with _lock(kernel.stats.cache_path):
            return compile_for(signature)

    kernel.compile = locked


@cache
def _lock(folder: str) -> FileLock:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(folder) / "captum_attnflow.lock")


def forget_folder_of(kernel: Any) -> None:
    """Let what is kept on disk of a kernel, and of those beside it, be as not kept."""
    if (folder := kernel.stats.cache_path) is not None:
        with _lock(folder):
            for index in Path(folder).glob("*.nbi"):
                index.unlink()


@compiled(any_order=True)
def sum_of(values):
    """Sum an array."""
    total = values.dtype.type(0)
    for j in range(values.size):
        total += values[j]
    return total


@inlined
def dot(left, right):
    total = right.dtype.type(0)
    for j in range(left.size):
        total += left[j] * right[j]
    return total


@inlined
def add_scaled(values, scale, out):
    for j in range(out.size):
        out[j] += scale * values[j]
