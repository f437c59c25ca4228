"""Exact maximum flow through SciPy's Dinic algorithm, certified by a cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers._dinic import (
    FIRST,
    SINK,
    SOURCE,
    Graph,
    from_units,
    in_units,
)
from captum_attnflow.flow.solvers._residual import edge_lists, source_side
from captum_attnflow.flow.solvers._token_flows import LOOSE, TokenNetworks, token_flows
from captum_attnflow.flow.solvers.solution import FlowSolution, bounds_of, certified


@dataclass(frozen=True)
class SciPySolver:
    """One maximum flow after the other by Dinic's algorithm in SciPy.

    SciPy's flows are integers. Capacities are rounded down to multiples of a unit, a
    :math:`2^{30}`-th of a bound of the value: the flow is feasible, and lacks at most
    a unit per edge of the cut. The cut that the algorithm ends with is evaluated in
    float64 and free of that rounding; the duality gap is the difference.

    The flow is whichever of the many maximum flows the algorithm meets first: use it
    for values, such as one flow per token, and the barrier for joint token scores.
    """

    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of networks; see :class:`FlowSolution`."""
        _, bounds = bounds_of(network)
        if not network.n_networks:
            return FlowSolution.zero(network)
        network = replace(network, capacity=network.capacity.double())
        parts = [
            _solve_one(network.select(slice(index, index + 1)), bound)
            for index, bound in enumerate(bounds.tolist())
        ]
        return FlowSolution.concatenate(parts)

    def solve_sources(
        self, network: LayeredNetwork, bound: Tensor, own_sink: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Solve one flow per token.

        Args:
            network (LayeredNetwork): The networks; their sources do not count.
            bound (Tensor): Shape ``(B, T)``, finite bound of each token's flow; where
                it is 0 nothing is solved.
            own_sink (Tensor): Shape ``(B, T)``, bool, whether a token's flow may end
                at its own position.

        Returns:
            tuple[Tensor, Tensor]: Cut capacities, and how far each flow stays below;
            both of shape ``(B, T)``.
        """
        value, gap = torch.zeros_like(bound), torch.zeros_like(bound)
        on_cpu = LayeredNetwork(
            network.capacity.cpu(), network.source.cpu(), network.sink.cpu()
        )
        for index, bounds in enumerate(bound.cpu()):
            tokens = bounds.nonzero()[:, 0]
            alone = TokenNetworks.of(
                on_cpu.select(slice(index, index + 1)),
                tokens,
                own_sink[index].cpu()[tokens],
            )
            cut, below = token_flows(alone, bounds[tokens])
            value[index, tokens] = cut.to(value)
            gap[index, tokens] = below.to(gap)
        return value, gap


@dataclass(frozen=True, eq=False)
class _JointGraph:
    """The edges of one network, between token layers and to the terminals."""

    layer: NDArray[np.intp]
    head: NDArray[np.intp]
    tail: NDArray[np.intp]
    capacity: NDArray[np.float64]
    sinks: NDArray[np.intp]
    sources: NDArray[np.intp]

    @staticmethod
    def of(network: LayeredNetwork) -> _JointGraph:
        capacity = network.capacity[0].cpu().numpy()
        layer, head, tail = capacity.nonzero()
        return _JointGraph(
            layer,
            head,
            tail,
            capacity[layer, head, tail],
            sinks=network.sink[0].cpu().numpy().nonzero()[0],
            sources=network.source[0].cpu().numpy().nonzero()[0],
        )

    def solve(
        self, shape: tuple[int, int], bound: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Flow and room in units, both ``(1, E)``: inner edges, then to the sink."""
        n_layers, n_tokens = shape
        below, last = FIRST + self.layer * n_tokens, FIRST + n_layers * n_tokens
        tails = [below + self.tail, last + self.sinks, 0 * self.sources + SOURCE]
        heads = [below + n_tokens + self.head, 0 * self.sinks + SINK]
        heads.append(FIRST + self.sources)
        graph = Graph(np.concatenate(tails), np.concatenate(heads), last + n_tokens)
        unlimited = np.full(len(self.sinks) + len(self.sources), np.inf)
        capacity = np.concatenate([self.capacity, unlimited])
        units = in_units(capacity[None], np.array([bound]))
        flow = graph.maximum_flows(units)
        return flow, units - flow


def _solve_one(network: LayeredNetwork, bound: float) -> FlowSolution:
    solution = _solve_in_units(network, bound)
    # Capacities below a unit are lost, and the flow in them: solve with a finer one.
    while (least := float(solution.cut_capacity)) * LOOSE < bound:
        bound = least
        solution = _solve_in_units(network, bound)
    return solution


def _solve_in_units(network: LayeredNetwork, bound: float) -> FlowSolution:
    graph, shape = _JointGraph.of(network), (network.n_layers, network.n_tokens)
    flow, room = graph.solve(shape, bound)
    n_inner = len(graph.layer)
    saturated, carrying = (
        edge_lists(
            chosen[:, :n_inner],
            graph.layer,
            graph.head,
            graph.tail,
            np.zeros(1, np.int64),
            shape,
        )
        for chosen in (room == 0, flow > 0)
    )
    edges = (network.capacity[0] > 0).float().cpu()
    cut = source_side(edges, network.source.cpu(), saturated, carrying)
    cut = cut.movedim(1, 0).to(network.capacity)
    amount = from_units(flow, np.array([bound]))[0]
    inner = np.zeros(tuple(network.capacity.shape))
    # The rounding of the unit may exceed a capacity in its last digit.
    inner[0, graph.layer, graph.head, graph.tail] = np.minimum(
        amount[:n_inner], graph.capacity
    )
    sink_flow = np.zeros((1, network.n_tokens))
    sink_flow[0, graph.sinks] = amount[n_inner : n_inner + len(graph.sinks)]
    return _answer(
        network,
        torch.from_numpy(inner).to(network.capacity),
        torch.from_numpy(sink_flow).to(network.capacity),
        cut,
    )


def _answer(
    network: LayeredNetwork, flow: Tensor, sink_flow: Tensor, cut: Tensor
) -> FlowSolution:
    value = sink_flow.sum(-1)
    gap = network.cut_capacity(cut > 0) - value
    return certified(
        network,
        flow=flow,
        source_flow=flow[:, 0].sum(-2),
        sink_flow=sink_flow,
        potential=-cut,
        mu=torch.zeros_like(value),
        duality_gap=gap.clamp_min(0),
        iterations=torch.zeros_like(value, dtype=torch.int64),
    )
