"""The barrier problem of a batch in flat arrays, a state of it, and a first one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_attnflow.network import LayeredNetwork

# Start: the capacity-proportional flow at this share of the bound of the value, at
# most this share of each capacity; multipliers for this relative gap, but at least of
# the size of potential drops. Chosen for the fewest iterations on random networks
# with and without free residual edges: smaller multipliers block the steps.
_START_VALUE = 0.9
_START_LOAD = 0.7
_START_GAP = 0.01
_START_MULTIPLIER = 0.5
# Room of an edge that never binds, and the inverse of the flow on one that is missing,
# in units of the value.
_UNLIMITED = 1e100


@dataclass(frozen=True)
class Problem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink.

    An edge that is missing carries next to nothing and one that never binds has next
    to unlimited room. Neither can move, and both keep their barrier terms, so that no
    sum and no step length needs a mask.
    """

    capacity: Tensor  # (B, E), in units of scale; _UNLIMITED where not bounded
    alive: Tensor  # (B, E), 1 where there is an edge
    scale: Tensor  # (B,), upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    start_flow: Tensor  # (B, E), a conserving flow of value 1
    n_layers: int
    n_tokens: int

    @staticmethod
    def of(network: LayeredNetwork) -> Problem:
        inner = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1).to(inner.dtype)
        alive = torch.cat([inner.sign(), terminals], 1)
        bound = network.node_bound()
        scale = bound.sum(-1).amin(-1)
        free = torch.full_like(terminals, torch.inf)
        capacity = torch.cat([inner / scale[:, None], free], 1)
        capacity.add_(1 - alive, alpha=_UNLIMITED).clamp_max_(_UNLIMITED)
        return Problem(
            capacity=capacity,
            alive=alive,
            scale=scale,
            n_terms=alive.sum(1) + (capacity < _UNLIMITED).sum(1),
            start_flow=_proportional_flow(network, bound),
            n_layers=network.n_layers,
            n_tokens=network.n_tokens,
        )

    def select(self, index: Tensor) -> Problem:
        return replace(
            self,
            capacity=self.capacity[index],
            alive=self.alive[index],
            scale=self.scale[index],
            n_terms=self.n_terms[index],
            start_flow=self.start_flow[index],
        )

    def split(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, source, sink = edges.split(
            [edges.shape[1] - 2 * self.n_tokens, self.n_tokens, self.n_tokens], 1
        )
        shape = (self.n_layers, self.n_tokens, self.n_tokens)
        return inner.unflatten(1, shape), source, sink

    def value(self, flow: Tensor) -> Tensor:
        return flow[:, -self.n_tokens :].sum(1)

    def divergence(self, flow: Tensor) -> Tensor:
        inner, source, sink = self.split(flow)
        return torch.cat([source[:, None], inner.sum(-1)], 1) - torch.cat(
            [inner.sum(-2), sink[:, None]], 1
        )

    def rise(self, potential: Tensor, at_source: float, out: Tensor) -> Tensor:
        """Potential at the head minus potential at the tail of every edge."""
        inner, source, sink = self.split(out)
        torch.sub(potential[:, 1:, :, None], potential[:, :-1, None, :], out=inner)
        torch.sub(potential[:, 0], at_source, out=source)
        torch.neg(potential[:, -1], out=sink)
        return out


@dataclass
class State:
    """Flow and room, and what a unit more of flow costs in each: ``z`` and ``-s``."""

    room: Tensor  # (2, B, E): x and y, kept apart since u - x cancels
    price: Tensor  # (2, B, E): z and -s, at the optimum mu times the barrier's gradient
    p: Tensor  # (B, L + 1, T) potential

    def select(self, index: Tensor) -> State:
        return State(self.room[:, index], self.price[:, index], self.p[index])

    def put(self, index: Tensor, part: State) -> None:
        self.room[:, index] = part.room
        self.price[:, index] = part.price
        self.p[index] = part.p

    def product(self) -> Tensor:
        """Mean complementarity product."""
        total = dot(self.room[0], self.price[0]) - dot(self.room[1], self.price[1])
        return total / (2 * self.room.shape[-1])


def start(problem: Problem) -> State:
    capacity = problem.capacity
    flow = torch.minimum(_START_VALUE * problem.start_flow, _START_LOAD * capacity)
    flow.clamp_min_(1 / _UNLIMITED)
    room = torch.stack([flow, capacity - flow])
    price = _START_GAP / problem.n_terms[:, None] / room
    price[0].clamp_min_(_START_MULTIPLIER)
    bounded = (capacity < _UNLIMITED).to(capacity.dtype)
    torch.maximum(price[1], bounded.mul_(_START_MULTIPLIER), out=price[1])
    price[1].neg_()
    levels = torch.arange(problem.n_layers + 1, dtype=flow.dtype, device=flow.device)
    level = (levels + 0.5) / (problem.n_layers + 1) - 1
    p = level[:, None].expand(len(flow), -1, problem.n_tokens).clone()
    return State(room=room, price=price, p=p)


def _proportional_flow(network: LayeredNetwork, bound: Tensor) -> Tensor:
    """A flow of value 1 that conserves, positive on every edge of a trimmed network.

    Every node passes its flow on in proportion to the capacity of the paths ahead.
    """
    ahead = [network.sink.to(bound.dtype)]
    weights = []
    for layer in reversed(range(network.n_layers)):
        weight = torch.minimum(network.capacity[:, layer], bound[:, layer + 1, :, None])
        weights.append(weight * ahead[-1][..., None])
        total = weights[-1].sum(-2)
        ahead.append(total / total.amax(-1, keepdim=True))
    throughput = torch.where(network.source, ahead[-1], 0.0)
    throughput = throughput / throughput.sum(-1, keepdim=True)
    source, inner = throughput, []
    for weight in reversed(weights):
        total = weight.sum(-2)
        passed_on = throughput / (total + (total == 0))
        inner.append(weight * passed_on[:, None])
        throughput = inner[-1].sum(-1)
    return torch.cat([torch.stack(inner, 1).flatten(1), source, throughput], 1)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]
