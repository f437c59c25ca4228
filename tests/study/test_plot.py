from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_attnflow.study.plot import draw_plot, save_plot
from captum_attnflow.study.table import Estimate, Row, Table

METRICS = ("aopc", "log_odds")


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
