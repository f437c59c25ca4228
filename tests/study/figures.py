"""What must not change when a study is interrupted: everything but the clock."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def names(folder: Path) -> set[str]:
    """The files of a folder, without those whose names begin with a dot."""
    return {path.name for path in folder.glob("[!.]*")}


def table_without_seconds(folder: Path) -> list[list[str]]:
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "seconds"
    return [row[:-1] for row in rows]


def results_without_seconds(folder: Path) -> list[dict]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    for result in results:
        del result["seconds"]
    return sorted(results, key=lambda r: (r["model"], r["method"], r["row"]))
