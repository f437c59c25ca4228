from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.study import DataSource, Study, run_study

TEXTS = [
    ("a gripping , funny film", 1),
    ("dull", 0),
    ("it is not a bad film , only a very long and a very sad one", 0),
    ("great great great", 1),
    ("the plot has holes and the actors know it", 0),
    ("wonderful", 1),
    ("never less than charming", 1),
]
# Cheap methods of every kind: flows, propagation, gradients, perturbation, chance.
METHODS = (
    "attention-rollout",
    "chefer-relevance",
    "input-x-gradient",
    "feature-ablation",
    "random",
)


def _study_in(folder: Path) -> Study:
    data = folder / "texts.tsv"
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in TEXTS)]
    data.write_text("\n".join(lines) + "\n")
    return Study(
        models=(str(DEMO_MODEL_PATH),),
        data=DataSource(str(data), label_column="label"),
        methods=METHODS,
        output=folder / "out",
        against="input-x-gradient",
        metrics=("aopc", "sufficiency"),
        batch_size=2,
    )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of seven texts in batches of two, its results in ``tmp_path / "out"``."""
    return _study_in(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, run once, as a run takes a second."""
    study = _study_in(tmp_path_factory.mktemp("study"))
    run_study(study)
    return study.output


@pytest.fixture
def finished(study: Study, finished_once: Path) -> Study:
    """The study with its results, in a folder of the test's own."""
    shutil.copytree(finished_once, study.output)
    return study


@pytest.fixture
def changed(study: Study):
    """The study with other settings."""
    return lambda **settings: dataclasses.replace(study, **settings)


@pytest.fixture
def manifest(study: Study):
    """Read the manifest."""
    return lambda: json.loads((study.output / "manifest.json").read_text())
