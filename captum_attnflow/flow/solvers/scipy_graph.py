"""Maximum flows by Dinic's algorithm (1970) in SciPy, and their residual graphs.

A residual graph has an edge wherever a flow may still grow or shrink. The nodes that
the source reaches in it are the source's side of a minimum cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

SOURCE, SINK, FIRST = 0, 1, 2
# SciPy's flows are int32. The bound of the value is _UNITS units, and an edge that
# never binds has more than that.
_UNITS = 1 << 30
_UNLIMITED = _UNITS + (_UNITS >> 1)
# Edges solved in one call: fewer make the calls dominate, more do not fit the cache.
_MAX_EDGES_AT_ONCE = 1 << 14


class Graph:
    """Edges in compressed rows; nodes are source, sink, then the others.

    Every edge has an empty reverse edge: SciPy adds those that are missing, and with
    all of them here its flow has the same entries in the same order.

    Args:
        tails (array): Shape ``(E,)``, node each edge leaves.
        heads (array): Shape ``(E,)``, node each edge enters; no edge twice.
        n_nodes (int): Nodes, source and sink included.
    """

    def __init__(
        self, tails: NDArray[np.intp], heads: NDArray[np.intp], n_nodes: int
    ) -> None:
        n_edges = len(tails)
        numbered = csr_array(
            (
                np.arange(1, 1 + 2 * n_edges),
                (np.concatenate([tails, heads]), np.concatenate([heads, tails])),
            ),
            shape=(n_nodes, n_nodes),
        )
        numbered.sort_indices()
        place = np.empty(numbered.nnz, np.intp)
        place[numbered.data - 1] = np.arange(numbered.nnz)
        self._place = place[:n_edges]
        self._columns = numbered.indices.astype(np.int32)
        self._row_starts = numbered.indptr.astype(np.int32)

    def maximum_flows(self, in_units: NDArray[np.int32]) -> NDArray[np.int32]:
        """Solve copies of the graph that differ in their capacities.

        Args:
            in_units (array): Shape ``(P, E)``, capacities of ``P`` copies.

        Returns:
            array: Shape ``(P, E)``, flow per edge in units.
        """
        at_once = max(1, _MAX_EDGES_AT_ONCE // len(self._place))
        parts = range(0, len(in_units), at_once)
        return np.concatenate(
            [self._solve_together(in_units[first : first + at_once]) for first in parts]
        )

    def _solve_together(self, in_units: NDArray[np.int32]) -> NDArray[np.int32]:
        """Solve the copies in one graph, in which they share source and sink."""
        n_copies, n_entries = len(in_units), len(self._columns)
        capacity = np.zeros((n_copies, n_entries), np.int32)
        capacity[:, self._place] = in_units
        n_inner = len(self._row_starts) - 1 - FIRST
        shift = n_inner * np.arange(n_copies, dtype=np.int32)[:, None]
        columns = np.where(self._columns < FIRST, self._columns, self._columns + shift)
        # The rows of source and sink run over all copies; then come the copies' own.
        ends = self._row_starts[1 : 1 + FIRST]
        lengths = np.diff(self._row_starts)
        lengths = np.concatenate(
            [lengths[:FIRST] * n_copies, np.tile(lengths[FIRST:], n_copies)]
        )
        graph = csr_array(
            (
                _rows_over_copies(capacity, ends),
                _rows_over_copies(columns, ends),
                np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            ),
            shape=(len(lengths), len(lengths)),
        )
        flat = maximum_flow(graph, SOURCE, SINK).flow.data
        sizes = np.diff(np.concatenate([[0], ends, [n_entries]]))
        parts = np.split(flat, np.cumsum(sizes[:-1] * n_copies))
        flow = np.concatenate(
            [part.reshape(n_copies, -1) for part in parts], axis=1, dtype=np.int32
        )
        return flow[:, self._place]


def _rows_over_copies(
    entries: NDArray[np.int32], ends: NDArray[np.int32]
) -> NDArray[np.int32]:
    """From copies ``(P, entries)`` to the rows of one graph."""
    parts = np.split(entries, ends, axis=1)
    return np.concatenate([part.reshape(-1) for part in parts])


def in_units(
    capacity: NDArray[np.float64], bound: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Round capacities down to units, a :math:`2^{30}`-th of a bound of the value.

    Args:
        capacity (array): Shape ``(P, E)`` or ``(1, E)``, in ``[0, inf]``.
        bound (array): Shape ``(P,)``, positive and finite.

    Returns:
        array: Shape ``(P, E)``.
    """
    # Division first: _UNITS / bound would overflow for small bounds. A quotient that
    # overflows belongs to a capacity that never binds.
    with np.errstate(over="ignore"):
        unlimited: NDArray[np.float64] = capacity / bound[:, None]
    unlimited *= _UNITS
    return np.minimum(unlimited, _UNLIMITED, out=unlimited).astype(np.int32)


def from_units(
    flow: NDArray[np.int32], bound: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Flow in units of capacity again: shapes ``(P, E)`` and ``(P,)``."""
    scaled: NDArray[np.float64] = flow / _UNITS * bound[:, None]
    return scaled


@dataclass(frozen=True, eq=False)
class EdgeList:
    """Some edges of one layer in some of ``P`` copies of a network.

    Attributes:
        tail (Tensor): Shape ``(N,)``, int64, ``copy * T + position`` one layer below.
        head (Tensor): Shape ``(N,)``, int64, the same one layer above.
    """

    tail: Tensor
    head: Tensor


def edge_lists(
    chosen: NDArray[np.bool_],
    layer: NDArray[np.intp],
    head: NDArray[np.intp],
    tail: NDArray[np.intp],
    token: NDArray[np.int64],
    shape: tuple[int, int],
) -> list[EdgeList]:
    """List chosen edges of ``P`` copies of a network, layer by layer.

    Args:
        chosen (array): Shape ``(P, E)``.
        layer (array): Shape ``(E,)``, ascending.
        head (array): Shape ``(E,)``, position.
        tail (array): Shape ``(E,)``, position; -1 stands for a copy's own token.
        token (array): Shape ``(P,)``, tokens of the copies.
        shape (tuple of int): Layers of edges, and tokens.
    """
    n_layers, n_tokens = shape
    lists = []
    for start, end in pairwise(np.searchsorted(layer, np.arange(n_layers + 1))):
        copy, edge = chosen[:, start:end].nonzero()
        position = tail[start + edge]
        position = np.where(position < 0, token[copy], position)
        lists.append(
            EdgeList(
                tail=torch.from_numpy(copy * n_tokens + position),
                head=torch.from_numpy(copy * n_tokens + head[start + edge]),
            )
        )
    return lists


def source_side(
    edges: Tensor,
    start: Tensor,
    saturated: Sequence[EdgeList],
    carrying: Sequence[EdgeList],
) -> Tensor:
    """Find the nodes that more flow could reach in each of ``P`` copies of a network.

    Flow passes along every edge that is not saturated, and back along those that
    carry flow. What all copies share is one matrix product per layer, so that a flow
    over few edges is judged within the whole network at little cost.

    Args:
        edges (Tensor): Shape ``(M, T, T)``, float32, 1 where there is an edge.
        start (Tensor): Shape ``(P, T)``, bool, nodes of the lowest layer that the
            source still reaches.
        saturated (sequence of EdgeList): Edges without residual capacity, per layer.
        carrying (sequence of EdgeList): Edges with flow, per layer.

    Returns:
        Tensor: Shape ``(M + 1, P, T)``, bool, layers of nodes first.
    """
    n_layers = len(edges)
    side = start.new_zeros(n_layers + 1, *start.shape).float()
    side[0] = start
    reached = -1
    while reached != (reached := int(side.sum())):
        for layer, full in enumerate(saturated):
            below = side[layer]
            # Edges from reached nodes, less those that are saturated.
            count = below @ edges[layer].mT
            without = below.view(-1)[full.tail]
            count.view(-1).index_add_(0, full.head, without, alpha=-1)
            side[layer + 1].add_(count).clamp_max_(1)
        for layer in reversed(range(n_layers)):
            used = carrying[layer]
            back = used.tail[side[layer + 1].view(-1)[used.head] > 0]
            side[layer].view(-1)[back] = 1
    return side > 0
