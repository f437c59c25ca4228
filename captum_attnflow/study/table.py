"""The table of a study, as rows and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.metrics import METRICS
from captum_attnflow.study.records import Key, Record
from captum_attnflow.study.statistics import Estimate, Interval


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
        differences (dict): By metric, the method minus the one it is compared with;
            empty if there is none.
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
    """All rows, with what is needed to read them.

    Attributes:
        rows (tuple of Row): By model, removal mode and method.
        metrics (tuple of str): The columns, keys of ``METRICS``.
        against (str, optional): The method of the paired comparison.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    against: str | None

    @staticmethod
    def of(
        records: Mapping[Key, Record],
        models: Sequence[str],
        methods: Sequence[str],
        removals: Sequence[str],
        metrics: Sequence[str],
        against: str | None,
        seed: int,
    ) -> Table:
        """Summarise the records of the given models and methods."""
        rows = []
        for model in models:
            chosen = [record for record in records.values() if record.model == model]
            for removal in removals:
                for method in methods:
                    rows.append(
                        _row(chosen, model, removal, method, metrics, against, seed)
                    )
        return Table(tuple(rows), tuple(metrics), against)

    def to_csv(self) -> str:
        """One line per row and metric, with all digits."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for row in self.rows:
            for metric in self.metrics:
                value = row.values.get(metric, Estimate(math.nan, math.nan, 0))
                change = row.differences.get(metric)
                writer.writerow(
                    [row.model, row.removal, row.method, metric]
                    + [METRICS[metric].better, value.mean, value.standard_error]
                    + [row.n, row.failures, self.against if change else ""]
                    + ([change.mean, change.low, change.high] if change else [""] * 3)
                    + [row.forward_rows, row.backward_rows, row.seconds]
                )
        return stream.getvalue()

    def to_markdown(self) -> str:
        """A table for reading, with a note on what its cells are."""
        header, *body = self._cells("±", "↑", "↓")
        lines = [header, ["---"] * len(header), *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{self._note()}\n"

    def to_latex(self) -> str:
        """A ``tabular`` for the booktabs package."""
        header, *body = [
            [_escape_latex(cell) for cell in line]
            for line in self._cells("PLUSMINUS", "HIGHER", "LOWER")
        ]
        lines = [" & ".join(line) + r" \\" for line in (header, *body)]
        text = "\n".join(
            [
                f"% {self._note()}",
                rf"\begin{{tabular}}{{lll{'r' * (len(header) - 3)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        for name, symbol in _LATEX_SYMBOLS.items():
            text = text.replace(name, symbol)
        return text + "\n"

    def _cells(self, plus_minus: str, higher: str, lower: str) -> Iterator[list[str]]:
        arrows = {"higher": higher, "lower": lower}
        yield [
            *("model", "removal", "method"),
            *(f"{name} {arrows[METRICS[name].better]}" for name in self.metrics),
            *("forward", "backward", "seconds", "texts", "failures"),
        ]
        for row in self.rows:
            yield [
                *(row.model, row.removal, row.method),
                *(_cell(row, metric, plus_minus) for metric in self.metrics),
                f"{row.forward_rows:.1f}",
                f"{row.backward_rows:.1f}",
                f"{row.seconds:.4f}",
                str(row.n),
                str(row.failures),
            ]

    def _note(self) -> str:
        compared = (
            ""
            if self.against is None
            else " [95 % paired bootstrap interval of the "
            f"difference to {self.against}]"
        )
        return (
            f"Mean and standard error over texts{compared}. Per text: forward and "
            "backward are rows through the model, seconds the wall time of the "
            "attribution."
        )


_CSV_COLUMNS = (
    *("model", "removal", "method", "metric", "better", "mean", "standard_error"),
    *("n", "failures", "against", "difference", "low", "high"),
    *("forward_rows", "backward_rows", "seconds"),
)
_LATEX_SYMBOLS = {
    "PLUSMINUS": r"$\pm$",
    "HIGHER": r"$\uparrow$",
    "LOWER": r"$\downarrow$",
}


def _row(
    records: Sequence[Record],
    model: str,
    removal: str,
    method: str,
    metrics: Sequence[str],
    against: str | None,
    seed: int,
) -> Row:
    mine = _by_example(records, method)
    theirs = _by_example(records, against) if against not in (None, method) else {}
    measured = {e: r for e, r in mine.items() if r.failure is None}
    shared = [e for e in measured if e in theirs and theirs[e].failure is None]

    def values(
        which: Mapping[int, Record], examples: Iterable[int], metric: str
    ) -> Tensor:
        return torch.tensor(
            [which[e].values[removal][metric] for e in examples], dtype=torch.float64
        )

    return Row(
        model=model,
        removal=removal,
        method=method,
        n=len(measured),
        failures=len(mine) - len(measured),
        values={m: Estimate.of(values(measured, measured, m)) for m in metrics}
        if measured
        else {},
        differences={
            m: Interval.of(values(mine, shared, m) - values(theirs, shared, m), seed)
            for m in metrics
        }
        if shared
        else {},
        forward_rows=_mean([r.forward_rows for r in measured.values()]),
        backward_rows=_mean([r.backward_rows for r in measured.values()]),
        seconds=_mean([r.seconds for r in measured.values()]),
    )


def _by_example(records: Sequence[Record], method: str | None) -> dict[int, Record]:
    """In the order of the data, whatever the order of the work was."""
    chosen = (record for record in records if record.method == method)
    return {r.example: r for r in sorted(chosen, key=lambda r: r.example)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _cell(row: Row, metric: str, plus_minus: str) -> str:
    if metric not in row.values:
        return "failed"
    value = row.values[metric]
    cell = f"{value.mean:.3f} {plus_minus} {value.standard_error:.3f}"
    if metric in row.differences:
        change = row.differences[metric]
        cell += f" [{change.low:+.3f}, {change.high:+.3f}]"
    return cell


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}"} | {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text)
