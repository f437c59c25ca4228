"""The passes over the edges by torch, on any device, block by block.

Each pass takes up to ten arrays. Blocks are cut so that their parts of the arrays stay
in a processor's cache from the first operation of a pass to the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.laplacian import (
    ClosedForm,
    Potential,
    TorchConjugateGradients,
    node_sums,
)
from captum_attnflow.flow.solvers.barrier.problem import (
    UNLIMITED,
    BarrierProblem,
    EdgePasses,
    Iterate,
    split,
    workspace,
)

# Bytes of an array in a block of edges, so that a block fits a CPU's cache.
_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class Place:
    """Where a block stands: some layers, or some heads of one layer."""

    layers: slice  # of edges
    heads: slice  # of each of these layers
    edges: slice  # among the flat ones, with the terminals' behind the last


class EdgeBlock:
    """The edges at one place in all arrays of a step, and the passes over them.

    See :class:`EdgePasses` for what they compute.

    Args:
        problem (BarrierProblem): The problem.
        iterate (Iterate): An iterate of it, changed by :meth:`advance`.
        arrays (Tensor): Shape ``(5, B, E)``, memory for corrections, weight and dx, and
            1 where there is an edge.
        spare (Tensor): Flat memory for two numbers an edge of the block, which hold
            nothing between two calls.
        place (Place): Where the block stands.
    """

    def __init__(
        self,
        problem: BarrierProblem,
        iterate: Iterate,
        arrays: Tensor,
        spare: Tensor,
        place: Place,
    ) -> None:
        layers, heads, edges = place.layers, place.heads, place.edges
        self._has_terminals = edges.stop == problem.capacity.shape[1]
        self._tail_nodes = (slice(None), layers)
        self._head_nodes = (
            slice(None),
            slice(layers.start + 1, layers.stop + 1),
            heads,
        )
        self._per_tail, self._per_head = (
            (*self._tail_nodes, None),
            (*self._head_nodes, None),
        )
        self._alive = arrays[4, :, edges]
        self._slack, self._multiplier = (
            iterate.slack[..., edges],
            iterate.multiplier[..., edges],
        )
        self._correction = arrays[:2, :, edges]
        self._weight, self._dx = arrays[2:4, :, edges]
        shape = self._slack.shape
        self._ratio = spare[: shape.numel()].view(shape)
        self._rise = self._ratio[0]
        n_layers, n_heads = layers.stop - layers.start, heads.stop - heads.start
        self._flow_parts, self._dx_parts, self._rise_parts = (
            split(part, (n_layers, n_heads, problem.n_tokens), self._has_terminals)
            for part in (self._slack[0], self._dx, self._rise)
        )

    def set_weights(self) -> None:
        """Set the weights."""
        slack, multiplier = self._slack, self._multiplier
        weight = torch.div(multiplier[0], slack[0], out=self._weight)
        weight.addcdiv_(multiplier[1], slack[1])
        torch.div(self._alive, weight, out=weight)

    def centre(self) -> None:
        """Set the corrections of a step without second-order terms."""
        self._correction.zero_()

    def predict(
        self, potential: Tensor, predicting: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Set the second-order terms of the affine-scaling predictor.

        Args:
            potential (Tensor): Shape ``(B, L + 1, T)``, after that step.
            predicting (Tensor, optional): Shape ``(B,)``, bool; other networks centre.

        Returns:
            tuple[Tensor, ...]: The least and the largest ratio, and the sums of ``dx``
            times both multipliers and times the rise, each of shape ``(B,)``.
        """
        self._set_rise(potential, -1.0, self._rise_parts)
        dx = torch.mul(self._rise, self._weight, out=self._dx)
        ratio = torch.div(dx, self._slack, out=self._correction)
        least, most = ratio.amin(-1).amin(0), ratio.amax(-1).amax(0)
        cost = dot(dx, self._multiplier[0]) + dot(dx, self._multiplier[1])
        gain = dot(dx, self._rise)
        ratio.addcmul_(ratio, ratio).mul_(self._multiplier)
        if predicting is not None:
            ratio.mul_(predicting[:, None])
        return least, most, cost, gain

    def correct(self, step_mu: Tensor, potential: Tensor, divergence: Tensor) -> None:
        """Set the right side for a barrier parameter, at the potential as it is.

        Args:
            step_mu (Tensor): Shape ``(B,)``, barrier parameter of the step.
            potential (Tensor): Shape ``(B, L + 1, T)``.
            divergence (Tensor): Shape ``(B, L + 1, T)``, that of the change is added.
        """
        correction, dx = (
            self._correction.addcdiv_(step_mu[:, None], self._slack),
            self._dx,
        )
        self._set_rise(potential, -1.0, self._dx_parts)
        dx.add_(correction[0]).add_(correction[1]).mul_(self._weight)
        self._add_divergence(self._dx_parts, divergence)

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Complete the direction by the change of the potential; set new multipliers.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B,)``, the largest shares by which a slack
            and a multiplier would fall.
        """
        self._set_rise(change, 0.0, self._rise_parts)
        dx = self._dx.addcmul_(self._rise, self._weight)
        ratio = torch.div(dx, self._slack, out=self._ratio)
        fall = -ratio.amin(-1).amin(0)
        goal = self._correction.addcmul_(self._multiplier, ratio, value=-1)
        torch.div(goal, self._multiplier, out=ratio)
        return fall, 1 - ratio.amin(-1).amin(0)

    def advance(self, primal: Tensor, dual: Tensor) -> None:
        """Take the step with these step lengths, of shape ``(B,)``."""
        self._slack.addcmul_(self._dx, primal[:, None])
        self._multiplier.lerp_(self._correction, dual[:, None])

    def measure(self, divergence: Tensor) -> Tensor:
        """Sum the complementarity products, ``(B,)``; add the flow's divergence."""
        self._add_divergence(self._flow_parts, divergence)
        products = dot(self._slack[0], self._multiplier[0])
        return products + dot(self._slack[1], self._multiplier[1])

    def _set_rise(
        self, potential: Tensor, at_source: float, out: tuple[Tensor, ...]
    ) -> None:
        inner, source, sink = out
        torch.sub(potential[self._per_head], potential[self._per_tail], out=inner)
        if self._has_terminals:
            torch.sub(potential[:, 0], at_source, out=source)
            torch.neg(potential[:, -1], out=sink)

    def _add_divergence(self, flow: tuple[Tensor, ...], divergence: Tensor) -> None:
        inner, source, sink = flow
        divergence[self._head_nodes].add_(inner.sum(-1))
        divergence[self._tail_nodes].sub_(inner.sum(-2))
        if self._has_terminals:
            divergence[:, 0].add_(source)
            divergence[:, -1].sub_(sink)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    if len(left) == 1:
        # Runs at memory speed; a batched product of one does not.
        return torch.dot(left[0], right[0])[None]
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]


def blocks_of(problem: BarrierProblem, most: int) -> list[Place]:
    """Cut a batch into blocks of about one size.

    Args:
        problem (BarrierProblem): The batch.
        most (int): Edges of a block, of all networks together; exceeded where the
            edges into one head are more.
    """
    n_layers, n_tokens = problem.n_layers, problem.n_tokens
    heads_at_once = max(1, most // (len(problem.capacity) * n_tokens))
    layers_at_once = max(1, heads_at_once // n_tokens)
    places = []
    for layers in _evenly(n_layers, layers_at_once):
        for heads in _evenly(n_tokens, heads_at_once):
            first = (layers.start * n_tokens + heads.start) * n_tokens
            last = ((layers.stop - 1) * n_tokens + heads.stop) * n_tokens
            if last == n_layers * n_tokens**2:
                last = problem.capacity.shape[1]
            places.append(Place(layers, heads, slice(first, last)))
    return places


def _evenly(number: int, at_once: int) -> list[slice]:
    n_parts = -(-number // at_once)
    ends = [part * number // n_parts for part in range(n_parts + 1)]
    return [slice(*two) for two in pairwise(ends)]


class TorchClosedForm(ClosedForm):
    """The passes of :class:`ClosedForm`, layer by layer."""

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None:
        self._capacity = network.capacity
        self._scale = scale[:, None, None]
        self.weight = workspace().empty(network.capacity.shape, like=network.capacity)
        of_layer = network.capacity[:, 0].shape
        self._spare = workspace().empty((3, *of_layer), like=network.capacity)

    def set_weights(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
        n_networks, n_layers, n_tokens, _ = self._capacity.shape
        flows, weights = self._capacity.new_empty(2, 2, n_networks, n_layers, n_tokens)
        for layer in range(n_layers):
            capacity, share, is_flow = self._lesser_share(layer, potential, mu)
            weight = self.weight[:, layer]
            other = torch.sub(1, share, out=self._spare[2])
            across = torch.mul(share, other, out=weight).mul_(capacity)
            across.square_().div_(mu[:, None, None])
            flow = capacity.mul_(torch.where(is_flow, share, other))
            weight.div_(share.square_().add_(other.square_()))
            for sums, edges in ((flows, flow), (weights, weight)):
                torch.sum(edges, 2, out=sums[0, :, layer])
                torch.sum(edges, 1, out=sums[1, :, layer])
        return flows, weights

    def fill(self, potential: Potential, mu: Tensor, flow: Tensor) -> None:
        for layer in range(flow.shape[1]):
            capacity, share, is_flow = self._lesser_share(layer, potential, mu)
            of_flow = torch.where(is_flow, share, 1 - share)
            torch.mul(capacity.mul_(of_flow), self._scale, out=flow[:, layer])
        # Scaling back may round a saturated edge past its capacity.
        torch.minimum(flow, self._capacity, out=flow)

    def _lesser_share(
        self, layer: int, potential: Potential, mu: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The capacities; the lesser of flow and slack, as their share; which it is."""
        capacity, share, root = self._spare
        fall, of_rest = share, root
        high, low = potential.high, potential.low
        torch.sub(high[:, layer, None], high[:, layer + 1, :, None], out=fall)
        torch.sub(low[:, layer, None], low[:, layer + 1, :, None], out=of_rest)
        torch.div(self._capacity[:, layer], self._scale, out=capacity)
        capacity.clamp_max_(UNLIMITED)
        quotient = fall.add_(of_rest).mul_(capacity).div_(mu[:, None, None])
        is_flow = quotient > 0
        torch.mul(quotient, quotient, out=root).add_(4).sqrt_()
        share = quotient.abs_().add_(root).add_(2).reciprocal_().mul_(2)
        return capacity, share, is_flow


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
        problem: BarrierProblem,
        iterate: Iterate,
        memory: Tensor | None = None,
    ) -> None:
        shape, like = problem.capacity.shape, problem.capacity
        on_cpu = like.device.type == "cpu"
        at_once = _BLOCK_BYTES // like.element_size() if on_cpu else shape.numel()
        places = blocks_of(problem, at_once)
        n_arrays = 5 * shape.numel()
        longest = max(place.edges.stop - place.edges.start for place in places)
        n_spare = 2 * longest * shape[0]
        if memory is None or memory.numel() < n_arrays + n_spare:
            memory = workspace().empty((n_arrays + n_spare,), like=like)
        self.memory = memory
        arrays = memory[:n_arrays].view(5, *shape)
        arrays[4] = problem.alive
        self.weight, self._source, self._sink = problem.split(arrays[2])
        self._iterate = iterate
        self._blocks = [
            EdgeBlock(problem, iterate, arrays, memory[n_arrays:], place)
            for place in places
        ]

    def set_weights(self) -> Tensor:
        for block in self._blocks:
            block.set_weights()
        return node_sums(self.weight, self._source, self._sink)

    def predict(self, potential: Tensor, predicting: Tensor) -> tuple[Tensor, ...]:
        chosen = None if bool(predicting.all()) else predicting
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

    def correct(self, step_mu: Tensor) -> Tensor:
        divergence = torch.zeros_like(self._iterate.p)
        for block in self._blocks:
            block.correct(step_mu, self._iterate.p, divergence)
        return divergence

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        falls = [block.ratio_test(change) for block in self._blocks]
        primal_ratio, dual_ratio = zip(*falls, strict=True)
        return reduce(torch.maximum, primal_ratio), reduce(torch.maximum, dual_ratio)

    def advance(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        for block in self._blocks:
            block.advance(primal, dual)
        return self.measure()

    def measure(self) -> tuple[Tensor, Tensor]:
        divergence = torch.zeros_like(self._iterate.p)
        totals = [block.measure(divergence) for block in self._blocks]
        return divergence, reduce(torch.add, totals)
