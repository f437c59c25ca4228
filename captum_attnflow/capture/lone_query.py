"""Which token the only query of a last layer belongs to.

A model that is read at one token, such as [CLS], needs no other queries in its last
layer. Without what that layer mixes, the output depends on the token's own stream
alone: the gradient, cut off behind the mixed values, tells the position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_attnflow.capture.attention_call import AttentionCall
from captum_attnflow.capture.streams import Stack


def lone_queries(stack: Stack, calls: Sequence[AttentionCall]) -> tuple[int, ...]:
    """Return the last calls of a stack that have one query of several tokens."""
    length = {
        route.keys: calls[call].lengths()[1]
        for call, route in zip(stack.calls, stack.routes, strict=True)
    }
    lone = [
        call
        for call, route in zip(stack.calls, stack.routes, strict=True)
        if calls[call].lengths()[0] == 1 < length.get(route.queries, 1)
    ]
    return tuple(lone) if list(stack.calls[-len(lone) :]) == lone else ()


def position_of_lone_query(
    selected: Tensor,
    stack: Stack,
    calls: Sequence[AttentionCall],
    entered: Sequence[Tensor],
    n_rows: int,
) -> Tensor | None:
    """Find the position of the query that the last calls of a stack have.

    Args:
        selected (Tensor): One output per row, in the graph.
        stack (Stack): Whose last calls have one query.
        calls (sequence of AttentionCall): All calls.
        entered (sequence of Tensor): What stands for the inputs.
        n_rows (int): Rows of the stack.

    Returns:
        Tensor or None: Shape ``(n_rows, T)``, bool, one position in each row; None if
        it is not of one token.
    """
    lone = lone_queries(stack, calls)
    place = stack.calls.index(lone[0])
    queries = stack.routes[place].queries
    n_tokens = max(
        calls[call].lengths()[1]
        for call, route in zip(stack.calls, stack.routes, strict=True)
        if route.keys == queries
    )
    before = [
        calls[call].probed
        for call, route in zip(stack.calls[:place], stack.routes[:place], strict=True)
        if route.queries == queries and calls[call].lengths()[0] == n_tokens
    ]
    # With no layer before it, the tokens themselves.
    shape = (n_rows, n_tokens)
    sources = before[-1:] or [part for part in entered if part.shape[:2] == shape]
    if not sources:
        return None
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
            return found
    return None


def _cutting(edge: GradientEdge) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def cut(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(gradient)
            if number == edge.output_nr and gradient is not None
            else gradient
            for number, gradient in enumerate(gradients)
        )

    return cut
