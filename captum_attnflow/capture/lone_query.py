"""Which token the only query of a last layer belongs to.

A model that is read at one token, such as [CLS], needs no other queries in its last
layer. Without what that layer mixes, the output depends on the token's own stream
alone: the gradient, cut off behind the mixed values, tells the position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_attnflow.capture.attention_call import AttentionCall, sequence_lengths
from captum_attnflow.capture.streams import Stack


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
    # With no layer before it, the tokens themselves.
    shape = (n_rows, n_tokens)
    sources = before[-1:] or [part for part in entered if part.shape[:2] == shape]
    if not sources:
        return {}
    with ExitStack() as cuts:
        for edge in (edge for call in lone for edge in calls[call].mixed):
            handle = edge.node.register_prehook(_cutting(edge))
            cuts.callback(handle.remove)
        gradients = torch.autograd.grad(
            torch.unbind(selected),
            sources,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    for gradient in gradients:
        by_token = gradient.reshape(n_rows, -1, n_tokens, gradient.shape[-1]) != 0
        found = by_token.any(-1).any(1)
        if bool((found.sum(1) == 1).all()):
            return dict.fromkeys(lone, found)
    return {}


@dataclass(frozen=True)
class Scores:
    """Where scores are in the graph, without holding them.

    Attributes:
        edge (GradientEdge): It.
        shape (Size): Of the scores.
        keys (int): The axis of the keys.
        zero (Tensor): Of their dtype, on their device.
    """

    edge: GradientEdge
    shape: torch.Size
    keys: int
    zero: Tensor

    @staticmethod
    def of(scores: Tensor, keys: int) -> Scores:
        """Note the scores of a softmax, which require a gradient."""
        edge = get_gradient_edge(scores)
        return Scores(edge, scores.shape, keys, scores.new_zeros(()))

    def have_query_of_a_token(self, sources: Sequence[Tensor]) -> bool:
        """Whether scores without an axis of queries are those of one token's query.

        The score of a key depends on the key's own token. Of a head that pools by a
        learned query it depends on no other; here on one more, the same for all keys.

        Args:
            sources (sequence of Tensor): Where tokens are apart, last but one: the map
                or the output of a layer before, or embeddings.
        """
        last = self.shape[self.keys] - 1
        of_first, of_last = (self._others(key, sources) for key in (0, last))
        if of_first is None or of_last is None:
            return False
        # The query may itself be one of these keys, and some rows have padding there.
        inner_first, inner_last = of_first - {last}, of_last - {0}
        is_same = inner_first <= inner_last or inner_last <= inner_first
        return is_same and bool(of_first | of_last)

    def _others(self, key: int, sources: Sequence[Tensor]) -> set[int] | None:
        """Find on which other tokens a key's scores depend; None if on several."""
        of_key = self.zero.repeat(self.shape)
        of_key.select(self.keys, key).fill_(1)
        gradients = torch.autograd.grad(
            [self.edge], sources, [of_key], retain_graph=True, allow_unused=True
        )
        others: set[int] = set()
        for gradient in gradients:
            if gradient is not None:
                found = (gradient != 0).any(-1).flatten(0, -2)
                found[:, key] = False
                if bool((found.sum(1) > 1).any()):
                    return None
                others.update(found.any(0).nonzero()[:, 0].tolist())
        return others


def _cutting(edge: GradientEdge) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def cut(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(gradient)
            if number == edge.output_nr and gradient is not None
            else gradient
            for number, gradient in enumerate(gradients)
        )

    return cut
