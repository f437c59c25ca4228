"""Runs compiled code eagerly, where modes see its operations."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_within: list[Any] = []  # what restores torch's stance, per call that needs it


@contextmanager
def eager() -> Iterator[None]:
    """While active, ``torch.compile`` compiles nothing and runs nothing compiled.

    Its compiler would look into the modes themselves, and run their work without them
    from the second call on. The stance is one of the whole process, so that the first
    of several threads sets it and the last one restores it.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        yield
        return
    with _lock:
        stance = _within[0] if _within else torch.compiler.set_stance("force_eager")
        _within.append(stance)
    try:
        yield
    finally:
        with _lock:
            _within.pop()
            if not _within:
                stance.__exit__(None, None, None)
