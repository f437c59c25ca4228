"""Exact maximum flows by Dinic's algorithm, compiled by Numba."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attnflow._checks import described
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.solver import numba_passes
from captum_attnflow.flow.solvers.base import (
    FlowSolution,
    FlowSolver,
    SourceFlows,
    bounds_of,
    certified,
    own_path_is_free,
    refuse_infinite,
    tie,
)
from captum_attnflow.flow.solvers.scipy_solver import SciPySolver

# Fewer edges are not worth a second thread.
_EDGES_A_THREAD = 1 << 18


@dataclass(frozen=True)
class DinicSolver(FlowSolver):
    r"""Maximum flows by Dinic's algorithm (1970) in float64, on a CPU.

    Each flow comes with a minimum cut, whose capacity is the value; the flow stays
    below by what rounding leaves, at most a :math:`2^{-50}`-th of the value for each
    edge of the cut.

    The flow is whichever of the many maximum flows the algorithm meets first: use it
    for values, such as one flow per token, and the barrier for joint token scores.

    Args:
        compiled (bool, optional): Whether to solve by code that Numba compiles (the
            extra ``compiled``). Without it, SciPy's implementation of the same
            algorithm solves: the same values, five to forty times slower. The first
            solve compiles for some seconds, and the result is kept on disk. By default,
            wherever Numba is installed.

    Raises:
        ImportError: If ``compiled`` is ``True`` and Numba is not installed.
        ValueError: If ``compiled`` is of another type.
    """

    compiled: bool | None = None

    def __post_init__(self) -> None:
        if not (self.compiled is None or isinstance(self.compiled, bool)):
            raise ValueError(
                f"compiled={described(self.compiled)} must be True, False or None"
            )
        if self.compiled and numba_passes() is None:
            raise ImportError(
                "compiled=True needs Numba, which is not installed or does not work. "
                "Install it by pip install 'captum-attnflow[compiled]', or leave "
                "compiled at None"
            )

    @property
    def _is_compiled(self) -> bool:
        return self.compiled is not False and numba_passes() is not None

    @torch.no_grad()
    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of networks; see :class:`FlowSolution`."""
        if not self._is_compiled:
            return SciPySolver().solve(network)
        _, bound = bounds_of(network)
        if not network.n_networks:
            return FlowSolution.zero(network)
        network = replace(network, capacity=network.capacity.double())
        flow = np.empty(tuple(network.capacity.shape))
        cut = np.empty((len(flow), network.n_layers + 1, network.n_tokens), np.bool_)
        arrays = map(_array, (network.capacity, network.source, network.sink, bound))
        _run("joint_flows", flow.size, *arrays, flow, cut)
        return _answer(network, torch.from_numpy(flow), torch.from_numpy(cut))

    @torch.no_grad()
    def solve_sources(self, network: LayeredNetwork) -> SourceFlows:
        """Solve one maximum flow per token, all of a network on the same arrays.

        The imbalance is given as 0: what leaves an edge enters the next, and only the
        rounding of sums is between them.
        """
        if not self._is_compiled:
            return SciPySolver().solve_sources(network)
        value, gap = (torch.zeros_like(network.capacity[:, 0, 0]) for _ in range(2))
        if network.n_networks:
            own_sink = ~own_path_is_free(network)
            arrays = map(_array, (network.capacity, network.sink, own_sink))
            on_cpu = [np.zeros(tuple(value.shape)) for _ in range(2)]
            work = network.capacity.numel() * network.n_tokens
            _run("token_flows", work, *arrays, *on_cpu)
            value, gap = (torch.from_numpy(array).to(value) for array in on_cpu)
            refuse_infinite(value.amax(1))
            value = tie(value)
        nothing = torch.zeros_like(value)
        return SourceFlows(value, gap, nothing, nothing.to(torch.int64))


def _array(tensor: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = tensor.detach().cpu().contiguous().numpy()
    return array


def _run(kernel: str, n_edges: int, *arguments: NDArray[np.generic]) -> None:
    """Run a kernel in as many threads as edges to look at are worth.

    Threads of Python, as kernels leave its lock: Numba would compile its own loop over
    threads once more, for as long as the kernel itself.
    """
    from captum_attnflow.flow.solvers import dinic_kernels

    work = getattr(dinic_kernels, kernel)
    n_parts = min(torch.get_num_threads(), -(-n_edges // _EDGES_A_THREAD))
    if n_parts == 1:
        work(0, 1, *arguments)
        return
    with ThreadPoolExecutor(n_parts) as pool:
        parts = [
            pool.submit(work, part, n_parts, *arguments) for part in range(n_parts)
        ]
        for part in parts:
            part.result()


def _answer(network: LayeredNetwork, flow: Tensor, cut: Tensor) -> FlowSolution:
    flow, potential = flow.to(network.capacity), -cut.to(network.capacity)
    sink_flow = flow[:, -1].sum(-1)
    value = sink_flow.sum(-1)
    return certified(
        network,
        flow=flow,
        source_flow=flow[:, 0].sum(-2),
        sink_flow=sink_flow,
        potential=potential,
        mu=torch.zeros_like(value),
        duality_gap=(network.cut_capacity(cut.to(network.sink)) - value).clamp_min(0),
        iterations=torch.zeros_like(value, dtype=torch.int64),
    )
