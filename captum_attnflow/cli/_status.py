"""What a command is doing, in a line on a terminal: nothing is silent for long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LATER = 3.0  # seconds


@contextmanager
def saying(words: str, later: str = "") -> Iterator[None]:
    """Say on standard error what goes on, where that is a terminal, and then clear it.

    Nothing may be printed meanwhile but to standard error.

    Args:
        words (str): What goes on.
        later (str): What is added after three seconds: why it takes so long.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status(words) as shown:
        timer = threading.Timer(_LATER, lambda: shown.update(f"{words} ({later})"))
        timer.daemon = True
        if later:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
