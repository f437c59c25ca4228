"""Where the barrier solver starts: a conserving flow, and potentials that suit it."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.solve._barrier_problem import Problem, State

# All chosen for the fewest iterations on random networks and on those of two trained
# classifiers. A flow that reaches this share of the bound of the value within the
# capacities is taken as it is, but for the share that is left free. Potentials then
# rise where the flow fills the edges, and multipliers follow from them.
_FITTING_SHARE = 0.8
_FITTING_VALUE = 0.95
_FITTING_GAP = 0.1
_LEAST_RISE = 1e-3
# Any other flow is cut off at this share of each capacity, and restored by the steps;
# smaller multipliers would block them.
_VALUE = 0.9
_LOAD = 0.7
_GAP = 0.01
_MULTIPLIER = 0.5


def start(problem: Problem, bound: Tensor) -> State:
    """First state of a problem.

    Args:
        problem (Problem): The problem of trimmed networks.
        bound (Tensor): Shape ``(B, L + 1, T)``, their ``node_bound()``.
    """
    bound = (bound / problem.scale[:, None, None]).to(problem.capacity.dtype)
    inner = problem.split(problem.capacity * problem.alive)[0]
    _, source, sink = problem.split(problem.alive > 0)
    flow = _proportional_flow(
        [layer.mT for layer in inner.unbind(1)[::-1]], sink, source, bound.flip(1)
    )
    flow = _upside_down(flow, problem)
    load = (flow / problem.capacity).amax(1)
    fits = load * _FITTING_SHARE <= 1
    if not bool(fits.all()):
        other = _proportional_flow(list(inner.unbind(1)), source, sink, bound)
        mean = (flow + other) / 2
        flow = torch.where(fits[:, None], flow, mean)
    share = torch.where(fits, _FITTING_VALUE / load.clamp_min(1), _VALUE)
    most = torch.where(fits, _FITTING_VALUE, _LOAD).to(flow.dtype)
    flow = torch.minimum(flow * share[:, None], problem.capacity * most[:, None])
    flow.clamp_min_(1 / problem.unlimited)
    rises = _rises(problem, flow, fits)
    potential = rises.cumsum(1)[:, :-1] - 1
    room = torch.stack([flow, problem.capacity - flow])
    return State(
        room=room,
        price=_prices(problem, room, rises, fits),
        p=potential[..., None].repeat(1, 1, problem.n_tokens),
    )


def _proportional_flow(
    layers: list[Tensor], first: Tensor, last: Tensor, bound: Tensor
) -> Tensor:
    """A flow of value 1 that conserves, positive on every edge of a trimmed network.

    Every node passes its flow on in proportion to the capacity of the paths ahead, so
    that the layer that is passed first is filled evenly.

    Args:
        layers (list of Tensor): Capacities ``(B, T, T)`` to heads from tails.
        first (Tensor): Shape ``(B, T)``, bool, nodes at which the flow starts.
        last (Tensor): Shape ``(B, T)``, bool, nodes at which it ends.
        bound (Tensor): Shape ``(B, L + 1, T)``, bounds of the flow through nodes.

    Returns:
        Tensor: Shape ``(B, E)``, laid out as the edges of :class:`Problem`.
    """
    ahead = [last.to(bound.dtype)]
    weights = []
    for layer in reversed(range(len(layers))):
        weight = torch.minimum(layers[layer], bound[:, layer + 1, :, None])
        weights.append(weight * ahead[-1][..., None])
        total = weights[-1].sum(-2)
        ahead.append(total / total.amax(-1, keepdim=True))
    throughput = torch.where(first, ahead[-1], 0.0)
    throughput = throughput / throughput.sum(-1, keepdim=True)
    start, inner = throughput, []
    for weight in reversed(weights):
        total = weight.sum(-2)
        passed_on = throughput / (total + (total == 0))
        inner.append(weight * passed_on[:, None])
        throughput = inner[-1].sum(-1)
    return torch.cat([torch.stack(inner, 1).flatten(1), start, throughput], 1)


def _upside_down(flow: Tensor, problem: Problem) -> Tensor:
    """Lay out a flow that was made from the sink to the source."""
    inner, sink, source = problem.split(flow)
    return torch.cat([inner.flip(1).mT.flatten(1), source, sink], 1)


def _rises(problem: Problem, flow: Tensor, fits: Tensor) -> Tensor:
    """Rise of the potential from the source on, ``(B, L + 2)``, of sum 1.

    A layer of edges rises by their mean load, and all by the same where the flow does
    not fit; the terminals' edges by half the least.
    """
    inner = problem.split(flow)[0].flatten(2)
    capacity = problem.split(problem.capacity)[0].flatten(2)
    load = (inner * (inner / capacity)).sum(2) / inner.sum(2)
    rise = torch.where(fits[:, None], load + _LEAST_RISE, 1.0)
    half = rise.amin(1, keepdim=True) / 2
    rises = torch.cat([half, rise, half], 1)
    return rises / rises.sum(1, keepdim=True)


def _prices(problem: Problem, room: Tensor, rises: Tensor, fits: Tensor) -> Tensor:
    """Multipliers of one gap over all edges, at least what the potentials ask for."""
    gap = torch.where(fits, _FITTING_GAP, _GAP).to(room.dtype) / problem.n_terms
    price = gap[:, None] / room
    if_fits = fits.to(room.dtype)[:, None]
    least = if_fits * rises + (1 - if_fits) * _MULTIPLIER
    for lower, upper, capacity, layers in zip(
        problem.split(price[0]),
        problem.split(price[1]),
        problem.split(problem.capacity),
        (slice(1, -1), slice(0, 1), slice(-1, None)),
        strict=True,
    ):
        one_per_layer = (..., *[None] * (lower.dim() - 2))
        needed = least[:, layers][one_per_layer]
        torch.maximum(lower, needed, out=lower)
        # Where the flow fits, the two differ by the rise of the potential.
        needed = needed + if_fits[one_per_layer] * lower
        needed *= capacity < problem.unlimited
        torch.maximum(upper, needed, out=upper)
    price[1].neg_()
    return price
