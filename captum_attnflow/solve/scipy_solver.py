"""Exact maximum flow through SciPy's Dinic algorithm, certified by a cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from captum_attnflow.network import LayeredNetwork
from captum_attnflow.solve.solution import FlowSolution, certified

_SOURCE, _SINK, _FIRST = 0, 1, 2
# SciPy counts flow in int32: the bound of the value becomes _UNITS of it, and an edge
# that never binds gets more than the whole flow can be.
_UNITS = 1 << 30
_UNLIMITED = _UNITS + (_UNITS >> 1)
# A bound this many times the value makes the unit too coarse: solve again.
_LOOSE = 16
# Edges whose flows are held at once while their cuts are found.
_MAX_EDGES_AT_ONCE = 1 << 22


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
        # No layer of nodes passes on more than the sum of what its nodes can.
        bounds = network.node_bound().sum(-1).amin(-1)
        parts = [
            _solve_one(network.select(slice(index, index + 1)), bound)
            for index, bound in enumerate(bounds.tolist())
        ]
        return FlowSolution.concatenate(parts)

    def solve_sources(
        self, network: LayeredNetwork, bound: Tensor, own_sink: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Solve one flow per token; all flows of a network share one graph.

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
        at_once = max(1, _MAX_EDGES_AT_ONCE // max(1, network.capacity[0].numel()))
        for index in range(network.n_networks):
            one = network.select(slice(index, index + 1))
            graph = _Graph.of(one)
            waiting = bound[index].nonzero()[:, 0]
            bounds = bound[index].clone()
            while len(waiting):
                tokens = waiting[:at_once]
                cut, flow = _solve_tokens(
                    one, graph, tokens, bounds[tokens], own_sink[index, tokens]
                )
                value[index, tokens], gap[index, tokens] = (
                    cut,
                    (cut - flow).clamp_min(0),
                )
                again = tokens[cut * _LOOSE < bounds[tokens]]
                bounds[tokens] = cut
                waiting = torch.cat([waiting[at_once:], again])
        return value, gap


@dataclass(frozen=True, eq=False)
class _Graph:
    """One network in compressed rows; nodes are source, sink, then layer by layer.

    Every edge has an empty reverse edge: SciPy adds those that are missing, and with
    all of them here its flow has the same entries in the same order.
    """

    capacity: NDArray[np.float64]  # of all entries, 0 for reverse edges
    room: csr_array  # its data are overwritten by every flow
    inner: NDArray[np.intp]  # entries between token layers
    edges: NDArray[np.intp]  # their places in (L, T, T), flattened
    sinks: NDArray[np.intp]  # entries into the sink
    read_out: NDArray[np.intp]  # their tokens
    n_edges: int  # L * T * T

    @staticmethod
    def of(network: LayeredNetwork) -> _Graph:
        n_tokens = network.n_tokens
        capacity = network.capacity[0].cpu().numpy()
        layer, head, tail = capacity.nonzero()
        sources = network.source[0].cpu().numpy().nonzero()[0]
        sinks = network.sink[0].cpu().numpy().nonzero()[0]
        below, last = _FIRST + layer * n_tokens, _FIRST + network.n_layers * n_tokens
        tails = [below + tail, last + sinks, np.full(len(sources), _SOURCE)]
        heads = [below + n_tokens + head, np.full(len(sinks), _SINK), _FIRST + sources]
        unlimited = np.full(len(sinks) + len(sources), np.inf)
        n_nodes = last + n_tokens
        numbered = csr_array(
            (
                np.arange(1, 1 + 2 * sum(map(len, tails))),
                (np.concatenate(tails + heads), np.concatenate(heads + tails)),
            ),
            shape=(n_nodes, n_nodes),
        )
        numbered.sort_indices()
        place = np.empty(numbered.nnz, np.intp)
        place[numbered.data - 1] = np.arange(numbered.nnz)
        in_order = np.zeros(numbered.nnz)
        given = np.concatenate([capacity[layer, head, tail], unlimited])
        in_order[place[: len(given)]] = given
        room = numbered.astype(np.int32)
        room.indices = room.indices.astype(np.int32)
        room.indptr = room.indptr.astype(np.int32)
        return _Graph(
            capacity=in_order,
            room=room,
            inner=place[: len(layer)],
            edges=np.ravel_multi_index((layer, head, tail), capacity.shape),
            sinks=place[len(layer) : len(layer) + len(sinks)],
            read_out=sinks,
            n_edges=capacity.size,
        )

    def solve(
        self, source: int, bound: float, closed: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Flow of every entry and what it leaves free, in units.

        ``closed`` is a token that may not feed the sink.
        """
        in_units = np.minimum(self.capacity * (_UNITS / bound), _UNLIMITED)
        if closed is not None:
            in_units[self.sinks[self.read_out == closed]] = 0
        self.room.data[:] = in_units
        flow: NDArray[np.int32] = maximum_flow(self.room, source, _SINK).flow.data
        return flow, self.room.data - flow

    def per_edge(self, entries: NDArray[np.int32], n_tokens: int) -> Tensor:
        """Lay entries out as capacities are, ``(L, T, T)``, int32."""
        dense = np.zeros(self.n_edges, np.int32)
        dense[self.edges] = entries[self.inner]
        return torch.from_numpy(dense).view(-1, n_tokens, n_tokens)


def _solve_tokens(
    network: LayeredNetwork,
    graph: _Graph,
    tokens: Tensor,
    bound: Tensor,
    own_sink: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cut capacities and flow values of some tokens of one network."""
    flows, rooms, values = [], [], []
    for token, limit, own in zip(
        tokens.tolist(), bound.tolist(), own_sink.tolist(), strict=True
    ):
        flow, room = graph.solve(_FIRST + token, limit, None if own else token)
        flows.append(graph.per_edge(flow, network.n_tokens))
        rooms.append(graph.per_edge(room, network.n_tokens))
        values.append(float(flow[graph.sinks].sum()) * (limit / _UNITS))
    start = torch.zeros(len(tokens), network.n_tokens, dtype=torch.bool)
    start[torch.arange(len(tokens)), tokens.cpu()] = True
    cut = _source_side(torch.stack(flows), torch.stack(rooms), start)
    crossing = cut[:, :-1, None, :] & ~cut[:, 1:, :, None]
    capacity = torch.where(crossing.to(bound.device), network.capacity, 0.0)
    return capacity.sum((1, 2, 3)), bound.new_tensor(values)


def _solve_one(network: LayeredNetwork, bound: float) -> FlowSolution:
    graph = _Graph.of(network)
    flow, room = graph.solve(_SOURCE, bound)
    unit = bound / _UNITS
    per_edge = graph.per_edge(flow, network.n_tokens)[None]
    cut = _source_side(
        per_edge, graph.per_edge(room, network.n_tokens)[None], network.source.cpu()
    ).to(network.capacity)
    # The rounding of the unit may exceed a capacity in its last digit.
    inner = torch.minimum(per_edge.to(network.capacity) * unit, network.capacity)
    sink_flow = torch.zeros_like(network.capacity[:, 0, 0])
    sink_flow[0, graph.read_out] = sink_flow.new_tensor(flow[graph.sinks] * unit)
    value = sink_flow.sum(-1)
    gap = network.cut_capacity(cut > 0) - value
    return certified(
        network,
        flow=inner,
        source_flow=inner[:, 0].sum(-2),
        sink_flow=sink_flow,
        potential=-cut,
        mu=torch.zeros_like(value),
        duality_gap=gap.clamp_min(0),
        iterations=torch.zeros_like(value, dtype=torch.int64),
    )


def _source_side(flow: Tensor, room: Tensor, start: Tensor) -> Tensor:
    """Nodes that a flow could still reach: the source's side of a minimum cut.

    Args:
        flow (Tensor): Shape ``(B, L, T, T)``, which may be taken back.
        room (Tensor): Shape ``(B, L, T, T)``, which is left.
        start (Tensor): Shape ``(B, T)``, bool, nodes of token layer 0.

    Returns:
        Tensor: Shape ``(B, L + 1, T)``, bool.
    """
    # Counts of edges from reached nodes: products are faster than logic.
    ahead, back = (room > 0).float(), (flow > 0).float().mT
    n_layers = flow.shape[1]
    side = start.new_zeros(len(start), n_layers + 1, start.shape[1]).float()
    side[:, 0] = start
    reached = -1
    while reached != (reached := int(side.sum())):
        for layer in range(n_layers):
            count = torch.bmm(ahead[:, layer], side[:, layer, :, None])[..., 0]
            side[:, layer + 1].add_(count).clamp_max_(1)
        for layer in reversed(range(n_layers)):
            count = torch.bmm(back[:, layer], side[:, layer + 1, :, None])[..., 0]
            side[:, layer].add_(count).clamp_max_(1)
    return side > 0
