"""Files written whole or not at all and read as what they are; errors name them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

BINARY_FORMATS = {
    b"PK\x03\x04": "a zip archive, such as torch.save and spreadsheets (.xlsx) write",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
}
"""What files that are no text are, by their first bytes."""
_OTHER_ENCODINGS = {  # by byte order marks, the longer ones first
    **dict.fromkeys((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "text in UTF-32"),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "text in UTF-16"),
}


def refuse_other_content(name: str, head: bytes) -> None:
    """Refuse what is no text in UTF-8, or one of another encoding.

    Args:
        name (str): Of the file.
        head (bytes): How it begins, at least four bytes if there are.

    Raises:
        ValueError: Saying what it is, and what to do.
    """
    known = {**_OTHER_ENCODINGS, **BINARY_FORMATS}
    what = next((known[mark] for mark in known if head.startswith(mark)), None)
    if what is None and b"\x00" in head[:4]:
        what = "text in UTF-16"  # of two bytes of a letter one is 0
    if what is not None:
        raise ValueError(
            f"{name} is {what}, and is read as text in UTF-8; save it as such, which "
            'spreadsheets call "CSV UTF-8"'
        )


@contextmanager
def named_in_errors(name: str | PathLike[str]) -> Iterator[None]:
    """Let the system's errors, such as a full disk, say what could not be written.

    Args:
        name (str or path): What is written to.

    Raises:
        OSError: In place of the system's; a broken pipe passes through.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            f"{os.fspath(name)} cannot be written: {error.strerror or error}; give a "
            "file in a folder that has room and may be written to"
        ) from error


def replace_file(path: str | PathLike[str], content: str | bytes) -> None:
    """Write a file in one step: who reads it finds the old content or all of the new.

    The content is written beside it under a name that nobody can foresee and that no
    link may hold, and then takes its place. A link is replaced and not followed; what
    is no regular file, such as ``/dev/stdout`` or a pipe, is written to as it stands.

    Args:
        path (str or path): The file; one that exists keeps its permissions.
        content (str or bytes): All of it; text is written as UTF-8.

    Raises:
        OSError: Naming the file, which then is as it was.

    Examples::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_file(f"{folder}/scores.txt", "0.5")
        ...     Path(folder, "scores.txt").read_text()
        '0.5'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with named_in_errors(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # raises for a folder
            return
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with open(os.open(temporary, flags, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.is_file() and not path.is_symlink():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sha256_of_file(path: Path) -> str:
    """Hash a file, as ``sha256sum`` does."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class RepeatedKeyError(ValueError):
    """What is JSON, but for a key that one object has several times.

    Attributes:
        key (str): The key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"an object names {self.key!r} more than once"


def read_json(text: str | bytes) -> Any:
    """Parse JSON that names every key once; the standard module keeps the last.

    Raises:
        RepeatedKeyError: If a key stands twice.
        ValueError: Saying what is wrong with it, also for brackets within brackets
            without end.

    Examples::

        >>> read_json('{"text": "a", "text": "b"}')
        Traceback (most recent call last):
        captum_attnflow._files.RepeatedKeyError: an object names 'text' more than once
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedKeyError(key)
        found[key] = value
    return found
