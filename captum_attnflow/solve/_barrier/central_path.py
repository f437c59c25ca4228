"""From a batch of networks to their flows: towards the central path, and then onto it.

:class:`Newton` leads to the barrier weight asked for, with edges in float32, which
halves the memory that each step reads. :class:`DualNewton` ends it in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captum_attnflow._large_arrays import empty
from captum_attnflow.network import LayeredNetwork
from captum_attnflow.solve._barrier.closed_form import Potential
from captum_attnflow.solve._barrier.dual import DualNewton
from captum_attnflow.solve._barrier.implementation import untracked
from captum_attnflow.solve._barrier.newton import Newton
from captum_attnflow.solve._barrier.passes import EdgePasses
from captum_attnflow.solve._barrier.problem import Problem, State
from captum_attnflow.solve._barrier.start import start
from captum_attnflow.solve._barrier.workspace import workspace
from captum_attnflow.solve.solution import FlowError, FlowSolution, certified

# What a solve takes from the workspace: arrays of edges, and for gaps between them.
_ARRAYS = 13
_MORE_BYTES = 1 << 12
# Steps on end that gain little, and steps that only centre, before edges in float32
# are given up.
_MOST_STALLED = 6
_MOST_CENTRING = 8
# Steps of the dual method, which converges in a few where it does.
_DUAL_STEPS = 12


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
    """Solve with edges in one dtype, and in the next where the first does not serve.

    Args:
        network (LayeredNetwork): Trimmed networks.
        aim (Aim): What to solve for.
        passes (type): What does the work on the edges.

    Raises:
        FlowError: If the limit of iterations is reached.
    """
    bound = network.node_bound()
    iterations = torch.zeros(len(bound), dtype=torch.int64, device=bound.device)
    left = torch.arange(len(bound), device=bound.device)
    rows, solutions = [], []
    for dtype in passes.dtypes:
        is_whole = len(left) == len(bound)
        part = network if is_whole else network.select(left)
        made = iterations[left]
        solved, solution = _attempt(part, bound[left], aim, passes, dtype, made)
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
            f"networks within {aim.max_iterations} iterations (batch rows "
            f"{left.tolist()[:8]}). Raise max_iterations, or epsilon (now "
            f"{aim.epsilon}), or check the capacities for extreme ratios"
        )
    if len(solutions) == 1:
        return solutions[0]
    return FlowSolution.concatenate(solutions).select(torch.cat(rows).argsort())


def _attempt(
    network: LayeredNetwork,
    bound: Tensor,
    aim: Aim,
    passes: type[EdgePasses],
    dtype: torch.dtype,
    iterations: Tensor,
) -> tuple[Tensor, FlowSolution | None]:
    """Solve with edges in a dtype; count iterations on.

    Returns:
        tuple: Which networks are solved, ``(B,)``, and the solution of these.
    """
    n_edges = network.capacity.numel() + 2 * network.source.numel()
    n_bytes = _ARRAYS * dtype.itemsize * n_edges + _MORE_BYTES
    with workspace().frame(n_bytes):
        with workspace().frame(), untracked():
            problem = Problem.of(network, bound, dtype)
            if not problem.is_precise:
                return torch.zeros_like(iterations, dtype=torch.bool), None
            end = _approach(problem, bound, aim, passes, iterations)
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
            edges = passes.closed_form(network, scale)
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
    iterations: Tensor,
) -> _End:
    """Step until every network is near its optimum or given up; count its steps.

    Networks leave the batch one by one.
    """
    state = State.empty(problem)
    start(problem, bound, state)
    end = _End(
        Potential(torch.empty_like(state.p), torch.empty_like(state.p)),
        mu=torch.empty_like(problem.scale),
        near=torch.zeros_like(problem.scale, dtype=torch.bool),
        iterative=True,
    )
    newton = Newton(problem, state, passes)
    running = torch.arange(len(bound), device=bound.device)
    is_coarse = problem.capacity.dtype == torch.float32
    while True:
        target = aim.target(newton.problem.scale, newton.problem.n_terms, newton.value)
        near = newton.is_near(target)
        fails = ~newton.mu.isfinite() | (iterations[running] >= aim.max_iterations)
        if is_coarse:
            fails |= newton.stalled >= _MOST_STALLED
            fails |= newton.centring >= _MOST_CENTRING
        leaves = near | fails
        if bool(leaves.any()):
            rows = running[leaves]
            end.potential.high[rows] = newton.state.p[leaves]
            end.potential.low[rows] = newton.state.rest[leaves]
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
    """Step until every network is solved, or one cannot be; tell which are.

    Returns:
        Tensor: Shape ``(B,)``, bool.
    """
    for _ in range(_DUAL_STEPS):
        done = dual.conserves & dual.is_at_target(aim.tolerance)
        # Far from the optimum, where no step may lead back, or not a number.
        if bool(done.all() | ~(dual.lost < 1).all()):
            break
        dual.step(aim.tolerance)
        iterations += 1
    return dual.conserves & dual.is_at_target(aim.tolerance)
