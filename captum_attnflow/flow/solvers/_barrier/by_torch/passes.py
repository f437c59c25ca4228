"""The passes over all edges of a batch by torch, on any device."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.by_torch.closed_form import TorchClosedForm
from captum_attnflow.flow.solvers._barrier.by_torch.conjugate_gradients import (
    TorchConjugateGradients,
)
from captum_attnflow.flow.solvers._barrier.by_torch.edge_block import EdgeBlock, cut
from captum_attnflow.flow.solvers._barrier.laplacian import node_sums
from captum_attnflow.flow.solvers._barrier.passes import EdgePasses
from captum_attnflow.flow.solvers._barrier.problem import Problem, State
from captum_attnflow.flow.solvers._barrier.workspace import workspace

# Of an array, in a block of edges; for the cache of a CPU.
_BLOCK_BYTES = 1 << 21


class TorchPasses(EdgePasses):
    """The passes of :class:`EdgePasses`, block by block."""

    # Float32 is too coarse for nodes, and products of matrices need one dtype.
    dtypes = (torch.float64,)
    n_arrays = 13
    iterative_solver = TorchConjugateGradients
    iterative_from_tokens = 48
    closed_form = TorchClosedForm

    def __init__(
        self,
        problem: Problem,
        state: State,
        memory: Tensor | None = None,
    ) -> None:
        shape, like = problem.capacity.shape, problem.capacity
        on_cpu = like.device.type == "cpu"
        at_once = _BLOCK_BYTES // like.element_size() if on_cpu else shape.numel()
        places = cut(problem, at_once)
        n_arrays = 5 * shape.numel()
        longest = max(place.edges.stop - place.edges.start for place in places)
        n_spare = 2 * longest * shape[0]
        if memory is None or memory.numel() < n_arrays + n_spare:
            memory = workspace().empty((n_arrays + n_spare,), like=like)
        self.memory = memory
        arrays = memory[:n_arrays].view(5, *shape)
        arrays[4] = problem.alive
        self.weight, self._source, self._sink = problem.split(arrays[2])
        self._state = state
        self._blocks = [
            EdgeBlock(problem, state, arrays, memory[n_arrays:], place)
            for place in places
        ]

    def weigh(self) -> Tensor:
        for block in self._blocks:
            block.weigh()
        return node_sums(self.weight, self._source, self._sink)

    def predict(self, potential: Tensor, among: Tensor) -> tuple[Tensor, ...]:
        chosen = None if bool(among.all()) else among
        passes = [block.predict(potential, chosen) for block in self._blocks]
        least, most, cost, gain = zip(*passes, strict=True)
        return (
            reduce(torch.minimum, least),
            reduce(torch.maximum, most),
            reduce(torch.add, cost),
            reduce(torch.add, gain),
        )

    def centre(self) -> None:
        for block in self._blocks:
            block.centre()

    def force(self, aim: Tensor) -> Tensor:
        divergence = torch.zeros_like(self._state.p)
        for block in self._blocks:
            block.force(aim, self._state.p, divergence)
        return divergence

    def turn(self, change: Tensor) -> tuple[Tensor, Tensor]:
        falls = [block.turn(change) for block in self._blocks]
        of_room, of_price = zip(*falls, strict=True)
        return reduce(torch.maximum, of_room), reduce(torch.maximum, of_price)

    def move(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        for block in self._blocks:
            block.move(primal, dual)
        return self.measure()

    def measure(self) -> tuple[Tensor, Tensor]:
        divergence = torch.zeros_like(self._state.p)
        totals = [block.measure(divergence) for block in self._blocks]
        return divergence, reduce(torch.add, totals)
