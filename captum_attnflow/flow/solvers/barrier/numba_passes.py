"""The passes over the edges and conjugate gradients, compiled by Numba: on CPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier import numba_edges as kernels
from captum_attnflow.flow.solvers.barrier import numba_factors, numba_gradients
from captum_attnflow.flow.solvers.barrier.central_path import (
    UNLIMITED,
    BarrierProblem,
    EdgePasses,
    Iterate,
)
from captum_attnflow.flow.solvers.barrier.compilation import PROCESS
from captum_attnflow.flow.solvers.barrier.laplacian import (
    RELATIVE_RIDGE,
    ClosedForm,
    IterativeSolver,
    Potential,
)

# Fewer edges are not worth a second thread.
_EDGES_A_THREAD = 1 << 15
# Least tasks of a thread, so that threads have even shares.
_TASKS_A_THREAD = 4
# From how many tokens on factors in float32 take less time than those of LAPACK, and
# from how many on a row is worth a second thread.
_FACTORED_FROM_TOKENS = 64
_TOKENS_OF_ROWS_SHARED = 256


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The same memory for NumPy."""
    return tuple(tensor.numpy() for tensor in tensors)


def widths_of(edges: Tensor, n_rows: int, n_tokens: int) -> Tensor:
    """How far each row of edges reaches, ``(B, R)``: up to its last edge.

    Args:
        edges (Tensor): Shape ``(B, R * T)`` or longer, 0 where there is no edge.
        n_rows (int): How many rows.
        n_tokens (int): Their length.
    """
    widths = torch.empty((len(edges), n_rows), dtype=torch.int64, device="cpu")
    kernels.row_widths(edges.numpy(), n_tokens, widths.numpy())
    return widths


def n_threads(n_edges: int) -> int:
    """Threads: as many as torch uses, or one where more are unsafe or too few edges."""
    most = min(
        torch.get_num_threads(),
        numba.config.NUMBA_NUM_THREADS,
        -(-n_edges // _EDGES_A_THREAD),
    )
    return most if most > 1 and _are_safe() else 1


def n_blocks(number: int, n_layers: int, n_tokens: int) -> int:
    """Blocks of a layer's heads, which make enough tasks for a number of threads."""
    return min(n_tokens, -(-_TASKS_A_THREAD * number // n_layers))


def _are_safe() -> bool:
    """Whether any of Python's threads may start Numba's, in this process."""
    if os.getpid() != PROCESS:
        return False
    try:
        # Numba knows its threading layer only once it has started.
        numba.set_num_threads(numba.get_num_threads())
        return bool(numba.threading_layer() != "workqueue")
    except (ImportError, ValueError):
        # The threading layer that the user chose is not installed.
        return False


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let Numba use a number of threads within."""
    if number == 1:
        yield
        return
    before = numba.get_num_threads()
    numba.set_num_threads(number)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def run_in_parts(
    number: int,
    serial: Callable[..., None],
    parallel: Callable[..., None],
    *arguments: object,
) -> None:
    """Run a kernel whose work is cut into parts, one thread a part.

    Args:
        number (int): Threads, and parts.
        serial (Callable): Does one part: which, of how many, and the arguments.
        parallel (Callable): Does all parts: of how many, and the arguments.
        arguments (object): Passed on.
    """
    if number == 1:
        serial(0, 1, *arguments)
        return
    with threads(number):
        parallel(number, *arguments)


class NumbaConjugateGradients(IterativeSolver):
    """The method of :class:`TorchConjugateGradients`; one kernel call is a solve."""

    def __init__(self, weight: Tensor, sums: Tensor, diagonal: Tensor) -> None:
        self._n_threads = n_threads(weight.numel())
        _, n_layers, n_tokens, _ = weight.shape
        rows = _in_rows(weight)
        widths = widths_of(rows, n_layers * n_tokens, n_tokens)
        diagonal = diagonal.contiguous()
        n_networks, n_nodes, _ = diagonal.shape
        self._system = numba_gradients.System(
            weight=rows.numpy(),
            widths=widths.numpy(),
            diagonal=diagonal.numpy(),
            inverse=(1 / diagonal).numpy(),
            basis=np.empty((n_networks, n_nodes, 2, 0)),
            chain=np.empty((n_networks, 0, 4)),
            factors=_factors(n_networks, n_nodes, 0),
        )
        self._precondition(sums)

    def _precondition(self, sums: Tensor) -> None:
        n_networks, n_nodes, _, _ = sums.shape
        basis, chain = np.empty(sums.shape), np.empty((n_networks, n_nodes - 1, 4))
        inverse = self._system.inverse
        numba_gradients.set_preconditioner(sums.numpy(), inverse, basis, chain)
        self._system = self._system._replace(basis=basis, chain=chain)

    def solve(
        self, right_side: Tensor, tolerance: Tensor, max_iterations: int
    ) -> tuple[Tensor, bool]:
        solution = torch.empty_like(right_side, memory_format=torch.contiguous_format)
        with threads(self._n_threads):
            small = numba_gradients.conjugate_gradients(
                self._n_threads,
                self._system,
                right_side.contiguous().numpy(),
                tolerance.to(right_side.dtype).numpy(),
                max_iterations,
                solution.numpy(),
            )
        return solution, bool(small)


class NumbaFactoredGradients(NumbaConjugateGradients):
    """Conjugate gradients preconditioned by factors of the layers in float32.

    Two to five iterations are enough, whatever a network is like.
    """

    most_iterations = 10

    def _precondition(self, sums: Tensor) -> None:
        n_networks, n_nodes, _, n_tokens = sums.shape
        system = self._system
        factors = _factors(n_networks, n_nodes, n_tokens)
        ground = RELATIVE_RIDGE * system.diagonal
        ground[:, 0] += sums[:, 0, 0].numpy()
        ground[:, -1] += sums[:, -1, 1].numpy()
        # Threads share networks, or the rows of each if these are long enough.
        n_parts = self._n_threads if n_networks >= self._n_threads else 1
        is_long = n_parts == 1 and n_tokens >= _TOKENS_OF_ROWS_SHARED
        with threads(self._n_threads):
            run_in_parts(
                n_parts,
                numba_factors.factor,
                numba_factors.factor_parallel,
                self._n_threads if is_long else 1,
                *(system.weight, system.widths, system.diagonal, ground, factors),
            )
        self._system = system._replace(factors=factors)


def _factors(n_networks: int, n_nodes: int, n_tokens: int) -> numba_factors.Factors:
    """Memory for the factors of networks."""
    line = numba_factors.LINE
    n_padded = -(-n_tokens // line) * line
    width = 2 * n_padded + line
    return numba_factors.Factors(
        np.empty((n_networks, n_nodes, n_padded, width), np.float32),
        np.empty((n_networks, n_nodes, n_padded), np.int64),
        np.empty((n_networks, n_nodes, n_padded), np.float32),
    )


def _in_rows(weight: Tensor) -> Tensor:
    """The weights of each network as one row, with the gap between two networks.

    So they are contiguous, and compile to vector instructions, for batches, too.
    """
    if not weight[0].is_contiguous():
        weight = weight.contiguous()
    n_networks = len(weight)
    length = weight.stride(0) if n_networks > 1 else weight[0].numel()
    return weight.as_strided((n_networks, length), (length, 1))


class NumbaClosedForm(ClosedForm):
    """The passes of :class:`ClosedForm`, each one loop over the edges.

    A solve takes 1.2 to 1.4 times as long with torch's at 128 and 512 tokens.
    Newton's steps may use weights rounded to float32, since each step measures the
    flows again.
    """

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None:
        capacity = network.capacity.contiguous()
        self._shape = capacity.shape
        self._like = capacity
        like_weight = capacity.new_empty(0, dtype=dtype)
        # Zero beyond the rows' widths.
        self.weight = like_weight.new_zeros(self._shape)
        self._n_threads = n_threads(capacity.numel())
        n_networks, n_layers, n_tokens, _ = self._shape
        self._n_blocks = n_blocks(self._n_threads, n_networks * n_layers, n_tokens)
        widths = widths_of(capacity.flatten(1), n_layers * n_tokens, n_tokens)
        widths = widths.view(self._shape[:3])
        edges = arrays(capacity, widths, scale)
        self._network = kernels.Capacities(edges[0], edges[1], edges[2], UNLIMITED)

    def set_weights(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
        n_networks, n_layers, n_tokens, _ = self._shape
        columns = self._like.new_empty(
            n_networks * n_layers * self._n_blocks, 2, n_tokens
        )
        into = self._like.new_empty(2, n_networks, n_layers, n_tokens)
        self._run(
            kernels.closed_form_weights,
            kernels.closed_form_weights_parallel,
            potential,
            mu,
            *(self.weight, columns, into),
        )
        blocks = columns.view(n_networks, n_layers, self._n_blocks, 2, n_tokens)
        out_of = blocks.sum(2)
        flows, weights = (
            torch.stack([into[part], out_of[:, :, part]]) for part in range(2)
        )
        return flows, weights

    def fill(self, potential: Potential, mu: Tensor, flow: Tensor) -> None:
        self._run(
            kernels.closed_form_flows,
            kernels.closed_form_flows_parallel,
            potential,
            mu,
            flow,
        )

    def _run(
        self,
        serial: Callable[..., None],
        parallel: Callable[..., None],
        potential: Potential,
        mu: Tensor,
        *out: Tensor,
    ) -> None:
        nodes = kernels.Potentials(*arrays(potential.high, potential.low, mu))
        edges = (self._n_blocks, self._network, nodes)
        run_in_parts(self._n_threads, serial, parallel, *edges, *arrays(*out))


class NumbaPasses(EdgePasses):
    """The passes of :class:`EdgePasses`, each one loop over the edges.

    Only the weights of edges are kept from one pass to the next; a step's change of
    flow and its new multipliers follow from the potentials. With ``w`` the weight,
    ``rise`` that of a potential along an edge, and ``second`` 1 in steps with
    second-order terms and else 0,

        r = w * rise(predictor) / slack
        correction = second * (r + r ** 2) * multiplier + step_mu / slack
        dx = w * (rise(p) + correction_x + correction_y) + w * rise(change)
        new multiplier = correction - multiplier * dx / slack

    The change of flow at the potential as it is is linear in ``step_mu``, so one pass
    over the edges serves both the predictor and this change.
    """

    # Float64 alone takes 1.7 times as long at (12, 512), where arrays leave the cache,
    # 1.1 times at (12, 128) and 0.9 on 16 networks of 12 tokens. Weights in bfloat16,
    # and memory kept from one solve to the next, took 0.8 to 1.2 times as long.
    dtypes = (torch.float32, torch.float64)
    closed_form = NumbaClosedForm

    @staticmethod
    def solvers(n_tokens: int) -> tuple[type[IterativeSolver], ...]:
        if n_tokens < _FACTORED_FROM_TOKENS:
            return (NumbaConjugateGradients,)
        return NumbaConjugateGradients, NumbaFactoredGradients

    def __init__(self, problem: BarrierProblem, iterate: Iterate) -> None:
        shape = problem.capacity.shape
        # Zero beyond the rows' widths, which no pass reads.
        weights = torch.zeros_like(problem.capacity)
        self.weight, _, _ = problem.split(weights)
        self._iterate = iterate
        self._like = iterate.p
        n_networks, n_layers = shape[0], problem.n_layers
        self._n_threads = n_threads(shape.numel())
        blocks = n_blocks(self._n_threads, n_networks * n_layers, problem.n_tokens)
        self._tasks = (n_networks, (n_layers + 2) * blocks)
        self._layout = kernels.Layout(blocks, n_layers, problem.n_tokens)
        slack, multiplier, weight = arrays(iterate.slack, iterate.multiplier, weights)
        n_rows = shape[1] // problem.n_tokens
        widths = widths_of(problem.alive, n_rows, problem.n_tokens)
        self._edges = kernels.Edges(
            slack, multiplier, weight, *arrays(problem.alive, widths)
        )
        self._no_second_order = torch.zeros_like(problem.n_terms)

    def set_weights(self) -> Tensor:
        return self._weight_sums

    def predict(self, potential: Tensor, predicting: Tensor) -> tuple[Tensor, ...]:
        found = self._begin(potential.contiguous(), predicting.to(potential.dtype))
        least, most, cost, gain = found.unbind(2)
        return least.amin(1), most.amax(1), cost.sum(1), gain.sum(1)

    def centre(self) -> None:
        self._begin(self._iterate.p, self._no_second_order)

    def _begin(self, potential: Tensor, second_order: Tensor) -> Tensor:
        """Begin a step; return ratios, cost and gain of its predictor, by task."""
        self._predictor = kernels.Predictor(
            *arrays(second_order, potential, self._iterate.p)
        )
        fixed, per_mu = self._new_sums(), self._new_sums()
        found = self._like.new_empty(*self._tasks, 4)
        self._run(
            kernels.predict,
            kernels.predict_parallel,
            self._predictor,
            *(fixed, per_mu, found.flatten(0, 1).numpy()),
        )
        self._fixed, self._per_mu = self._divergence(fixed), self._divergence(per_mu)
        return found

    def correct(self, step_mu: Tensor) -> Tensor:
        self._step_mu = step_mu.numpy()
        return self._fixed.addcmul(self._per_mu, step_mu[:, None, None])

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        self._change = change.contiguous().numpy()
        found = self._like.new_empty(*self._tasks, 2)
        self._run(
            kernels.ratio_test,
            kernels.ratio_test_parallel,
            *(self._predictor, self._step_mu, self._change),
            found.flatten(0, 1).numpy(),
        )
        least, left = found.amin(1).unbind(1)
        return -least, 1 - left

    def advance(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        step = (self._predictor, self._step_mu, self._change)
        return self._advance_edges(*step, *arrays(primal, dual), True)

    def measure(self) -> tuple[Tensor, Tensor]:
        per_network, per_node = arrays(self._no_second_order, self._iterate.p)
        predictor = kernels.Predictor(per_network, per_node, per_node)
        unused = (predictor, per_network, per_node, per_network, per_network)
        return self._advance_edges(*unused, False)

    def _advance_edges(self, *step: object) -> tuple[Tensor, Tensor]:
        weights, flows = self._new_sums(), self._new_sums()
        totals = self._like.new_empty(self._tasks)
        self._run(
            kernels.advance,
            kernels.advance_parallel,
            *(*step, weights, flows, totals.flatten().numpy()),
        )
        kernels.add_columns(self._layout, weights)
        self._weight_sums = torch.from_numpy(weights.nodes)
        return self._divergence(flows), totals.sum(1)

    def _run(
        self,
        serial: Callable[..., None],
        parallel: Callable[..., None],
        *arguments: object,
    ) -> None:
        edges = (self._layout, self._edges)
        run_in_parts(self._n_threads, serial, parallel, *edges, *arguments)

    def _new_sums(self) -> kernels.Sums:
        n_networks, n_nodes, n_tokens = self._iterate.p.shape
        return kernels.Sums(
            np.empty((math.prod(self._tasks), n_tokens)),
            np.zeros((n_networks, n_nodes, 2, n_tokens)),
        )

    def _divergence(self, sums: kernels.Sums) -> Tensor:
        kernels.add_columns(self._layout, sums)
        nodes = torch.from_numpy(sums.nodes)
        return nodes[:, :, 0] - nodes[:, :, 1]
