from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from pyarrow import parquet

from captum_attnflow.tables import TableJob

WORDS = [
    "a",
    "the",
    "film",
    "plot",
    "actor",
    "funny",
    "gripping",
    "dull",
    "great",
    "sad",
    "long",
    "never",
    "bad",
    "very",
]
N_TEXTS = 40


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tables are compared to the last bit."""


def write_texts(path: Path, n_texts: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    texts = [
        " ".join(drawn.choices(WORDS, k=drawn.randint(1, 12))) for _ in range(n_texts)
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "text", "gold"])
        for number, text in enumerate(texts):
            writer.writerow([f"t{number}", text, number % 2])
    return texts


@pytest.fixture
def texts(tmp_path) -> list[str]:
    return write_texts(tmp_path / "texts.csv", N_TEXTS)


@pytest.fixture
def job(tmp_path, texts) -> TableJob:
    """40 texts in five part files, by a cheap method."""
    return TableJob(
        data=str(tmp_path / "texts.csv"),
        output=tmp_path / "scores",
        method="attention-rollout",
        rows_per_part=9,
        batch_size=4,
    )


def lines_of(folder: Path) -> list[dict]:
    """All rows of the output, part file by part file."""
    return [
        line
        for path in sorted(folder.glob("part-*.parquet"))
        for line in parquet.read_table(path).to_pylist()
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """The part files, byte by byte."""
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}
