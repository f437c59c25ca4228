"""Conjugate gradients compiled by Numba, on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.by_numba import laplacian_kernels as kernels
from captum_attnflow.flow.solvers._barrier.by_numba.threads import n_threads, threads
from captum_attnflow.flow.solvers._barrier.by_numba.weights import arrays
from captum_attnflow.flow.solvers._barrier.laplacian import IterativeSolver


class NumbaConjugateGradients(IterativeSolver):
    """The method of :class:`TorchConjugateGradients`, a solve being one call."""

    def __init__(self, weight: Tensor, sums: Tensor, diagonal: Tensor) -> None:
        self._n_threads = n_threads(weight.numel())
        inverse = 1 / diagonal
        basis = torch.empty_like(sums)
        chain = sums.new_empty(*weight.shape[:2], 4)
        kernels.set_preconditioner(*arrays(sums, inverse, basis, chain))
        self._system = arrays(_in_rows(weight), diagonal, inverse, basis, chain)

    def solve(
        self, right_side: Tensor, tolerance: Tensor, max_iterations: int
    ) -> tuple[Tensor, bool]:
        solution = torch.empty_like(right_side, memory_format=torch.contiguous_format)
        with threads(self._n_threads):
            small = kernels.conjugate_gradients(
                self._n_threads,
                *self._system,
                right_side.contiguous().numpy(),
                tolerance.to(right_side.dtype).numpy(),
                max_iterations,
                solution.numpy(),
            )
        return solution, bool(small)


def _in_rows(weight: Tensor) -> Tensor:
    """The weights of each network as one row, with what lies between two networks.

    So they are contiguous, and compile to vector instructions, for batches, too.
    """
    if not weight[0].is_contiguous():
        weight = weight.contiguous()
    n_networks = len(weight)
    length = weight.stride(0) if n_networks > 1 else weight[0].numel()
    return weight.as_strided((n_networks, length), (length, 1))
