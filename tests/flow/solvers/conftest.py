from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from captum_attnflow.flow.solvers.barrier import compilation, solver
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses


@pytest.fixture(params=["numba", "torch"])
def passes(request, monkeypatch):
    """Each implementation of the work on the edges, as what all solves choose."""
    if request.param == "torch":
        monkeypatch.setattr(compilation, "numba_passes", lambda: None)
        return TorchPasses
    pytest.importorskip("numba")
    return compilation.numba_passes()


class Attempt(NamedTuple):
    """At solving a batch, see :func:`solver.solve_batch`."""

    dtype: torch.dtype
    last_ratio: float
    solved: list[bool]


@pytest.fixture
def attempts(monkeypatch):
    """The attempts of all solves, in turn."""
    made = []

    def watch(*arguments, attempt=solver._attempt):
        solved, solution = attempt(*arguments)
        made.append(Attempt(*arguments[4:6], solved.tolist()))
        return solved, solution

    monkeypatch.setattr(solver, "_attempt", watch)
    return made
