"""How functions are compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


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
        kernel: Callable[..., Any]
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:
            # No folder to keep it in can be written to.
            kernel = njit(**options)(function)
        return kernel

    return decorate
