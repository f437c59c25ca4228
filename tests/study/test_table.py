"""The table of a study: its statistics, what it looks like written, and its plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from captum_attnflow.study import DataSource, Study, Table
from captum_attnflow.study.records import Record, Results
from captum_attnflow.study.table import (
    Estimate,
    Interval,
    Row,
    draw_plot,
    save_plot,
    to_csv,
    to_latex,
    to_markdown,
)

METRICS = ("aopc", "log_odds")


def test_standard_error_is_that_of_scipy():
    values = torch.rand(50, dtype=torch.float64)
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(values.numpy().mean())
    assert estimate.standard_error == pytest.approx(stats.sem(values.numpy()))
    assert estimate.n == 50


def test_one_example_has_no_standard_error():
    estimate = Estimate.of(torch.tensor([0.5]).double())
    assert estimate.mean == 0.5
    assert math.isnan(estimate.standard_error)


def test_interval_is_the_percentile_bootstrap_of_scipy():
    differences = torch.randn(80, dtype=torch.float64) ** 3
    [interval] = Interval.of(differences[:, None], seed=0)
    result = stats.bootstrap(
        (differences.numpy(),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        random_state=1,
    )
    spread = result.confidence_interval.high - result.confidence_interval.low
    # Both ends carry the noise of 10,000 resamples.
    assert interval.low == pytest.approx(
        result.confidence_interval.low, abs=0.05 * spread
    )
    assert interval.high == pytest.approx(
        result.confidence_interval.high, abs=0.05 * spread
    )


def test_interval_follows_the_seed_and_nothing_else():
    differences = torch.rand(20, 2, dtype=torch.float64)
    first = Interval.of(differences, seed=3)
    torch.manual_seed(5)
    assert Interval.of(differences, seed=3) == first
    assert Interval.of(differences, seed=4) != first


def test_an_interval_does_not_depend_on_those_beside_it():
    differences = torch.randn(30, 3, dtype=torch.float64)
    for column, together in enumerate(Interval.of(differences, seed=0)):
        [alone] = Interval.of(differences[:, [column]], seed=0)
        assert together.low == pytest.approx(alone.low)
        assert together.high == pytest.approx(alone.high)
        assert together.mean == pytest.approx(differences[:, column].mean().item())


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


def row(method: str, mean: float, error: float = 0.01, **names: str) -> Row:
    values = {metric: Estimate(mean, error, 9) for metric in METRICS}
    values = values if math.isfinite(mean) else {}
    named = {"model": "a_model", "removal": "replace", **names}
    return Row(
        **named,
        method=method,
        n=9,
        failures=0,
        values=values,
        differences={},
        forward_rows=1.0,
        backward_rows=1.0,
        seconds=1.0,
    )


def a_table(*rows: Row, against: str | None = None, metrics=METRICS) -> Table:
    return Table(rows, metrics, against)


def names(axes) -> list[str]:
    """From the top."""
    return [label.get_text() for label in axes.get_yticklabels()]


def panels(figure) -> list:
    return [axes for axes in figure.axes if axes.get_visible()]


def test_methods_are_sorted_by_the_first_metric_the_best_on_top():
    rows = row("middle", 0.2), row("failed", math.nan), row("low", 0.1), row("top", 0.3)
    figure = draw_plot(a_table(*rows))
    assert names(panels(figure)[0]) == ["top", "middle", "low", "failed"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first name is the highest
    lower = draw_plot(a_table(*rows, metrics=("log_odds", "aopc")))
    assert names(panels(lower)[0]) == ["low", "middle", "top", "failed"]


def test_points_stand_at_the_means_in_the_line_of_their_method():
    means = {"low": 0.1, "top": 0.3, "middle": 0.2}
    figure = draw_plot(a_table(*(row(*item) for item in means.items())))
    for axes in panels(figure):
        [container] = axes.containers
        line, _, _ = container
        order = sorted(means, key=means.get, reverse=True)
        found = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert [found[place] for place in range(3)] == [means[name] for name in order]


def test_bars_are_95_percent_intervals_and_the_picture_says_so():
    figure = draw_plot(a_table(row("a", 0.2, 0.05), row("b", 0.5, 0.01)))
    [container] = panels(figure)[0].containers
    ends = {tuple(segment[:, 0]) for segment in container[2][0].get_segments()}
    expected = sorted([(0.2 - 0.098, 0.2 + 0.098), (0.5 - 0.0196, 0.5 + 0.0196)])
    assert np.array(sorted(ends)) == pytest.approx(np.array(expected))
    said = figure.get_suptitle().replace("\n", " ")
    assert "bars their 95 % intervals (1.96 standard errors)" in said
    assert "Methods by aopc, the best on top" in said


def test_the_reference_is_marked():
    table = a_table(row("a", 0.2), row("mine", 0.5), against="mine")
    figure = draw_plot(table)
    axes = panels(figure)[0]
    assert names(axes) == ["mine (reference)", "a"]
    weights = [label.get_fontweight() for label in axes.get_yticklabels()]
    assert weights == ["bold", "normal"]
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.5]
    assert "dashed line is the mean of mine" in figure.get_suptitle().replace("\n", " ")
    assert "dashed" not in draw_plot(a_table(row("a", 0.2))).get_suptitle()


def test_one_long_bar_does_not_hide_the_means():
    rows = [row(f"m{n}", n / 10) for n in range(4)]
    low, high = panels(draw_plot(a_table(*rows, row("wide", 0.1, 1e6))))[0].get_xlim()
    assert low < 0
    assert 0.3 < high < 1
    low, high = panels(draw_plot(a_table(row("alone", 0.5, 2.0))))[0].get_xlim()
    assert low < 0.5 - 1.96 * 2
    assert high > 0.5 + 1.96 * 2


@pytest.mark.parametrize("n_methods", [1, 8, 300])
@pytest.mark.parametrize("n_metrics", [1, 4, 6])
def test_the_figure_is_bounded_and_each_panel_is_named(n_metrics, n_methods):
    every = "aopc log_odds comprehensiveness sufficiency deletion_area insertion_area"
    metrics = tuple(every.split()[:n_metrics])
    rows = [
        Row(
            "m", removal, f"method{n}", 5, 0,
            {metric: Estimate(n, 0.1, 5) for metric in metrics}, {}, 1.0, 1.0, 1.0,
        )
        for removal in ("replace", "delete")
        for n in range(n_methods)
    ]  # fmt: skip
    figure = draw_plot(a_table(*rows, metrics=metrics))
    width, height = figure.get_size_inches()
    assert width <= 13
    assert height <= 30
    titles = [axes.get_title() for axes in panels(figure)]
    expected = [
        f"{metric}, {way}" for way in ("replace", "delete") for metric in metrics
    ]
    assert titles == expected


def test_models_have_a_legend_with_their_names_as_they_are():
    models = ["_one", "$two_{"]
    rows = [row(m, n, model=name) for name in models for n, m in enumerate("ab")]
    figure = draw_plot(a_table(*rows))
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == models
    FigureCanvasAgg(figure).draw()
    assert draw_plot(a_table(row("a", 1.0))).legends == []


@pytest.mark.parametrize("name", ["$x_{", "_hidden", "m" * 200, "a\nb"])
def test_a_method_of_any_name_is_drawn(name, tmp_path):
    table = a_table(row(name, 0.1), row("b", 0.2), against=name)
    save_plot(table, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 0


def test_a_study_in_which_all_failed_is_drawn(tmp_path):
    save_plot(a_table(row("a", math.nan), row("b", math.nan)), tmp_path / "plot.png")


def test_plot_is_drawn_the_same_each_time(tmp_path):
    table = a_table(row("a", 0.1), row("b", 0.2))
    save_plot(table, tmp_path / "a.png")
    save_plot(table, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
