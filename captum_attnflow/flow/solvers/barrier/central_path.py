"""From a batch of networks to their flows: towards the central path, and then onto it.

:class:`Newton` leads to the barrier parameter asked for, at first with edges in
float32, which halves the memory that each step reads. :class:`DualNewton` ends it in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork, empty
from captum_attnflow.flow.solvers.barrier.laplacian import (
    DualNewton,
    IterativeSolver,
    Laplacian,
    Potential,
)
from captum_attnflow.flow.solvers.barrier.problem import (
    BarrierProblem,
    EdgePasses,
    Iterate,
    untracked,
)
from captum_attnflow.flow.solvers.base import (
    FlowError,
    FlowSolution,
    bounds_of,
    certified,
)

# Least relative duality gap: beyond it the rounding of sums over nodes is larger.
LEAST_EPSILON = 1e-12
# Capacities further apart than these orders of magnitude explain a failure.
_MOST_ORDERS = 100

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
# After this many steps in a row that gain little, or that only centre beyond enough,
# whole layers are factored. Factors cost more with more tokens, so patience grows.
_LEAST_PATIENCE, _MOST_PATIENCE = 4, 16
_TOKENS_PER_STALLED = 24
_ENOUGH_CENTRING = 4
# Below this many times the target steps only centre.
_NEAR = 2.0
# How much the mean product may exceed the target after the last step.
_LAST_EXCESS = 0.01
# Relative change of a flow or multiplier in a step from which on accuracy counts.
_SMALL_RATIO = 0.5

# --- When the dual method takes over.
# Edges in float32 are given up after this many steps in a row that gain little, some of
# them with factored layers, or after this many that only centre.
_MOST_STALLED = _MOST_PATIENCE + 4
_MOST_CENTRING = 8
# Relative change in the last step before the dual method takes over; smaller where the
# dual method diverged from there.
_LAST_RATIOS = (0.5, 0.05, 1e-3)
# Steps of the dual method, which takes one to three where the gap is small.
_DUAL_STEPS = 30

# --- The start. All chosen for the fewest iterations on random networks and on those of
# two trained classifiers.
# A flow that reaches this share of the bound of the value within the capacities is
# taken as it is, except for the share that is left free. Potentials then rise where the
# flow fills the edges, and multipliers follow from them.
_FITTING_SHARE = 0.8
_FITTING_VALUE = 0.95
_CAUSAL_FITTING_VALUE = 0.8
_FITTING_GAP = 0.1
_LEAST_RISE = 1e-3
# Any other flow is cut off at this share of each capacity, and restored by the steps;
# smaller multipliers would block them.
_VALUE = 0.9
_LOAD = 0.7
_GAP = 0.01
_MULTIPLIER = 0.1
# Every edge carries this share more of its capacity, or of what the nodes at its ends
# may pass on if that is less: an edge with slack and hardly any flow would have
# products of very different size.
_EXTRA_SHARE = 0.01
# Flows of causal networks gather at the first tokens, and leave more to make up for.
# Shares of 0.01 and 0.95 take 19 steps instead of 16 at (12, 128), and 26 instead of 22
# at (12, 512), the last position read out.
_CAUSAL_EXTRA_SHARE = 0.1


@dataclass(frozen=True)
class BarrierOptions:
    """Which point of the central path to solve for, see :class:`BarrierSolver`."""

    epsilon: float
    mu: float | None
    tolerance: float
    max_iterations: int

    def target(self, scale: Tensor, n_terms: Tensor, value: Tensor) -> Tensor:
        """Barrier parameter for flow values, in units of ``scale``; all ``(B,)``."""
        if self.mu is not None:
            return self.mu / scale
        return self.epsilon * value / n_terms


def solve_batch(
    network: LayeredNetwork, options: BarrierOptions, passes: type[EdgePasses]
) -> FlowSolution:
    """Solve with edges in each dtype in turn until all networks are solved.

    The last attempts go on nearer to the optimum before the dual method takes over.

    Args:
        network (LayeredNetwork): Trimmed networks.
        options (BarrierOptions): What to solve for.
        passes (type): What does the work on the edges.

    Raises:
        FlowError: If the limit of iterations is reached.
    """
    bound, of_value = bounds_of(network)
    iterations = torch.zeros(len(bound), dtype=torch.int64, device=bound.device)
    left = torch.arange(len(bound), device=bound.device)
    rows, solutions = [], []
    attempts = [(dtype, _LAST_RATIOS[0]) for dtype in passes.dtypes]
    attempts += [(passes.dtypes[-1], last_ratio) for last_ratio in _LAST_RATIOS[1:]]
    for attempt in attempts:
        is_whole = len(left) == len(bound)
        part = network if is_whole else network.select(left)
        made = iterations[left]
        solved, solution = _attempt(part, bound[left], options, passes, *attempt, made)
        iterations[left] = made
        if solution is not None:
            rows.append(left[solved])
            solutions.append(solution)
        left = left[~solved]
        if not len(left):
            break
    else:
        raise FlowError(
            f"the barrier solver did not converge on {len(left)} of {len(bound)} "
            f"networks in {int(iterations[left].max())} iterations (rows "
            f"{left.tolist()[:8]} of those solved together). "
            + _advice(network.select(left), of_value[left], options)
        )
    if len(solutions) == 1:
        return solutions[0]
    return FlowSolution.concatenate(solutions).select(torch.cat(rows).argsort())


def _advice(network: LayeredNetwork, of_value: Tensor, options: BarrierOptions) -> str:
    """What to do about networks, with bounds of their values, that are not solved."""
    capacity = network.capacity
    edge = (capacity > 0) & capacity.isfinite()
    least = torch.where(edge, capacity, torch.inf).amin((1, 2, 3))
    most = torch.where(edge, capacity, 0.0).amax((1, 2, 3))
    orders = most.log10() - least.log10()
    if bool((orders > _MOST_ORDERS).any()):
        row = int(orders.argmax())
        return (
            f"Their capacities reach from {float(least[row]):.1e} to "
            f"{float(most[row]):.1e}, too far apart for float64. Set those below 1e-20 "
            "of the flow value to 0, and those above 1e20 of it to 1e20 of it: the "
            "value is solve_flow(network, "
            '"scipy").cut_capacity, a solver without such a limit'
        )
    if options.mu is None:
        return (
            f"Raise max_iterations (now {options.max_iterations}) or epsilon (now "
            f"{options.epsilon}), or leave out edges of next to no capacity"
        )
    gap = 2 * options.mu * network.n_edges.double() / of_value
    return (
        f"mu={options.mu} asks for a duality gap of about {float(gap.min()):.1e} to "
        f"{float(gap.max()):.1e} of the flow value. Give a mu for which that lies "
        f"between {LEAST_EPSILON:g} and 1, or leave mu at None and give epsilon, "
        f"which is that share; or raise max_iterations (now {options.max_iterations})"
    )


def _attempt(
    network: LayeredNetwork,
    bound: Tensor,
    options: BarrierOptions,
    passes: type[EdgePasses],
    dtype: torch.dtype,
    last_ratio: float,
    iterations: Tensor,
) -> tuple[Tensor, FlowSolution | None]:
    """Solve with edges in one dtype, and add to the iterations.

    Returns:
        tuple: Which networks are solved, ``(B,)``, and the solution of these.
    """
    with untracked():
        problem = BarrierProblem.of(network, bound, dtype)
        if not bool(problem.is_precise.any()):
            return torch.zeros_like(iterations, dtype=torch.bool), None
        end = _approach(problem, bound, options, passes, last_ratio, iterations)
        scale, n_terms = problem.scale, problem.n_terms
        del problem  # The last steps need its memory.
    near = end.near.nonzero()[:, 0]
    if not len(near):
        return end.near, None
    made = iterations[near]
    if len(near) < len(bound):
        network, end = network.select(near), end.select(near)
        scale, n_terms = scale[near], n_terms[near]
    # Outside inference mode: no part of the answer may be an inference tensor.
    flow = empty(network.capacity.shape, like=network.capacity)
    with untracked():
        edges = passes.closed_form(network, scale, dtype)
        dual = DualNewton(
            network,
            edges,
            end.potential,
            end.mu,
            partial(options.target, scale, n_terms),
            passes.iterative_solver if end.iterative else None,
            end.banded_solver,
        )
        done = _finish(dual, options, made)
        edges.fill(dual.potential, dual.mu, flow)
    iterations[near] = made
    solution = certified(
        network,
        flow=flow,
        source_flow=dual.source_flow * scale[:, None],
        sink_flow=dual.sink_flow * scale[:, None],
        potential=dual.potential.high.clone(),
        mu=dual.mu * scale,
        duality_gap=dual.mu * n_terms * scale,
        iterations=made.clone(),
    )
    solved = torch.zeros_like(iterations, dtype=torch.bool)
    solved[near] = done
    return solved, solution if bool(done.all()) else solution.select(done)


@dataclass
class _End:
    """Where :class:`Newton` has led a batch."""

    potential: Potential
    mu: Tensor  # (B,), barrier parameter
    near: Tensor  # (B,), bool, whether near the optimum
    iterative: bool  # whether linear systems were solved by iterating to the end
    banded_solver: type[IterativeSolver] | None  # what else may serve

    def select(self, index: Tensor) -> _End:
        potential = self.potential.select(index)
        return replace(
            self, potential=potential, mu=self.mu[index], near=self.near[index]
        )


def _approach(
    problem: BarrierProblem,
    bound: Tensor,
    options: BarrierOptions,
    passes: type[EdgePasses],
    last_ratio: float,
    iterations: Tensor,
) -> _End:
    """Step until every network is near its optimum or given up; count its steps.

    Networks leave the batch one by one.
    """
    iterate = Iterate.empty(problem)
    start(problem, bound, iterate)
    end = _End(
        Potential(torch.empty_like(iterate.p), torch.zeros_like(iterate.p)),
        mu=torch.empty_like(problem.scale),
        near=torch.zeros_like(problem.scale, dtype=torch.bool),
        iterative=True,
        banded_solver=None,
    )
    newton = Newton(problem, iterate, passes)
    running = torch.arange(len(bound), device=bound.device)
    is_coarse = problem.capacity.dtype == torch.float32
    while True:
        target = options.target(
            newton.problem.scale, newton.problem.n_terms, newton.value
        )
        near = newton.is_near(target, last_ratio) & newton.problem.is_precise
        fails = ~newton.mu.isfinite() | ~newton.problem.is_precise
        fails |= iterations[running] >= options.max_iterations
        if is_coarse:
            fails |= newton.stalled >= _MOST_STALLED
            fails |= newton.centring >= _MOST_CENTRING
        leaves = near | fails
        if bool(leaves.any()):
            rows = running[leaves]
            end.potential.high[rows] = newton.iterate.p[leaves]
            end.mu[rows], end.near[rows] = target[leaves], near[leaves]
            stays = ~leaves
            running, target = running[stays], target[stays]
            if not len(running):
                end.iterative = newton.iterative
                end.banded_solver = newton.banded_solver
                return end
            newton = newton.select(stays)
        newton.step(target)
        iterations[running] += 1


def _finish(dual: DualNewton, options: BarrierOptions, iterations: Tensor) -> Tensor:
    """Step until every network is solved or given up.

    Returns:
        Tensor: Shape ``(B,)``, bool, which are solved.
    """
    for _ in range(_DUAL_STEPS):
        done = dual.conserves & dual.is_at_target(options.tolerance)
        goes_on = ~done & ~dual.has_diverged & (iterations < options.max_iterations)
        if not bool(goes_on.any()):
            break
        dual.step(options.tolerance)
        iterations += goes_on
    return dual.conserves & dual.is_at_target(options.tolerance)


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
        iterative (bool): Whether linear systems are still solved by iterating.
        banded_solver (type, optional): What is tried after that.
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
        self.iterative = problem.n_tokens >= passes.iterative_from_tokens
        self._early_accuracy = _EARLY_ACCURACY
        self.centring = torch.zeros_like(self.stalled)
        self._ratio = torch.ones_like(self.stalled)  # largest share of a variable used
        self._passes = passes(problem, iterate)
        self.banded_solver = self._passes.banded_solver
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
        part.iterative, part._early_accuracy = self.iterative, self._early_accuracy
        part.banded_solver = self.banded_solver
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
        laplacian = Laplacian(
            self._passes.weight,
            sums,
            self._passes.iterative_solver if self.iterative else None,
            self.banded_solver,
        )
        if bool(predicting.any()):
            tolerance = _PREDICTOR_ACCURACY * value
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
            self._early_accuracy = _CAREFUL_ACCURACY
        longest = torch.maximum(self.stalled, self.centring - _ENOUGH_CENTRING).max()
        patience = self.problem.n_tokens // _TOKENS_PER_STALLED
        patience = max(_LEAST_PATIENCE, min(patience, _MOST_PATIENCE))
        self.iterative = laplacian.iterative and int(longest) < patience
        if not laplacian.banded or int(longest) >= patience:
            self.banded_solver = None

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
    fits = _fill_flow(problem, bound, iterate.slack[0], spare)
    rises = _rises(problem, iterate.slack[0], fits, spare[0])
    potential = rises.cumsum(1)[:, :-1] - 1
    iterate.p.copy_(potential[..., None].expand_as(iterate.p))
    torch.sub(iterate.slack[0], problem.capacity, out=iterate.slack[1])
    _fill_multipliers(problem, iterate, rises, fits)


def _fill_flow(
    problem: BarrierProblem, bound: Tensor, flow: Tensor, spare: Tensor
) -> Tensor:
    """Write a flow; return where it fits within the capacities, ``(B,)``, bool."""
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
    fits = load * _FITTING_SHARE <= 1
    if not bool(fits.all()):
        layers, sent, received = problem.split(spare[1])
        _fill_proportionally(
            layers.unbind(1), (sent, received), inner, (first, last), bound
        )
        flow.lerp_(spare[1], torch.where(fits, 0.0, 0.5).to(flow.dtype)[:, None])
    causal = problem.is_causal
    fitting = torch.where(causal, _CAUSAL_FITTING_VALUE, _FITTING_VALUE)
    share = torch.where(fits, fitting / load.clamp_min(1), _VALUE)
    most = torch.where(fits, fitting, _LOAD).to(flow.dtype)
    most_of_edge = torch.mul(problem.capacity, most[:, None], out=spare[1])
    torch.minimum(flow.mul_(share[:, None]), most_of_edge, out=flow)
    inside, sent, received = problem.split(capacity)
    inside.clamp_max_(bound[:, :-1, None]).clamp_max_(bound[:, 1:, :, None])
    sent.clamp_max_(bound[:, 0])
    received.clamp_max_(bound[:, -1])
    extra = torch.where(causal, _CAUSAL_EXTRA_SHARE, _EXTRA_SHARE).to(flow.dtype)
    flow.addcmul_(capacity, extra[:, None])
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


def _rises(
    problem: BarrierProblem, flow: Tensor, fits: Tensor, spare: Tensor
) -> Tensor:
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


def _fill_multipliers(
    problem: BarrierProblem, iterate: Iterate, rises: Tensor, fits: Tensor
) -> None:
    """Write multipliers of one gap over all edges, at least what potentials ask for."""
    gap = torch.where(fits, _FITTING_GAP, _GAP) / problem.n_terms
    gap = gap.to(iterate.multiplier.dtype)
    torch.div(gap[:, None], iterate.slack, out=iterate.multiplier)
    if_fits = fits.to(iterate.multiplier.dtype)[:, None]
    least = if_fits * rises + (1 - if_fits) * _MULTIPLIER
    upper = iterate.multiplier[1]
    spare = torch.empty_like(upper)
    for lower, needed, layers in zip(
        problem.split(iterate.multiplier[0]),
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
