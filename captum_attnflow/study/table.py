"""The table of a study: means and intervals, as Markdown, CSV, LaTeX and a plot."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_attnflow._files import replace_file
from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.records import COSTS, Results
from captum_attnflow.study.settings import BETTER, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AT_ONCE = 1 << 20  # numbers drawn
_ARROWS = {"higher": "↑", "lower": "↓"}
_CSV_COLUMNS = (
    *("model", "removal", "method", "metric", "better", "mean", "standard_error"),
    *("n", "failures", "against", "difference", "low", "high"),
    *("forward_rows", "backward_rows", "seconds"),
)
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
_LATEX_NAME = {
    **_LATEX,
    # Bare at the start of a line, LaTeX takes them for options of the line break.
    **{char: f"{{{char}}}" for char in "*[]`"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
# An underscore within a word is not markup.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&$]|\b_|_\b")
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


@dataclass(frozen=True)
class Estimate:
    """A mean over examples.

    Attributes:
        mean (float): The mean.
        standard_error (float): Standard deviation (of ``n - 1``) over the root of
            ``n``; NaN of a single example.
        n (int): Examples.
    """

    mean: float
    standard_error: float
    n: int

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Estimate from values ``(n,)``."""
        n = len(values)
        error = values.std().item() / math.sqrt(n) if n > 1 else math.nan
        return Estimate(values.mean().item(), error, n)


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % paired bootstrap interval.

    Attributes:
        mean (float): The mean difference.
        low (float): Lower end.
        high (float): Upper end.
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(
        differences: Tensor, seed: int, n_resamples: int = 10_000
    ) -> tuple[Interval, ...]:
        """Percentile intervals of the means of resampled examples.

        Args:
            differences (Tensor): Shape ``(n, k)``, float64, ``k`` per example: a method
                minus the one that it is compared with.
            seed (int): Seed of the resampling, which is the same for all methods.
            n_resamples (int): Bootstrap samples, the same for all ``k``.

        Returns:
            tuple[Interval, ...]: ``k`` of them.

        Examples::

            >>> differences = torch.tensor([[0.1], [0.3], [0.2], [0.2]]).double()
            >>> [interval] = Interval.of(differences, seed=0)
            >>> round(interval.mean, 3), interval.low > 0.1, interval.high < 0.3
            (0.2, True, True)
        """
        n = len(differences)
        generator = torch.Generator().manual_seed(seed)
        # Filled in place: small tensors kept between large ones split the memory.
        means = differences.new_empty(n_resamples, differences.shape[1])
        for some in means.split(max(1, _AT_ONCE // n)):
            size = len(some)
            drawn = torch.randint(n, (size, n), generator=generator)
            drawn += n * torch.arange(size)[:, None]
            # How often each example was drawn, for a product with all columns.
            counts = torch.bincount(drawn.flatten(), minlength=size * n)
            torch.mm(counts.view(size, n).double(), differences, out=some)
        means /= n
        ends = torch.tensor([0.025, 0.975], dtype=differences.dtype)
        quantiles = means.quantile(ends, 0)  # (2, k)
        return tuple(
            Interval(mean, low, high)
            for mean, low, high in zip(
                differences.mean(0).tolist(), *quantiles.tolist(), strict=True
            )
        )


@dataclass(frozen=True)
class Row:
    """One method on one model under one removal mode.

    Attributes:
        model (str): The model.
        removal (str): ``"replace"`` or ``"delete"``.
        method (str): The method.
        n (int): Texts measured.
        failures (int): Texts on which the method failed.
        values (dict): Estimate by metric; empty if it failed on all.
        differences (dict): By metric, the method minus the one it is compared with, on
            the texts that both did; empty if there are none.
        forward_rows (float): Rows of forward passes per text.
        backward_rows (float): Rows of backward passes per text.
        seconds (float): Wall time per text.
    """

    model: str
    removal: str
    method: str
    n: int
    failures: int
    values: Mapping[str, Estimate]
    differences: Mapping[str, Interval]
    forward_rows: float
    backward_rows: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """All rows, with the names needed to read them.

    Attributes:
        rows (tuple of Row): By model, removal mode and method.
        metrics (tuple of str): The columns, keys of ``BETTER``.
        against (str, optional): The method of the paired comparison.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    against: str | None

    @staticmethod
    def of(study: Study, models: Sequence[str], results: Results) -> Table:
        """Summarise the results of a study's methods on models, by their names."""
        rows = []
        for model in models:
            of_method = {
                method: _rows(study, model, method, results) for method in study.methods
            }
            for removal in study.removals:
                rows += [of_method[method][removal] for method in study.methods]
        return Table(tuple(rows), study.metrics, study.against)


def _rows(study: Study, model: str, method: str, results: Results) -> dict[str, Row]:
    """A row for each removal mode."""
    mine = results.columns[model, method]
    measured = mine.is_measured
    values = torch.from_numpy(mine.values[measured])  # (n, removals, metrics)
    intervals: dict[str, dict[str, Interval]] = {}
    if study.against is not None and study.against != method:
        theirs = results.columns[model, study.against]
        both = measured & theirs.is_measured
        if both.any():
            differences = torch.from_numpy(mine.values[both] - theirs.values[both])
            found = iter(Interval.of(differences.flatten(1), study.seed))
            intervals = {
                removal: {metric: next(found) for metric in study.metrics}
                for removal in study.removals
            }
    costs = dict(zip(COSTS, mine.costs[measured].T.tolist(), strict=True))
    return {
        removal: Row(
            model=model,
            removal=removal,
            method=method,
            n=len(values),
            failures=len(mine.failures),
            values={
                metric: Estimate.of(values[:, place, column].contiguous())
                for column, metric in enumerate(study.metrics)
                if len(values)
            },
            differences=intervals.get(removal, {}),
            **{name: _mean(of) for name, of in costs.items()},
        )
        for place, removal in enumerate(study.removals)
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def to_csv(table: Table) -> str:
    """One line per row and metric, with all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in table.rows:
        for metric in table.metrics:
            value = row.values.get(metric, Estimate(math.nan, math.nan, 0))
            change = row.differences.get(metric)
            cells = (
                [printable(row.model), row.removal, printable(row.method), metric]
                + [BETTER[metric], value.mean, value.standard_error]
                + [row.n, row.failures, table.against if change else ""]
                + ([change.mean, change.low, change.high] if change else [""] * 3)
                + [row.forward_rows, row.backward_rows, row.seconds]
            )
            # What there is no number of, such as the error of one text, is empty.
            writer.writerow("" if cell != cell else cell for cell in cells)
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A table for reading, with a note that explains its cells."""
    header, *body = _cells(table, _markdown_name)
    lines = [header, ["---"] * len(header), *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_note(table)}\n"


def to_latex(table: Table) -> str:
    """A ``tabular`` for the booktabs package."""
    header, *body = [
        " & ".join(line) + r" \\" for line in _cells(table, _latex_name, _latex)
    ]
    n_numbers = header.count("&") - 2
    lines = [
        f"% {_note(table)}",
        rf"\begin{{tabular}}{{lll{'r' * n_numbers}}}",
        *(r"\toprule", header, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "md": to_markdown,
    "tex": to_latex,
}
"""By the ending of a file's name."""


def _cells(
    table: Table, name: Callable[[str], str], cell: Callable[[str], str] = str
) -> Iterator[list[str]]:
    """Yield lines; names come from outside and are written by ``name``."""
    yield [
        *("model", "removal", "method"),
        *(cell(f"{metric} {_ARROWS[BETTER[metric]]}") for metric in table.metrics),
        *("forward", "backward", "seconds", "texts", "failures"),
    ]
    for row in table.rows:
        yield [
            *map(name, (row.model, row.removal, row.method)),
            *(cell(_cell(row, metric)) for metric in table.metrics),
            _number(row.forward_rows, ".1f"),
            _number(row.backward_rows, ".1f"),
            _number(row.seconds, ".4f"),
            str(row.n),
            str(row.failures),
        ]


def _cell(row: Row, metric: str) -> str:
    if metric not in row.values:
        return "failed"
    value = row.values[metric]
    cell = f"{value.mean:.3f} ± {_number(value.standard_error, '.3f')}"
    if metric in row.differences:
        change = row.differences[metric]
        cell += f" [{change.low:+.3f}, {change.high:+.3f}]"
    return cell


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _note(table: Table) -> str:
    compared = (
        ""
        if table.against is None
        else " [95 % paired bootstrap interval of the difference to "
        f"{printable(table.against)}]"
    )
    return (
        f"Mean and standard error over texts{compared}. Per text: forward and backward "
        "are rows through the model, seconds the wall time of the attribution, without "
        "a first call, which compiles."
    )


def _markdown_name(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _latex_name(text: str) -> str:
    return "".join(_LATEX_NAME.get(char, char) for char in printable(text))


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
    from matplotlib.figure import Figure

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
