"""What users see beside results: warnings at their line, interrupts in words, bars."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A method may be called through Captum's own, and both through their decorators.
_PASSED_OVER = ("captum_attnflow", "captum", "torch")


def warn_caller(message: str) -> None:
    """Warn at the innermost line outside this package, Captum and torch."""
    frame, depth = inspect.currentframe(), 1
    while frame is not None and _package(frame.f_globals) in _PASSED_OVER:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UserWarning, stacklevel=depth)


@contextmanager
def stopped_in_words(how_far: Callable[[], str]) -> Iterator[None]:
    """Let an interrupt, such as Ctrl-C, say what it leaves.

    Args:
        how_far (Callable): Returns the sentence, when it is needed.

    Raises:
        KeyboardInterrupt: In place of the one without words, of its class.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        raise type(error)(how_far()) from error


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Load a model from the disk without a bar, which notebooks would keep.

    Yields:
        None: Afterwards the user's setting holds again.
    """
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]
