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
# Edges of the tokens that are solved at once.
_MAX_EDGES_AT_ONCE = 1 << 18


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
    columns: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    inner: NDArray[np.intp]  # entries between token layers
    edges: NDArray[np.intp]  # their places in (L, T, T), flattened
    sinks: NDArray[np.intp]  # entries into the sink
    read_out: NDArray[np.intp]  # their tokens
    shape: tuple[int, ...]  # (L, T, T)

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
        unlimited = np.full(len(sinks) + len(sources), np.inf)
        given = np.concatenate([capacity[layer, head, tail], unlimited])
        in_order = np.zeros(numbered.nnz)
        in_order[place[: len(given)]] = given
        return _Graph(
            capacity=in_order,
            columns=numbered.indices.astype(np.int32),
            row_starts=numbered.indptr.astype(np.int32),
            inner=place[: len(layer)],
            edges=np.ravel_multi_index((layer, head, tail), capacity.shape),
            sinks=place[len(layer) : len(layer) + len(sinks)],
            read_out=sinks,
            shape=capacity.shape,
        )

    @property
    def sources(self) -> slice:
        """Entries out of the source."""
        return slice(0, int(self.row_starts[1]))

    def solve(
        self, in_units: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Flow and the room it leaves, both ``(P, entries)``, in units.

        Args:
            in_units (array): Shape ``(P, entries)``, capacities of ``P`` copies.

        The copies share source and sink in one graph: a call of SciPy costs more than
        a flow over a sentence.
        """
        n_copies = len(in_units)
        n_inner = len(self.row_starts) - 1 - _FIRST
        shift = n_inner * np.arange(n_copies, dtype=np.int32)[:, None]
        columns = np.where(
            self.columns < _FIRST, self.columns, self.columns + shift
        ).astype(np.int32)
        # The rows of source and sink run over all copies; then come the copies' own.
        ends = self.row_starts[1 : 1 + _FIRST]
        lengths = np.diff(self.row_starts)
        lengths = np.concatenate(
            [lengths[:_FIRST] * n_copies, np.tile(lengths[_FIRST:], n_copies)]
        )
        graph = csr_array(
            (
                _rows_over_copies(in_units, ends),
                _rows_over_copies(columns, ends),
                np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            ),
            shape=(len(lengths), len(lengths)),
        )
        flat = maximum_flow(graph, _SOURCE, _SINK).flow.data
        sizes = np.diff(np.concatenate([[0], ends, [len(self.columns)]]))
        parts = np.split(flat, np.cumsum(sizes[:-1] * n_copies))
        flow = np.concatenate(
            [part.reshape(n_copies, -1) for part in parts], axis=1, dtype=np.int32
        )
        return flow, in_units - flow

    def per_edge(self, entries: NDArray[np.int32]) -> Tensor:
        """Lay entries out as capacities are: ``(P, L, T, T)``, int32."""
        dense = np.zeros((len(entries), int(np.prod(self.shape))), np.int32)
        dense[:, self.edges] = entries[:, self.inner]
        return torch.from_numpy(dense).view(-1, *self.shape)

    def in_units(self, bound: NDArray[np.float64]) -> NDArray[np.int32]:
        """Capacities in units of each bound, ``(P, entries)``."""
        unlimited: NDArray[np.float64] = self.capacity * (_UNITS / bound)[:, None]
        return np.minimum(unlimited, _UNLIMITED).astype(np.int32)


def _rows_over_copies(
    entries: NDArray[np.int32], ends: NDArray[np.int32]
) -> NDArray[np.int32]:
    """From copies ``(P, entries)`` to the rows of one graph."""
    parts = np.split(entries, ends, axis=1)
    return np.concatenate([part.reshape(-1) for part in parts])


def _solve_tokens(
    network: LayeredNetwork,
    graph: _Graph,
    tokens: Tensor,
    bound: Tensor,
    own_sink: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cut capacities and flow values of some tokens of one network."""
    chosen = tokens.cpu().numpy()[:, None]
    in_units = graph.in_units(bound.cpu().numpy())
    in_units[:, graph.sources] *= graph.columns[graph.sources] == _FIRST + chosen
    open_sinks = (graph.read_out != chosen) | own_sink.cpu().numpy()[:, None]
    in_units[:, graph.sinks] *= open_sinks
    flow, room = graph.solve(in_units)
    start = torch.zeros(len(tokens), network.n_tokens, dtype=torch.bool)
    start[torch.arange(len(tokens)), tokens.cpu()] = True
    cut = _source_side(graph.per_edge(flow), graph.per_edge(room), start)
    crossing = cut[:, :-1, None, :] & ~cut[:, 1:, :, None]
    capacity = torch.where(crossing.to(bound.device), network.capacity, 0.0)
    units = flow[:, graph.sinks].sum(1, dtype=np.float64)
    return capacity.sum((1, 2, 3)), bound * bound.new_tensor(units / _UNITS)


def _solve_one(network: LayeredNetwork, bound: float) -> FlowSolution:
    graph = _Graph.of(network)
    flow, room = graph.solve(graph.in_units(np.array([bound])))
    unit = bound / _UNITS
    per_edge = graph.per_edge(flow)
    cut = _source_side(per_edge, graph.per_edge(room), network.source.cpu())
    cut = cut.to(network.capacity)
    # The rounding of the unit may exceed a capacity in its last digit.
    inner = torch.minimum(per_edge.to(network.capacity) * unit, network.capacity)
    sink_flow = torch.zeros_like(network.capacity[:, 0, 0])
    sink_flow[0, graph.read_out] = sink_flow.new_tensor(flow[0, graph.sinks] * unit)
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
