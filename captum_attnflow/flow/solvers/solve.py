"""The solvers by name, and what they solve: one flow of all tokens, or one of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import described
from captum_attnflow.flow.network import LayeredNetwork, check_network
from captum_attnflow.flow.solvers.barrier import BarrierSolver
from captum_attnflow.flow.solvers.base import FlowSolution, FlowSolver, refuse_infinite
from captum_attnflow.flow.solvers.networkx_solver import NetworkXSolver
from captum_attnflow.flow.solvers.scipy_solver import SciPySolver

SolverName = Literal["barrier", "scipy", "networkx"]

SOLVERS: dict[str, FlowSolver] = {
    "barrier": BarrierSolver(),
    "scipy": SciPySolver(),
    "networkx": NetworkXSolver(),
}
_MAX_EDGES_AT_ONCE = 1 << 22


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


@dataclass(frozen=True, eq=False)
class SourceFlows:
    """Maximum flows of every token of a batch of networks, each sending alone.

    Attributes:
        value (Tensor): Shape ``(B, T)``, capacity of a minimum cut between the token
            and the sink, which is the value of its maximum flow. A sum of capacities:
            tokens that the same edges confine tie exactly.
        duality_gap (Tensor): Shape ``(B, T)``, how far the flow found stays below.
        imbalance (Tensor): Shape ``(B, T)``, see :class:`FlowSolution`.
        iterations (Tensor): Shape ``(B, T)``, int64, see :class:`FlowSolution`.
    """

    value: Tensor
    duality_gap: Tensor
    imbalance: Tensor
    iterations: Tensor


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
        ValueError: If the solver is unknown, or it is no network.

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
    if isinstance(chosen, SciPySolver):
        value, gap = chosen.solve_sources(
            network, _bound(network), ~_own_path_is_free(network)
        )
        nothing = torch.zeros_like(value)
        return SourceFlows(value, gap, nothing, nothing.to(torch.int64))
    value = torch.zeros_like(network.capacity[:, 0, 0])
    flows = SourceFlows(
        value, value.clone(), value.clone(), value.to(torch.int64, copy=True)
    )
    for rows, tokens in _at_once(network, network.source):
        solution = solve_flow(_one_source_each(network, rows, tokens), chosen)
        flows.value[rows, tokens] = solution.cut_capacity
        for name in ("duality_gap", "imbalance", "iterations"):
            getattr(flows, name)[rows, tokens] = getattr(solution, name)
    return flows


def _own_path_is_free(network: LayeredNetwork) -> Tensor:
    """Whether each token has a residual path that never binds, shape ``(B, T)``."""
    return network.capacity.diagonal(dim1=-2, dim2=-1).isinf().all(1)


def _at_once(
    network: LayeredNetwork, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen tokens, as rows and positions, in parts that fit into memory."""
    rows, tokens = chosen.nonzero(as_tuple=True)
    at_once = max(1, _MAX_EDGES_AT_ONCE // math.prod(network.capacity.shape[1:]))
    return zip(rows.split(at_once), tokens.split(at_once), strict=True)


def _one_source_each(
    network: LayeredNetwork, rows: Tensor, tokens: Tensor
) -> LayeredNetwork:
    """One network per token, which is its only source."""
    alone = torch.zeros_like(network.source[rows])
    alone[torch.arange(len(rows)), tokens] = True
    own_sink = alone & _own_path_is_free(network)[rows]
    return LayeredNetwork(
        capacity=network.capacity[rows],
        source=alone,
        sink=network.sink[rows] & ~own_sink,
    )


def _bound(network: LayeredNetwork) -> Tensor:
    """Bound each token's flow by what can leave it, shape ``(B, T)``."""
    bound = torch.where(network.source, network.leaving_bound()[:, 0], 0.0)
    own_sink_closed = network.sink & _own_path_is_free(network)
    for rows, tokens in _at_once(network, own_sink_closed):
        leaving = _one_source_each(network, rows, tokens).leaving_bound()[:, 0]
        bound[rows, tokens] = leaving[torch.arange(len(rows)), tokens]
    refuse_infinite(bound.amax(1))
    return bound
