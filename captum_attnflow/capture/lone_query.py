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


def _cutting(edge: GradientEdge) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def cut(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(gradient)
            if number == edge.output_nr and gradient is not None
            else gradient
            for number, gradient in enumerate(gradients)
        )

    return cut
