"""The passes over all edges that a Newton step makes, compiled by Numba: on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.by_numba import edge_kernels as kernels
from captum_attnflow.flow.solvers._barrier.by_numba.closed_form import NumbaClosedForm
from captum_attnflow.flow.solvers._barrier.by_numba.conjugate_gradients import (
    NumbaConjugateGradients,
)
from captum_attnflow.flow.solvers._barrier.by_numba.threads import (
    n_blocks,
    n_threads,
    run_in_parts,
)
from captum_attnflow.flow.solvers._barrier.by_numba.weights import arrays, weight_dtype
from captum_attnflow.flow.solvers._barrier.passes import EdgePasses
from captum_attnflow.flow.solvers._barrier.problem import Problem, State
from captum_attnflow.flow.solvers._barrier.workspace import workspace


class NumbaPasses(EdgePasses):
    """The passes of :class:`EdgePasses`, each one loop over the edges.

    Of what belongs to an edge only the weights are kept from one pass to the next; a
    step's change of flow and its new prices follow from the potentials. With ``w`` the
    weight, ``rise`` that of a potential along an edge and ``second`` 1 in steps with
    second-order terms and else 0,

        predicted = w * rise(predictor)
        push = second * (r + r ** 2) * price + aim / room,    r = predicted / room
        dx = w * (rise(p) + push_x + push_y) + w * rise(change)
        new price = push - price * dx / room

    The change of flow that leaves the potential is linear in the aim, so that one pass
    does for the predictor and for it. In new prices ``dx`` counts as if ``w`` were not
    rounded.
    """

    dtypes = (torch.float32, torch.float64)
    n_arrays = 7
    iterative_solver = NumbaConjugateGradients
    iterative_from_tokens = 1
    closed_form = NumbaClosedForm

    def __init__(
        self,
        problem: Problem,
        state: State,
        memory: Tensor | None = None,
    ) -> None:
        shape, like = problem.capacity.shape, problem.capacity
        if memory is None or memory.numel() < shape.numel():
            like = like.new_empty(0, dtype=weight_dtype(like.dtype))
            memory = workspace().empty((shape.numel(),), like=like)
        self.memory = memory
        weights = memory[: shape.numel()].view(shape)
        self.weight, _, _ = problem.split(weights)
        self._arrays = arrays(state.room, state.price, weights)
        self._state = state
        self._like = state.p
        n_networks, n_layers = shape[0], problem.n_layers
        self._n_threads = n_threads(shape.numel())
        blocks = n_blocks(self._n_threads, n_networks * n_layers, problem.n_tokens)
        self._tasks = (n_networks, (n_layers + 2) * blocks)
        self._shape = (blocks, n_layers, problem.n_tokens)
        self._alive = problem.alive.numpy()
        self._no_second_order = torch.zeros_like(problem.n_terms)

    def weigh(self) -> Tensor:
        return self._sums

    def predict(self, potential: Tensor, among: Tensor) -> tuple[Tensor, ...]:
        found = self._begin(potential.contiguous(), among.to(potential.dtype))
        least, most, cost, gain = found.unbind(2)
        return least.amin(1), most.amax(1), cost.sum(1), gain.sum(1)

    def centre(self) -> None:
        self._begin(self._state.p, self._no_second_order)

    def _begin(self, predictor: Tensor, second_order: Tensor) -> Tensor:
        """Begin a step; return what is found of its predictor, by task."""
        self._begun = arrays(second_order, predictor, self._state.p)
        fixed_columns, mu_columns = self._new_columns(), self._new_columns()
        fixed_sums, mu_sums = self._new_sums(), self._new_sums()
        found = self._like.new_empty(*self._tasks, 4)
        self._run(
            kernels.predict,
            kernels.predict_parallel,
            *self._begun,
            *arrays(fixed_columns, fixed_sums, mu_columns, mu_sums),
            found.flatten(0, 1).numpy(),
        )
        self._fixed = self._divergence(fixed_columns, fixed_sums)
        self._per_mu = self._divergence(mu_columns, mu_sums)
        return found

    def force(self, aim: Tensor) -> Tensor:
        self._step = (*self._begun, aim.numpy())
        return self._fixed.addcmul(self._per_mu, aim[:, None, None])

    def turn(self, change: Tensor) -> tuple[Tensor, Tensor]:
        self._step = (*self._step[:4], change.contiguous().numpy())
        found = self._like.new_empty(*self._tasks, 2)
        self._run(
            kernels.turn,
            kernels.turn_parallel,
            *self._step,
            found.flatten(0, 1).numpy(),
        )
        least, left = found.amin(1).unbind(1)
        return -least, 1 - left

    def move(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        return self._settle(*self._step, *arrays(primal, dual), True)

    def measure(self) -> tuple[Tensor, Tensor]:
        per_network, per_node = arrays(self._no_second_order, self._state.p)
        unused_step = (per_network, per_node, per_node, per_network, per_node)
        return self._settle(*unused_step, per_network, per_network, False)

    def _settle(self, *step: object) -> tuple[Tensor, Tensor]:
        weight_columns, flow_columns = self._new_columns(), self._new_columns()
        self._sums, sums = self._new_sums(), self._new_sums()
        totals = self._like.new_empty(self._tasks)
        self._run(
            kernels.settle,
            kernels.settle_parallel,
            *step,
            self._alive,
            *arrays(weight_columns, self._sums, flow_columns, sums),
            totals.flatten().numpy(),
        )
        self._add_columns(weight_columns, self._sums)
        return self._divergence(flow_columns, sums), totals.sum(1)

    def _run(
        self,
        serial: Callable[..., None],
        parallel: Callable[..., None],
        *arguments: object,
    ) -> None:
        common = (*self._shape, *self._arrays)
        run_in_parts(self._n_threads, serial, parallel, *common, *arguments)

    def _new_columns(self) -> Tensor:
        n_networks, tasks = self._tasks
        return self._like.new_empty(n_networks * tasks, self._shape[2])

    def _new_sums(self) -> Tensor:
        n_networks, n_nodes, n_tokens = self._state.p.shape
        return self._like.new_zeros(n_networks, n_nodes, 2, n_tokens)

    def _add_columns(self, columns: Tensor, sums: Tensor) -> None:
        blocks, n_layers, _ = self._shape
        kernels.add_columns(columns.numpy(), blocks, n_layers, sums.numpy())

    def _divergence(self, columns: Tensor, sums: Tensor) -> Tensor:
        self._add_columns(columns, sums)
        return sums[:, :, 0] - sums[:, :, 1]
