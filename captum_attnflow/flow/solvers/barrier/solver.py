r"""The barrier problem, solved in batch: primal and dual together, and then the dual.

Generalized Attention Flow (Azarkhalili & Libbrecht 2025, Eq. 12) regularises the
maximum flow, seen as a minimum-cost circulation, by a logarithmic barrier:

.. math::
    \min_{B^\top f = 0} c^\top f
        - \mu \sum_e \left[\log f_e + \log(u_e - f_e)\right].

With ``x`` the flow, ``y = u - x`` its slack, ``z`` and ``s`` their multipliers, and a
potential ``p`` per node that is -1 at the source and 0 at the sink, the optimum has

.. math::
    z - s = p_{tail} - p_{head}, \qquad x z = \mu, \qquad y s = \mu.

A predictor-corrector leads near it. There the flows follow from the potentials in
closed form, and Newton's method on these alone ends it.

Here the terminals' edges and edges that never bind have ``u = inf``: their upper
barrier is constant and drops out. The paper's back edge only rescales ``mu`` by
``1 / (1 + mu / value)`` and is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor

from captum_attnflow._checks import counted, described
from captum_attnflow.flow.network import LayeredNetwork, check_network, empty
from captum_attnflow.flow.solvers.barrier.central_path import (
    BarrierProblem,
    EdgePasses,
    Iterate,
    Newton,
    start,
)
from captum_attnflow.flow.solvers.barrier.compilation import (
    check_compiled,
    passes_for,
)
from captum_attnflow.flow.solvers.barrier.laplacian import (
    DualNewton,
    IterativeSolver,
    Potential,
)
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses
from captum_attnflow.flow.solvers.base import (
    FlowError,
    FlowSolution,
    FlowSolver,
    bounds_of,
    certified,
)

# Least relative duality gap: beyond it the rounding of sums over nodes is larger.
LEAST_EPSILON = 1e-12
# Capacities further apart than these orders of magnitude explain a failure.
_MOST_ORDERS = 100
# Edges whose arrays a processor's cache holds; more at once take longer each.
_CACHED_EDGES = 1 << 18

# --- When the dual method takes over.
# Edges in float32 are given up after this many steps in a row that gain little, some of
# them with factored layers (beyond the patience of ``Newton``), or after this many that
# only centre.
_MOST_STALLED = 20
_MOST_CENTRING = 8
# Relative change in the last step before the dual method takes over; smaller where the
# dual method diverged from there.
_LAST_RATIOS = (0.5, 0.05, 1e-3)
# Steps of the dual method, which takes one to three where the gap is small.
_DUAL_STEPS = 30


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


@dataclass(frozen=True)
class BarrierSolver(FlowSolver):
    r"""The unique flow of the barrier problem, all networks of a batch together.

    The barrier weight is relative by default: ``mu = epsilon * value / m`` for the
    ``m`` barrier terms, so that the duality gap at the optimum is ``epsilon`` times
    the flow value. This is the paper's rule :math:`\mu \le \epsilon / (2m)` made
    independent of the scale of the capacities: scaling them by ``g`` scales flow and
    ``mu`` by ``g`` and changes nothing else.

    Args:
        epsilon (float): Relative duality gap, in [1e-12, 1).
        mu (float, optional): Absolute barrier weight in units of capacity, positive and
            finite, the same for all networks. Overrides ``epsilon``.
        tolerance (float): Largest relative deviation of the answer's ``mu``, to which
            all its complementarity products are equal, from the one asked for, in
            (0, 1).
        max_iterations (int): Newton systems to solve before giving up, positive.
        max_edges (int): Edges solved at once, positive; larger batches are solved in
            parts, to bound memory at about 120 bytes an edge, or 50 where ``compiled``.
            A CPU solves fewer at once where that serves its cache.
        compiled (bool, optional): Whether passes over the edges are fused and compiled
            by Numba (the extra ``compiled``), on CPUs: the same answer to about 1e-9
            of its value, in a half to a third of the time. To compile takes up to a
            minute, once a machine. By default flows do not wait for it, where Numba is
            installed: torch solves them until a process of the background has compiled
            all. ``True`` waits, as does :func:`captum_attnflow.flow.compile_kernels`,
            which is for runs whose last digits have to be equal. ``False`` is torch.

    Raises:
        ImportError: If ``compiled`` is ``True`` and Numba is not installed.
        ValueError: If an option is of another type, or out of its range.
    """

    epsilon: float = 1e-6
    mu: float | None = None
    tolerance: float = 1e-6
    max_iterations: int = 200
    max_edges: int = 1 << 21
    compiled: bool | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("epsilon", Real),
            ("mu", Real),
            ("tolerance", Real),
            ("max_iterations", Integral),
            ("max_edges", Integral),
        ):
            given = getattr(self, name)
            is_kind = isinstance(given, kind) and not isinstance(given, bool)
            if not is_kind and not (name == "mu" and given is None):
                wanted = "an integer" if kind is Integral else "a number"
                raise ValueError(f"{name}={described(given)} must be {wanted}")
        if not LEAST_EPSILON <= self.epsilon < 1:
            raise ValueError(
                f"epsilon={self.epsilon} must lie in [{LEAST_EPSILON:g}, 1); float64 "
                "holds no smaller share of a flow"
            )
        if self.mu is not None and not 0 < self.mu < math.inf:
            raise ValueError(
                f"mu={self.mu} must be positive and finite, or None for epsilon's"
            )
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance} must lie in (0, 1)")
        if self.max_iterations < 1 or self.max_edges < 1:
            raise ValueError(
                f"max_iterations={self.max_iterations} and max_edges={self.max_edges} "
                "must be positive"
            )
        check_compiled(self.compiled)

    @torch.no_grad()
    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of trimmed networks, each with a path to the sink.

        :func:`solve_flow` trims first and takes any network.
        """
        check_network(network)
        if not network.n_networks:
            return FlowSolution.zero(network)
        if network.capacity.dtype != torch.float64:
            network = replace(network, capacity=network.capacity.double())
        options = BarrierOptions(
            float(self.epsilon),
            None if self.mu is None else float(self.mu),
            float(self.tolerance),
            int(self.max_iterations),
        )
        passes = choose_passes(self.compiled, network.capacity.device)
        at_once = self.max_edges
        if network.capacity.device.type == "cpu":
            at_once = min(at_once, _CACHED_EDGES)
        # Networks of similar size are solved together, without unused positions:
        # padding, and what comes after a decoder's read-out.
        used = network.used()
        sizes, order = used.sum(1).sort(stable=True)
        in_order = bool((order.diff() > 0).all())
        edges = network.n_layers * sizes**2
        parts = []
        # Not by tolist(), which in torch 2.6 fails within a transform of torch.func.
        for index in order.split(_parts([int(n) for n in edges], at_once)):
            is_whole = in_order and len(index) == network.n_networks
            part = network if is_whole else network.select(index)
            positions = used[index].any(0).nonzero()[:, 0]
            if len(positions) == network.n_tokens:
                parts.append(solve_batch(part, options, passes))
            else:
                solution = solve_batch(part.take(positions), options, passes)
                parts.append(solution.spread(positions, network.n_tokens))
        solution = FlowSolution.concatenate(parts)
        return solution if in_order else solution.select(order.argsort())


def _parts(edges: list[int], at_once: int) -> list[int]:
    """Cut networks, ordered by edges, into parts of ``at_once`` edges, or of one."""
    lengths: list[int] = []
    for number in edges:
        if lengths and (lengths[-1] + 1) * number <= at_once:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def choose_passes(compiled: bool | None, device: torch.device) -> type[EdgePasses]:
    """Choose torch's on GPUs and in traced code; otherwise as asked, or Numba's."""
    is_traced = torch.compiler.is_compiling() or is_transformed()
    if is_traced or device.type != "cpu":
        return TorchPasses
    return passes_for(compiled) or TorchPasses


def untracked() -> torch.no_grad | torch.inference_mode:
    """Switch autograd off, by inference mode, which saves a sixth of the time.

    Not within a transform of ``torch.func``, which does not know inference tensors.
    """
    return torch.no_grad() if is_transformed() else torch.inference_mode()


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which wraps all tensors."""
    return torch._C._functorch.maybe_current_level() is not None


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
            f"the barrier solver did not converge on {len(left)} of "
            f"{counted(len(bound), 'network')} in "
            f"{counted(int(iterations[left].max()), 'iteration')} (rows "
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
            end.solvers,
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
    solvers: tuple[type[IterativeSolver], ...]  # what solved linear systems at the end

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
        solvers=(),
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
                end.solvers = newton.solvers
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
