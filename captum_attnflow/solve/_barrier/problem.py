"""The barrier problem of a batch in flat arrays, and a state of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_attnflow.network import LayeredNetwork
from captum_attnflow.solve._barrier.workspace import workspace

# Room of an edge that never binds, and the inverse of the flow on one that is missing,
# in units of the value; less in float32, which holds capacities down to the last.
_UNLIMITED = 1e100
_UNLIMITED_SINGLE = 1e25
_LEAST_SINGLE = 1e-20


@dataclass(frozen=True)
class Problem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink.

    An edge that is missing carries next to nothing and one that never binds has next
    to unlimited room. Neither can move, and both keep their barrier terms, so that no
    sum and no step length needs a mask.
    """

    capacity: Tensor  # (B, E), in units of scale; unlimited where not bounded
    alive: Tensor  # (B, E), bool, where there is an edge
    scale: Tensor  # (B,), float64, upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    n_layers: int
    n_tokens: int
    unlimited: float = _UNLIMITED

    @staticmethod
    def of(network: LayeredNetwork, bound: Tensor) -> Problem:
        """The problem of a trimmed network and its ``node_bound()``."""
        inner = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1)
        scale = bound.sum(-1).amin(-1)
        n_inner, n_edges = inner.shape[1], inner.shape[1] + terminals.shape[1]
        alive = workspace().empty((len(inner), n_edges), like=terminals)
        capacity = workspace().empty(alive.shape, like=inner)
        torch.gt(inner, 0, out=alive[:, :n_inner])
        alive[:, n_inner:] = terminals
        torch.div(inner, scale[:, None], out=capacity[:, :n_inner])
        capacity[:, n_inner:] = _UNLIMITED
        capacity.masked_fill_(~alive, _UNLIMITED).clamp_max_(_UNLIMITED)
        with workspace().frame():
            # Sums of what is not a float would copy it to fresh memory.
            count = workspace().empty(alive.shape, like=inner)
            n_terms = count.copy_(alive).sum(1)
            n_terms += torch.lt(capacity, _UNLIMITED, out=count).sum(1)
        return Problem(
            capacity=capacity,
            alive=alive,
            scale=scale,
            n_terms=n_terms,
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
        )

    @property
    def fits_single(self) -> bool:
        """Whether float32 can hold every capacity."""
        return bool(self.capacity.amin() >= _LEAST_SINGLE)

    def single(self) -> Problem:
        """The same problem in float32."""
        like = self.capacity.new_empty(0, dtype=torch.float32)
        capacity = workspace().empty(self.capacity.shape, like=like)
        return replace(
            self,
            capacity=capacity.copy_(self.capacity).clamp_max_(_UNLIMITED_SINGLE),
            n_terms=self.n_terms.float(),
            unlimited=_UNLIMITED_SINGLE,
        )

    def split(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the inner edges and of those of the source and of the sink."""
        return split(edges, (self.n_layers, self.n_tokens, self.n_tokens))

    def value(self, flow: Tensor) -> Tensor:
        return flow[:, -self.n_tokens :].sum(1)


@dataclass
class State:
    """Flow and room left, and what a unit more of flow costs in each.

    The second of each two has a sign, so that a change of flow changes both alike.
    """

    room: Tensor  # (2, B, E): x and -y, kept apart since x - u cancels
    price: Tensor  # (2, B, E): z and -s, at the optimum mu times the barrier's gradient
    p: Tensor  # (B, L + 1, T) potential

    @staticmethod
    def empty(problem: Problem) -> State:
        """A state that is still to be filled, in the workspace."""
        capacity = problem.capacity
        room, price = workspace().empty((2, 2, *capacity.shape), like=capacity)
        nodes = (len(capacity), problem.n_layers + 1, problem.n_tokens)
        return State(room, price, capacity.new_empty(nodes))

    def select(self, index: Tensor) -> State:
        return State(self.room[:, index], self.price[:, index], self.p[index])

    def put(self, index: Tensor, part: State) -> None:
        self.room[:, index] = part.room
        self.price[:, index] = part.price
        self.p[index] = part.p

    def refine(self, coarse: State, problem: Problem) -> None:
        """Take over a state of less precision.

        ``x`` and ``y`` sum to the capacity again, the smaller of the two being kept.
        """
        flow, left = self.room.copy_(coarse.room)
        price = self.price.copy_(coarse.price)
        self.p.copy_(coarse.p)
        # An edge that never binds has more room now.
        price[1].mul_(left)
        with workspace().frame():
            spare = workspace().empty(flow.shape, like=flow)
            flow_is_less = torch.add(flow, left, out=spare) <= 0
            torch.sub(flow, problem.capacity, out=spare)
            torch.where(flow_is_less, spare, left, out=left)
            torch.add(problem.capacity, left, out=spare)
            torch.where(flow_is_less, flow, spare, out=flow)
        price[1].div_(left)

    def is_interior(self) -> Tensor:
        """Whether flow, room and multipliers of each network are positive, ``(B,)``."""
        inside = (self.room[0].amin(1) > 0) & (self.room[1].amax(1) < 0)
        inside &= (self.price[0].amin(1) > 0) & (self.price[1].amax(1) < 0)
        return inside & self.product().isfinite() & self.p.isfinite().all(2).all(1)

    def product(self) -> Tensor:
        """Mean complementarity product."""
        return total_product(self.room, self.price) / (2 * self.room.shape[-1])


def split(
    edges: Tensor, shape: tuple[int, int, int], has_terminals: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of flat edges: the inner ones in a shape, the source's and the sink's."""
    n_terminals = shape[-1] if has_terminals else 0
    n_inner = edges.shape[1] - 2 * n_terminals
    inner, source, sink = edges.split([n_inner, n_terminals, n_terminals], 1)
    return inner.unflatten(1, shape), source, sink


def total_product(room: Tensor, price: Tensor) -> Tensor:
    """Sum of the complementarity products of each network, ``(B,)``."""
    return dot(room[0], price[0]) + dot(room[1], price[1])


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    if len(left) == 1:
        # As fast as memory, which a batched product of one is not.
        return torch.dot(left[0], right[0])[None]
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]
