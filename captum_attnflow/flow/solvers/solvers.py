"""The solvers by name."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from captum_attnflow._options import described
from captum_attnflow.flow.solvers.barrier import BarrierSolver
from captum_attnflow.flow.solvers.networkx_solver import NetworkXSolver
from captum_attnflow.flow.solvers.scipy_solver import SciPySolver
from captum_attnflow.flow.solvers.solution import FlowSolver

SolverName = Literal["barrier", "scipy", "networkx"]

SOLVERS: dict[str, FlowSolver] = {
    "barrier": BarrierSolver(),
    "scipy": SciPySolver(),
    "networkx": NetworkXSolver(),
}


def find_solver(solver: SolverName | FlowSolver) -> FlowSolver:
    """Return the solver of that name, or the solver itself.

    Raises:
        ValueError: If the name is unknown, or it is no solver.
    """
    if not isinstance(solver, (str, type, Tensor)) and hasattr(solver, "solve"):
        return solver
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise ValueError(
            f"solver={described(solver)} is unknown; give one of {sorted(SOLVERS)}, or "
            "an instance such as BarrierSolver(epsilon=1e-6)"
        )
    return SOLVERS[solver]
