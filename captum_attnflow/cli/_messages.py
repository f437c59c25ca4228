"""Expected errors and warnings as sentences on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print expected errors and warnings as sentences on standard error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="captum_attnflow")
        warnings.showwarning = _show_warning
        try:
            yield
        except BrokenPipeError:
            _close_standard_output()  # the reader, such as head, has seen enough
        except Exception as error:
            if not _is_expected(error):
                raise
            from rich.console import Console

            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"error: {error}", markup=False, style="red"
            )
            raise typer.Exit(2) from error


def _is_expected(error: Exception) -> bool:
    if isinstance(error, (OSError, ValueError)):  # maybe of options, before torch
        return True
    from captum_attnflow import FlowError

    return isinstance(error, FlowError)


@contextmanager
def printing() -> Iterator[None]:
    """Write what is printed at once, and name standard output where that fails."""
    from captum_attnflow._files import named_in_errors

    try:
        with named_in_errors("standard output"):
            yield
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _close_standard_output()
        raise


def _close_standard_output() -> None:
    """Drop what is buffered, which would fail again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
