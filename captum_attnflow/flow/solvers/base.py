"""What a flow solver answers, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from captum_attnflow._checks import counted, described
from captum_attnflow._tree import Compared
from captum_attnflow.flow.network import LayeredNetwork, check_network

# Edges of the networks that one solve takes, to bound memory.
_MAX_EDGES_AT_ONCE = 1 << 22
# Sums of the same capacities may differ by rounding.
_SAME_SUM = 1e-13


class FlowError(RuntimeError):
    """A flow problem has no finite answer, or a solver did not reach it."""


@dataclass(frozen=True, eq=False)
class FlowSolution(Compared):
    r"""Maximum flows of a batch of networks, with their certificates.

    Attributes:
        value (Tensor): Shape ``(B,)``, flow into the super-sink.
        flow (Tensor): Shape ``(B, L, T, T)``, flow per edge, laid out as
            :attr:`LayeredNetwork.capacity`.
        source_flow (Tensor): Shape ``(B, T)``, flow that leaves the super-source for
            each node of token layer 0.
        sink_flow (Tensor): Shape ``(B, T)``, flow into the super-sink.
        potential (Tensor): Shape ``(B, L + 1, T)``, dual variables between -1 at the
            super-source and 0 at the super-sink.
        mu (Tensor): Shape ``(B,)``, absolute barrier weight at which the problem was
            solved, in units of capacity; 0 for an exact solver.
        duality_gap (Tensor): Shape ``(B,)``, upper bound of the flow value that is
            missing to the maximum, in units of capacity.
        imbalance (Tensor): Shape ``(B,)``, largest absolute violation of conservation
            at a node, in units of capacity.
        iterations (Tensor): Shape ``(B,)``, int64, Newton systems solved.
        cut (Tensor): Shape ``(B, L + 1, T)``, bool, ``True`` on the source's side of a
            minimum cut.
        cut_capacity (Tensor): Shape ``(B,)``, capacity of that cut: never below the
            maximum flow, hence a certificate that needs no trust in the solver.
    """

    value: Tensor
    flow: Tensor
    source_flow: Tensor
    sink_flow: Tensor
    potential: Tensor
    mu: Tensor
    duality_gap: Tensor
    imbalance: Tensor
    iterations: Tensor
    cut: Tensor
    cut_capacity: Tensor

    def select(self, index: Tensor | slice) -> FlowSolution:
        """Return the solutions of some networks of the batch."""
        return FlowSolution(
            **{field.name: getattr(self, field.name)[index] for field in fields(self)}
        )

    def spread(self, positions: Tensor, n_tokens: int) -> FlowSolution:
        """Return the same flows in networks of more, unused token positions.

        Args:
            positions (Tensor): Shape ``(P,)``, where the positions of this solution
                stand among all.
            n_tokens (int): All positions ``T``.
        """
        n_layers = self.flow.shape[1]
        flow = self.flow.new_zeros(len(self.flow), n_layers, n_tokens, n_tokens)
        flow[..., positions[:, None], positions] = self.flow

        def spread(nodes: Tensor) -> Tensor:
            spread = nodes.new_zeros(*nodes.shape[:-1], n_tokens)
            spread[..., positions] = nodes
            return spread

        names = ("source_flow", "sink_flow", "potential", "cut")
        nodes = {name: spread(getattr(self, name)) for name in names}
        return replace(self, flow=flow, **nodes)

    @staticmethod
    def zero(network: LayeredNetwork, potential: Tensor | None = None) -> FlowSolution:
        """Return flows of 0, and the cut of potentials ``(B, L + 1, T)``."""
        if potential is None:
            nodes = (network.n_networks, network.n_layers + 1, network.n_tokens)
            potential = network.capacity.new_zeros(nodes)
        per_network = torch.zeros_like(network.capacity[:, 0, 0, 0])
        per_node = torch.zeros_like(network.capacity[:, 0, 0])
        return FlowSolution(
            value=per_network,
            flow=torch.zeros_like(network.capacity),
            source_flow=per_node,
            sink_flow=per_node.clone(),
            potential=potential.clone(),
            mu=per_network.clone(),
            duality_gap=per_network.clone(),
            imbalance=per_network.clone(),
            iterations=torch.zeros_like(per_network, dtype=torch.int64),
            cut=potential < -0.5,
            cut_capacity=per_network.clone(),
        )

    @staticmethod
    def concatenate(parts: Sequence[FlowSolution]) -> FlowSolution:
        """Join the solutions of consecutive parts of a batch, at least one."""
        if not parts:
            raise ValueError("no solutions were given to join; give at least one")
        if len(parts) == 1:
            return parts[0]
        return FlowSolution(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts])
                for field in fields(FlowSolution)
            }
        )


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


@runtime_checkable
class FlowSolver(Protocol):
    """A frozen set of hyper-parameters that knows how to solve networks.

    A new solver derives from this and implements :meth:`solve`.
    """

    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of trimmed networks, each with a path to the sink."""
        ...

    def solve_sources(self, network: LayeredNetwork) -> SourceFlows:
        """Solve one maximum flow per token, each token sending alone.

        By default each token has a network of its own. A solver that shares work
        between the tokens of a network overrides this.

        Args:
            network (LayeredNetwork): Trimmed networks, float64. All tokens count as
                sources. Where :func:`own_path_is_free`, a token's own read-out is not a
                sink of its flow.
        """
        value = torch.zeros_like(network.capacity[:, 0, 0])
        flows = SourceFlows(
            value, value.clone(), value.clone(), value.to(torch.int64, copy=True)
        )
        for rows, tokens in _at_once(network, network.source):
            solution = solve_any(_one_source_each(network, rows, tokens), self)
            flows.value[rows, tokens] = solution.cut_capacity
            for name in ("duality_gap", "imbalance", "iterations"):
                getattr(flows, name)[rows, tokens] = getattr(solution, name)
        return flows


def solve_any(network: LayeredNetwork, solver: FlowSolver) -> FlowSolution:
    """Solve any networks by a solver that takes trimmed ones with a path.

    Args:
        network (LayeredNetwork): The networks.
        solver (FlowSolver): What solves them.

    Raises:
        FlowError: If a flow is unbounded, or the solver fails.
    """
    if torch.compiler.is_compiling():
        # Dynamo would trace for ten seconds what it cannot compile.
        solution: FlowSolution = torch.compiler.disable(solve_any)(network, solver)
        return solution
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
        solution = solver.solve(trimmed)
    else:
        solution = FlowSolution.zero(trimmed, idle_potential)
        part = solver.solve(trimmed.select(solvable))
        for name, whole in vars(solution).items():
            whole[solvable] = getattr(part, name)
    solution.potential.copy_(torch.where(live, solution.potential, idle_potential))
    solution.cut.copy_(solution.potential < -0.5)
    return solution


def _refuse_unbounded(network: LayeredNetwork) -> None:
    if not network.capacity.numel() or not bool(network.capacity.amax().isinf()):
        return
    refuse_infinite(network.node_bound().flatten(1).amax(1))


def own_path_is_free(network: LayeredNetwork) -> Tensor:
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
    own_sink = alone & own_path_is_free(network)[rows]
    return LayeredNetwork(
        capacity=network.capacity[rows],
        source=alone,
        sink=network.sink[rows] & ~own_sink,
    )


def source_bounds(network: LayeredNetwork) -> Tensor:
    """Bound each token's flow by what can leave it, shape ``(B, T)``."""
    bound = torch.where(network.source, network.leaving_bound()[:, 0], 0.0)
    own_sink_closed = network.sink & own_path_is_free(network)
    for rows, tokens in _at_once(network, own_sink_closed):
        leaving = _one_source_each(network, rows, tokens).leaving_bound()[:, 0]
        bound[rows, tokens] = leaving[torch.arange(len(rows)), tokens]
    refuse_infinite(bound.amax(1))
    return bound


def tie(value: Tensor) -> Tensor:
    """Make values that differ only by rounding equal to the smallest of them.

    Sums of the same capacities in another order differ in their last places.

    Args:
        value (Tensor): Shape ``(B, T)``; values of the same row are compared.
    """
    ordered, order = value.sort(1)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] > ordered[:, :-1] * (1 + _SAME_SUM)
    places = torch.arange(value.shape[1], device=value.device)
    first = torch.where(is_first, places, 0).cummax(1).values
    return torch.empty_like(value).scatter_(1, order, ordered.gather(1, first))


def refuse_infinite(bound: Tensor) -> None:
    """Refuse networks whose bound of the flow value is infinite.

    Args:
        bound (Tensor): One bound per network, infinite only where the maximum is.

    Raises:
        FlowError: If any is.
    """
    unbounded = bound.isinf()
    if bool(unbounded.any()):
        raise FlowError(
            f"the flow of {int(unbounded.sum())} of {counted(len(bound), 'network')} "
            "is unbounded: a path from source to sink has only edges of infinite "
            "capacity, or finite ones that add up to more than float64 can hold. Give "
            "one edge of the path a finite capacity, or remove its source; or scale "
            "all capacities down"
        )


def bounds_of(network: LayeredNetwork) -> tuple[Tensor, Tensor]:
    """Bound the flow through every node, and the value.

    Args:
        network (LayeredNetwork): Trimmed networks, each with a path to the sink.

    Returns:
        tuple[Tensor, Tensor]: Shapes ``(B, L + 1, T)`` and ``(B,)``; the bound of the
        value is positive and finite.

    Raises:
        ValueError: If it is not a network.
        FlowError: If the value is not bounded, or there is no path.
    """
    check_network(network)
    nodes = network.node_bound()
    # The flow passes every layer of nodes, each node within its bound.
    value = nodes.sum(-1).amin(-1)
    refuse_infinite(value)
    is_empty = value == 0
    if bool(is_empty.any()):
        raise FlowError(
            f"no path leads from source to sink in {int(is_empty.sum())} of "
            f"{counted(len(value), 'network')}; a solver's own solve() takes trimmed "
            "networks with one. Give the networks to solve_flow(network, solver), "
            "which takes any"
        )
    return nodes, value


def certified(
    network: LayeredNetwork,
    *,
    flow: Tensor,
    source_flow: Tensor,
    sink_flow: Tensor,
    potential: Tensor,
    mu: Tensor,
    duality_gap: Tensor,
    iterations: Tensor,
) -> FlowSolution:
    """Complete a solver's primal and dual answer by what follows from them."""
    cut = potential < -0.5
    imbalance = network.divergence(flow, source_flow, sink_flow).abs().amax((1, 2))
    return FlowSolution(
        value=sink_flow.sum(-1),
        flow=flow,
        source_flow=source_flow,
        sink_flow=sink_flow,
        potential=potential,
        mu=mu,
        duality_gap=duality_gap,
        imbalance=imbalance,
        iterations=iterations,
        cut=cut,
        cut_capacity=network.cut_capacity(cut),
    )


SolverName = Literal["barrier", "dinic", "scipy", "networkx"]
"""A key of :data:`SOLVERS`."""

# Filled where all of them are imported, in ``__init__.py``.
SOLVERS: dict[str, FlowSolver] = {}
"""For each name, the solver with its default settings."""


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
    network: LayeredNetwork, solver: SolverName | FlowSolver = "dinic"
) -> SourceFlows:
    """Solve one maximum flow per token.

    A token whose own residual path never binds would have an unbounded flow to its own
    read-out; its flow is that to the other read-outs.

    Args:
        network (LayeredNetwork): The networks; which tokens are sources in them does
            not matter here.
        solver (str or FlowSolver): As in :func:`solve_flow`. ``"dinic"`` solves all
            flows of a network on the same arrays and is by far the fastest.

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
