r"""The layered flow network: capacities in, a :class:`LayeredNetwork` out.

Nodes are the token positions of :math:`L + 1` token layers, a super-source and a
super-sink. All tensors are batched over networks, which do not interact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from captum_attnflow._checks import (
    check_example,
    check_finite,
    check_tensor,
    counted,
    described,
)
from captum_attnflow._tree import Compared

SOURCE = "source"
SINK = "sink"


@dataclass(frozen=True, eq=False)
class LayeredNetwork(Compared):
    r"""A batch of layered flow networks over token positions.

    Attributes:
        capacity (Tensor): Shape ``(B, L, T, T)``, float, in ``[0, inf]``.
            ``capacity[b, l, i, j]`` is the capacity of the edge from node ``j`` of
            token layer ``l`` (below, the key) to node ``i`` of token layer ``l + 1``
            (above, the query). ``0`` is no edge, ``inf`` an edge that never binds.
        source (Tensor): Shape ``(B, T)``, bool. Nodes of token layer 0 that the
            super-source feeds, by an edge that never binds.
        sink (Tensor): Shape ``(B, T)``, bool. Nodes of token layer ``L`` that feed
            the super-sink, by an edge that never binds.

    Raises:
        ValueError: If one is not a tensor, shapes disagree, a terminal is not bool,
            capacities are not floats, or one is negative or NaN.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[0.2, 0.3], [0.0, 0.4]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[True, False]]),
        ... )
        >>> network.n_edges
        tensor([3])
        >>> network.trim().n_edges  # the edge into the unread node is gone
        tensor([2])
    """

    capacity: Tensor
    source: Tensor
    sink: Tensor

    def __post_init__(self) -> None:
        check_tensor("capacity", self.capacity, "floats")
        shape = tuple(self.capacity.shape)
        if len(shape) != 4 or shape[-1] != shape[-2] or 0 in shape[1:]:
            raise ValueError(
                f"capacity has shape {shape}; a batch of layered networks needs "
                "(B, L, T, T): networks, layers, heads (queries), tails (keys), at "
                "least one of the last three"
            )
        expected = (shape[0], shape[-1])
        for name, terminal in (("source", self.source), ("sink", self.sink)):
            if not isinstance(terminal, Tensor) or terminal.is_nested:
                check_tensor(name, terminal, "bools")
            if tuple(terminal.shape) != expected or terminal.dtype != torch.bool:
                raise ValueError(
                    f"{name} has shape {tuple(terminal.shape)} and dtype "
                    f"{terminal.dtype}; capacity {shape} needs a bool tensor of "
                    f"shape {expected}"
                )
            check_tensor(name, terminal, "bools")
            if terminal.device != self.capacity.device:
                raise ValueError(
                    f"{name} is on {terminal.device}, and capacity on "
                    f"{self.capacity.device}; give both on the same device"
                )
        if self.capacity.numel() and not bool(self.capacity.amin() >= 0):
            raise ValueError(
                "capacity holds negative or NaN entries; capacities lie in [0, inf]"
            )

    @property
    def n_networks(self) -> int:
        """Networks in the batch, ``B``."""
        return int(self.capacity.shape[0])

    @property
    def n_layers(self) -> int:
        """Layers of edges, ``L``; there is one more layer of nodes."""
        return int(self.capacity.shape[1])

    @property
    def n_tokens(self) -> int:
        """Token positions per layer, ``T``."""
        return int(self.capacity.shape[-1])

    @property
    def _shape_of_nodes(self) -> tuple[int, int, int]:
        return self.n_networks, self.n_layers + 1, self.n_tokens

    @property
    def n_edges(self) -> Tensor:
        """Edges between token layers, shape ``(B,)``, int64."""
        return (self.capacity > 0).sum((1, 2, 3))

    def select(self, index: Tensor | slice) -> LayeredNetwork:
        """Return the networks of the batch that ``index`` picks.

        Args:
            index (Tensor or slice): Integers of shape ``(N,)``, or bools of shape
                ``(B,)``.
        """
        if not isinstance(index, slice):
            is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
            if is_mask:
                check_tensor("index", index, "bools", (self.n_networks,))
            else:
                check_tensor("index", index, "integers", ("B",))
        return LayeredNetwork(
            self.capacity[index], self.source[index], self.sink[index]
        )

    def take(self, positions: Tensor) -> LayeredNetwork:
        """Return the networks over some of the token positions.

        Args:
            positions (Tensor): Shape ``(P,)``, int64.
        """
        check_tensor("positions", positions, "integers", ("P",))
        return LayeredNetwork(
            self.capacity[..., positions, :][..., positions],
            self.source[:, positions],
            self.sink[:, positions],
        )

    def used(self) -> Tensor:
        """Find the positions that have an edge or a terminal in any layer.

        Returns:
            Tensor: Shape ``(B, T)``, bool.
        """
        edge = self.capacity.amax(1) > 0
        return edge.any(1) | edge.any(2) | self.source | self.sink

    def reachable(self) -> tuple[Tensor, Tensor]:
        """Find the nodes that the source reaches and those that reach the sink.

        Returns:
            tuple[Tensor, Tensor]: **from_source** and **to_sink**, each of shape
            ``(B, L + 1, T)``, bool.
        """
        # Counts of edges from reached nodes: products are faster than logic.
        from_source = [self.source.float()]
        edge = torch.empty_like(self.capacity[:, 0], dtype=torch.float32)
        for layer in range(self.n_layers):
            edge.copy_(self.capacity[:, layer] > 0)
            count = torch.bmm(from_source[-1][:, None], edge.mT)[:, 0]
            from_source.append(count.clamp_max_(1))
        to_sink = [self.sink.float()]
        for layer in reversed(range(self.n_layers)):
            edge.copy_(self.capacity[:, layer] > 0)
            count = torch.bmm(to_sink[-1][:, None], edge)[:, 0]
            to_sink.append(count.clamp_max_(1))
        return torch.stack(from_source, 1) > 0, torch.stack(to_sink[::-1], 1) > 0

    def trim(self) -> LayeredNetwork:
        """Remove every edge and terminal that lies on no path from source to sink.

        Without this the barrier problem has no strictly interior point: a dead end
        forces its edges to carry exactly 0.
        """
        from_source, to_sink = self.reachable()
        return self.restrict(from_source & to_sink)

    def restrict(self, live: Tensor) -> LayeredNetwork:
        """Remove every edge and terminal at a node that is not alive.

        Args:
            live (Tensor): Shape ``(B, L + 1, T)``, bool.
        """
        check_tensor("live", live, "bools", self._shape_of_nodes)
        if bool(live.all()):
            return self
        capacity = empty(self.capacity.shape, like=self.capacity).copy_(self.capacity)
        # Not a product: inf * 0 is NaN.
        capacity.masked_fill_(~live[:, 1:, :, None], 0.0)
        capacity.masked_fill_(~live[:, :-1, None, :], 0.0)
        return replace(
            self,
            capacity=capacity,
            source=self.source & live[:, 0],
            sink=self.sink & live[:, -1],
        )

    def node_bound(self) -> Tensor:
        """Bound the flow through every node by what can reach and leave it.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``, in ``[0, inf]``. Infinite only at a node
            on a path of edges that never bind, where the maximum flow is unbounded.
        """
        infinity = self.capacity.new_tensor(torch.inf)
        bounded = torch.empty_like(self.capacity[:, 0])
        arriving = [torch.where(self.source, infinity, 0.0)]
        for layer in range(self.n_layers):
            torch.minimum(self.capacity[:, layer], arriving[-1][:, None], out=bounded)
            arriving.append(bounded.sum(-1))
        return torch.minimum(torch.stack(arriving, 1), self.leaving_bound())

    def leaving_bound(self) -> Tensor:
        """Bound the flow through every node by what can leave it.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``, in ``[0, inf]``. Infinite at a node with a
            path to the sink of edges that never bind.
        """
        infinity = self.capacity.new_tensor(torch.inf)
        bounded = torch.empty_like(self.capacity[:, 0])
        leaving = [torch.where(self.sink, infinity, 0.0)]
        for layer in reversed(range(self.n_layers)):
            torch.minimum(self.capacity[:, layer], leaving[-1][..., None], out=bounded)
            leaving.append(bounded.sum(-2))
        return torch.stack(leaving[::-1], 1)

    def divergence(
        self, flow: Tensor, source_flow: Tensor, sink_flow: Tensor
    ) -> Tensor:
        """Flow into every node minus flow out of it; 0 where flow is conserved.

        Args:
            flow (Tensor): Shape ``(B, L, T, T)``, flow per edge between token layers.
            source_flow (Tensor): Shape ``(B, T)``, flow from the super-source.
            sink_flow (Tensor): Shape ``(B, T)``, flow into the super-sink.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``.
        """
        check_tensor("flow", flow, "floats", self.capacity.shape)
        ends = (self.n_networks, self.n_tokens)
        check_tensor("source_flow", source_flow, "floats", ends)
        check_tensor("sink_flow", sink_flow, "floats", ends)
        arriving = torch.cat([source_flow[:, None], flow.sum(-1)], 1)
        leaving = torch.cat([flow.sum(-2), sink_flow[:, None]], 1)
        return arriving - leaving

    def cut_capacity(self, cut: Tensor) -> Tensor:
        """Capacity of the edges that leave the source's side of a cut.

        Args:
            cut (Tensor): Shape ``(B, L + 1, T)``, bool, ``True`` on the source's
                side. A cut through a terminal's edge has infinite capacity.

        Returns:
            Tensor: Shape ``(B,)``, an upper bound of every flow's value.
        """
        check_tensor("cut", cut, "bools", self._shape_of_nodes)
        tails, heads = cut[:, :-1].flatten(0, 1), ~cut[:, 1:].flatten(0, 1)
        capacity = self.capacity.flatten(0, 1)
        with torch.autocast(capacity.device.type, enabled=False):
            total = torch.bmm(capacity, tails[..., None].to(capacity.dtype))[..., 0]
        total = torch.where(heads, total, 0.0)
        if not bool(total.isfinite().all()):
            # Not a product: inf * 0 is NaN.
            crossing = tails[:, None, :] & heads[:, :, None]
            total = torch.where(crossing, capacity, 0.0).sum(2)
        total = total.unflatten(0, cut[:, 1:].shape[:2]).sum((1, 2))
        through_terminal = (self.source & ~cut[:, 0]).any(-1)
        through_terminal |= (self.sink & cut[:, -1]).any(-1)
        return torch.where(through_terminal, torch.inf, total)

    def to_networkx(
        self,
        example: int = 0,
        tokens: Sequence[str] | None = None,
        flow: Tensor | None = None,
        direct: Tensor | None = None,
    ) -> nx.DiGraph:
        """Build one network of the batch as a :class:`networkx.DiGraph`.

        Nodes are ``"source"``, ``"sink"`` and ``"layer/position"``, with the token
        behind a space where ``tokens`` are given (``"0/2 funny"``); token nodes carry
        the attributes ``layer``, ``position`` and ``token``. Edges carry ``capacity``,
        and ``flow`` where a flow is given. Edges that never bind have no
        ``capacity`` attribute, which networkx reads as infinite.

        A flow may be signed, as that of Relevance Flow, whose capacities are its
        absolute value. Its direct edges lead from ``"0/position"`` to ``"sink"``. There
        is at least one layer between, so no other edge joins these two, and none is
        overwritten. The edge from the source carries what the token sends in all.

        Args:
            example (int): Which network of the batch.
            tokens (sequence of str, optional): One text per position.
            flow (Tensor, optional): Shape ``(B, L, T, T)``, a conserving flow of this
                batch, such as :attr:`FlowSolution.flow`.
            direct (Tensor, optional): Shape ``(B, T)``, flow on direct edges, with
                ``capacity`` its absolute value; 0 is no edge. Needs a ``flow``.

        Raises:
            ValueError: If there is no such example, ``tokens`` has not one text per
                position, or direct edges are given without a flow.

        Examples::

            >>> flow = torch.tensor([[[[0.5, -0.2], [0.0, 0.0]]]])
            >>> read_out = torch.tensor([[True, False]])
            >>> network = LayeredNetwork(flow.abs(), read_out | True, read_out)
            >>> direct = torch.tensor([[0.0, 0.7]])
            >>> graph = network.to_networkx(flow=flow, direct=direct)
            >>> for token, _, amount in graph.in_edges("sink", data="flow"):
            ...     print(token, f"{amount:.1f}")
            0/1 0.7
            1/0 0.3
        """
        check_example(example, self.n_networks)
        if direct is not None and flow is None:
            raise ValueError(
                "direct edges were given without a flow; give the flow they belong to, "
                "flow=explanation.flow"
            )
        if flow is not None:
            check_tensor("flow", flow, "floats", self.capacity.shape)
            check_finite("flow", flow)
        if direct is not None:
            ends = (self.n_networks, self.n_tokens)
            check_tensor("direct", direct, "floats", ends)
            check_finite("direct", direct)
        if tokens is not None and (
            not isinstance(tokens, Sequence)
            or isinstance(tokens, str)
            or not all(isinstance(token, str) for token in tokens)
        ):
            raise ValueError(
                f"tokens={described(tokens)}; give a list of one text per position, "
                "such as tokenizer.convert_ids_to_tokens(ids)"
            )
        if tokens is not None and len(tokens) != self.n_tokens:
            raise ValueError(
                f"tokens holds {counted(len(tokens), 'token')} for "
                f"{counted(self.n_tokens, 'position')}; "
                "give one text per position, special and padding tokens included"
            )
        graph = nx.DiGraph()
        graph.add_nodes_from([SOURCE, SINK])
        for layer in range(self.n_layers + 1):
            for position in range(self.n_tokens):
                token = tokens[position] if tokens else ""
                graph.add_node(
                    node_name(layer, position, token),
                    layer=layer,
                    position=position,
                    token=token,
                )
        edges = self._edges(example, list(graph), flow, direct)
        for tail, head, capacity, amount in edges:
            attributes = {} if capacity == float("inf") else {"capacity": capacity}
            if flow is not None:
                attributes["flow"] = amount
            graph.add_edge(tail, head, **attributes)
        return graph

    def _edges(
        self,
        example: int,
        names: list[str],
        flow: Tensor | None,
        direct: Tensor | None,
    ) -> list[tuple[str, str, float, float]]:
        """All edges of one network as (tail, head, capacity, flow)."""
        capacity = self.capacity[example]
        amount = torch.zeros_like(capacity) if flow is None else flow[example]
        # Names are SOURCE, SINK, then the token nodes, layer by layer.
        first, last = 2, 2 + self.n_layers * self.n_tokens
        edges = [
            (
                names[first + layer * self.n_tokens + tail],
                names[first + (layer + 1) * self.n_tokens + head],
                float(capacity[layer, head, tail]),
                float(amount[layer, head, tail]),
            )
            for layer, head, tail in capacity.nonzero().tolist()
        ]
        past = amount.new_zeros(self.n_tokens) if direct is None else direct[example]
        for token in past.nonzero()[:, 0].tolist():
            along = float(past[token])
            edges.append((names[first + token], SINK, abs(along), along))
        sent = (amount[0].sum(0) + past).tolist()
        received = amount[-1].sum(-1).tolist()
        for token in self.source[example].nonzero()[:, 0].tolist():
            edges.append((SOURCE, names[first + token], float("inf"), sent[token]))
        for token in self.sink[example].nonzero()[:, 0].tolist():
            edges.append((names[last + token], SINK, float("inf"), received[token]))
        return edges


def node_name(layer: int, position: int, token: str = "") -> str:
    """Name of a token node in :meth:`LayeredNetwork.to_networkx`."""
    return f"{layer}/{position} {token}".rstrip()


def check_network(network: object) -> None:
    """Refuse anything but a network.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    if not isinstance(network, LayeredNetwork):
        raise ValueError(
            f"network is {described(network)}; give a LayeredNetwork, such as "
            "LayeredNetwork(capacity, source, sink) or the one of an explanation"
        )


# NumPy asks for large pages from this size on.
_LARGE_BYTES = 1 << 22
_LINE_BYTES = 64


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an array of a shape, with the dtype and the device of another."""
    n_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or n_bytes < _LARGE_BYTES:
        return like.new_empty(shape)
    with torch.inference_mode(False):
        return empty_bytes(n_bytes).view(like.dtype).view(shape)


def empty_bytes(number: int) -> Tensor:
    """Return memory of the CPU, ``(number,)``, as a tensor for any later use.

    It begins with a line of the cache.
    """
    # Whoever is first may work under inference mode, and others not.
    with torch.inference_mode(False):
        memory = np.empty(number + _LINE_BYTES, np.uint8)
        start = -memory.ctypes.data % _LINE_BYTES
        return torch.from_numpy(memory[start : start + number])
