"""Tutorials run as they stand, and the committed notebooks are those that ran."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def notebook(source: Path) -> list[dict]:
    return json.loads(source.with_suffix(".ipynb").read_text("utf-8"))["cells"]


def code_cells(source: Path) -> list[str]:
    """Cells of a source in percent format that hold code."""
    cells = re.split(r"^# %%", source.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return [
        cell.partition("\n")[2].strip()
        for cell in cells
        if not cell.startswith(" [markdown]")
    ]


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(source):
    scope: dict[str, object] = {}
    for cell in code_cells(source):
        exec(compile(cell, source.name, "exec"), scope)


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
def test_notebook_holds_this_code_and_its_output(source):
    cells = [cell for cell in notebook(source) if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in cells] == code_cells(source)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
