"""What commands read, write and say: lines, errors, warnings, what goes on."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

_STOPPED = "stopped; give the same command again"
_STOPPED_BY = 128
"""A shell's exit status of what a signal ended is this and the signal's number."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send some seconds before SIGKILL."""


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print expected errors and warnings as sentences on standard error.

    So is an interrupt (Ctrl-C, SIGINT), with the exit status 130, and SIGTERM, with
    143; :func:`captum_attnflow._warnings.stopped_in_words` says how far a command got.
    """
    _open_streams()
    with warnings.catch_warnings(), _sigterm_as_interrupt():
        warnings.filterwarnings("always", "", UserWarning, "captum_attnflow")
        warnings.showwarning = _show_warning
        try:
            yield
        except KeyboardInterrupt as error:
            print(f"\n{error if error.args else _STOPPED}", file=sys.stderr)
            by_sigterm = isinstance(error, _Terminated)
            number = signal.SIGTERM if by_sigterm else signal.SIGINT
            raise typer.Exit(_STOPPED_BY + number) from error
        except BrokenPipeError:
            _close_standard_output()  # the reader, such as head, has seen enough
        except Exception as error:
            if not _is_expected(error):
                raise
            words_console(stderr=True).print(
                f"error: {error}", markup=False, style="red"
            )
            raise typer.Exit(2) from error


def words_console(stderr: bool = False) -> Console:
    """What prints sentences: a terminal's lines break between words, a pipe's not.

    Args:
        stderr (bool): Whether to print on standard error.
    """
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


def _open_streams() -> None:
    """Let every stream take what is written, closed ones and those of few letters."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: files whole, and with a sentence."""

    def interrupt(*_: object) -> None:
        raise _Terminated

    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_expected(error: Exception) -> bool:
    if isinstance(error, (OSError, ValueError)):  # maybe of options, before torch
        return True
    from captum_attnflow import FlowError

    return isinstance(error, FlowError)


@contextmanager
def options_named(
    settings: Iterable[str], written: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Let errors name settings as they were given, ``--batch-size=0``.

    Args:
        settings (iterable of str): Their names in Python, ``batch_size``; a plural is
            an option that may be repeated.
        written (mapping, optional): Options that are not called as their setting is.

    Raises:
        ValueError: In place of the one that names ``batch_size=0``.
    """
    known = "|".join(sorted(settings, key=len, reverse=True))
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        named = re.sub(
            rf"(?<![\w-])({known})s?(?==)",
            lambda found: option_of(found[1], written or {}),
            str(error),
        )
        raise ValueError(named) from error


def option_of(setting: str, written: Mapping[str, str]) -> str:
    """Return the option, ``--batch-size``, of a setting, ``batch_size``."""
    return written.get(setting, f"--{setting.replace('_', '-')}")


def read_lines(file: Path | None) -> list[str]:
    """Read the lines of a file or of standard input, cut at line feeds only.

    Args:
        file (Path, optional): The file; None and ``-`` are standard input.

    Raises:
        ValueError: If it cannot be read, or is not UTF-8.
    """
    try:
        if file is None or str(file) == "-":
            if sys.stdin is None:
                raise ValueError(
                    "standard input is closed, and no text was given; give texts as "
                    "arguments, or a file of one per line by --file"
                )
            if sys.stdin.isatty():
                print("reading standard input; end it with Ctrl-D", file=sys.stderr)
            content = sys.stdin.read()
        else:
            content = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file or 'standard input'} is not UTF-8: {error}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(
            f"--file {file} cannot be read: {error.strerror}; give a text file with "
            "one text per line, or - for standard input"
        ) from error
    # Some editors begin a file with a byte order mark, which is no part of a text.
    content = content.removeprefix("\ufeff").removesuffix("\n")
    return [line.rstrip("\r") for line in content.split("\n")]


def check_written(option: str, file: Path | None) -> None:
    """Refuse a file that cannot be written, before there is anything to write.

    Args:
        option (str): What it was given as, for errors.
        file (Path, optional): The file; None is nothing to check.

    Raises:
        OSError: If it is a folder, or in none.
    """
    if file is not None and file.is_dir():
        raise IsADirectoryError(f"{option} {file} is a folder; give a file in it")
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(
            f"{option} {file}: there is no folder {str(file.parent)!r} for such a "
            "file; give a file in an existing folder"
        )


@contextmanager
def printing() -> Iterator[None]:
    """Write what is printed at once, and name standard output where that fails."""
    from captum_attnflow._files import named_in_errors

    if sys.stdout is None:
        raise ValueError("standard output is closed; open it, or send it to a file")
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


@contextmanager
def saying(words: str) -> Iterator[None]:
    """Say on standard error what goes on, where that is a terminal, and then clear it.

    Nothing may be printed meanwhile but to standard error.

    Args:
        words (str): What goes on.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status(words):
        yield
