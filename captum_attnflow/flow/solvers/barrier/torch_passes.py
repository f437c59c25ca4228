"""The passes over the edges by torch, on any device.

Blocks of edges that fit a processor's cache saved at most 1.2 times at (12, 512), and
nothing on shorter texts: whole arrays are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork, empty
from captum_attnflow.flow.solvers.barrier.central_path import (
    UNLIMITED,
    BarrierProblem,
    EdgePasses,
    Iterate,
)
from captum_attnflow.flow.solvers.barrier.laplacian import (
    ClosedForm,
    IterativeSolver,
    Potential,
    TorchConjugateGradients,
    node_sums,
)

# On shorter texts layers are factored in less time.
_ITERATES_FROM_TOKENS = 48


class TorchClosedForm(ClosedForm):
    """The passes of :class:`ClosedForm`, layer by layer."""

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None:
        self._capacity = network.capacity
        self._scale = scale[:, None, None]
        self.weight = empty(network.capacity.shape, like=network.capacity)
        of_layer = network.capacity[:, 0].shape
        self._spare = empty((3, *of_layer), like=network.capacity)

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
    """The passes of :class:`EdgePasses`, operation by operation."""

    # Float32 is too coarse for nodes, and products of matrices need one dtype.
    dtypes = (torch.float64,)
    closed_form = TorchClosedForm

    @staticmethod
    def solvers(n_tokens: int) -> tuple[type[IterativeSolver], ...]:
        return (TorchConjugateGradients,) if n_tokens >= _ITERATES_FROM_TOKENS else ()

    def __init__(self, problem: BarrierProblem, iterate: Iterate) -> None:
        shape = problem.capacity.shape
        arrays = empty((7, *shape), like=problem.capacity)
        self._iterate = iterate
        self._split = problem.split
        self._correction, self._ratio = arrays[:2], arrays[2:4]
        self._weight, self._dx, self._alive = arrays[4:]
        self._alive.copy_(problem.alive)
        self.weight, self._source, self._sink = problem.split(self._weight)

    def set_weights(self) -> Tensor:
        slack, multiplier = self._iterate.slack, self._iterate.multiplier
        weight = torch.div(multiplier[0], slack[0], out=self._weight)
        weight.addcdiv_(multiplier[1], slack[1])
        torch.div(self._alive, weight, out=weight)
        return node_sums(self.weight, self._source, self._sink)

    def predict(self, potential: Tensor, predicting: Tensor) -> tuple[Tensor, ...]:
        slack, multiplier = self._iterate.slack, self._iterate.multiplier
        rise = self._set_rise(potential, -1.0, self._ratio[0])
        dx = torch.mul(rise, self._weight, out=self._dx)
        ratio = torch.div(dx, slack, out=self._correction)
        least, most = ratio.amin(-1).amin(0), ratio.amax(-1).amax(0)
        cost = dot(dx, multiplier[0]) + dot(dx, multiplier[1])
        gain = dot(dx, rise)
        ratio.addcmul_(ratio, ratio).mul_(multiplier)
        if not bool(predicting.all()):
            ratio.mul_(predicting[:, None])
        return least, most, cost, gain

    def centre(self) -> None:
        self._correction.zero_()

    def correct(self, step_mu: Tensor) -> Tensor:
        correction = self._correction
        correction.addcdiv_(step_mu[:, None], self._iterate.slack)
        dx = self._set_rise(self._iterate.p, -1.0, self._dx)
        dx.add_(correction[0]).add_(correction[1]).mul_(self._weight)
        return self._divergence(dx)

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        multiplier = self._iterate.multiplier
        rise = self._set_rise(change, 0.0, self._ratio[0])
        dx = self._dx.addcmul_(rise, self._weight)
        ratio = torch.div(dx, self._iterate.slack, out=self._ratio)
        fall = -ratio.amin(-1).amin(0)
        # From now on the new multipliers.
        goal = self._correction.addcmul_(multiplier, ratio, value=-1)
        torch.div(goal, multiplier, out=ratio)
        return fall, 1 - ratio.amin(-1).amin(0)

    def advance(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        self._iterate.slack.addcmul_(self._dx, primal[:, None])
        self._iterate.multiplier.lerp_(self._correction, dual[:, None])
        return self.measure()

    def measure(self) -> tuple[Tensor, Tensor]:
        slack, multiplier = self._iterate.slack, self._iterate.multiplier
        products = torch.mul(slack, multiplier, out=self._ratio)
        total = dot(products[0], self._alive) + dot(products[1], self._alive)
        return self._divergence(slack[0]), total

    def _set_rise(self, potential: Tensor, at_source: float, out: Tensor) -> Tensor:
        """Write how much a potential rises along every edge."""
        inner, source, sink = self._split(out)
        torch.sub(potential[:, 1:, :, None], potential[:, :-1, None], out=inner)
        torch.sub(potential[:, 0], at_source, out=source)
        torch.neg(potential[:, -1], out=sink)
        return out

    def _divergence(self, flow: Tensor) -> Tensor:
        inner, source, sink = self._split(flow)
        into = torch.cat([source[:, None], inner.sum(3)], 1)
        return into.sub_(torch.cat([inner.sum(2), sink[:, None]], 1))


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    if len(left) == 1:
        # Runs at memory speed; a batched product of one does not.
        return torch.dot(left[0], right[0])[None]
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]
