"""The barrier problem of a batch in flat arrays, and the steps along its central path.

:func:`start` gives an iterate near the path. :class:`Newton` takes it along by
predictor-corrector steps, of which :class:`EdgePasses` does the work on the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork, empty
from captum_attnflow.flow.solvers.barrier.laplacian import (
    ClosedForm,
    IterativeSolver,
    Laplacian,
)

# Slack of an edge that never binds, and the inverse of the flow on one that is missing,
# in units of the value.
UNLIMITED = 1e100
_UNLIMITED = {torch.float64: UNLIMITED, torch.float32: 1e25}
# Lesser capacities are raised to this one on the way to where the last method takes
# them as they are. Where more than this share of the edges is so small, as where
# attention is sharp, steps in float32 often stall; gradients leave fewer, some of them
# near 1e-35.
_LEAST = {torch.float64: 0.0, torch.float32: 1e-20}
_MOST_BELOW_LEAST = 0.01

# --- A step of Newton's method.
_STEP_SHARE = 0.999
# Imbalance at a node, in shares of the value: left by a predictor, left by the last
# correctors and by early ones.
_PREDICTOR_ACCURACY = 1e-5
_CORRECTOR_ACCURACY = 1e-11
_EARLY_ACCURACY = 1e-5
# A step gains little if it leaves more than this share. From then on early correctors
# are more accurate: where weights differ by many orders, small residuals leave large
# errors.
_LITTLE = 0.7
_CAREFUL_ACCURACY = 1e-8
# Each time that so many steps in a row gain little, or only centre beyond enough, the
# next solver is tried. Factors cost more with more tokens, so patience grows.
_LEAST_PATIENCE, _MOST_PATIENCE = 2, 16
_TOKENS_PER_STALLED = 24
_ENOUGH_CENTRING = 4
# Below this many times the target steps only centre.
_NEAR = 2.0
# How much the mean product may exceed the target after the last step.
_LAST_EXCESS = 0.01
# Relative change of a flow or multiplier in a step from which on accuracy counts.
_SMALL_RATIO = 0.5

# --- The start. All chosen for the fewest iterations on random networks, on those of
# two trained classifiers, and on attention times gradient of a decoder.
# Share of the value, or of what fills the first edge on the way to it, that flows.
_VALUE = 0.95
_CAUSAL_VALUE = 0.8
# Relative duality gap, how many times its share of it an edge may have for the sake of
# the potentials, and the least rise of these along a layer of edges. Without that limit
# networks of capacities that differ by many orders take up to 15 % more steps.
_GAP = 0.1
_MOST_OF_GAP = 1e4
_LEAST_RISE = 1e-3
# Every edge carries this share more of its capacity, or of what the nodes at its ends
# may pass on if that is less: an edge with slack and hardly any flow would have
# products of very different size.
_EXTRA_SHARE = 0.01
# Flows of causal networks gather at the first tokens, and leave more to make up for.
# Shares of 0.01 and 0.95 take 19 steps instead of 16 at (12, 128), and 26 instead of 22
# at (12, 512), the last position read out.
_CAUSAL_EXTRA_SHARE = 0.1


@dataclass(frozen=True)
class BarrierProblem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink.

    A missing edge carries nearly 0, and one that never binds has nearly unlimited
    slack. Neither changes in a step, and both keep their barrier terms, so that no step
    length needs a mask.
    """

    capacity: Tensor  # (B, E), in units of scale; unlimited where not bounded
    alive: Tensor  # (B, E), bool, where there is an edge
    scale: Tensor  # (B,), float64, upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    n_products: Tensor  # (B,), complementarity products, two an edge
    is_precise: Tensor  # (B,), bool, whether the dtype can hold the capacities
    is_causal: Tensor  # (B,), bool, whether edges lead to later positions alone
    n_layers: int
    n_tokens: int
    unlimited: float

    @staticmethod
    def of(
        network: LayeredNetwork, bound: Tensor, dtype: torch.dtype
    ) -> BarrierProblem:
        """The problem of a trimmed network and its ``node_bound()``."""
        inner = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1)
        scale = bound.sum(-1).amin(-1)
        unlimited = _UNLIMITED[dtype]
        n_inner, n_edges = inner.shape[1], inner.shape[1] + terminals.shape[1]
        alive = empty((len(inner), n_edges), like=terminals)
        capacity = empty(alive.shape, like=inner.new_empty(0, dtype=dtype))
        torch.gt(inner, 0, out=alive[:, :n_inner])
        alive[:, n_inner:] = terminals
        # Scaled before rounding. Division into another dtype would be slow.
        layers, _, _ = split(
            capacity, (network.n_layers, network.n_tokens, network.n_tokens)
        )
        scaled = empty(layers[:, 0].shape, like=inner)
        is_precise = torch.ones_like(scale, dtype=torch.bool)
        for layer, rounded in enumerate(layers.unbind(1)):
            given = network.capacity[:, layer]
            rounded.copy_(torch.div(given, scale[:, None, None], out=scaled))
            if unlimited < UNLIMITED:
                binds = (scaled >= unlimited) & (scaled < UNLIMITED)
                is_precise &= ~binds.flatten(1).any(1)
        capacity[:, n_inner:] = unlimited
        capacity.masked_fill_(~alive, unlimited).clamp_max_(unlimited)
        # Counted as floats, row by row: sums of bools would copy all to new memory.
        count = empty(alive.shape, like=capacity)
        rows = count.unflatten(1, (-1, network.n_tokens))
        count.copy_(alive)
        n_alive = rows.sum(2).double().sum(1)
        torch.lt(capacity, unlimited, out=count)
        n_terms = n_alive + rows.sum(2).double().sum(1)
        if least := _LEAST[dtype]:
            torch.lt(capacity, least, out=count)
            is_precise &= rows.sum(2).double().sum(1) <= _MOST_BELOW_LEAST * n_alive
            capacity.clamp_min_(least)
        layers, _, _ = split(
            alive, (network.n_layers, network.n_tokens, network.n_tokens)
        )
        return BarrierProblem(
            capacity=capacity,
            alive=alive,
            scale=scale,
            n_terms=n_terms,
            n_products=2 * n_alive,
            is_precise=is_precise,
            is_causal=~layers.triu(1).flatten(1).any(1),
            n_layers=network.n_layers,
            n_tokens=network.n_tokens,
            unlimited=unlimited,
        )

    def select(self, index: Tensor) -> BarrierProblem:
        """Return the problem of some networks of the batch."""
        return replace(
            self,
            capacity=self.capacity[index],
            alive=self.alive[index],
            scale=self.scale[index],
            n_terms=self.n_terms[index],
            n_products=self.n_products[index],
            is_precise=self.is_precise[index],
            is_causal=self.is_causal[index],
        )

    def split(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the inner edges and of those of the source and of the sink."""
        return split(edges, (self.n_layers, self.n_tokens, self.n_tokens))

    def value(self, flow: Tensor) -> Tensor:
        """Flow into the sink, ``(B,)``."""
        return flow[:, -self.n_tokens :].double().sum(1)


@dataclass
class Iterate:
    """The slacks of the bounds ``0 <= x <= u`` of the flow, and their multipliers.

    The upper slack ``y = u - x`` is kept with the opposite sign, and so is its
    multiplier, so that a change of flow changes both slacks alike.
    Edges are held in the dtype of the problem, and nodes in float64.
    """

    slack: Tensor  # (2, B, E): x and -y, kept apart since x - u cancels
    multiplier: Tensor  # (2, B, E): z and -s, at the optimum mu / slack
    p: Tensor  # (B, L + 1, T) potential

    @staticmethod
    def empty(problem: BarrierProblem) -> Iterate:
        """An iterate that is still to be filled."""
        capacity = problem.capacity
        slack, multiplier = empty((2, 2, *capacity.shape), like=capacity)
        nodes = (len(capacity), problem.n_layers + 1, problem.n_tokens)
        return Iterate(slack, multiplier, problem.n_terms.new_empty(nodes))

    def select(self, index: Tensor) -> Iterate:
        """Return the iterate of some networks of the batch."""
        return Iterate(self.slack[:, index], self.multiplier[:, index], self.p[index])


def split(
    edges: Tensor, shape: tuple[int, int, int], has_terminals: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of flat edges: the inner ones in a shape, the source's and the sink's."""
    n_terminals = shape[-1] if has_terminals else 0
    n_inner = edges.shape[1] - 2 * n_terminals
    inner, source, sink = edges.split([n_inner, n_terminals, n_terminals], 1)
    return inner.unflatten(1, shape), source, sink


class EdgePasses(Protocol):
    """The passes over the edges of a batch, in the order of a step.

    The Newton equations of the optimum in ``solver`` reduce, edge by edge, to
    ``dx = weight * (correction + rise(p + dp))`` with
    ``1 / weight = z / x + s / y``. The rise is that of the potential along an edge. The
    correction sums, over the two slacks ``x`` and ``-y`` of an edge, the barrier's
    ``mu / slack`` and Mehrotra's second-order term of the predictor.

    Args:
        problem (BarrierProblem): The problem.
        iterate (Iterate): An iterate of it, changed by :meth:`advance`.

    Attributes:
        dtypes (tuple): Of the edges, to be tried in turn until all networks are solved.
        weight (Tensor): Shape ``(B, L, T, T)``, of the inner edges.
        closed_form (type): What does the work on the edges near the optimum.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    closed_form: ClassVar[type[ClosedForm]]
    weight: Tensor

    def __init__(self, problem: BarrierProblem, iterate: Iterate) -> None: ...

    @staticmethod
    def solvers(n_tokens: int) -> tuple[type[IterativeSolver], ...]:
        """What to try in turn on Laplacian systems, before their factors in float64."""
        ...

    def set_weights(self) -> Tensor:
        """Set the weights of the iterate, and sum them as :func:`node_sums` does."""
        ...

    def predict(self, potential: Tensor, predicting: Tensor) -> tuple[Tensor, ...]:
        """Begin a step by the second-order terms of the affine-scaling predictor.

        Args:
            potential (Tensor): Shape ``(B, L + 1, T)``, after that step.
            predicting (Tensor): Shape ``(B,)``, bool; other networks centre.

        Returns:
            tuple[Tensor, ...]: The least and the largest ratio ``dx / slack``, and the
            sums of ``dx`` times both multipliers and times the rise, each ``(B,)``.
        """
        ...

    def centre(self) -> None:
        """Begin a step without predictor and second-order terms."""
        ...

    def correct(self, step_mu: Tensor) -> Tensor:
        """Set the right side for a barrier parameter, at the potential as it is.

        Args:
            step_mu (Tensor): Shape ``(B,)``, barrier parameter of the step.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``, divergence of the change of flow so far.
        """
        ...

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Complete the step's direction by the change of the potential.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B,)``, the largest shares by which a slack
            and a multiplier would fall in a full step; at most 0 where none falls.
        """
        ...

    def advance(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step with these step lengths, of shape ``(B,)``; then measure."""
        ...

    def measure(self) -> tuple[Tensor, Tensor]:
        """Return the flow's divergence and the sum of the edges' products."""
        ...


class Newton:
    """One predictor-corrector step after the other, in place.

    Args:
        problem (BarrierProblem): The problem.
        iterate (Iterate): Where to start; overwritten by each step.
        passes (type): What does the work on the edges.

    Attributes:
        mu (Tensor): Shape ``(B,)``, mean complementarity product.
        value (Tensor): Shape ``(B,)``, flow into the sink.
        stalled (Tensor): Shape ``(B,)``, steps since the last that gained much.
        centring (Tensor): Shape ``(B,)``, steps that only centred.
        solvers (tuple): What is tried in turn on linear systems.
    """

    def __init__(
        self,
        problem: BarrierProblem,
        iterate: Iterate,
        passes: type[EdgePasses],
    ) -> None:
        self.problem = problem
        self.iterate = iterate
        self.stalled = torch.zeros_like(problem.n_terms)
        self.solvers = passes.solvers(problem.n_tokens)
        self._early_accuracy = _EARLY_ACCURACY
        self._predictor_accuracy = _PREDICTOR_ACCURACY
        self.centring = torch.zeros_like(self.stalled)
        self._ratio = torch.ones_like(self.stalled)  # largest share of a variable used
        self._passes = passes(problem, iterate)
        self._set_measured(*self._passes.measure())
        self._gained = self._progress()

    def select(self, index: Tensor) -> Newton:
        """Go on with some networks of the batch."""
        part = Newton(
            self.problem.select(index),
            self.iterate.select(index),
            type(self._passes),
        )
        part.stalled, part._ratio = self.stalled[index], self._ratio[index]
        part.centring, part._gained = self.centring[index], self._gained[:, index]
        part.solvers, part._early_accuracy = self.solvers, self._early_accuracy
        part._predictor_accuracy = self._predictor_accuracy
        return part

    def is_near(self, target: Tensor, last_ratio: float) -> Tensor:
        """Whether each network is near its optimum.

        Args:
            target (Tensor): Shape ``(B,)``, barrier parameter.
            last_ratio (float): Largest relative change of a slack or multiplier in the
                last step.
        """
        reached = self.mu <= (1 + _LAST_EXCESS) * target
        return reached & (self._ratio <= last_ratio)

    def step(self, target: Tensor) -> None:
        """Move towards the target by a predictor-corrector or a centring step."""
        mu, value = self.mu, self.value
        predicting = mu > _NEAR * target
        sums = self._passes.set_weights()
        laplacian = Laplacian(self._passes.weight, sums, self.solvers)
        if bool(predicting.any()):
            tolerance = self._predictor_accuracy * value
            potential = laplacian.solve(-self._imbalance, tolerance, at_source=-1.0)
            step_mu = self._predict(potential, target, predicting)
        else:
            step_mu = target
            self._passes.centre()
        # Far from the target more imbalance may be left for later steps. Close to it
        # steps shrink fast: the size of the last one measures the distance.
        far = torch.maximum(mu / target, self._ratio**4 / _SMALL_RATIO**4).clamp_min(1)
        accuracy = (_CORRECTOR_ACCURACY * far**2).clamp_max(self._early_accuracy)
        # The unknown is the change of potential, not the potential: an edge with much
        # slack has such a weight that the rounding of a potential would unbalance.
        residual = self._passes.correct(step_mu).add_(self._imbalance)
        change = laplacian.solve(-residual, accuracy * value)
        ratio = self._ratio
        self._advance(change)
        progress = self._progress()
        gains = (progress <= _LITTLE * self._gained).any(0)
        gains = torch.where(predicting, gains, self._ratio <= _LITTLE * ratio)
        self._gained = torch.where(gains, progress, self._gained)
        self.stalled = (self.stalled + 1) * ~gains
        self.centring += ~predicting
        if bool(self.stalled.any()):
            self._early_accuracy = self._predictor_accuracy = _CAREFUL_ACCURACY
        longest = torch.maximum(self.stalled, self.centring - _ENOUGH_CENTRING).max()
        patience = self.problem.n_tokens // _TOKENS_PER_STALLED
        patience = max(_LEAST_PATIENCE, min(patience, _MOST_PATIENCE))
        drops = int(longest) > 0 and int(longest) % patience == 0
        self.solvers = laplacian.solvers[1 if drops else 0 :]

    def _predict(self, potential: Tensor, target: Tensor, predicting: Tensor) -> Tensor:
        """Choose ``mu`` by the step straight at the optimum."""
        mu = self.mu
        least, most, cost, gain = self._passes.predict(potential, predicting)
        primal = 1 / (-least).clamp_min(1)
        dual = 1 / (1 + most).clamp_min(1)
        n_products = self.problem.n_products
        # The mean of (x + primal dx) (z + dual dz), where the predictor has
        # x dz + z dx = -x z; its sums are cost = z dx and gain = dx / weight dx.
        after = (1 - dual) * mu
        after += ((1 - dual) * primal - dual) * cost / n_products
        after -= primal * dual * gain / n_products
        # Mehrotra's rule (1992), and more centring where bounds block the predictor.
        sigma = torch.maximum(
            (after / mu).clamp(0, 1) ** 3, (1 - torch.minimum(primal, dual)) ** 2
        )
        return torch.where(predicting, torch.maximum(sigma * mu, target), target)

    def _advance(self, change: Tensor) -> None:
        primal_ratio, dual_ratio = self._passes.ratio_test(change)
        primal, dual = _step_length(primal_ratio), _step_length(dual_ratio)
        self._ratio = torch.maximum(primal_ratio, dual_ratio)
        measured = self._passes.advance(primal, dual)
        self.iterate.p.addcmul_(change, dual[:, None, None])
        self._set_measured(*measured)

    def _progress(self) -> Tensor:
        """What steps are to reduce: ``mu`` and the largest imbalance, ``(2, B)``."""
        return torch.stack([self.mu, self._imbalance.abs().amax((1, 2))])

    def _set_measured(self, imbalance: Tensor, total: Tensor) -> None:
        self._imbalance = imbalance
        self.mu = total / self.problem.n_products
        self.value = self.problem.value(self.iterate.slack[0])


def _step_length(ratio: Tensor) -> Tensor:
    """The full step, or nearly to the nearest boundary."""
    return _STEP_SHARE / ratio.clamp_min(_STEP_SHARE)


def start(problem: BarrierProblem, bound: Tensor, iterate: Iterate) -> None:
    """Fill in the first iterate of a problem.

    Args:
        problem (BarrierProblem): The problem of trimmed networks.
        bound (Tensor): Shape ``(B, L + 1, T)``, their ``node_bound()``.
        iterate (Iterate): Overwritten.
    """
    spare = iterate.multiplier  # the last to be filled
    _fill_flow(problem, bound, iterate.slack[0], spare)
    rises = _rises(problem, iterate.slack[0], spare[0])
    potential = rises.cumsum(1)[:, :-1] - 1
    iterate.p.copy_(potential[..., None].expand_as(iterate.p))
    torch.sub(iterate.slack[0], problem.capacity, out=iterate.slack[1])
    _fill_multipliers(problem, iterate, rises)


def _fill_flow(
    problem: BarrierProblem, bound: Tensor, flow: Tensor, spare: Tensor
) -> None:
    """Write a flow within the capacities that nearly conserves."""
    bound = (bound / problem.scale[:, None, None]).clamp_max(1).to(flow.dtype)
    # A missing edge has unlimited slack.
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
    causal = problem.is_causal
    value = torch.where(causal, _CAUSAL_VALUE, _VALUE).to(flow.dtype)
    flow.mul_((value / load.clamp_min(1))[:, None])
    inside, sent, received = problem.split(capacity)
    inside.clamp_max_(bound[:, :-1, None]).clamp_max_(bound[:, 1:, :, None])
    sent.clamp_max_(bound[:, 0])
    received.clamp_max_(bound[:, -1])
    extra = torch.where(causal, _CAUSAL_EXTRA_SHARE, _EXTRA_SHARE).to(flow.dtype)
    flow.addcmul_(capacity, extra[:, None])
    flow.masked_fill_(~problem.alive, 1 / problem.unlimited)


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


def _rises(problem: BarrierProblem, flow: Tensor, spare: Tensor) -> Tensor:
    """Rise of the potential from the source on, ``(B, L + 2)``, of sum 1.

    A layer of edges rises by their mean load, and the terminals' edges by half of the
    least of these.
    """
    loaded = torch.div(flow, problem.capacity, out=spare).mul_(flow)
    loaded, total = (problem.split(edges)[0].sum((2, 3)) for edges in (loaded, flow))
    rise = loaded / total + _LEAST_RISE
    half = rise.amin(1, keepdim=True) / 2
    rises = torch.cat([half, rise, half], 1)
    return rises / rises.sum(1, keepdim=True)


def _fill_multipliers(problem: BarrierProblem, iterate: Iterate, rises: Tensor) -> None:
    """Write multipliers of one gap over all edges, at least what potentials ask for."""
    gap = (_GAP / problem.n_terms).to(iterate.multiplier.dtype)
    torch.div(gap[:, None], iterate.slack, out=iterate.multiplier)
    rises = rises.to(iterate.multiplier.dtype)
    upper = iterate.multiplier[1]
    most = _MOST_OF_GAP * upper
    # Slack that is unlimited has no multiplier.
    most.masked_fill_(problem.capacity >= problem.unlimited, 0.0)
    spare = torch.empty_like(upper)
    for lower, needed, layers in zip(
        problem.split(iterate.multiplier[0]),
        problem.split(spare),
        (slice(1, -1), slice(0, 1), slice(-1, None)),
        strict=True,
    ):
        rise = rises[:, layers].unflatten(1, (-1, *[1] * (lower.dim() - 2)))
        torch.maximum(lower, rise, out=lower)
        # The two differ by the rise of the potential.
        torch.add(lower, rise, out=needed).neg_()
    torch.minimum(upper, torch.maximum(spare, most, out=spare), out=upper)
