"""The plot of a study: methods from the best to the worst, a panel per metric."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_attnflow._files import replace_file
from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.settings import BETTER
from captum_attnflow.study.table import Row, Table

_PANELS_IN_A_ROW = 4
_PANEL_WIDTH, _NAMES_WIDTH = 2.6, 1.8  # inches
_METHOD, _PANEL_FRAME = 0.26, 0.75  # inches, high
_HIGHEST = 30.0  # inches; more methods and metrics than fit are drawn closer
_NAME_CHARACTERS = 34
_CAPTION_CHARACTERS = 13  # in an inch
_BARS_BEYOND = 1.0  # ranges of the means that a panel goes beyond them, at most
_DPI = 150

# Okabe and Ito's colours, which the colour-blind tell apart, but for the pale ones.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vP"


def save_plot(table: Table, path: Path) -> None:
    """Draw a table to a file, see :func:`draw_plot`.

    Args:
        table (Table): The table.
        path (Path): A file whose ending names the format.
    """
    picture = io.BytesIO()
    draw_plot(table).savefig(picture, format=path.suffix[1:], dpi=_DPI)
    replace_file(path, picture.getvalue())


def draw_plot(table: Table) -> Figure:
    """Draw a panel per removal mode and metric: means with 95 % intervals.

    Methods are sorted by the first metric, the best on top, and the method that the
    others are compared with is marked. A panel goes beyond the means by their range at
    most: a longer bar leaves it.

    Args:
        table (Table): The table; a method is a line, a model a colour and a marker.

    Returns:
        Figure: It says what points, bars and the dashed line are.
    """
    methods = _sorted_methods(table)
    removals = list(dict.fromkeys(row.removal for row in table.rows))
    panels = [(removal, metric) for removal in removals for metric in table.metrics]
    n_columns = min(len(table.metrics), _PANELS_IN_A_ROW)
    # A removal mode starts a row of panels of its own.
    n_rows = len(removals) * -(-len(table.metrics) // n_columns)
    width = _NAMES_WIDTH + _PANEL_WIDTH * n_columns
    height = min((_PANEL_FRAME + _METHOD * len(methods)) * n_rows + 0.6, _HIGHEST)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for axes in grid.ravel():
        axes.set_visible(False)
    rows_of_removal = n_rows // len(removals)
    for number, (removal, metric) in enumerate(panels):
        place, column = divmod(number % len(table.metrics), n_columns)
        row = removals.index(removal) * rows_of_removal + place
        axes = grid[row][column]
        axes.set_visible(True)
        _draw_panel(axes, table, methods, removal, metric)
        axes.tick_params(labelleft=column == 0)
    grid[0][0].set_ylim(len(methods) - 0.5, -0.5)
    _write_names(list(grid[:, 0]), methods, table.against)
    _write_models(figure, grid[0][0], table)
    caption = textwrap.fill(_caption(table), int(_CAPTION_CHARACTERS * width))
    figure.suptitle(caption, fontsize="small", parse_math=False)
    return figure


def _sorted_methods(table: Table) -> list[str]:
    """Methods by the mean of the first metric over models, the failed ones last."""
    metric = table.metrics[0]
    first = table.rows[0].removal
    means: dict[str, list[float]] = {row.method: [] for row in table.rows}
    for row in table.rows:
        if row.removal == first and metric in row.values:
            means[row.method].append(row.values[metric].mean)

    def rank(method: str) -> float:
        if not means[method]:
            return math.inf
        mean = math.fsum(means[method]) / len(means[method])
        return -mean if BETTER[metric] == "higher" else mean

    return sorted(means, key=rank)


def _draw_panel(
    axes: Axes, table: Table, methods: Sequence[str], removal: str, metric: str
) -> None:
    models = list(dict.fromkeys(row.model for row in table.rows))
    drawn = [row for row in table.rows if row.removal == removal and row.values]
    for number, model in enumerate(models):
        rows = [row for row in drawn if row.model == model]
        shift = 0.6 * ((number + 0.5) / len(models) - 0.5)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(
            [row.values[metric].mean for row in rows],
            [methods.index(row.method) + shift for row in rows],
            xerr=[_half_interval(row, metric) for row in rows],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour,
            markersize=4,
        )
        for row in rows:
            if row.method == table.against:
                mean = row.values[metric].mean
                axes.axvline(
                    mean, color=colour, linestyle="--", linewidth=0.8, zorder=0
                )
    if drawn:
        means = np.array([row.values[metric].mean for row in drawn])
        reach = np.array([_half_interval(row, metric) for row in drawn])
        axes.set_xlim(*_limits(means, np.nan_to_num(reach)))
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"{metric}, {removal}", fontsize="medium")
    axes.set_xlabel(f"{BETTER[metric]} is better", fontsize="small")


def _half_interval(row: Row, metric: str) -> float:
    return 1.96 * row.values[metric].standard_error


def _limits(
    means: npt.NDArray[np.float64], reach: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Around all bars, but not far beyond the means: one long bar hides the others."""
    low, high = float(means.min()), float(means.max())
    span = high - low
    # One mean alone has no range; its bar is drawn as it is.
    beyond = _BARS_BEYOND * span if span > 0 else math.inf
    low = max(float((means - reach).min()), low - beyond)
    high = min(float((means + reach).max()), high + beyond)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _write_names(
    first_panels: Sequence[Axes], methods: Sequence[str], against: str | None
) -> None:
    """Write each method's name, that of the reference in bold."""
    names = [
        f"{_name(method)} (reference)" if method == against else _name(method)
        for method in methods
    ]
    for axes in first_panels:
        axes.set_yticks(range(len(methods)), names)
        for method, label in zip(methods, axes.get_yticklabels(), strict=True):
            label.set_parse_math(False)  # a dollar sign in a name stays one
            label.set_fontweight("bold" if method == against else "normal")


def _write_models(figure: Figure, panel: Axes, table: Table) -> None:
    models = list(dict.fromkeys(row.model for row in table.rows))
    if len(models) == 1:
        return
    # matplotlib hides labels that begin with "_", the lines' own and, before 3.10, all:
    # names come when the legend has its lines.
    handles: Any = panel.containers  # legends take them; their type does not say so
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(models))],
        loc="outside lower center",
        ncols=_PANELS_IN_A_ROW if len(models) > 2 else len(models),
        fontsize="small",
    )
    for text, model in zip(legend.get_texts(), models, strict=True):
        text.set_text(_name(model))
        text.set_parse_math(False)


def _caption(table: Table) -> str:
    """Say what points and bars are, how methods are sorted and what is marked."""
    metric = table.metrics[0]
    caption = (
        "Points are means over texts, bars their 95 % intervals (1.96 standard "
        f"errors). Methods by {metric}, the best on top."
    )
    if table.against is None:
        return caption
    return f"{caption} The dashed line is the mean of {_name(table.against)}."


def _name(text: str) -> str:
    name = printable(text)
    short = len(name) <= _NAME_CHARACTERS
    return name if short else f"{name[: _NAME_CHARACTERS - 1]}…"
