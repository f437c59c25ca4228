"""One maximum flow per network, all its sources sending at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork, check_network
from captum_attnflow.flow.solvers.solution import (
    FlowSolution,
    FlowSolver,
    refuse_infinite,
)
from captum_attnflow.flow.solvers.solvers import SolverName, find_solver


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
            exact in units whose size it tells), or an instance of
            :class:`BarrierSolver`, :class:`SciPySolver` or :class:`NetworkXSolver`.

    Returns:
        FlowSolution: Values, flows and certificates, in float64.

    Raises:
        FlowError: If a flow is unbounded (a path from source to sink has only edges
            of infinite capacity), or the solver's iteration limit is reached.
        ValueError: If the solver is unknown, or it is no network.

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
    chosen = find_solver(solver)
    from_source, to_sink = network.reachable()
    live = from_source & to_sink
    trimmed = replace(network, capacity=network.capacity.detach().double()).restrict(
        live
    )
    _refuse_unbounded(trimmed)
    # A reachable dead end stands on the source's side of every minimum cut.
    idle_potential = -(from_source & ~to_sink).to(trimmed.capacity.dtype)
    solvable = trimmed.sink.any(-1)
    if not bool(solvable.any()):
        return FlowSolution.zero(trimmed, idle_potential)
    if bool(solvable.all()):
        solution = chosen.solve(trimmed)
    else:
        solution = FlowSolution.zero(trimmed, idle_potential)
        part = chosen.solve(trimmed.select(solvable))
        for name, whole in vars(solution).items():
            whole[solvable] = getattr(part, name)
    solution.potential.copy_(torch.where(live, solution.potential, idle_potential))
    solution.cut.copy_(solution.potential < -0.5)
    return solution


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


def _refuse_unbounded(network: LayeredNetwork) -> None:
    if not network.capacity.numel() or not bool(network.capacity.amax().isinf()):
        return
    refuse_infinite(network.node_bound().flatten(1).amax(1))
