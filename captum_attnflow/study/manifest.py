"""The manifest of a study: what its results depend on, and what came of it.

A study that is continued must agree with it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from captum_attnflow._files import read_json, replace_file
from captum_attnflow.metrics.normalized import BEAM_WIDTH
from captum_attnflow.study.data import TextData
from captum_attnflow.study.methods import METHODS, Method
from captum_attnflow.study.records import Results
from captum_attnflow.study.settings import Study
from captum_attnflow.tables.manifest import model_hashes

_PACKAGES = (
    "captum",
    "captum-attnflow",
    "networkx",
    "numpy",
    "scipy",
    "torch",
    "transformers",
)
_SETTINGS = ("data", "settings", "versions")
_PARTS = ("models", "methods")
"""A later run may name other models and methods; shared ones must be unchanged."""
_MOST_FAILURES = 1000


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
            # What was the only one when it was not recorded yet is left out.
            **({"dtype": study.dtype} if study.dtype != "float32" else {}),
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
        "threads": 1 if study.engine == "ray" else torch.get_num_threads(),
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
    with FileLock(path.with_name(".manifest.lock")):
        if path.exists():
            earlier = _read(path)
            _check_same(path, earlier, manifest)
            manifest = {**manifest, **{p: earlier[p] | manifest[p] for p in _PARTS}}
        else:
            for file in results:
                if file.exists():
                    raise ValueError(
                        f"{file} has no {path.name} beside it, so that it is not known "
                        "what was measured; give another --output"
                    )
        replace_file(path, json.dumps(manifest, indent=2) + "\n")
    return manifest


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
    study: Study, labels: Mapping[str, list[int] | None], results: Results
) -> dict[str, Any]:
    """Accuracy of the models, texts without an order, and failures, the first ones."""
    of_model = {
        model: [results.columns[model, method] for method in study.methods]
        for model in labels
    }
    failures = [
        {"model": model, "method": method, "row": row, "error": error}
        for (model, method), column in sorted(results.columns.items())
        for row, error in sorted(column.failures.items())
    ]
    return {
        "accuracy": {
            model: float(np.mean(of_model[model][0].predicted == known))
            for model, known in labels.items()
            if known is not None
        },
        "texts_of_one_score": {
            model: {
                method: int(column.is_tied.sum())
                for method, column in zip(study.methods, of_model[model], strict=True)
            }
            for model in labels
        },
        "n_failures": len(failures),
        "failures": failures[:_MOST_FAILURES],
    }
