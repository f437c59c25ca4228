"""The table of a study: means and intervals, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.records import COSTS, Results
from captum_attnflow.study.settings import BETTER, Study

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
        for part in means.split(max(1, _AT_ONCE // n)):
            size = len(part)
            drawn = torch.randint(n, (size, n), generator=generator)
            drawn += n * torch.arange(size)[:, None]
            # How often each example was drawn, for a product with all columns.
            counts = torch.bincount(drawn.flatten(), minlength=size * n)
            torch.mm(counts.view(size, n).double(), differences, out=part)
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
