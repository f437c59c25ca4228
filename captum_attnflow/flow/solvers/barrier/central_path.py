"""From a batch of networks to their flows: towards the central path, and then onto it.

:class:`Newton` leads to the barrier weight asked for, at first with edges in
float32, which halves the memory that each step reads. :class:`DualNewton` ends it in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captum_attnflow._large_arrays import empty
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.dual import DualNewton, Potential
from captum_attnflow.flow.solvers.barrier.laplacian import Laplacian
from captum_attnflow.flow.solvers.barrier.passes import EdgePasses, untracked
from captum_attnflow.flow.solvers.barrier.problem import Problem, State, workspace
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
# Bytes of the workspace for gaps between arrays.
_MORE_BYTES = 1 << 12

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
# the layers are factored. More tokens make factors dearer, and the patience longer.
_LEAST_PATIENCE, _MOST_PATIENCE = 4, 16
_TOKENS_PER_STALLED = 24
_ENOUGH_CENTRING = 4
# Below this many times the target steps only centre.
_NEAR = 2.0
# How much the mean product may exceed the target after the last step.
_LAST_EXCESS = 0.01
# Relative change of a flow or multiplier in a step from which on accuracy counts.
_SMALL_FALL = 0.5

# --- When the dual method takes over.
# Edges in float32 are given up after this many steps in a row that gain little, some of
# them with factored layers, or after this many that only centre.
_MOST_STALLED = _MOST_PATIENCE + 4
_MOST_CENTRING = 8
# Relative change in the last step before the dual method takes over; smaller where the
# dual method diverged from there.
_LAST_FALLS = (0.5, 0.05, 1e-3)
# Steps of the dual method, which takes one to three where the gap is small.
_DUAL_STEPS = 30

# --- The start. All chosen for the fewest iterations on random networks and on those of
# two trained classifiers.
# A flow that reaches this share of the bound of the value within the capacities is
# taken as it is, except for the share that is left free. Potentials then rise where the
# flow fills the edges, and multipliers follow from them.
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
# Every edge carries this share more of its capacity, or of what the nodes at its ends
# may pass on if that is less: an edge with slack and hardly any flow would have
# products of very different size.
_EXTRA_SHARE = 0.01


@dataclass(frozen=True)
class Aim:
    """Which point of the central path to solve for, see :class:`BarrierSolver`."""

    epsilon: float
    mu: float | None
    tolerance: float
    max_iterations: int

    def target(self, scale: Tensor, n_terms: Tensor, value: Tensor) -> Tensor:
        """Barrier weight for flow values, in units of ``scale``; all ``(B,)``."""
        if self.mu is not None:
            return self.mu / scale
        return self.epsilon * value / n_terms


def solve_batch(
    network: LayeredNetwork, aim: Aim, passes: type[EdgePasses]
) -> FlowSolution:
    """Solve with edges in one dtype, and again where this does not serve.

    In the next dtype; then going on nearer to the optimum before the dual method.

    Args:
        network (LayeredNetwork): Trimmed networks.
        aim (Aim): What to solve for.
        passes (type): What does the work on the edges.

    Raises:
        FlowError: If the limit of iterations is reached.
    """
    bound, of_value = bounds_of(network)
    iterations = torch.zeros(len(bound), dtype=torch.int64, device=bound.device)
    left = torch.arange(len(bound), device=bound.device)
    rows, solutions = [], []
    attempts = [(dtype, _LAST_FALLS[0]) for dtype in passes.dtypes]
    attempts += [(passes.dtypes[-1], last_fall) for last_fall in _LAST_FALLS[1:]]
    for attempt in attempts:
        is_whole = len(left) == len(bound)
        part = network if is_whole else network.select(left)
        made = iterations[left]
        solved, solution = _attempt(part, bound[left], aim, passes, *attempt, made)
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
            + _advice(network.select(left), of_value[left], aim)
        )
    if len(solutions) == 1:
        return solutions[0]
    return FlowSolution.concatenate(solutions).select(torch.cat(rows).argsort())


def _advice(network: LayeredNetwork, of_value: Tensor, aim: Aim) -> str:
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
    if aim.mu is None:
        return (
            f"Raise max_iterations (now {aim.max_iterations}) or epsilon (now "
            f"{aim.epsilon}), or leave out edges of next to no capacity"
        )
    gap = 2 * aim.mu * network.n_edges.double() / of_value
    return (
        f"mu={aim.mu} asks for a duality gap of about {float(gap.min()):.1e} to "
        f"{float(gap.max()):.1e} of the flow value. Give a mu for which that lies "
        f"between {LEAST_EPSILON:g} and 1, or leave mu at None and give epsilon, "
        f"which is that share; or raise max_iterations (now {aim.max_iterations})"
    )


def _attempt(
    network: LayeredNetwork,
    bound: Tensor,
    aim: Aim,
    passes: type[EdgePasses],
    dtype: torch.dtype,
    last_fall: float,
    iterations: Tensor,
) -> tuple[Tensor, FlowSolution | None]:
    """Solve with edges in a dtype, see :meth:`Newton.is_near`; count iterations on.

    Returns:
        tuple: Which networks are solved, ``(B,)``, and the solution of these.
    """
    n_edges = network.capacity.numel() + 2 * network.source.numel()
    n_bytes = passes.n_arrays * dtype.itemsize * n_edges + _MORE_BYTES
    with workspace().frame(n_bytes if bound.device.type == "cpu" else 0):
        with workspace().frame(), untracked():
            problem = Problem.of(network, bound, dtype)
            if not bool(problem.is_precise.any()):
                return torch.zeros_like(iterations, dtype=torch.bool), None
            end = _approach(problem, bound, aim, passes, last_fall, iterations)
            scale, n_terms = problem.scale, problem.n_terms
        near = end.near.nonzero()[:, 0]
        if not len(near):
            return end.near, None
        made = iterations[near]
        if len(near) < len(bound):
            network, end = network.select(near), end.select(near)
            scale, n_terms = scale[near], n_terms[near]
        # Made out here, as no part of the answer is to be an inference tensor.
        flow = empty(network.capacity.shape, like=network.capacity)
        with workspace().frame(), untracked():
            edges = passes.closed_form(network, scale, dtype)
            dual = DualNewton(
                network,
                edges,
                end.potential,
                end.mu,
                partial(aim.target, scale, n_terms),
                passes.iterative_solver if end.iterative else None,
            )
            done = _finish(dual, aim, made)
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
    mu: Tensor  # (B,), barrier weight
    near: Tensor  # (B,), bool, whether near the optimum
    iterative: bool  # whether linear systems were solved by iterating to the end

    def select(self, index: Tensor) -> _End:
        potential = self.potential.select(index)
        return _End(potential, self.mu[index], self.near[index], self.iterative)


def _approach(
    problem: Problem,
    bound: Tensor,
    aim: Aim,
    passes: type[EdgePasses],
    last_fall: float,
    iterations: Tensor,
) -> _End:
    """Step until every network is near its optimum or given up; count its steps.

    Networks leave the batch one by one.
    """
    state = State.empty(problem)
    start(problem, bound, state)
    end = _End(
        Potential(torch.empty_like(state.p), torch.zeros_like(state.p)),
        mu=torch.empty_like(problem.scale),
        near=torch.zeros_like(problem.scale, dtype=torch.bool),
        iterative=True,
    )
    newton = Newton(problem, state, passes)
    running = torch.arange(len(bound), device=bound.device)
    is_coarse = problem.capacity.dtype == torch.float32
    while True:
        target = aim.target(newton.problem.scale, newton.problem.n_terms, newton.value)
        near = newton.is_near(target, last_fall) & newton.problem.is_precise
        fails = ~newton.mu.isfinite() | ~newton.problem.is_precise
        fails |= iterations[running] >= aim.max_iterations
        if is_coarse:
            fails |= newton.stalled >= _MOST_STALLED
            fails |= newton.centring >= _MOST_CENTRING
        leaves = near | fails
        if bool(leaves.any()):
            rows = running[leaves]
            end.potential.high[rows] = newton.state.p[leaves]
            end.mu[rows], end.near[rows] = target[leaves], near[leaves]
            stays = ~leaves
            running, target = running[stays], target[stays]
            if not len(running):
                end.iterative = newton.iterative
                return end
            newton = newton.select(stays)
        newton.step(target)
        iterations[running] += 1


def _finish(dual: DualNewton, aim: Aim, iterations: Tensor) -> Tensor:
    """Step until every network is solved or cannot be; tell which are.

    Returns:
        Tensor: Shape ``(B,)``, bool.
    """
    for _ in range(_DUAL_STEPS):
        done = dual.conserves & dual.is_at_target(aim.tolerance)
        goes_on = ~done & ~dual.is_astray & (iterations < aim.max_iterations)
        if not bool(goes_on.any()):
            break
        dual.step(aim.tolerance)
        iterations += goes_on
    return dual.conserves & dual.is_at_target(aim.tolerance)


class Newton:
    """One predictor-corrector step after the other, in place.

    Args:
        problem (Problem): The problem.
        state (State): Where to start; overwritten by each step.
        passes (type): What does the work on the edges.
        memory (Tensor, optional): Flat memory to work in; by default, or if it is not
            enough, the workspace's.

    Attributes:
        mu (Tensor): Shape ``(B,)``, mean complementarity product.
        value (Tensor): Shape ``(B,)``, flow into the sink.
        stalled (Tensor): Shape ``(B,)``, steps since the last that gained much.
        centring (Tensor): Shape ``(B,)``, steps that only centred.
        iterative (bool): Whether linear systems are still solved by iterating.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        passes: type[EdgePasses],
        memory: Tensor | None = None,
    ) -> None:
        self.problem = problem
        self.state = state
        self.stalled = torch.zeros_like(problem.n_terms)
        self.iterative = problem.n_tokens >= passes.iterative_from_tokens
        self._early_accuracy = _EARLY_ACCURACY
        self.centring = torch.zeros_like(self.stalled)
        self._fall = torch.ones_like(self.stalled)  # largest share of a variable used
        self._passes = passes(problem, state, memory)
        self._note(*self._passes.measure())
        self._gained = self._progress()

    def select(self, index: Tensor) -> Newton:
        """Go on with some networks of the batch."""
        part = Newton(
            self.problem.select(index),
            self.state.select(index),
            type(self._passes),
            memory=self._passes.memory,
        )
        part.stalled, part._fall = self.stalled[index], self._fall[index]
        part.centring, part._gained = self.centring[index], self._gained[:, index]
        part.iterative, part._early_accuracy = self.iterative, self._early_accuracy
        return part

    def is_near(self, target: Tensor, last_fall: float) -> Tensor:
        """Whether each network is near its optimum.

        Args:
            target (Tensor): Shape ``(B,)``, barrier weight.
            last_fall (float): Relative change of a flow or multiplier in the last step,
                at most.
        """
        reached = self.mu <= (1 + _LAST_EXCESS) * target
        return reached & (self._fall <= last_fall)

    def step(self, target: Tensor) -> None:
        """Move towards the target by a predictor-corrector or a centring step."""
        mu, value = self.mu, self.value
        predicting = mu > _NEAR * target
        sums = self._passes.weigh()
        laplacian = Laplacian(
            self._passes.weight,
            sums,
            self._passes.iterative_solver if self.iterative else None,
        )
        if bool(predicting.any()):
            tolerance = _PREDICTOR_ACCURACY * value
            potential = laplacian.solve(-self._imbalance, tolerance, at_source=-1.0)
            aim = self._predict(potential, target, predicting)
        else:
            aim = target
            self._passes.centre()
        # The farther from the target, the more imbalance may be left for later. Close
        # to it steps shrink fast, so that the last one tells how far this is.
        far = torch.maximum(mu / target, self._fall**4 / _SMALL_FALL**4).clamp_min(1)
        accuracy = (_CORRECTOR_ACCURACY * far**2).clamp_max(self._early_accuracy)
        # The change of potential is solved for, not the potential: where an edge has
        # much room its weight is so large that the rounding of it would unbalance.
        lost = self._passes.force(aim).add_(self._imbalance)
        change = laplacian.solve(-lost, accuracy * value)
        fall = self._fall
        self._advance(change)
        progress = self._progress()
        gains = (progress <= _LITTLE * self._gained).any(0)
        gains = torch.where(predicting, gains, self._fall <= _LITTLE * fall)
        self._gained = torch.where(gains, progress, self._gained)
        self.stalled = (self.stalled + 1) * ~gains
        self.centring += ~predicting
        if bool(self.stalled.any()):
            self._early_accuracy = _CAREFUL_ACCURACY
        longest = torch.maximum(self.stalled, self.centring - _ENOUGH_CENTRING).max()
        patience = self.problem.n_tokens // _TOKENS_PER_STALLED
        patience = max(_LEAST_PATIENCE, min(patience, _MOST_PATIENCE))
        self.iterative = laplacian.iterative and int(longest) < patience

    def _predict(self, potential: Tensor, target: Tensor, predicting: Tensor) -> Tensor:
        """Choose ``mu`` by the step straight at the optimum."""
        mu = self.mu
        least, most, cost, gain = self._passes.predict(potential, predicting)
        primal = 1 / (-least).clamp_min(1)
        dual = 1 / (1 + most).clamp_min(1)
        n_products = 2 * self.problem.capacity.shape[1]
        after = (1 - dual) * mu
        after += ((1 - dual) * primal - dual) * cost / n_products
        after -= primal * dual * gain / n_products
        # Mehrotra's rule, and more centring where the boundary blocks the predictor.
        sigma = torch.maximum(
            (after / mu).clamp(0, 1) ** 3, (1 - torch.minimum(primal, dual)) ** 2
        )
        return torch.where(predicting, torch.maximum(sigma * mu, target), target)

    def _advance(self, change: Tensor) -> None:
        of_room, of_price = self._passes.turn(change)
        primal, dual = _step_length(of_room), _step_length(of_price)
        self._fall = torch.maximum(of_room, of_price)
        measured = self._passes.move(primal, dual)
        self.state.p.addcmul_(change, dual[:, None, None])
        self._note(*measured)

    def _progress(self) -> Tensor:
        """What is to fall: ``mu``, and the largest imbalance at a node, ``(2, B)``."""
        return torch.stack([self.mu, self._imbalance.abs().amax((1, 2))])

    def _note(self, imbalance: Tensor, total: Tensor) -> None:
        self._imbalance = imbalance
        self.mu = total / (2 * self.problem.capacity.shape[1])
        self.value = self.problem.value(self.state.room[0])


def _step_length(fall: Tensor) -> Tensor:
    """The full step, or nearly to the nearest boundary."""
    return _STEP_SHARE / fall.clamp_min(_STEP_SHARE)


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
