"""Exact maximum flow through networkx, for cross-checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import networkx as nx
import torch
from networkx.algorithms import flow as nx_flow
from torch import Tensor

from captum_attnflow._options import check_choice
from captum_attnflow.flow.network import SINK, SOURCE, LayeredNetwork
from captum_attnflow.flow.solvers.base import (
    FlowError,
    FlowSolution,
    FlowSolver,
    bounds_of,
    certified,
)

Algorithm = Literal["preflow_push", "shortest_augmenting_path", "edmonds_karp"]

_ROUNDING = 1e-12  # of the largest flow, which networkx adds up in float64
# Share of the value that rounding may leave at a node, or that the value may lack.
_ACCURACY = 1e-9


@dataclass(frozen=True)
class NetworkXSolver(FlowSolver):
    """One maximum flow per network by networkx, one network after the other.

    The value is exact up to rounding. The flow, and with it every joint token score,
    is whichever of the many maximum flows the algorithm meets first: use it to check
    values, not to attribute.

    Args:
        algorithm (str): ``"preflow_push"``, ``"shortest_augmenting_path"`` or
            ``"edmonds_karp"``. networkx' ``dinitz`` is left out: in networkx 3.6 it
            raises ``KeyError`` on capacities that are not integers.

    Raises:
        ValueError: If the algorithm is none of these.
    """

    algorithm: Algorithm = "preflow_push"

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, get_args(Algorithm))

    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of networks; see :class:`FlowSolution`.

        Raises:
            FlowError: If networkx fails, or its flow is not conserved or no maximum,
                as it is where capacities differ by very many orders of magnitude.
        """
        bounds, of_value = bounds_of(network)
        bounds = torch.minimum(bounds, of_value[:, None, None])
        if not network.n_networks:
            return FlowSolution.zero(network)
        parts = [
            self._solve_one(network.select(slice(index, index + 1)), bound)
            for index, bound in enumerate(bounds)
        ]
        return FlowSolution.concatenate(parts)

    def _solve_one(self, network: LayeredNetwork, bound: Tensor) -> FlowSolution:
        graph = _bounded(network, bound)
        algorithm = getattr(nx_flow, self.algorithm)
        try:
            _, flow_dict = nx.maximum_flow(graph, SOURCE, SINK, flow_func=algorithm)
        except (ValueError, nx.NetworkXException) as error:
            raise FlowError(self._failure(f"fails ({error})")) from error
        flow, source_flow, sink_flow = _tensors(flow_dict, network)
        potential = -_source_side(network, flow).to(flow.dtype)
        gap = network.cut_capacity(potential < -0.5) - sink_flow.sum(-1)
        solution = certified(
            network,
            flow=flow,
            source_flow=source_flow,
            sink_flow=sink_flow,
            potential=potential,
            mu=torch.zeros_like(gap),
            duality_gap=gap.clamp_min(0),
            iterations=torch.zeros_like(gap, dtype=torch.int64),
        )
        lost = torch.maximum(solution.imbalance, gap.abs())
        if not bool(lost <= _ACCURACY * solution.value):
            raise FlowError(
                self._failure(
                    f"returns a flow of {float(solution.value):.3g} that is off by "
                    f"{float(lost):.3g}"
                )
            )
        return solution

    def _failure(self, what: str) -> str:
        return (
            f"networkx' {self.algorithm} {what}: its rounding grows with the largest "
            'capacities. Give solver="scipy", which certifies its flow at any, or '
            'another algorithm, such as NetworkXSolver("edmonds_karp")'
        )


def _bounded(network: LayeredNetwork, bound: Tensor) -> nx.DiGraph:
    """The graph of a network of one, with capacities that its flow could fill.

    networkx pushes all that an edge can carry, and later takes back what cannot go on.
    Beside a huge amount, the small terms of a sum are lost to rounding.

    Args:
        network (LayeredNetwork): A network.
        bound (Tensor): Shape ``(L + 1, T)``, of the flow through its nodes.
    """
    at_ends = torch.minimum(bound[:-1, None, :], bound[1:, :, None])
    capacity = torch.minimum(network.capacity, at_ends)
    graph = replace(network, capacity=capacity).to_networkx()
    for nodes, most in (
        (graph.succ[SOURCE], bound[0].tolist()),
        (graph.pred[SINK], bound[-1].tolist()),
    ):
        for node, edge in nodes.items():
            edge["capacity"] = most[graph.nodes[node]["position"]]
    return graph


def _source_side(network: LayeredNetwork, flow: Tensor) -> Tensor:
    """Find the nodes that more flow could reach, shape ``(1, L + 1, T)``, bool.

    networkx' own minimum cut takes an edge for full where flow and capacity are equal
    to the last bit, and misses the cut where rounding leaves some of it.
    """
    rounding = _ROUNDING * flow.amax()
    residual = network.capacity - flow > rounding
    back = flow > rounding
    side = torch.zeros(flow.shape[1] + 1, flow.shape[-1], dtype=torch.bool)
    side[0] = network.source[0]
    n_reached = -1
    while n_reached != (n_reached := int(side.sum())):
        for layer in range(network.n_layers):
            side[layer + 1] |= (residual[0, layer] & side[layer]).any(1)
        for layer in reversed(range(network.n_layers)):
            side[layer] |= (back[0, layer] & side[layer + 1, :, None]).any(0)
    return side[None]


def _tensors(
    flow_dict: dict[str, dict[str, float]], network: LayeredNetwork
) -> tuple[Tensor, Tensor, Tensor]:
    flow = torch.zeros_like(network.capacity)
    source_flow = torch.zeros_like(network.capacity[:, 0, 0])
    sink_flow = torch.zeros_like(source_flow)
    for tail, heads in flow_dict.items():
        for head, amount in heads.items():
            if tail == SOURCE:
                source_flow[0, int(head.split("/")[1])] = amount
            elif head == SINK:
                sink_flow[0, int(tail.split("/")[1])] = amount
            else:
                layer, below = map(int, tail.split("/"))
                flow[0, layer, int(head.split("/")[1]), below] = amount
    return flow, source_flow, sink_flow
