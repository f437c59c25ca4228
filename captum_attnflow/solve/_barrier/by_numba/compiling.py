"""How functions are compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(
    fastmath: set[str] | None = None, parallel: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function at its first call, and keep the result on disk.

    Args:
        fastmath (set of str, optional): What LLVM may do to arithmetic; by default it
            may fuse multiplications with additions and reorders nothing.
        parallel (bool): Whether its ``prange`` loops run in threads.
    """
    options = {
        "error_model": "numpy",
        "fastmath": {"contract", "nsz"} if fastmath is None else fastmath,
        "nogil": True,
        "parallel": parallel,
    }

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any]
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:
            # No folder to keep it in can be written to.
            kernel = njit(**options)(function)
        return kernel

    return decorate
