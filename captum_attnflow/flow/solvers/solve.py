"""The solvers by name, and what they solve: one flow of all tokens, or one of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import described
from captum_attnflow.flow.network import LayeredNetwork, check_network
from captum_attnflow.flow.solvers.barrier import BarrierSolver
from captum_attnflow.flow.solvers.base import (
    FlowSolution,
    FlowSolver,
    SourceFlows,
    solve_any,
)
from captum_attnflow.flow.solvers.networkx_solver import NetworkXSolver
from captum_attnflow.flow.solvers.scipy_solver import SciPySolver

SolverName = Literal["barrier", "scipy", "networkx"]

SOLVERS: dict[str, FlowSolver] = {
    "barrier": BarrierSolver(),
    "scipy": SciPySolver(),
    "networkx": NetworkXSolver(),
}


def find_solver(solver: SolverName | FlowSolver) -> FlowSolver:
    """Return the solver of that name, or the solver itself.

    Raises:
        ValueError: If the name is unknown, or it is not a solver.
    """
    if isinstance(solver, FlowSolver) and not isinstance(solver, type):
        return solver
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise ValueError(
            f"solver={described(solver)} is unknown; give one of {sorted(SOLVERS)}, or "
            "an instance such as BarrierSolver(epsilon=1e-6), whose class derives from "
            "FlowSolver"
        )
    return SOLVERS[solver]


def solve_flow(
    network: LayeredNetwork, solver: SolverName | FlowSolver = "barrier"
) -> FlowSolution:
    r"""Solve the maximum flow of every network of a batch.

    Networks are trimmed first; one without any path from source to sink gets the
    zero flow.

    Args:
        network (LayeredNetwork): The networks; capacities are taken in float64, and no
            gradient passes to them.
        solver (str or FlowSolver): ``"barrier"`` (unique flow, batched),
            ``"networkx"`` (exact, one arbitrary maximum flow), ``"scipy"`` (the same,
            exact in small units of the value), or an instance of
            :class:`BarrierSolver`, :class:`SciPySolver` or :class:`NetworkXSolver`.

    Returns:
        FlowSolution: Values, flows and certificates, in float64.

    Raises:
        FlowError: If a flow is unbounded (a path from source to sink has only edges
            of infinite capacity), or the solver's iteration limit is reached.
        ValueError: If the solver is unknown, or it is not a network.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[0.2, 0.3], [0.0, 0.4]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[True, False]]),
        ... )
        >>> solution = solve_flow(network)
        >>> [round(score, 4) for score in solution.source_flow[0].tolist()]
        [0.2, 0.3]
    """
    check_network(network)
    return solve_any(network, find_solver(solver))


@dataclass(frozen=True, eq=False)
class DeferredFlow:
    """The maximum flow of every network of a batch, solved when it is first read.

    Args:
        network (LayeredNetwork): The networks.
        solver (str or FlowSolver): As in :func:`solve_flow`.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[0.2, 0.3], [0.0, 0.4]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[True, False]]),
        ... )
        >>> deferred = DeferredFlow(network)  # nothing is solved yet
        >>> round(float(deferred.value), 4)
        0.5
    """

    network: LayeredNetwork
    solver: SolverName | FlowSolver = "barrier"

    @cached_property
    def solution(self) -> FlowSolution:
        """The solution, with its certificates.

        Raises:
            FlowError: As :func:`solve_flow`.
        """
        return solve_flow(self.network, self.solver)

    @property
    def value(self) -> Tensor:
        """Value of the flow, shape ``(B,)``."""
        return self.solution.value

    @property
    def flow(self) -> Tensor:
        """Flow per edge, shape ``(B, L, T, T)``."""
        return self.solution.flow

    @property
    def cut(self) -> Tensor:
        """Source's side of a minimum cut, shape ``(B, L + 1, T)``, bool."""
        return self.solution.cut

    def select(self, rows: slice) -> FlowSolution | DeferredFlow:
        """Return the flows of some networks, without solving any."""
        if "solution" in vars(self):
            return self.solution.select(rows)
        return DeferredFlow(self.network.select(rows), self.solver)


def solve_sources(
    network: LayeredNetwork, solver: SolverName | FlowSolver = "scipy"
) -> SourceFlows:
    """Solve one maximum flow per token.

    A token whose own residual path never binds would have an unbounded flow to its own
    read-out; its flow is that to the other read-outs.

    Args:
        network (LayeredNetwork): The networks; which tokens are sources in them does
            not matter here.
        solver (str or FlowSolver): As in :func:`solve_flow`. ``"scipy"`` solves all
            flows of a network on one graph and is by far the fastest.

    Returns:
        SourceFlows: The values and how well they are certified, in float64.

    Raises:
        FlowError: If a flow is unbounded, or the solver's iteration limit is reached.
        ValueError: If the solver is unknown, or it is not a network.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[0.2, 0.3], [0.1, 0.4]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[True, False]]),
        ... )
        >>> [round(value, 4) for value in solve_sources(network).value[0].tolist()]
        [0.2, 0.3]
    """
    check_network(network)
    chosen = find_solver(solver)
    network = replace(
        network,
        capacity=network.capacity.detach().double(),
        source=torch.ones_like(network.source),
    ).trim()
    return chosen.solve_sources(network)
