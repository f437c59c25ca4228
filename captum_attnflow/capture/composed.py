"""Layers that are made of others: of parts of a batch, or of one query per row.

Models that are read at one token, such as [CLS], need no other queries in their last
layer. Without what that layer mixes, the output depends on the token's own stream
alone: the gradient, cut off behind the mixed values, tells the position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_attnflow.capture.axes import TracedAxis, shape_at
from captum_attnflow.capture.graph import (
    DependencyGraph,
    Stack,
    sequence_lengths,
    without_attention,
)
from captum_attnflow.capture.record import (
    ALL_HEADS,
    AttentionLayer,
    AttentionMaps,
    MessageSums,
)

if TYPE_CHECKING:
    from captum_attnflow.capture.gradients import AttentionCall


@dataclass(frozen=True)
class JoinedLayer(AttentionLayer):
    """One layer over consecutive parts of a batch.

    Attributes:
        parts_of_batch (tuple of AttentionLayer): Equal but for their rows.
    """

    parts_of_batch: tuple[AttentionLayer, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows = sum(part.shape[0] for part in self.parts_of_batch)
        _, n_heads, n_queries, n_keys = self.parts_of_batch[0].shape
        return n_rows, n_heads, n_queries, n_keys

    @property
    def device(self) -> torch.device:
        """See :attr:`AttentionLayer.device`."""
        return self.parts_of_batch[0].device

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        weights, gradients, values = zip(
            *(part.maps(heads) for part in self.parts_of_batch), strict=True
        )
        is_known = all(part is not None for part in values)
        return AttentionMaps(
            torch.cat(weights),
            torch.cat(gradients),
            torch.cat(values) if is_known else None,
        )

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        return torch.cat([part.messages(heads) for part in self.parts_of_batch])

    def message_sums(self) -> MessageSums:
        """See :meth:`AttentionLayer.message_sums`."""
        sums = [part.message_sums() for part in self.parts_of_batch]
        return MessageSums(*(torch.cat(ends) for ends in zip(*sums, strict=True)))

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.weights_of`."""
        return torch.cat([part.weights_of(heads) for part in self.parts_of_batch])

    def select(self, rows: slice) -> AttentionLayer:
        """See :meth:`AttentionLayer.select`."""
        start, stop, _ = rows.indices(self.shape[0])
        parts, first = [], 0
        for part in self.parts_of_batch:
            inside = slice(max(0, start - first), max(0, stop - first))
            parts.append(part.select(inside))
            first += part.shape[0]
        return JoinedLayer(tuple(part for part in parts if part.shape[0]))

    def _find_fault(self) -> str | None:
        return next(filter(None, (part.fault for part in self.parts_of_batch)), None)


@dataclass(frozen=True)
class LoneQueryLayer(AttentionLayer):
    """A layer that computes one query per row, as a full map with zeros elsewhere.

    Models that are read at one token may leave all other queries of the last layer out.

    Attributes:
        layer (AttentionLayer): Shape ``(B, H, 1, T)``.
        position (Tensor): Shape ``(B, T)``, bool, the position of the query.
    """

    layer: AttentionLayer
    position: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows, n_heads, _, n_keys = self.layer.shape
        return n_rows, n_heads, self.position.shape[1], n_keys

    @property
    def device(self) -> torch.device:
        """See :attr:`AttentionLayer.device`."""
        return self.layer.device

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        weights, gradients, values = self.layer.maps(heads)
        return AttentionMaps(self._placed(weights), self._placed(gradients), values)

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        return self._placed(self.layer.messages(heads))

    def message_sums(self) -> MessageSums:
        """See :meth:`AttentionLayer.message_sums`."""
        given, received = self.layer.message_sums()
        position = self.position.to(given.device)
        return MessageSums(torch.where(position, given, 0), received)

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.weights_of`."""
        return self._placed(self.layer.weights_of(heads))

    def select(self, rows: slice) -> LoneQueryLayer:
        """See :meth:`AttentionLayer.select`."""
        return LoneQueryLayer(self.layer.select(rows), self.position[rows])

    def _placed(self, of_query: Tensor) -> Tensor:
        position = self.position.to(of_query.device)
        return torch.where(position[:, None, :, None], of_query, 0)

    def _find_fault(self) -> str | None:
        return self.layer.fault


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


def have_query_of_a_token(scores: TracedAxis, tokens: Sequence[Tensor]) -> bool:
    """Whether scores, one for each key, are those of one token's query.

    The score of a key depends on the key's own token. Of a head that pools by a
    learned query it depends on no other; here on one more, the same for all keys.
    Tokens are those of the hidden states at which keys and query part, since layers
    before them mix tokens.

    Args:
        scores (TracedAxis): The axis of the keys.
        tokens (sequence of Tensor): What stands for the inputs, and maps.
    """
    keys = sorted({0, scores.size // 2, scores.size - 1})
    for fork in DependencyGraph(tokens).forks(scores.edge.node):
        shape = shape_at(fork)
        others = [
            {key: scores.others(key, [fork], axis) for key in keys}
            for axis, size in enumerate(shape)
            if size == scores.size and len(shape) > 1
        ]
        apart = [of for of in others if None not in of.values()]
        if others and not apart:
            return False
        for of in apart:
            found = {key: on or set() for key, on in of.items()}
            if any(found.values()):
                # The query may itself be one of these keys, and some rows have
                # padding there.
                return all(
                    found[one] - {other} <= found[other]
                    or found[other] - {one} <= found[one]
                    for one, other in combinations(keys, 2)
                )
    return False
