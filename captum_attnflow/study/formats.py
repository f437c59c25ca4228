"""A study's table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator

from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.settings import BETTER
from captum_attnflow.study.statistics import Estimate
from captum_attnflow.study.table import Row, Table

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
    # Bare at the start of a line they would be options of the break before it.
    **{char: f"{{{char}}}" for char in "*[]`"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
# An underscore within a word is no markup.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&$]|\b_|_\b")


def to_csv(table: Table) -> str:
    """One line per row and metric, with all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in table.rows:
        for metric in table.metrics:
            value = row.values.get(metric, Estimate(math.nan, math.nan, 0))
            change = row.differences.get(metric)
            writer.writerow(
                [printable(row.model), row.removal, printable(row.method), metric]
                + [BETTER[metric], value.mean, value.standard_error]
                + [row.n, row.failures, table.against if change else ""]
                + ([change.mean, change.low, change.high] if change else [""] * 3)
                + [row.forward_rows, row.backward_rows, row.seconds]
            )
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A table for reading, with a note on what its cells are."""
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
            f"{row.forward_rows:.1f}",
            f"{row.backward_rows:.1f}",
            f"{row.seconds:.4f}",
            str(row.n),
            str(row.failures),
        ]


def _cell(row: Row, metric: str) -> str:
    if metric not in row.values:
        return "failed"
    value = row.values[metric]
    cell = f"{value.mean:.3f} ± {value.standard_error:.3f}"
    if metric in row.differences:
        change = row.differences[metric]
        cell += f" [{change.low:+.3f}, {change.high:+.3f}]"
    return cell


def _note(table: Table) -> str:
    compared = (
        ""
        if table.against is None
        else " [95 % paired bootstrap interval of the difference to "
        f"{printable(table.against)}]"
    )
    return (
        f"Mean and standard error over texts{compared}. Per text: forward and backward "
        "are rows through the model, seconds the wall time of the attribution."
    )


def _markdown_name(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _latex_name(text: str) -> str:
    return "".join(_LATEX_NAME.get(char, char) for char in printable(text))
