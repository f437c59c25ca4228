"""The table of a study as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from captum_attnflow._files import replace_file
from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.settings import BETTER
from captum_attnflow.study.table import Table


def save_plot(table: Table, path: Path) -> None:
    """Draw a panel per removal mode and metric: means with 95 % intervals.

    Args:
        table (Table): The table; a method is a line, a model a colour.
        path (Path): A file whose ending names the format.
    """
    methods = list(dict.fromkeys(row.method for row in table.rows))
    removals = list(dict.fromkeys(row.removal for row in table.rows))
    models = list(dict.fromkeys(row.model for row in table.rows))
    figure = Figure(
        figsize=(
            1.5 + 2.6 * len(table.metrics),
            1 + 0.3 * len(methods) * len(removals),
        ),
        layout="constrained",
    )
    panels = figure.subplots(
        len(removals), len(table.metrics), sharey=True, squeeze=False
    )
    for removal, line in zip(removals, panels, strict=True):
        for metric, panel in zip(table.metrics, line, strict=True):
            for number, model in enumerate(models):
                rows = [
                    row
                    for row in table.rows
                    if (row.removal, row.model) == (removal, model) and row.values
                ]
                shift = (number + 0.5) / len(models) - 0.5
                panel.errorbar(
                    [row.values[metric].mean for row in rows],
                    [methods.index(row.method) + 0.6 * shift for row in rows],
                    xerr=[1.96 * row.values[metric].standard_error for row in rows],
                    fmt="o",
                    markersize=4,
                )
            panel.set_yticks(range(len(methods)), methods)
            panel.grid(axis="x", alpha=0.3)
            panel.set_title(f"{metric}, {removal}", fontsize="medium")
            panel.set_xlabel(f"{BETTER[metric]} is better", fontsize="small")
        line[0].set_ylim(len(methods) - 0.5, -0.5)
    if len(models) > 1:
        # Where the label is the line's own, matplotlib hides one that begins with "_".
        lines = panels[0][0].containers
        legend = panels[0][0].legend(lines, map(printable, models), fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a name stays one
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=150)
    replace_file(path, picture.getvalue())
