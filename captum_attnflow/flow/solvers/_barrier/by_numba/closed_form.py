"""Flows and weights in closed form, on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers._barrier.by_numba import (
    closed_form_kernels as kernels,
)
from captum_attnflow.flow.solvers._barrier.by_numba.threads import (
    n_blocks,
    n_threads,
    run_in_parts,
)
from captum_attnflow.flow.solvers._barrier.by_numba.weights import arrays, weight_dtype
from captum_attnflow.flow.solvers._barrier.closed_form import ClosedForm, Potential
from captum_attnflow.flow.solvers._barrier.problem import UNLIMITED
from captum_attnflow.flow.solvers._barrier.workspace import workspace


class NumbaClosedForm(ClosedForm):
    """The passes of :class:`ClosedForm`, each one loop over the edges.

    Rounded weights serve Newton's steps all the same, which measure the flows anew.
    """

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None:
        capacity = network.capacity.contiguous()
        self._shape = capacity.shape
        self._like = capacity
        like_weight = capacity.new_empty(0, dtype=weight_dtype(dtype))
        self.weight = workspace().empty(self._shape, like=like_weight)
        self._n_threads = n_threads(capacity.numel())
        n_networks, n_layers, n_tokens, _ = self._shape
        self._n_blocks = n_blocks(self._n_threads, n_networks * n_layers, n_tokens)
        self._network = (capacity.numpy(), scale.numpy(), UNLIMITED)

    def weigh(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
        n_networks, n_layers, n_tokens, _ = self._shape
        columns = self._like.new_empty(
            n_networks * n_layers * self._n_blocks, 2, n_tokens
        )
        into = self._like.new_empty(2, n_networks, n_layers, n_tokens)
        self._run(
            *(kernels.weigh, kernels.weigh_parallel, potential, mu),
            *(self.weight, columns, into),
        )
        blocks = columns.view(n_networks, n_layers, self._n_blocks, 2, n_tokens)
        out_of = blocks.sum(2)
        flows, weights = (
            torch.stack([into[part], out_of[:, :, part]]) for part in range(2)
        )
        return flows, weights

    def fill(self, potential: Potential, mu: Tensor, flow: Tensor) -> None:
        self._run(kernels.fill, kernels.fill_parallel, potential, mu, flow)

    def _run(
        self,
        serial: Callable[..., None],
        parallel: Callable[..., None],
        potential: Potential,
        mu: Tensor,
        *out: Tensor,
    ) -> None:
        edges = (self._n_blocks, *self._network)
        others = arrays(potential.high, potential.low, mu, *out)
        run_in_parts(self._n_threads, serial, parallel, *edges, *others)
