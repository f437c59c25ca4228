"""Progress bars of other libraries, where they would only litter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Load a model from the disk without a bar, which notebooks would keep.

    Yields:
        None: Afterwards the user's setting holds again.
    """
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
