"""Expected errors and warnings as sentences on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from captum_attnflow._files import named_in_errors
from captum_attnflow.flow.solvers import FlowError


@contextmanager
def errors_told() -> Iterator[None]:
    """Print expected errors and warnings as sentences on standard error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="captum_attnflow")
        warnings.showwarning = _show_warning
        try:
            yield
        except BrokenPipeError:
            _close_standard_output()  # the reader, such as head, has seen enough
        except (OSError, ValueError, FlowError) as error:
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"error: {error}", markup=False, style="red"
            )
            raise typer.Exit(2) from error


@contextmanager
def printing() -> Iterator[None]:
    """Write what is printed at once, and name standard output where that fails."""
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
