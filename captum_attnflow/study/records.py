"""What a study keeps on disk: its results and bounds by line, and its manifest.

Every line is safe against a kill. The manifest says what the results depend on, and a
study that is continued must agree with it.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache

from captum_attnflow._files import named_in_errors, replace_file
from captum_attnflow.metrics.normalized import BEAM_WIDTH
from captum_attnflow.study.data import TextData, read_json, sha256_of_file
from captum_attnflow.study.methods import METHODS, Method
from captum_attnflow.study.settings import Study

Key = tuple[str, str, int]
_PACKAGES = (
    "captum",
    "captum-attnflow",
    "networkx",
    "numpy",
    "scipy",
    "torch",
    "transformers",
)
_MODEL_FILES = ("*.json", "*.model", "*.safetensors", "*.txt")
_SETTINGS = ("data", "settings", "versions")
_PARTS = ("models", "methods")
"""A later run may name other models and methods; shared ones must be unchanged."""


@dataclass(frozen=True)
class Record:
    """One method on one text.

    Attributes:
        model (str): The model's name in the study.
        method (str): A key of :data:`captum_attnflow.study.methods.METHODS`.
        example (int): Row of the data, counted from 1.
        predicted (int): The predicted class.
        values (dict): By removal mode, then metric; empty after a failure.
        tied (bool): Whether all tokens that can be removed have one score.
        forward_rows (float): Rows of forward passes that the attribution took. A batch
            is shared out evenly among its texts, as seconds are.
        backward_rows (float): Rows of backward passes.
        seconds (float): Wall time of the attribution.
        failure (str, optional): What went wrong.
    """

    model: str
    method: str
    example: int
    predicted: int
    values: dict[str, dict[str, float]]
    tied: bool = False
    forward_rows: float = 0.0
    backward_rows: float = 0.0
    seconds: float = 0.0
    failure: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no table can hold, such as NaN.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(self.model, self.method, self.example)
        for name in ("forward_rows", "backward_rows", "seconds"):
            _check_number(name, getattr(self, name))
        if (self.failure is None) != bool(self.values):
            raise ValueError("there are values, or a failure says why there are none")
        for removal, metrics in self.values.items():
            for metric, value in metrics.items():
                _check_number(f"values, {removal}, {metric}", value)

    @property
    def key(self) -> Key:
        """What there is one record of."""
        return self.model, self.method, self.example


@dataclass(frozen=True)
class Bounds:
    """The bounds of one text's AOPC, which all methods share.

    Attributes:
        model (str): The model's name in the study.
        removal (str): ``"replace"`` or ``"delete"``.
        example (int): Row of the data, counted from 1.
        lower (float): AOPC of the worst order that was found.
        upper (float): AOPC of the best one.
    """

    model: str
    removal: str
    example: int
    lower: float
    upper: float

    def __post_init__(self) -> None:
        """Refuse bounds that are not finite numbers.

        Raises:
            ValueError: Naming the field.
        """
        _check_key(self.model, self.removal, self.example)
        _check_number("lower", self.lower)
        _check_number("upper", self.upper)

    @property
    def key(self) -> Key:
        """What there is one record of."""
        return self.model, self.removal, self.example


def _check_key(*key: object) -> None:
    *names, example = key
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{names} are no names")
    if not isinstance(example, int) or example < 1:
        raise ValueError(f"example is {example!r} and no row, counted from 1")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r} and no finite number")


Kind = TypeVar("Kind", Record, Bounds)


class RecordFile(Generic[Kind]):
    """An append-only file of records.

    Only complete lines count: opening the file cuts off an unfinished last line, which
    a killed run may leave. Of two records of a key, the first counts.

    Args:
        path (Path): The file; made when the first record comes.
        kind (type): Of the records, :class:`Record` or :class:`Bounds`.

    Raises:
        ValueError: If a line is not a record.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self.path = path
        self.records: dict[Key, Kind] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = kind(**read_json(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {path} is no result of a study ({error}); "
                    "delete the line, and it is computed again"
                ) from error
            self.records.setdefault(record.key, record)

    def append(self, records: Iterable[Kind]) -> None:
        """Add those that are not there yet; they are on disk when this returns.

        Raises:
            OSError: If they cannot be written, naming the file.
        """
        new = [record for record in records if record.key not in self.records]
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in new)
        with named_in_errors(self.path), self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.key, record) for record in new)


def describe_study(
    study: Study, data: TextData, models: tuple[str, ...]
) -> dict[str, Any]:
    """What the results depend on, as JSON values."""
    source = study.data
    is_file = Path(source.name).is_file()
    return {
        "data": {
            "name": Path(source.name).name if is_file else source.name,
            "subset": None if is_file else source.subset,
            "split": None if is_file else source.split,
            "sha256": data.sha256,
            "text_column": source.text_column,
            "n_texts": len(data.texts),
            "rows": list(data.rows) if study.data.limit else "all",
        },
        "settings": {
            "metrics": list(study.metrics),
            "removals": list(study.removals),
            "reference_token": study.reference_token,
            "seed": study.seed,
            "batch_size": study.batch_size,
            **({"beam_width": BEAM_WIDTH} if "naopc" in study.metrics else {}),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "models": {
            label: model_hashes(name)
            for label, name in zip(models, study.models, strict=True)
        },
        "methods": {name: _describe_method(METHODS[name]) for name in study.methods},
        "against": study.against,
        "threads": torch.get_num_threads(),
    }


def _describe_method(method: Method) -> dict[str, Any]:
    described = {"description": method.description, "settings": dict(method.settings)}
    if method.needs is not None:
        described["versions"] = {method.needs: version(method.needs)}
    return described


def begin_manifest(
    path: Path, manifest: dict[str, Any], results: Sequence[Path]
) -> dict[str, Any]:
    """Write the manifest of a new study, or check that a resumed one agrees.

    Args:
        path (Path): Where it is.
        manifest (dict): As :func:`describe_study` makes it.
        results (sequence of Path): What it describes, if it is there.

    Returns:
        dict: The manifest, with the models and methods of earlier runs.

    Raises:
        ValueError: If the study in this folder was another one, or unknown.
    """
    if path.exists():
        earlier = _read(path)
        _check_same(path, earlier, manifest)
        manifest = {**manifest, **{p: earlier[p] | manifest[p] for p in _PARTS}}
    for file in results:
        if file.exists() and not path.exists():
            raise ValueError(
                f"{file} has no {path.name} beside it, so that it is not known what "
                "was measured; give another --output"
            )
    write_manifest(path, manifest)
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step."""
    replace_file(path, json.dumps(manifest, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path.read_text("utf-8"))
        sections = [found[section] for section in (*_SETTINGS, *_PARTS)]
        parts = [part for section in _PARTS for part in found[section].values()]
        if not all(isinstance(each, dict) for each in (found, *sections, *parts)):
            raise ValueError(f"{', '.join((*_SETTINGS, *_PARTS))} must be objects")
        return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no manifest of a study ({error}); give another --output"
        ) from error


def _check_same(path: Path, old: dict[str, Any], new: Mapping[str, Any]) -> None:
    found = json.loads(json.dumps(new))
    pairs = [(section, old[section], found[section]) for section in _SETTINGS]
    for section in _PARTS:
        for name in old[section].keys() & found[section].keys():
            both = old[section][name], found[section][name]
            pairs.append((f"{section} {name}", *both))
    for where, before, now in pairs:
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"{path.parent} holds a study with another {name!r} ({where}): "
                    f"{before.get(name)!r} there, {now.get(name)!r} now. Its results "
                    "cannot be mixed with new ones: give the same settings, or another "
                    "--output"
                )


def study_outcome(
    study: Study, labels: dict[str, list[int] | None], records: Mapping[Key, Record]
) -> dict[str, Any]:
    """Accuracy of the models, texts without an order, and failures."""
    chosen = sorted(
        (
            record
            for record in records.values()
            if record.model in labels and record.method in study.methods
        ),
        key=lambda record: record.key,
    )
    predicted = {(r.model, r.example): r.predicted for r in chosen}
    return {
        "accuracy": {
            model: sum(
                predicted[model, row] == label for row, label in enumerate(known, 1)
            )
            / len(known)
            for model, known in labels.items()
            if known is not None
        },
        "texts_of_one_score": {
            model: {
                method: sum(
                    r.tied for r in chosen if (r.model, r.method) == (model, method)
                )
                for method in study.methods
            }
            for model in labels
        },
        "failures": [
            {"model": r.model, "method": r.method, "row": r.example, "error": r.failure}
            for r in chosen
            if r.failure is not None
        ],
    }


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
