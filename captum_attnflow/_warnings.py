"""Warnings that point at the line of the user's code."""

from __future__ import annotations

import inspect
import warnings

# A method may be called through Captum's own, and both through their decorators.
_PASSED_OVER = ("captum_attnflow", "captum", "torch")


def warn_caller(message: str) -> None:
    """Warn at the innermost line outside this package, Captum and torch."""
    frame, depth = inspect.currentframe(), 1
    while frame is not None and _package(frame.f_globals) in _PASSED_OVER:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UserWarning, stacklevel=depth)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]
