"""Exact maximum flow through SciPy's Dinic algorithm, certified by a cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
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
        bounds = network.node_bound().sum(-1).amin(-1).tolist()
        parts = []
        for index, bound in enumerate(bounds):
            one = network.select(slice(index, index + 1))
            graph = _Graph.of(one)
            flow, source_side = graph.solve(_SOURCE, bound)
            parts.append(_solution(one, graph, flow * (bound / _UNITS), source_side))
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
        for index in range(network.n_networks):
            graph = _Graph.of(network.select(slice(index, index + 1)))
            for token in bound[index].nonzero()[:, 0].tolist():
                value[index, token], gap[index, token] = graph.solve_token(
                    token, float(bound[index, token]), bool(own_sink[index, token])
                )
        return value, gap


@dataclass(frozen=True, eq=False)
class _Graph:
    """One network in compressed rows, with an empty reverse edge for every edge.

    SciPy adds reverse edges where they are missing; with them here, its flow has the
    same entries in the same order.
    """

    capacity: NDArray[np.float64]  # 0 for reverse edges only
    tails: NDArray[np.int32]
    heads: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    n_tokens: int

    @staticmethod
    def of(network: LayeredNetwork) -> _Graph:
        n_nodes = _FIRST + (network.n_layers + 1) * network.n_tokens
        tails, heads, capacity = _edges(network)
        ends = np.concatenate([tails, heads]), np.concatenate([heads, tails])
        numbered = csr_array(
            (np.arange(1, 1 + len(ends[0])), ends), shape=(n_nodes, n_nodes)
        )
        numbered.sort_indices()
        both_ways = np.concatenate([capacity, np.zeros_like(capacity)])
        return _Graph(
            capacity=both_ways[numbered.data - 1],
            tails=np.repeat(
                np.arange(n_nodes, dtype=np.int32), np.diff(numbered.indptr)
            ),
            heads=numbered.indices.astype(np.int32),
            row_starts=numbered.indptr.astype(np.int32),
            n_tokens=network.n_tokens,
        )

    def solve(
        self, source: int, bound: float, closed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Flow of every edge in units, and the nodes on the source's side of a cut."""
        shape = (len(self.row_starts) - 1,) * 2
        in_units = np.minimum(self.capacity * (_UNITS / bound), _UNLIMITED)
        if closed is not None:
            in_units[closed] = 0
        arrays = in_units.astype(np.int32), self.heads.copy(), self.row_starts.copy()
        room = csr_array(arrays, shape=shape)
        flow: NDArray[np.int32] = maximum_flow(room, source, _SINK).flow.data
        room.data -= flow
        room.eliminate_zeros()  # in place, hence the copies
        source_side = np.zeros(shape[0], dtype=np.bool_)
        reached = breadth_first_order(room, source, return_predecessors=False)
        source_side[reached] = True
        return flow, source_side

    def solve_token(
        self, token: int, bound: float, own_sink: bool
    ) -> tuple[float, float]:
        """Capacity of a token's minimum cut, and how far its flow stays below."""
        into_sink = self.heads == _SINK
        last = len(self.row_starts) - 1 - self.n_tokens + token
        closed = None if own_sink else into_sink & (self.tails == last)
        while True:
            flow, source_side = self.solve(_FIRST + token, bound, closed)
            crossing = source_side[self.tails] & ~source_side[self.heads]
            if closed is not None:
                crossing &= ~closed
            cut = float(self.capacity[crossing].sum())
            if cut * _LOOSE >= bound:
                value = float(flow[into_sink].sum()) * (bound / _UNITS)
                return cut, max(0.0, cut - value)
            bound = cut


def _edges(
    network: LayeredNetwork,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All edges as tails, heads and capacities; nodes are numbered layer by layer."""
    n_tokens = network.n_tokens
    capacity = network.capacity[0].cpu().numpy()
    layer, head, tail = capacity.nonzero()
    sources = network.source[0].cpu().numpy().nonzero()[0]
    sinks = network.sink[0].cpu().numpy().nonzero()[0]
    below, last = _FIRST + layer * n_tokens, _FIRST + network.n_layers * n_tokens
    unlimited = np.full(len(sources) + len(sinks), np.inf)
    return (
        np.concatenate([below + tail, np.full(len(sources), _SOURCE), last + sinks]),
        np.concatenate(
            [below + n_tokens + head, _FIRST + sources, np.full(len(sinks), _SINK)]
        ),
        np.concatenate([capacity[layer, head, tail], unlimited]),
    )


def _solution(
    network: LayeredNetwork,
    graph: _Graph,
    flow: NDArray[np.float64],
    source_side: NDArray[np.bool_],
) -> FlowSolution:
    n_layers, n_tokens = network.n_layers, network.n_tokens
    per_edge = np.zeros((n_layers, n_tokens, n_tokens))
    source_flow, sink_flow = np.zeros(n_tokens), np.zeros(n_tokens)
    forward = graph.capacity > 0
    sent, received = graph.tails == _SOURCE, graph.heads == _SINK
    between = forward & ~sent & ~received
    layer, below = np.divmod(graph.tails[between] - _FIRST, n_tokens)
    above = (graph.heads[between] - _FIRST) % n_tokens
    # The rounding of the unit may exceed a capacity in its last digit.
    per_edge[layer, above, below] = np.minimum(flow[between], graph.capacity[between])
    sent, received = forward & sent, forward & received
    source_flow[graph.heads[sent] - _FIRST] = flow[sent]
    sink_flow[(graph.tails[received] - _FIRST) % n_tokens] = flow[received]

    def batch_of_one(array: NDArray[np.float64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(array)[None].to(network.capacity)

    value = batch_of_one(sink_flow).sum(-1)
    cut = batch_of_one(source_side[_FIRST:].reshape(n_layers + 1, n_tokens))
    gap = network.cut_capacity(cut > 0) - value
    return certified(
        network,
        flow=batch_of_one(per_edge),
        source_flow=batch_of_one(source_flow),
        sink_flow=batch_of_one(sink_flow),
        potential=-cut,
        mu=torch.zeros_like(value),
        duality_gap=gap.clamp_min(0),
        iterations=torch.zeros_like(value, dtype=torch.int64),
    )
