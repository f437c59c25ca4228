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
from functools import cache
from numbers import Integral, Real
from types import ModuleType

import torch

from captum_attnflow._checks import described
from captum_attnflow._warnings import warn_caller
from captum_attnflow.flow.network import LayeredNetwork, check_network
from captum_attnflow.flow.solvers.barrier.central_path import (
    LEAST_EPSILON,
    BarrierOptions,
    solve_batch,
)
from captum_attnflow.flow.solvers.barrier.problem import (
    EdgePasses,
    is_transformed,
    undisturbed,
)
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses
from captum_attnflow.flow.solvers.base import FlowSolution, FlowSolver

# Edges whose arrays a processor's cache holds; more at once take longer each.
_CACHED_EDGES = 1 << 18


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
            by Numba (the extra ``compiled``), on CPUs: the same answer, in a half to a
            third of the time. The first solve of a kind compiles for up to a minute,
            and the result is kept on disk. By default, wherever Numba is installed.

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
        if not (self.compiled is None or isinstance(self.compiled, bool)):
            raise ValueError(
                f"compiled={described(self.compiled)} must be True, False or None"
            )
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
        if self.compiled and numba_passes() is None:
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
    if is_traced or compiled is False or device.type != "cpu":
        return TorchPasses
    return numba_passes() or TorchPasses


@cache
def numba_passes() -> type[EdgePasses] | None:
    """The passes compiled by Numba, where it is installed, works and compiles."""
    try:
        numba = undisturbed(_import_numba)
        _start_threads_of(numba)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            # What else is installed may break it, by an error of any type.
            warn_caller(
                "flows are solved without Numba, which is installed but cannot be "
                f"loaded ({type(error).__name__}: {error}). Mend what this names, or "
                "reinstall it by pip install 'captum-attnflow[compiled]', or uninstall "
                "it"
            )
        return None
    if numba.config.DISABLE_JIT:
        return None
    return undisturbed(_import_passes)


def _import_numba() -> ModuleType:
    import numba

    module: ModuleType = numba
    return module


def _import_passes() -> type[EdgePasses]:
    from captum_attnflow.flow.solvers.barrier.numba_passes import NumbaPasses

    return NumbaPasses


def _start_threads_of(numba: ModuleType) -> None:
    """Start Numba's threads now, before a kernel needs them.

    Numba's OpenMP may be torch's. Its start then sets torch's number of threads, once a
    process, which is undone here.
    """
    before = torch.get_num_threads()
    try:
        numba.get_num_threads()
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
