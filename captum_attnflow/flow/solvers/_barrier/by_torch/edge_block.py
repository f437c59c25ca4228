"""What a Newton step does to the edges, block by block.

Each pass takes up to ten arrays. Blocks are cut so that their parts of the arrays stay
in a processor's cache from the first operation of a pass to the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.problem import Problem, State, split


@dataclass(frozen=True)
class Place:
    """Where a block stands: some layers, or some heads of one layer."""

    layers: slice  # of edges
    heads: slice  # of each of these layers
    edges: slice  # among the flat ones, with the terminals' behind the last


class EdgeBlock:
    """The edges at one place in all arrays of a step, and the passes over them.

    See :class:`EdgePasses` for what they compute.

    Args:
        problem (Problem): The problem.
        state (State): A state of it, changed by :meth:`move`.
        arrays (Tensor): Shape ``(5, B, E)``, memory for push, weight and dx, and 1
            where there is an edge.
        spare (Tensor): Flat memory for two numbers an edge of the block, which hold
            nothing between two calls.
        place (Place): Where the block stands.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        arrays: Tensor,
        spare: Tensor,
        place: Place,
    ) -> None:
        layers, heads, edges = place.layers, place.heads, place.edges
        self._has_terminals = edges.stop == problem.capacity.shape[1]
        self._tail_nodes = (slice(None), layers)
        self._head_nodes = (
            slice(None),
            slice(layers.start + 1, layers.stop + 1),
            heads,
        )
        self._per_tail, self._per_head = (
            (*self._tail_nodes, None),
            (*self._head_nodes, None),
        )
        self._alive = arrays[4, :, edges]
        self._room, self._price = state.room[..., edges], state.price[..., edges]
        self._push = arrays[:2, :, edges]
        self._weight, self._dx = arrays[2:4, :, edges]
        shape = self._room.shape
        self._ratio = spare[: shape.numel()].view(shape)
        self._rise = self._ratio[0]
        n_layers, n_heads = layers.stop - layers.start, heads.stop - heads.start
        self._flow_parts, self._dx_parts, self._rise_parts = (
            split(part, (n_layers, n_heads, problem.n_tokens), self._has_terminals)
            for part in (self._room[0], self._dx, self._rise)
        )

    def weigh(self) -> None:
        """Set the weights."""
        room, price = self._room, self._price
        weight = torch.div(price[0], room[0], out=self._weight)
        weight.addcdiv_(price[1], room[1])
        torch.div(self._alive, weight, out=weight)

    def centre(self) -> None:
        """Set the pushes of a step without second-order terms."""
        self._push.zero_()

    def predict(self, potential: Tensor, among: Tensor | None) -> tuple[Tensor, ...]:
        """Set the second-order terms of the step straight at the optimum.

        Args:
            potential (Tensor): Shape ``(B, L + 1, T)``, after that step.
            among (Tensor, optional): Shape ``(B,)``, bool; other networks centre.

        Returns:
            tuple[Tensor, ...]: The least and the largest ratio, and the sums of ``dx``
            times both prices and times the rise, each of shape ``(B,)``.
        """
        self._set_rise(potential, -1.0, self._rise_parts)
        dx = torch.mul(self._rise, self._weight, out=self._dx)
        ratio = torch.div(dx, self._room, out=self._push)
        least, most = ratio.amin(-1).amin(0), ratio.amax(-1).amax(0)
        cost = dot(dx, self._price[0]) + dot(dx, self._price[1])
        gain = dot(dx, self._rise)
        ratio.addcmul_(ratio, ratio).mul_(self._price)
        if among is not None:
            ratio.mul_(among[:, None])
        return least, most, cost, gain

    def force(self, aim: Tensor, potential: Tensor, divergence: Tensor) -> None:
        """Aim at a ``mu``, and change the flow as if the potential stayed.

        Args:
            aim (Tensor): Shape ``(B,)``.
            potential (Tensor): Shape ``(B, L + 1, T)``.
            divergence (Tensor): Shape ``(B, L + 1, T)``, that of the change is added.
        """
        push, dx = self._push.addcdiv_(aim[:, None], self._room), self._dx
        self._set_rise(potential, -1.0, self._dx_parts)
        dx.add_(push[0]).add_(push[1]).mul_(self._weight)
        self._add_divergence(self._dx_parts, divergence)

    def turn(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Let the change of the potential change the flow, and set the new prices.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B,)``, the largest shares by which a room
            and a price would fall.
        """
        self._set_rise(change, 0.0, self._rise_parts)
        dx = self._dx.addcmul_(self._rise, self._weight)
        ratio = torch.div(dx, self._room, out=self._ratio)
        fall = -ratio.amin(-1).amin(0)
        goal = self._push.addcmul_(self._price, ratio, value=-1)
        torch.div(goal, self._price, out=ratio)
        return fall, 1 - ratio.amin(-1).amin(0)

    def move(self, primal: Tensor, dual: Tensor) -> None:
        """Step by these shares of the way, of shape ``(B,)``."""
        self._room.addcmul_(self._dx, primal[:, None])
        self._price.lerp_(self._push, dual[:, None])

    def measure(self, divergence: Tensor) -> Tensor:
        """Sum the complementarity products, ``(B,)``; add the flow's divergence."""
        self._add_divergence(self._flow_parts, divergence)
        products = dot(self._room[0], self._price[0])
        return products + dot(self._room[1], self._price[1])

    def _set_rise(
        self, potential: Tensor, at_source: float, out: tuple[Tensor, ...]
    ) -> None:
        inner, source, sink = out
        torch.sub(potential[self._per_head], potential[self._per_tail], out=inner)
        if self._has_terminals:
            torch.sub(potential[:, 0], at_source, out=source)
            torch.neg(potential[:, -1], out=sink)

    def _add_divergence(self, flow: tuple[Tensor, ...], divergence: Tensor) -> None:
        inner, source, sink = flow
        divergence[self._head_nodes].add_(inner.sum(-1))
        divergence[self._tail_nodes].sub_(inner.sum(-2))
        if self._has_terminals:
            divergence[:, 0].add_(source)
            divergence[:, -1].sub_(sink)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    if len(left) == 1:
        # As fast as memory, which a batched product of one is not.
        return torch.dot(left[0], right[0])[None]
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]


def cut(problem: Problem, most: int) -> list[Place]:
    """Cut a batch into blocks of about one size.

    Args:
        problem (Problem): The batch.
        most (int): Edges of a block, of all networks together; exceeded where the
            edges into one head are more.
    """
    n_layers, n_tokens = problem.n_layers, problem.n_tokens
    heads_at_once = max(1, most // (len(problem.capacity) * n_tokens))
    layers_at_once = max(1, heads_at_once // n_tokens)
    places = []
    for layers in _evenly(n_layers, layers_at_once):
        for heads in _evenly(n_tokens, heads_at_once):
            first = (layers.start * n_tokens + heads.start) * n_tokens
            last = ((layers.stop - 1) * n_tokens + heads.stop) * n_tokens
            if last == n_layers * n_tokens**2:
                last = problem.capacity.shape[1]
            places.append(Place(layers, heads, slice(first, last)))
    return places


def _evenly(number: int, at_once: int) -> list[slice]:
    n_parts = -(-number // at_once)
    ends = [part * number // n_parts for part in range(n_parts + 1)]
    return [slice(*two) for two in pairwise(ends)]
