"""Which nodes a flow could still reach: the source's side of a minimum cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
        saturated (sequence of EdgeList): Edges without room, per layer.
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
            # Edges from reached nodes, less those that have no room.
            count = below @ edges[layer].mT
            without = below.view(-1)[full.tail]
            count.view(-1).index_add_(0, full.head, without, alpha=-1)
            side[layer + 1].add_(count).clamp_max_(1)
        for layer in reversed(range(n_layers)):
            used = carrying[layer]
            back = used.tail[side[layer + 1].view(-1)[used.head] > 0]
            side[layer].view(-1)[back] = 1
    return side > 0
