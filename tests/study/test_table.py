from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import pytest

from captum_attnflow.study import DataSource, Study, Table
from captum_attnflow.study.plot import save_plot
from captum_attnflow.study.records import Record, Results
from captum_attnflow.study.table import to_csv, to_latex, to_markdown


def record(method, row, aopc, **changes):
    values = {"replace": {"aopc": aopc, "log_odds": -aopc}}
    cost = {"forward_rows": 2.0, "backward_rows": 1.0, "seconds": 0.5 * row}
    return Record("a_model", method, row, 1, **{"values": values, **cost, **changes})


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
    results = Results(study, ["a_model"], rows=[1, 2, 3])
    for each in reversed(records):
        results.add(each)
    return Table.of(study, ["a_model"], results)


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


HOSTILE = "a|b\n<b>c</b> `d` *e* [f](g) _h_ \\ ~i~ & #\x1b[2J"


def named(table: Table, model: str) -> Table:
    rows = tuple(dataclasses.replace(row, model=model) for row in table.rows)
    return dataclasses.replace(table, rows=rows)


def test_markdown_shows_any_name_as_text(table):
    lines = to_markdown(named(table, HOSTILE)).splitlines()
    first, cells = lines[2].split(" | ", 1)
    assert first == (
        r"| a\|b\\n\<b\>c\</b\> \`d\` \*e\* \[f\](g) \_h\_ \\ \~i\~ \& \#"
        r"\\x1b\[2J"
    )
    assert cells.startswith("replace | mine | 0.250")
    bare = [re.sub(r"\\.", "", line).count("|") for line in lines[:4]]
    assert len(set(bare)) == 1


def test_latex_shows_any_name_as_text(table):
    lines = to_latex(named(table, HOSTILE)).splitlines()
    [row] = [line for line in lines if "mine" in line]
    assert row.startswith(
        r"a\textbar{}b\textbackslash{}n\textless{}b\textgreater{}c"
        r"\textless{}/b\textgreater{} {`}d{`} {*}e{*} {[}f{]}(g) \_h\_ "
        r"\textbackslash{} \textasciitilde{}i\textasciitilde{} \& \#"
        r"\textbackslash{}x1b{[}2J & replace & mine & "
    )


def test_latex_takes_no_name_for_an_argument_of_the_line_break(table):
    # LaTeX reads "\\\\" and, on the next line, "[x]" or "*" as a break with an option.
    for name in ("[x]", "*x"):
        body = to_latex(named(table, name)).split(r"\midrule")[1]
        assert body.lstrip()[0] == "{"


def test_the_latex_note_stays_a_comment(table):
    changed = dataclasses.replace(table, against="a\nb")
    assert to_latex(changed).splitlines()[1].startswith(r"\begin{tabular}")


@pytest.mark.parametrize("name", [HOSTILE, "$x_{", "_hidden", "caf\udce9"])
def test_every_name_is_written_in_every_format(table, tmp_path, name):
    twice = dataclasses.replace(table, rows=table.rows + named(table, name).rows)
    for form in (to_csv, to_markdown, to_latex):
        form(twice).encode()
    save_plot(twice, tmp_path / "plot.png")
