"""How functions are compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba import njit

from captum_attnflow.flow.solvers._barrier.undisturbed import undisturbed


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
            # No folder to keep it in can be written to.
            kernel = njit(**options)(function)
        else:
            _compile_one_at_a_time(kernel)
        kernel.compile = partial(undisturbed, kernel.compile)
        dispatcher: Callable[..., Any] = kernel
        return dispatcher

    return decorate


def _compile_one_at_a_time(kernel: Any) -> None:
    """Let no two processes look up or keep what they compile at once.

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
