"""The table of a study: means and intervals, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.scored_tokens import printable
from captum_attnflow.study.records import Key, Record
from captum_attnflow.study.settings import BETTER, Study

_AT_ONCE = 1 << 22
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
    def of(differences: Tensor, seed: int, n_resamples: int = 10_000) -> Interval:
        """Percentile interval of the mean of resampled pairs.

        Args:
            differences (Tensor): Shape ``(n,)``, float64, one per example: a method
                minus the one that it is compared with.
            seed (int): Seed of the resampling, which is the same for all methods.
            n_resamples (int): Bootstrap samples.

        Examples::

            >>> interval = Interval.of(torch.tensor([0.1, 0.3, 0.2, 0.2]).double(), 0)
            >>> round(interval.mean, 3), interval.low > 0.1, interval.high < 0.3
            (0.2, True, True)
        """
        n = len(differences)
        generator = torch.Generator().manual_seed(seed)
        means = [
            differences[torch.randint(n, (size, n), generator=generator)].mean(1)
            for size in _chunks(n_resamples, max(1, _AT_ONCE // n))
        ]
        ends = torch.tensor([0.025, 0.975], dtype=differences.dtype)
        low, high = torch.cat(means).quantile(ends).tolist()
        return Interval(differences.mean().item(), low, high)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


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
    def of(study: Study, models: Sequence[str], records: Mapping[Key, Record]) -> Table:
        """Summarise the records of a study's methods on models, by their names."""
        rows = []
        for model in models:
            done = {
                method: _by_example(records.values(), model, method)
                for method in study.methods
            }
            for removal in study.removals:
                for method in study.methods:
                    against = None if method == study.against else study.against
                    theirs = {} if against is None else done[against]
                    rows.append(
                        _row(study, model, removal, method, done[method], theirs)
                    )
        return Table(tuple(rows), study.metrics, study.against)


def _row(
    study: Study,
    model: str,
    removal: str,
    method: str,
    mine: Mapping[int, Record],
    theirs: Mapping[int, Record],
) -> Row:
    measured = [record for record in mine.values() if record.failure is None]
    pairs = [
        (record, theirs[record.example])
        for record in measured
        if record.example in theirs and theirs[record.example].failure is None
    ]
    values, differences = {}, {}
    for metric in study.metrics:
        if measured:
            values[metric] = Estimate.of(_values(measured, removal, metric))
        if pairs:
            ours, others = (
                _values(side, removal, metric) for side in zip(*pairs, strict=True)
            )
            differences[metric] = Interval.of(ours - others, study.seed)
    return Row(
        model=model,
        removal=removal,
        method=method,
        n=len(measured),
        failures=len(mine) - len(measured),
        values=values,
        differences=differences,
        forward_rows=_mean([record.forward_rows for record in measured]),
        backward_rows=_mean([record.backward_rows for record in measured]),
        seconds=_mean([record.seconds for record in measured]),
    )


def _by_example(
    records: Iterable[Record], model: str, method: str
) -> dict[int, Record]:
    """In the order of the data, not in the order of the work."""
    chosen = [r for r in records if (r.model, r.method) == (model, method)]
    return {r.example: r for r in sorted(chosen, key=lambda r: r.example)}


def _values(records: Iterable[Record], removal: str, metric: str) -> Tensor:
    return torch.tensor(
        [record.values[removal][metric] for record in records], dtype=torch.float64
    )


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
            writer.writerow(
                [printable(row.model), row.removal, printable(row.method), metric]
                + [BETTER[metric], value.mean, value.standard_error]
                + [row.n, row.failures, table.against if change else ""]
                + ([change.mean, change.low, change.high] if change else [""] * 3)
                + [row.forward_rows, row.backward_rows, row.seconds]
            )
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
