"""Where the barrier solver starts: a flow that nearly conserves, and its potentials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.problem import Problem, State
from captum_attnflow.flow.solvers._barrier.workspace import workspace

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
_MULTIPLIER = 0.1
# Every edge carries so much more, as a share of its capacity or of what the nodes at
# its ends may pass on, if that is less: one with room but next to no flow would have
# products of very different size.
_EXTRA_SHARE = 0.01


def start(problem: Problem, bound: Tensor, state: State) -> None:
    """Fill in the first state of a problem.

    Args:
        problem (Problem): The problem of trimmed networks.
        bound (Tensor): Shape ``(B, L + 1, T)``, their ``node_bound()``.
        state (State): Overwritten.
    """
    spare = state.price  # the last to be filled
    fits = _fill_flow(problem, bound, state.room[0], spare)
    rises = _rises(problem, state.room[0], fits, spare[0])
    potential = rises.cumsum(1)[:, :-1] - 1
    state.p.copy_(potential[..., None].expand_as(state.p))
    torch.sub(state.room[0], problem.capacity, out=state.room[1])
    _fill_prices(problem, state, rises, fits)


def _fill_flow(problem: Problem, bound: Tensor, flow: Tensor, spare: Tensor) -> Tensor:
    """Write a flow, and tell where it fits within the capacities, ``(B,)``."""
    bound = (bound / problem.scale[:, None, None]).clamp_max(1).to(flow.dtype)
    # A missing edge has unlimited room.
    nothing = problem.capacity.new_zeros(())
    capacity = torch.where(problem.alive, problem.capacity, nothing, out=spare[0])
    inner = problem.split(capacity)[0].unbind(1)
    _, first, last = problem.split(problem.alive)
    # From the sink to the source, where layers and edges stand upside down.
    layers, sent, received = problem.split(flow)
    _fill_proportionally(
        [layer.mT for layer in layers.unbind(1)[::-1]],
        (received, sent),
        [layer.mT for layer in inner[::-1]],
        (last, first),
        bound.flip(1),
    )
    load = torch.div(flow, problem.capacity, out=spare[1]).amax(1)
    fits = load * _FITTING_SHARE <= 1
    if not bool(fits.all()):
        layers, sent, received = problem.split(spare[1])
        _fill_proportionally(
            layers.unbind(1), (sent, received), inner, (first, last), bound
        )
        flow.lerp_(spare[1], torch.where(fits, 0.0, 0.5).to(flow.dtype)[:, None])
    share = torch.where(fits, _FITTING_VALUE / load.clamp_min(1), _VALUE)
    most = torch.where(fits, _FITTING_VALUE, _LOAD).to(flow.dtype)
    most_of_edge = torch.mul(problem.capacity, most[:, None], out=spare[1])
    torch.minimum(flow.mul_(share[:, None]), most_of_edge, out=flow)
    inside, sent, received = problem.split(capacity)
    inside.clamp_max_(bound[:, :-1, None]).clamp_max_(bound[:, 1:, :, None])
    sent.clamp_max_(bound[:, 0])
    received.clamp_max_(bound[:, -1])
    flow.add_(capacity, alpha=_EXTRA_SHARE)
    flow.masked_fill_(~problem.alive, 1 / problem.unlimited)
    return fits


def _fill_proportionally(
    flow: Sequence[Tensor],
    terminal_flow: tuple[Tensor, Tensor],
    capacity: Sequence[Tensor],
    terminals: tuple[Tensor, Tensor],
    bound: Tensor,
) -> None:
    """Write a flow of value 1 that conserves, positive on edges of a trimmed network.

    Every node passes its flow on in proportion to the capacity of the paths ahead, so
    that the layer that is passed first is filled evenly.

    Args:
        flow (sequence of Tensor): Layers ``(B, T, T)`` to heads from tails, written.
        terminal_flow (tuple of Tensor): Each ``(B, T)``, the flow into the first
            nodes and out of the last, written.
        capacity (sequence of Tensor): Laid out as ``flow``.
        terminals (tuple of Tensor): Each ``(B, T)``, bool, where the flow starts and
            where it ends.
        bound (Tensor): Shape ``(B, L + 1, T)``, bounds of the flow through nodes.
    """
    ahead = terminals[1].to(bound.dtype)
    totals = []
    for layer in reversed(range(len(flow))):
        # To begin with, the weight of each edge.
        torch.minimum(capacity[layer], bound[:, layer + 1, :, None], out=flow[layer])
        total = flow[layer].mul_(ahead[..., None]).sum(-2)
        totals.append(total + (total == 0))
        ahead = total / total.amax(-1, keepdim=True)
    throughput = torch.where(terminals[0], ahead, 0.0)
    throughput /= throughput.sum(-1, keepdim=True)
    terminal_flow[0].copy_(throughput)
    for edges, total in zip(flow, reversed(totals), strict=True):
        throughput = edges.mul_((throughput / total)[:, None]).sum(-1)
    terminal_flow[1].copy_(throughput)


def _rises(problem: Problem, flow: Tensor, fits: Tensor, spare: Tensor) -> Tensor:
    """Rise of the potential from the source on, ``(B, L + 2)``, of sum 1.

    A layer of edges rises by their mean load, and all by the same where the flow does
    not fit; the terminals' edges by half the least.
    """
    loaded = torch.div(flow, problem.capacity, out=spare).mul_(flow)
    loaded, total = (problem.split(edges)[0].sum((2, 3)) for edges in (loaded, flow))
    rise = torch.where(fits[:, None], loaded / total + _LEAST_RISE, 1.0)
    half = rise.amin(1, keepdim=True) / 2
    rises = torch.cat([half, rise, half], 1)
    return rises / rises.sum(1, keepdim=True)


def _fill_prices(problem: Problem, state: State, rises: Tensor, fits: Tensor) -> None:
    """Write multipliers of one gap over all edges, at least what potentials ask for."""
    gap = torch.where(fits, _FITTING_GAP, _GAP) / problem.n_terms
    gap = gap.to(state.price.dtype)
    torch.div(gap[:, None], state.room, out=state.price)
    if_fits = fits.to(state.price.dtype)[:, None]
    least = if_fits * rises + (1 - if_fits) * _MULTIPLIER
    upper = state.price[1]
    with workspace().frame():
        spare = workspace().empty(upper.shape, like=upper)
        for lower, needed, layers in zip(
            problem.split(state.price[0]),
            problem.split(spare),
            (slice(1, -1), slice(0, 1), slice(-1, None)),
            strict=True,
        ):
            one_per_layer = (..., *[None] * (lower.dim() - 2))
            least_of_layer = least[:, layers][one_per_layer]
            torch.maximum(lower, least_of_layer, out=lower)
            # Where the flow fits, the two differ by the rise of the potential.
            torch.mul(lower, -if_fits[one_per_layer], out=needed).sub_(least_of_layer)
        unlimited = problem.capacity >= problem.unlimited
        torch.minimum(upper, spare.masked_fill_(unlimited, 0.0), out=upper)
