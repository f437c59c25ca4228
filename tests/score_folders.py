"""Folders of explained texts, as ``captum-attnflow explain --data`` writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "row": pa.int64(),
    "id": pa.string(),
    "text": pa.string(),
    "text_pair": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "target": pa.string(),
    "predicted": pa.string(),
    "probability": pa.float64(),
    "value": pa.float64(),
    "n_truncated": pa.int64(),
    "tokens": pa.list_(pa.string()),
    "scores": pa.list_(pa.float64()),
}


def explained(
    row: int, tokens: Sequence[str], scores: Sequence[float], **other: Any
) -> dict[str, Any]:
    """A row of the table; what is not given is what an ordinary text has."""
    cells = dict.fromkeys(COLUMNS) | {
        "row": row,
        "text": " ".join(tokens),
        "status": "explained",
        "target": "pos",
        "predicted": "pos",
        "probability": 0.75,
        "n_truncated": 0,
        "tokens": list(tokens),
        "scores": [float(score) for score in scores],
    }
    return cells | other


def failed(row: int, reason: str) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "row": row,
        "text": "",
        "status": "failed",
        "reason": reason,
        "n_truncated": 0,
    }


def write_folder(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    kind: str = "parquet",
    rows_per_part: int = 100,
    **manifest: Any,
) -> Path:
    """Write rows as parts of a format, with a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"format": 1, "n_rows": len({row["row"] for row in rows})} | manifest
    (folder / "manifest.json").write_text(json.dumps(said))
    for start in range(0, max(len(rows), 1), rows_per_part):
        part = folder / f"part-{start // rows_per_part:06d}.{kind}"
        _WRITERS[kind](part, rows[start : start + rows_per_part])
    return folder


def _write_parquet(part: Path, rows: Sequence[dict[str, Any]]) -> None:
    carried = [name for name in (rows[0] if rows else {}) if name not in COLUMNS]
    schema = pa.schema({**COLUMNS, **dict.fromkeys(carried, pa.string())})
    pq.write_table(pa.Table.from_pylist(list(rows), schema), part)


def _write_csv(part: Path, rows: Sequence[dict[str, Any]]) -> None:
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            lists = {
                name: json.dumps(cell)
                for name, cell in row.items()
                if isinstance(cell, list)
            }
            writer.writerow(row | lists)


def _write_jsonl(part: Path, rows: Sequence[dict[str, Any]]) -> None:
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))


_WRITERS = {"parquet": _write_parquet, "csv": _write_csv, "jsonl": _write_jsonl}


def random_rows(n_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of twelve words with random scores: word0 is for a label, word1 against."""
    random = np.random.default_rng(seed)
    vocabulary = [f"word{number}" for number in range(12)]
    rows = []
    for row in range(1, n_rows + 1):
        words = random.choice(vocabulary, random.integers(3, 15))
        pieces = [
            piece
            for word in words
            for piece in ([word, "##s"] if random.random() < 0.2 else [word])
        ]
        tokens = ["[CLS]", *pieces, "[SEP]"]
        effect = [2 * (piece == "word0") - 2 * (piece == "word1") for piece in tokens]
        scores = random.normal(effect, 1)
        label = str(random.choice(["pos", "neg"]))
        rows.append(explained(row, tokens, scores, target=label, id=f"text-{row}"))
    return rows


def of_different_words(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a row, for words of one token each."""
    words = [f"w{number}" for number in range(len(row["scores"]))]
    return explained(row["row"], words, row["scores"])


def words_of(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Words and scores of a row of random_rows(), merged by hand."""
    words: list[tuple[str, float]] = []
    for token, score in zip(row["tokens"], row["scores"], strict=True):
        if token in ("[CLS]", "[SEP]"):
            continue
        if token.startswith("##"):
            words[-1] = (words[-1][0] + token[2:], words[-1][1] + score)
        else:
            words.append((token, score))
    return words
