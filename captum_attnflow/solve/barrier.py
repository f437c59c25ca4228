r"""The barrier problem, solved in batch by a primal-dual predictor-corrector.

Generalized Attention Flow (Azarkhalili & Libbrecht 2025, Eq. 12) regularises the
maximum flow, seen as a minimum-cost circulation, by a logarithmic barrier:

.. math::
    \min_{B^\top f = 0} c^\top f
        - \mu \sum_e \left[\log f_e + \log(u_e - f_e)\right].

With ``x`` the flow, ``y = u - x`` the room left, ``z`` and ``s`` their multipliers, and
a potential ``p`` per node that is -1 at the source and 0 at the sink, the optimum has

.. math::
    z - s = p_{tail} - p_{head}, \qquad x z = \mu, \qquad y s = \mu.

Here the terminals' edges and edges that never bind have ``u = inf``: their upper
barrier is constant and drops out. The paper's back edge only rescales ``mu`` by
``1 / (1 + mu / value)`` and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from captum_attnflow._large_arrays import empty
from captum_attnflow._warnings import warn_caller
from captum_attnflow.network import LayeredNetwork
from captum_attnflow.solve._barrier.by_torch.passes import TorchPasses
from captum_attnflow.solve._barrier.newton import Newton
from captum_attnflow.solve._barrier.passes import EdgePasses
from captum_attnflow.solve._barrier.problem import Problem, State
from captum_attnflow.solve._barrier.start import start
from captum_attnflow.solve._barrier.workspace import workspace
from captum_attnflow.solve.solution import FlowError, FlowSolution, certified

# Edges whose arrays a processor's cache holds; more at once take longer each.
_CACHED_EDGES = 1 << 18
# What a solve takes from the workspace, by the edge and for gaps between arrays.
_BYTES_AN_EDGE = 104
_MORE_BYTES = 1 << 12
# Steps far from the optimum are made in float32, where the arrays are large enough for
# memory to be what they wait for: until the gap is this share of the value, or so many
# steps on end gain little.
_SINGLE_FROM_TOKENS = 96
_SINGLE_GAP = 1e-3
_SINGLE_STALLED = 3
# Below this share of the value weights may go on in float32.
_NEAR_GAP = 1e-2


@dataclass(frozen=True)
class BarrierSolver:
    r"""The unique flow of the barrier problem, all networks of a batch together.

    The barrier weight is relative by default: ``mu = epsilon * value / m`` for the
    ``m`` barrier terms, so that the duality gap at the optimum is ``epsilon`` times
    the flow value. This is the paper's rule :math:`\mu \le \epsilon / (2m)` made
    independent of the scale of the capacities: scaling them by ``g`` scales flow and
    ``mu`` by ``g`` and changes nothing else.

    Args:
        epsilon (float): Relative duality gap, in (0, 1).
        mu (float, optional): Absolute barrier weight in units of capacity, positive,
            the same for all networks. Overrides ``epsilon``.
        tolerance (float): Largest relative deviation of a complementarity product
            from ``mu`` in the answer, positive.
        max_iterations (int): Newton systems to solve before giving up, positive.
        max_edges (int): Edges solved at once, positive; larger batches are solved in
            parts, to bound memory at about 120 bytes an edge. A CPU solves fewer at
            once where that serves its cache.
        compiled (bool, optional): Whether passes over the edges are fused and compiled
            by Numba (the extra ``compiled``), on CPUs: the same answer, in about half
            the time. The first solve of a kind compiles for up to a minute, and the
            result is kept on disk. By default, wherever Numba is installed.

    Raises:
        ImportError: If ``compiled`` is ``True`` and Numba is not installed.
        ValueError: If an option is out of its range.
    """

    epsilon: float = 1e-6
    mu: float | None = None
    tolerance: float = 1e-6
    max_iterations: int = 200
    max_edges: int = 1 << 21
    compiled: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon} must lie in (0, 1)")
        if self.mu is not None and not self.mu > 0:
            raise ValueError(f"mu={self.mu} must be positive, or None for epsilon's")
        if self.max_iterations < 1 or self.max_edges < 1 or not self.tolerance > 0:
            raise ValueError(
                f"max_iterations={self.max_iterations}, max_edges={self.max_edges} and "
                f"tolerance={self.tolerance} must be positive"
            )
        if self.compiled and _numba_passes() is None:
            raise ImportError(
                "compiled=True needs Numba, which is not installed or does not work. "
                "Install it by pip install 'captum-attnflow[compiled]', or leave "
                "compiled at None"
            )

    @torch.no_grad()
    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of trimmed networks, each with a path to the sink.

        :func:`solve_flow` trims first and takes any network.
        """
        at_once = self.max_edges
        if network.capacity.device.type == "cpu":
            at_once = min(at_once, _CACHED_EDGES)
        # Networks of a size together, without the positions that none of them uses:
        # padding, and what comes after a decoder's read-out.
        used = network.used()
        sizes, order = used.sum(1).sort(stable=True)
        in_order = bool((order.diff() > 0).all())
        edges = network.n_layers * sizes**2
        parts = []
        for index in order.split(_parts(edges.tolist(), at_once)):
            is_whole = in_order and len(index) == network.n_networks
            part = network if is_whole else network.select(index)
            positions = used[index].any(0).nonzero()[:, 0]
            if len(positions) == network.n_tokens:
                parts.append(self._solve_part(part))
            else:
                solution = self._solve_part(part.take(positions))
                parts.append(solution.spread(positions, network.n_tokens))
        solution = FlowSolution.concatenate(parts)
        return solution if in_order else solution.select(order.argsort())

    def _solve_part(self, network: LayeredNetwork) -> FlowSolution:
        n_edges = network.capacity.numel() + 2 * network.source.numel()
        with workspace().frame(_BYTES_AN_EDGE * n_edges + _MORE_BYTES):
            with _untracked():
                bound = network.node_bound()
                problem = Problem.of(network, bound)
                iterations = torch.zeros_like(problem.scale, dtype=torch.int64)
                state = State.empty(problem)
                near = self._start(problem, bound, state, iterations)
                state, mu = self._iterate(
                    problem, state, iterations, self._is_done, may_round=near
                )
                gap = state.product() * problem.n_terms
                # In place, for lack of further use. Missing edges carry nothing.
                flow = state.room[0].masked_fill_(~problem.alive, 0.0)
                flow.mul_(problem.scale[:, None])
            return _solution(network, problem, state, mu, gap, iterations)

    def _start(
        self, problem: Problem, bound: Tensor, state: State, iterations: Tensor
    ) -> bool:
        """Fill in a first state in float64, by steps in float32 where these pay.

        Returns:
            bool: Whether float32 has led all networks near their optima.
        """
        if problem.n_tokens < _SINGLE_FROM_TOKENS or not problem.fits_single:
            start(problem, bound, state)
            return False
        with workspace().frame():
            single = problem.single()
            coarse = State.empty(single)
            start(single, bound, coarse)
            gap = _gap(single, coarse, coarse.product())
            coarse, _ = self._iterate(single, coarse, iterations, self._is_near)
            state.refine(coarse, problem)
        reached = _gap(problem, state, state.product())
        astray = ~(state.is_interior() & (reached < gap))
        if bool(astray.any()):
            with workspace().frame():
                fresh = State.empty(problem)
                start(problem, bound, fresh)
                state.put(astray, fresh.select(astray))
        return not bool((astray | (reached > _NEAR_GAP)).any())

    def _iterate(
        self,
        problem: Problem,
        state: State,
        iterations: Tensor,
        is_done: Callable[[Newton, Tensor], Tensor],
        may_round: bool = False,
    ) -> tuple[State, Tensor]:
        """Step until every network is done; count the steps of each.

        Networks leave the batch when they are done.
        """
        newton = Newton(problem, state, self._passes(state), may_round)
        answer = State(**vars(state))
        running = torch.arange(len(iterations), device=iterations.device)
        reached = torch.zeros_like(problem.scale)
        for _ in range(self.max_iterations + 1 - int(iterations.max())):
            target = self._target(newton)
            done = is_done(newton, target)
            if bool(done.any()):
                finished = running[done]
                # Until the first selection the answer shares the state's arrays.
                if len(finished) < len(iterations):
                    answer.put(finished, newton.state.select(done))
                reached[finished] = target[done].to(reached.dtype)
                running, target = running[~done], target[~done]
                if len(running) == 0:
                    return answer, reached
                newton = newton.select(~done)
            newton.step(target)
            iterations[running] += 1
        raise FlowError(
            f"the barrier solver did not converge on {len(running)} of "
            f"{len(iterations)} networks within {self.max_iterations} iterations "
            f"(batch rows {running.tolist()[:8]}). Raise max_iterations, or epsilon "
            f"(now {self.epsilon}), or check the capacities for extreme ratios"
        )

    def _passes(self, state: State) -> type[EdgePasses]:
        """What does the work on the edges."""
        is_traced = torch.compiler.is_compiling() or _is_transformed()
        if is_traced or self.compiled is False or state.p.device.type != "cpu":
            return TorchPasses
        return _numba_passes() or TorchPasses

    def _is_near(self, newton: Newton, target: Tensor) -> Tensor:
        """Whether to go on in float64: near, at the target, stalled or not a number."""
        far = _gap(newton.problem, newton.state, newton.mu) > _SINGLE_GAP
        return ~far | (newton.mu <= target) | (newton.stalled >= _SINGLE_STALLED)

    def _is_done(self, newton: Newton, target: Tensor) -> Tensor:
        return newton.converged(target, self.tolerance)

    def _target(self, newton: Newton) -> Tensor:
        problem, mu = newton.problem, newton.mu
        if self.mu is not None:
            return (self.mu / problem.scale).to(mu.dtype)
        return self.epsilon * newton.value / problem.n_terms


def _untracked() -> torch.no_grad | torch.inference_mode:
    """Switch autograd off, by inference mode, which saves a sixth of the time.

    Not within a transform of ``torch.func``, which does not know inference tensors.
    """
    return torch.no_grad() if _is_transformed() else torch.inference_mode()


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which wraps all tensors."""
    return torch._C._functorch.maybe_current_level() is not None


@cache
def _numba_passes() -> type[EdgePasses] | None:
    """The passes compiled by Numba, where it is installed and works."""
    try:
        import numba  # noqa: F401
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            # It depends on what else is installed in ways that it tells by any error.
            warn_caller(
                "flows are solved without Numba, which is installed but cannot be "
                f"loaded ({type(error).__name__}: {error}). Reinstall it by pip "
                "install 'captum-attnflow[compiled]', or uninstall it"
            )
        return None
    from captum_attnflow.solve._barrier.by_numba.passes import NumbaPasses

    return NumbaPasses


def _parts(edges: list[int], at_once: int) -> list[int]:
    """Cut networks, ordered by their edges, into parts of at most so many or of one."""
    lengths: list[int] = []
    for number in edges:
        if lengths and (lengths[-1] + 1) * number <= at_once:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def _gap(problem: Problem, state: State, mu: Tensor) -> Tensor:
    """Sum of the complementarity products, of mean ``mu``, as a share of the value."""
    return mu * problem.n_terms / problem.value(state.room[0])


def _solution(
    network: LayeredNetwork,
    problem: Problem,
    state: State,
    mu: Tensor,
    gap: Tensor,
    iterations: Tensor,
) -> FlowSolution:
    flow, source_flow, sink_flow = problem.split(state.room[0])
    return certified(
        network,
        # Scaling back may round a saturated edge past its capacity.
        flow=torch.minimum(
            flow, network.capacity, out=empty(flow.shape, like=network.capacity)
        ),
        # Not views, which would keep all edges in memory, nor inference tensors.
        source_flow=source_flow.clone(),
        sink_flow=sink_flow.clone(),
        potential=state.p.clone(),
        mu=mu * problem.scale,
        duality_gap=gap * problem.scale,
        iterations=iterations.clone(),
    )
