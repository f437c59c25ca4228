"""From a batch of networks to their flows: towards the central path, and then onto it.

:class:`Newton` leads to the barrier weight asked for, at first with edges in
float32, which halves the memory that each step reads. :class:`DualNewton` ends it in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captum_attnflow._large_arrays import empty
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers._barrier.closed_form import Potential
from captum_attnflow.flow.solvers._barrier.dual import DualNewton
from captum_attnflow.flow.solvers._barrier.implementation import untracked
from captum_attnflow.flow.solvers._barrier.newton import MOST_PATIENCE, Newton
from captum_attnflow.flow.solvers._barrier.passes import EdgePasses
from captum_attnflow.flow.solvers._barrier.problem import Problem, State
from captum_attnflow.flow.solvers._barrier.start import start
from captum_attnflow.flow.solvers._barrier.workspace import workspace
from captum_attnflow.flow.solvers.solution import (
    FlowError,
    FlowSolution,
    bounds_of,
    certified,
)

# Least relative duality gap: beyond it the rounding of sums over nodes is larger.
LEAST_EPSILON = 1e-12
# Orders of magnitude between capacities from which on they are the reason of a failure.
_MOST_ORDERS = 100
# Bytes of the workspace for gaps between arrays.
_MORE_BYTES = 1 << 12
# Steps on end that gain little, some of them with factored layers, and steps that only
# centre, before edges in float32 are given up.
_MOST_STALLED = MOST_PATIENCE + 4
_MOST_CENTRING = 8
# Relative change in the last step before the dual method takes over; less where it has
# gone astray from there.
_LAST_FALLS = (0.5, 0.05, 1e-3)
# Steps of the dual method, which takes one to three where the gap is small.
_DUAL_STEPS = 30


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
