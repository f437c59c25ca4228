"""The structure of a forward pass: what depends on what.

The autograd graph tells, not the shapes: the keys of an attention call belong to the
sequence whose last call its values feed on, the queries to the sequence whose last call
the map depends on beside that. An encoder and a decoder over as many tokens are told
apart like any others.

A model that is read at one token, such as [CLS], needs no other queries in its last
layer. Without what that layer mixes, the output depends on the token's own stream
alone: the gradient, cut off behind the mixed values, tells the position.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterator,
    Sequence,
)
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from captum_attnflow.capture.maps import AttentionCall
from captum_attnflow.capture.record import Route, UnsupportedAttentionError


@dataclass
class _Stream:
    """A sequence of tokens, with the calls whose queries it makes."""

    calls: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Stack:
    """Attention calls that feed on each other: one pass over a model.

    Attributes:
        calls (tuple of int): Which attention calls, in the order they ran.
        routes (tuple of Route): Which sequence attends to which, call by call.
        values (tuple): For each sequence all that is weighed of it, tensors of the
            graph.
    """

    calls: tuple[int, ...]
    routes: tuple[Route, ...]
    values: tuple[tuple[Tensor, ...], ...]


def find_stacks(maps: Sequence[Tensor], values: Sequence[Tensor]) -> list[Stack]:
    """Group the attention calls of a forward pass into stacks.

    Args:
        maps (sequence of Tensor): The attention maps, in the order they ran.
        values (sequence of Tensor): What each of them weighs.

    Raises:
        UnsupportedAttentionError: If sequences attend to each other in another way
            than a decoder does to the last layer of one encoder.
    """
    graph = DependencyGraph(maps)
    maps_on = [graph.ancestors(tensor) - {i} for i, tensor in enumerate(maps)]
    values_on = [graph.ancestors(tensor) for tensor in values]
    streams: list[_Stream] = []
    ends: list[tuple[_Stream, _Stream]] = []  # of every call, (queries, keys)
    for index, (on, fed) in enumerate(zip(maps_on, values_on, strict=True)):
        keys = ends[max(fed)][0] if fed else None
        beside = on - fed
        queries = ends[max(beside)][0] if beside else keys
        if queries is not None and queries.calls[-1] not in on:
            queries = keys = None  # beside the calls before it, not behind them
        if keys is None and queries is not None:
            keys = next(
                (end[1] for end in ends if end[0] is queries and not end[1].calls), None
            )
        if keys is None:
            keys = _Stream()
            streams.append(keys)
        queries = queries or keys
        queries.calls.append(index)
        ends.append((queries, keys))
    return [
        _stack(group, ends, values, values_on) for group in _connected(streams, ends)
    ]


class DependencyGraph:
    """Tells on which of some tensors another one depends, by the autograd graph.

    Args:
        sources (sequence of Tensor or Node): Tensors that require a gradient, or where
            they are in the graph.
    """

    def __init__(self, sources: Sequence[Tensor | Node]) -> None:
        self._n_sources = 0
        self._bit: dict[Node, int] = {}
        self._found: dict[Node | None, int] = {None: 0}
        self._leaves: dict[int, Tensor] = {}  # by identity, which holding them keeps
        for tensor in sources:
            self.add(tensor)

    def add(self, tensor: Tensor | Node) -> None:
        """Add a source, before anything is asked of what is computed from it."""
        node = _node(tensor)
        if node is not None:
            self._bit[node] = self._bit.get(node, 0) | 1 << self._n_sources
            self._found.pop(node, None)
        self._n_sources += 1
        if isinstance(tensor, Tensor) and node is not None and tensor.grad_fn is None:
            self._leaves[id(tensor)] = tensor

    def depends(self, tensor: Tensor | Node) -> bool:
        """Whether a tensor is computed from any source, or is one.

        Asked at every call of a forward pass, mostly of parameters, whose nodes are
        slow to get: leaves are known by themselves.
        """
        node = tensor.grad_fn if isinstance(tensor, Tensor) else tensor
        if node is None:
            return id(tensor) in self._leaves
        found = self._found.get(node)
        return (self._ancestors_of(node) if found is None else found) != 0

    def dependent_nodes(self, tensor: Tensor | Node) -> Iterator[Node]:
        """Go through the nodes between the sources and a tensor."""
        pending, seen = [_node(tensor)], set()
        while pending:
            node = pending.pop()
            if node is None or node in seen or not self._ancestors_of(node):
                continue
            seen.add(node)
            yield node
            pending.extend(parent for parent, _ in node.next_functions)

    def forks(self, tensor: Tensor | Node) -> Iterator[GradientEdge]:
        """Go back over what is used several times and makes all of a tensor.

        All that a tensor has of the sources passed there: at the hidden states of a
        layer, where its queries and its keys part. What lies before mixes the tokens
        in any way.

        Yields:
            GradientEdge: From the tensor to the sources.
        """
        start = _node(tensor)
        if start is None or not self._ancestors_of(start):
            return
        uses: dict[Node, list[int]] = {start: []}  # by number of a node's output
        waiting = dict.fromkeys([start], 0)
        nodes = list(self.dependent_nodes(start))
        for node in nodes:
            for parent, _ in node.next_functions:
                if parent is not None and self._ancestors_of(parent):
                    waiting[parent] = waiting.get(parent, 0) + 1
        ready, n_open, is_fork = [start], 0, False
        while ready:
            node = ready.pop()
            own = uses[node]
            n_open -= len(own)
            if n_open == 0:
                is_fork |= len(own) > 1
                if is_fork and len(set(own)) == 1:  # else made of one, such as chunks
                    yield GradientEdge(node, own[0])
                    is_fork = False
            for parent, number in node.next_functions:
                if parent is None or not self._ancestors_of(parent):
                    continue
                uses.setdefault(parent, []).append(number)
                n_open += 1
                waiting[parent] -= 1
                if waiting[parent] == 0:
                    ready.append(parent)

    @property
    def n_sources(self) -> int:
        """Sources so far; they are numbered from 0."""
        return self._n_sources

    def depends_on(self, tensor: Tensor, source: int) -> bool:
        """Whether a tensor is computed from the source of a number."""
        return bool(self._ancestors_of(_node(tensor)) >> source & 1)

    def ancestors(self, tensor: Tensor | Node) -> set[int]:
        """Return which sources a tensor is computed from, or is."""
        found = self._ancestors_of(_node(tensor))
        return {i for i in range(self._n_sources) if found >> i & 1}

    def _ancestors_of(self, start: Node | None) -> int:
        # Depth first without recursion, which deep models would exhaust.
        pending = [start]
        while pending:
            node = pending[-1]
            if node is None or node in self._found:
                pending.pop()
                continue
            parents = [parent for parent, _ in node.next_functions]
            missing = [parent for parent in parents if parent not in self._found]
            if missing:
                pending.extend(missing)
                continue
            found = self._bit.get(node, 0)
            for parent in parents:
                found |= self._found[parent]
            self._found[node] = found
        return self._found[start]


def _node(tensor: Tensor | Node) -> Node | None:
    if isinstance(tensor, Node):
        return tensor
    if not tensor.requires_grad:
        return None
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _connected(
    streams: list[_Stream], ends: list[tuple[_Stream, _Stream]]
) -> Iterator[list[_Stream]]:
    """Group streams that attend to each other."""
    group = {id(stream): {id(stream)} for stream in streams}
    for queries, keys in ends:
        joined = group[id(queries)] | group[id(keys)]
        for member in joined:
            group[member] = joined
    done: set[int] = set()
    for stream in streams:
        if id(stream) not in done:
            done |= group[id(stream)]
            yield [other for other in streams if id(other) in group[id(stream)]]


def _stack(
    streams: list[_Stream],
    ends: list[tuple[_Stream, _Stream]],
    values: Sequence[Tensor],
    values_on: list[set[int]],
) -> Stack:
    calls = sorted(index for stream in streams for index in stream.calls)
    crossing = {
        (id(ends[call][0]), id(ends[call][1]))
        for call in calls
        if ends[call][0] is not ends[call][1]
    }
    if len(streams) > 2 or len(crossing) > 1:
        raise UnsupportedAttentionError(
            f"{len(streams)} sequences attend to each other; supported is one, or a "
            "decoder that attends to one encoder, and not the reverse (co-attention). "
            "Attribute to a part of the model that is such a one"
        )
    if crossing:  # the encoder first
        streams = sorted(
            streams, key=lambda stream: id(stream) == next(iter(crossing))[0]
        )
    for call in calls:
        queries, keys = ends[call]
        if queries is not keys and not values_on[call].issuperset(keys.calls):
            raise UnsupportedAttentionError(
                "a decoder attends to an inner layer of its encoder; supported is "
                "cross-attention to the encoder's last layer"
            )
    position = {id(stream): index for index, stream in enumerate(streams)}
    return Stack(
        calls=tuple(calls),
        routes=tuple(
            Route(position[id(ends[call][0])], position[id(ends[call][1])])
            for call in calls
        ),
        values=tuple(
            tuple(values[call] for call in calls if ends[call][1] is stream)
            for stream in streams
        ),
    )


def find_lone_query(
    selected: Tensor,
    stack: Stack,
    calls: Sequence[AttentionCall],
    entered: Sequence[Tensor],
    n_rows: int,
) -> dict[int, Tensor]:
    """Find the position of the query that the last calls of a stack have alone.

    Args:
        selected (Tensor): One output per row, in the graph.
        stack (Stack): One pass over a model.
        calls (sequence of AttentionCall): All calls.
        entered (sequence of Tensor): What stands for the inputs.
        n_rows (int): Rows of the stack.

    Returns:
        dict: For each such call a tensor ``(n_rows, T)``, bool, one position in each
        row; empty if there is none, or its query is not of one token.
    """
    lengths = sequence_lengths(stack, calls)
    routed = list(zip(stack.calls, stack.routes, strict=True))
    lone = [
        call
        for call, route in routed
        if calls[call].lengths()[0] == 1 < lengths.get(route.queries, 1)
    ]
    if not lone or list(stack.calls[-len(lone) :]) != lone:
        return {}
    queries = stack.routes[-len(lone)].queries
    n_tokens = lengths[queries]
    before = [
        calls[call].probed
        for call, route in routed[: -len(lone)]
        if route.queries == queries and calls[call].lengths()[0] == n_tokens
    ]
    graph = DependencyGraph([*entered, *(call.probed for call in calls)])
    with without_attention([calls[call] for call in lone]):
        for position in _read_positions(
            selected, before[-1:], graph.forks(calls[lone[0]].probed), n_rows, n_tokens
        ):
            if position is not None and bool((position.sum(1) == 1).all()):
                return dict.fromkeys(lone, position)
    return {}


def _read_positions(
    selected: Tensor,
    maps: Sequence[Tensor],
    forks: Iterator[GradientEdge],
    n_rows: int,
    n_tokens: int,
) -> Iterator[Tensor | None]:
    """Find on which tokens the output depends, in front of the last layer.

    What lies between the layer before and the last one may mix tokens, too: then the
    hidden states tell at which its queries and keys part.
    """
    for source in maps:
        yield _where_of_map(_gradient(selected, source), n_rows, n_tokens)
    for fork in forks:
        yield _where_of_fork(selected, fork, n_rows, n_tokens)


def _gradient(selected: Tensor, source: Tensor | GradientEdge) -> Tensor | None:
    (gradient,) = torch.autograd.grad(
        torch.unbind(selected), source, retain_graph=True, allow_unused=True
    )
    return gradient


def _where_of_map(gradient: Tensor | None, n_rows: int, n_tokens: int) -> Tensor | None:
    """Find the queries of a map on which the output depends, ``(n_rows, T)``."""
    if gradient is None:
        return None
    by_token = gradient.reshape(n_rows, -1, n_tokens, gradient.shape[-1]) != 0
    return by_token.any(-1).any(1)


def _where_of_fork(
    selected: Tensor, fork: GradientEdge, n_rows: int, n_tokens: int
) -> Tensor | None:
    """Find the tokens of hidden states on which the output depends, ``(n_rows, T)``.

    The last row alone tells rows from tokens where there are as many.
    """
    gradient, of_last = (_gradient(part, fork) for part in (selected, selected[-1:]))
    if gradient is None or of_last is None:
        return None
    for rows in range(min(2, gradient.dim())):
        for tokens in range(gradient.dim()):
            sizes = gradient.shape[rows], gradient.shape[tokens]
            if rows == tokens or sizes != (n_rows, n_tokens):
                continue
            every, last = (
                of.movedim((rows, tokens), (0, 1)).flatten(2).any(2)
                for of in (gradient != 0, of_last != 0)
            )
            if bool((every.sum(1) == 1).all()) and not bool(last[:-1].any()):
                return every
    return None


@contextmanager
def without_attention(calls: Sequence[AttentionCall]) -> Iterator[None]:
    """While active, no gradient passes through what some calls have mixed."""
    with ExitStack() as cuts:
        for edge in (edge for call in calls for edge in call.mixed):
            handle = edge.node.register_prehook(_cutting(edge))
            cuts.callback(handle.remove)
        yield


def _cutting(edge: GradientEdge) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def cut(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(gradient)
            if number == edge.output_nr and gradient is not None
            else gradient
            for number, gradient in enumerate(gradients)
        )

    return cut


def sequence_lengths(stack: Stack, calls: Sequence[AttentionCall]) -> dict[int, int]:
    """Return the tokens of each sequence of a stack that has keys."""
    return {
        route.keys: calls[call].lengths()[1]
        for call, route in zip(stack.calls, stack.routes, strict=True)
    }
