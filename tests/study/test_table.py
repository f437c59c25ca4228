from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from captum_attnflow.study import DataSource, Study, Table
from captum_attnflow.study.formats import to_csv, to_latex, to_markdown
from captum_attnflow.study.plot import save_plot
from captum_attnflow.study.records import Record


def record(method, example, aopc, **changes):
    values = {"replace": {"aopc": aopc, "log_odds": -aopc}}
    cost = {"forward_rows": 2.0, "backward_rows": 1.0, "seconds": 0.5 * example}
    return Record(
        "a_model", method, example, 1, **{"values": values, **cost, **changes}
    )


@pytest.fixture
def table() -> Table:
    records = [
        record("mine", 1, 0.1),
        record("mine", 2, 0.4),
        record("mine", 3, 0.0, values={}, failure="ValueError: no"),
        record("theirs", 1, 0.2),
        record("theirs", 2, 0.3),
        record("theirs", 3, 0.4),
    ]
    study = Study(
        models=("somewhere/a_model",),
        data=DataSource("texts.csv"),
        methods=("mine", "theirs"),
        output=Path("out"),
        against="theirs",
        metrics=("aopc", "log_odds"),
        removals=("replace",),
    )
    return Table.of(study, ["a_model"], {r.key: r for r in reversed(records)})


def test_rows_are_means_over_the_texts_that_worked(table):
    mine, theirs = table.rows
    assert mine.values["aopc"].mean == pytest.approx(0.25)
    assert (mine.n, mine.failures, mine.seconds) == (2, 1, 0.75)
    assert theirs.values["aopc"].mean == pytest.approx(0.3)
    assert (theirs.n, theirs.failures, theirs.seconds) == (3, 0, 1.0)


def test_differences_are_of_the_texts_that_both_did(table):
    mine, theirs = table.rows
    assert mine.differences["aopc"].mean == pytest.approx(0.0)
    assert mine.differences["aopc"].low == pytest.approx(-0.1)
    assert mine.differences["aopc"].high == pytest.approx(0.1)
    assert theirs.differences == {}


def test_csv_holds_one_line_per_row_and_metric(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [(line["method"], line["metric"]) for line in lines] == [
        ("mine", "aopc"),
        ("mine", "log_odds"),
        ("theirs", "aopc"),
        ("theirs", "log_odds"),
    ]
    assert float(lines[0]["mean"]) == table.rows[0].values["aopc"].mean
    assert lines[0]["better"] == "higher"
    assert lines[0]["against"] == "theirs"
    assert lines[2]["against"] == lines[2]["low"] == ""


def test_markdown_has_cells_and_a_note(table):
    header, rule, mine, theirs, _, note = to_markdown(table).splitlines()
    cells = "| a_model | replace | mine | 0.250 ± 0.150 [-0.100, +0.100] | -0.250 ±"
    assert mine.startswith(cells)
    assert "aopc ↑ | log_odds ↓" in header
    assert len({line.count("|") for line in (header, rule, mine, theirs)}) == 1
    assert "difference to theirs" in note


def test_latex_escapes_names_and_keeps_columns(table):
    text = to_latex(table)
    assert r"a\_model & replace & mine & 0.250 $\pm$ 0.150 [-0.100, +0.100]" in text
    assert r"aopc $\uparrow$ & log\_odds $\downarrow$" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body}) == 1
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_plot_is_drawn_the_same_each_time(table, tmp_path):
    save_plot(table, tmp_path / "a.png")
    save_plot(table, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
