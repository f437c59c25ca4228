"""The folder of a run: who writes there, what it is of, and what was written.

A folder has a manifest, which a run that continues it must agree with. The files of a
table have their checksums in ``SHA256SUMS``, as ``sha256sum -c`` reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from captum_attnflow._files import (
    named_in_errors,
    read_json,
    replace_file,
    sha256_of_file,
)

MANIFEST = "manifest.json"
_MODEL_FILES = (
    *("*.json", "*.model", "*.safetensors", "*.txt"),
    # Of tokenizers that are written in Python: PhoBERT's, OpenAI's, Marian's.
    *("*.codes", "*.bpe", "*.tiktoken", "*.spm"),
)
_HASHED_FIRST = re.compile(r"[^/]*\.(json|model|safetensors|txt)")
_CONFIGS = ("config.json", "adapter_config.json")
_LOCK = ".part-{}-of-{}.lock"
_PATIENCE = 1.0  # seconds; another run looks at a lock for a moment
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp|\.shuffled-.*\.tmp")
_LEFT_BEHIND = 3600  # seconds
_BLOCK = 1 << 20
_CHECKSUM = re.compile(r"([0-9a-f]{64})  (.+)")


def model_hashes(name: str, beside: Iterable[str] = ()) -> dict[str, str]:
    """Hash the files of a model folder, or of the cached snapshot of a hub model.

    These are the files that a model and its tokenizer are read from. A folder holds
    others, such as earlier states of its training, which may change.

    Args:
        name (str): The folder, or the hub id.
        beside (iterable of str): Files of sub-folders that are read, too, where they
            are there.

    Returns:
        dict[str, str]: SHA-256 by name, of sub-folders by path. Those of the model that
        an adapter belongs to stand behind ``base/``.

    Raises:
        ValueError: If the hub model is not cached.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(name, config) for config in _CONFIGS)
        config = next((path for path in cached if isinstance(path, str)), None)
        if config is None:
            raise ValueError(f"the files of the hub model {name!r} are not cached")
        folder = Path(config).parent
    files = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
    for index in folder.glob("*.safetensors.index.json"):
        beside = {*beside, *_shards(index)}
    found = {file.name: file for file in files}
    found |= {inner: folder / inner for inner in beside if (folder / inner).is_file()}
    hashes = {inner: sha256_of_file(found[inner]) for inner in sorted(found)}
    whole, adapter = (folder / config for config in _CONFIGS)
    if adapter.is_file() and not whole.is_file():
        base = str(read_json(adapter.read_bytes())["base_model_name_or_path"])
        hashes |= {f"base/{inner}": of for inner, of in model_hashes(base).items()}
    return hashes


def is_hashed_later(name: str) -> bool:
    """Whether such a file was not hashed at first, so that older folders lack it.

    Args:
        name (str): As :func:`model_hashes` names it.
    """
    return _HASHED_FIRST.fullmatch(name) is None


def _shards(index: Path) -> set[str]:
    """The files that a list of a model's weights names, which may be anywhere."""
    try:
        return {*map(str, read_json(index.read_bytes())["weight_map"].values())}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()  # of a list that is not read: loading has refused a damaged one


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written to, and make none.

    Raises:
        OSError: Naming it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(
            f"results cannot be written to the folder {str(folder)!r} "
            f"({error.strerror}); give another --output"
        ) from error


@contextmanager
def manifest_lock(folder: Path) -> Iterator[Path]:
    """Be the only one that reads and writes the manifest of a folder.

    Yields:
        Path: Where it is.
    """
    with FileLock(folder / ".manifest.lock"):
        yield folder / MANIFEST


def read_manifest(
    folder: Path, of: str, sections: Iterable[str], results: Iterable[Path]
) -> dict[str, Any] | None:
    """Read a folder's manifest; None if it has none.

    Args:
        folder (Path): The folder.
        of (str): What it has to be of, for errors.
        sections (iterable of str): Keys that it has to have.
        results (iterable of Path): What it describes, where that is there.

    Raises:
        ValueError: If it is of something else, or there are results without one.
    """
    path = folder / MANIFEST
    if not path.exists():
        for file in results:
            if file.exists():
                raise ValueError(
                    f"{file} has no {path.name} beside it, so that it is not known "
                    "what it was made of; give another --output"
                )
        return None
    try:
        found = read_json(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        missing = [name for name in sections if name not in found]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
    except ValueError as error:
        raise ValueError(
            f"{path} is no manifest of {of} ({error}); give another --output"
        ) from error
    return found


def check_format(folder: Path, found: object, written: int) -> None:
    """Refuse the manifest of another version.

    Raises:
        ValueError: Saying which it is.
    """
    if found != written:
        raise ValueError(
            f"{folder / MANIFEST} is of format {found!r}, and this version writes "
            f"{written}; give another --output, or use the version that began it"
        )


def there_and_now(there: object, now: object, defaults: object, name: str) -> str:
    """Say what a folder was made with, and what a run has that does not agree.

    Who resumes a run and leaves an option out has its default, and gave nothing.

    Args:
        there (object): The manifest's value, of JSON.
        now (object): The run's.
        defaults (object): What has an attribute of the setting's name with its default,
            if it has one.
        name (str): Of the setting.

    Examples::

        >>> from captum_attnflow.tables import TableJob
        >>> there_and_now(4, 16, TableJob, "batch_size")
        '4 there, 16 now, which is the default where it is not given'
    """
    default = getattr(defaults, name, ...)
    default = list(default) if isinstance(default, tuple) else default
    why = ", which is the default where it is not given" if now == default else ""
    return f"{there!r} there, {now!r} now{why}"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a folder's manifest, whole or not at all."""
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def lock_of_part(folder: Path, part: tuple[int, int], timeout: float = 0) -> FileLock:
    """Make the lock that the run holds which writes a part.

    Args:
        folder (Path): The output folder.
        part (tuple of int): Which of how many.
        timeout (float): Seconds to wait for it; then ``filelock.Timeout`` is raised.
    """
    return FileLock(folder / _LOCK.format(*part), timeout=timeout)


@contextmanager
def writing_part(folder: Path, part: tuple[int, int]) -> Iterator[None]:
    """Be the only one that writes a part; other parts may be written meanwhile.

    The system gives the lock back when a process ends, however it ends.

    Args:
        folder (Path): The output folder; made if it is not there.
        part (tuple of int): Which of how many.

    Raises:
        ValueError: If a run writes this part, or one of another number of parts.
        OSError: If nothing can be written to the folder.
    """
    with named_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of_part(folder, part, _PATIENCE)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"another run writes part {part[0]}/{part[1]} to {folder} at this "
                "moment, or merges all parts; wait for it, or give another --part or "
                "--output"
            ) from None
    try:
        _check_others(folder, part)
        _remove_left_behind(folder)
        yield
    finally:
        lock.release()


def _check_others(folder: Path, part: tuple[int, int]) -> None:
    """Parts of one number share no file; those of two numbers may."""
    for path in folder.glob(_LOCK.format("*", "*")):
        found = re.fullmatch(r"\.part-([0-9]+)-of-([0-9]+)\.lock", path.name)
        if found is None or int(found[2]) == part[1]:
            continue
        try:
            with lock_of_part(folder, (int(found[1]), int(found[2]))):
                pass
        except Timeout:
            raise ValueError(
                f"another run writes part {found[1]}/{found[2]} to {folder} at this "
                f"moment, or merges all parts, and part {part[0]}/{part[1]} may share "
                f"files with it; wait for it, give parts of {found[2]}, or another "
                "--output"
            ) from None


def _remove_left_behind(folder: Path) -> None:
    """Remove what runs that were killed had not finished to write."""
    for path in folder.iterdir():
        # Another part's run may give a file its name meanwhile.
        with suppress(FileNotFoundError):
            is_temporary = _TEMPORARY.fullmatch(path.name) is not None
            if is_temporary and time.time() - path.stat().st_mtime > _LEFT_BEHIND:
                path.unlink()


class LineFile:
    """A file of lines that grows; a killed run may leave its last line unfinished.

    Only whole lines count. The first that is appended replaces an unfinished one.

    Args:
        path (Path): The file; made when the first line comes.
        makes (bool): Whether it is. If not, one that is not there, or not any more,
            cannot be appended to.
    """

    def __init__(self, path: Path, makes: bool = True) -> None:
        self.path = path
        self._flags = -1 if makes else ~os.O_CREAT
        self._is_whole = False

    def __iter__(self) -> Iterator[bytes]:
        """Read the whole lines."""
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines; they are on disk when this returns.

        Raises:
            OSError: If they cannot be written, naming the file.
        """

        def opener(path: str, flags: int) -> int:
            return os.open(path, flags & self._flags, 0o666)

        with named_in_errors(self.path), open(self.path, "ab", opener=opener) as file:
            if not self._is_whole:
                file.truncate(_end_of_whole_lines(self.path))
                self._is_whole = True
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())


def _end_of_whole_lines(path: Path) -> int:
    """Find the place behind the last line break, from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - _BLOCK, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


class Checksums:
    """What the files of a folder were when they were written, by their SHA-256.

    Args:
        folder (Path): The folder; its file ``SHA256SUMS`` is made when a checksum is
            noted. Files that it does not list, as earlier versions of the package wrote
            them, are not checked.
    """

    name = "SHA256SUMS"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.name

    @cached_property
    def _known(self) -> dict[str, str]:
        found = {}
        for line in LineFile(self._path):
            listed = _CHECKSUM.fullmatch(line.decode("utf-8", "replace").rstrip("\n"))
            if listed is not None:
                found[listed[2]] = listed[1]
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def note(self, name: str, content: bytes) -> None:
        """Note the checksum of a file, before it is written.

        So every file that is there has one, whenever a run is killed.

        Raises:
            OSError: If it cannot be written.
        """
        checksum = hashlib.sha256(content).hexdigest()
        if self._known.get(name) == checksum:
            return
        with FileLock(self._path.with_name(".checksums.lock")):
            if name in self._known:  # a line would contradict the one that is there
                del self._known  # other parts have noted theirs meanwhile
                listed = {**self._known, name: checksum}
                replace_file(
                    self._path,
                    "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)),
                )
            else:
                LineFile(self._path).append([f"{checksum}  {name}\n".encode()])
        self._known[name] = checksum

    def agree(self, path: Path, content: bytes | None = None) -> bool:
        """Whether a file is what was written, as far as that is known.

        Args:
            path (Path): The file, in the folder.
            content (bytes, optional): What it holds, if it was read.
        """
        listed = self._known.get(path.name)
        if listed is None:
            return True
        if content is None:
            return listed == sha256_of_file(path)
        return listed == hashlib.sha256(content).hexdigest()
