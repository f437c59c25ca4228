"""What the part files of a folder depend on, and who writes there."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import try_to_load_from_cache

from captum_attnflow._files import (
    named_in_errors,
    read_json,
    replace_file,
    sha256_of_file,
)
from captum_attnflow.tables.chunks import ChunkPlan
from captum_attnflow.tables.data import TableData
from captum_attnflow.tables.part_files import PartFiles
from captum_attnflow.tables.settings import TableJob

FORMAT = 1
"""Of the manifest and the part files."""
_PACKAGES = ("captum", "captum-attnflow", "numpy", "scipy", "torch", "transformers")
_NAMES = ("package", "model", "data", "files")
"""Copies of a model and of a file may lie elsewhere; their hashes say what they are."""
_MODEL_FILES = ("*.json", "*.model", "*.safetensors", "*.txt")
_WEIGHTS = re.compile(r"config\.json|.*\.safetensors(\.index\.json)?")
_LOCK = ".part-{}-of-{}.lock"
_PATIENCE = 1.0  # seconds; another run looks at a lock for a moment
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp|\.shuffled-.*\.tmp")
_LEFT_BEHIND = 3600  # seconds


def describe_table(
    job: TableJob,
    data: TableData,
    plan: ChunkPlan,
    files: PartFiles,
    pipeline: Any,
) -> dict[str, Any]:
    """What the explanations depend on, as JSON values."""
    hashes = model_hashes(job.model)
    weights = {name: of for name, of in hashes.items() if _WEIGHTS.fullmatch(name)}
    others = {name: of for name, of in hashes.items() if name not in weights}
    described = {
        "format": FORMAT,
        "package": "captum-attnflow",
        "versions": {package: version(package) for package in _PACKAGES},
        "model": Path(job.model).resolve().name
        if Path(job.model).is_dir()
        else job.model,
        "model_hash": _hash(weights),
        "tokenizer_hash": _hash(others),
        "method": job.method,
        "options": dict(job.options),
        "target": job.target,
        "against": job.against,
        "truncation": job.truncation,
        "dtype": job.dtype,
        "task": job.task,
        "labels": getattr(pipeline, "labels", []),
        "special_tokens": pipeline.tokenizer.all_special_tokens,
        "data": data.name,
        "data_hash": data.hash,
        "input_format": data.format,
        "subset": job.subset if data.format == "hub" else None,
        "split": job.split if data.format == "hub" else None,
        "text_column": job.text_column,
        "pair_column": job.pair_column,
        "id_column": job.id_column,
        "columns": list(job.columns),
        "file_format": job.format,
        "limit": job.limit,
        "shuffle_seed": job.shuffle_seed,
        "rows_per_part": job.rows_per_part,
        "batch_size": job.batch_size,
        "batch_tokens": job.batch_tokens,
        "n_rows": plan.n_rows,
        "files": [files.path(chunk).name for chunk in range(plan.n_chunks)],
    }
    same: dict[str, Any] = json.loads(json.dumps(described))
    return same


def _hash(content: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def model_hashes(name: str) -> dict[str, str]:
    """Hash the files of a model folder, or of the cached snapshot of a hub model."""
    folder = Path(name)
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json")
        if not isinstance(config, str):
            raise ValueError(f"the files of the hub model {name!r} are not cached")
        folder = Path(config).parent
    files = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
    return {file.name: sha256_of_file(file) for file in sorted(files)}


def check_manifest(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Refuse a folder of another run.

    Args:
        folder (Path): The output folder.
        manifest (mapping): As :func:`describe_table` makes it.

    Returns:
        bool: Whether the folder has this manifest already.

    Raises:
        ValueError: Saying what differs.
    """
    path = folder / "manifest.json"
    if not path.exists():
        found = next(folder.glob("part-*"), None)
        if found is not None:
            raise ValueError(
                f"{found} has no manifest.json beside it, so that it is not known what "
                "was explained; give another --output"
            )
        return False
    earlier = _read(path)
    different = [
        name
        for name in sorted(earlier.keys() | manifest.keys())
        if name not in _NAMES and earlier.get(name) != manifest.get(name)
    ]
    if different:
        name = different[0]
        others = "".join(
            f" {other} differs, too: {earlier.get(other)!r} there, "
            f"{manifest.get(other)!r} now."
            for other in different[1:]
        )
        raise ValueError(
            f"{folder} holds explanations by another {name!r}: {earlier.get(name)!r} "
            f"there, {manifest.get(name)!r} now.{others} They cannot be mixed with new "
            "ones: give the same settings, model and data, or another --output"
        )
    return True


def begin_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest before the first part file, or check that it agrees.

    Raises:
        ValueError: If another run wrote its own in the meantime.
        OSError: If it cannot be written, naming it.
    """
    with FileLock(folder / ".manifest.lock"):
        if not check_manifest(folder, manifest):
            content = json.dumps(manifest, indent=2) + "\n"
            replace_file(folder / "manifest.json", content)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path.read_text("utf-8"))
        if not isinstance(found, dict) or "rows_per_part" not in found:
            raise ValueError("it describes no table of explanations")
    except ValueError as error:
        raise ValueError(
            f"{path} is of something else ({error}); give another --output"
        ) from error
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {found.get('format')!r}, and this version writes "
            f"{FORMAT}; give another --output, or use the version that began it"
        )
    # Earlier versions had one task, and did not name it.
    return {"task": "text-classification", **found}


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
                "moment; wait for it, or give another --part or --output"
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
                f"moment, and part {part[0]}/{part[1]} may share files with it; wait "
                f"for it, give parts of {found[2]}, or another --output"
            ) from None


def _remove_left_behind(folder: Path) -> None:
    """Remove what runs that were killed had not finished to write."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with_age = time.time() - path.stat().st_mtime
            if with_age > _LEFT_BEHIND:
                path.unlink(missing_ok=True)
