"""The table of a study: records summarised by model, removal mode and method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.study.records import Key, Record
from captum_attnflow.study.settings import Study
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
    """All rows, with what is needed to read them.

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
    """In the order of the data, whatever the order of the work was."""
    chosen = [r for r in records if (r.model, r.method) == (model, method)]
    return {r.example: r for r in sorted(chosen, key=lambda r: r.example)}


def _values(records: Iterable[Record], removal: str, metric: str) -> Tensor:
    return torch.tensor(
        [record.values[removal][metric] for record in records], dtype=torch.float64
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
