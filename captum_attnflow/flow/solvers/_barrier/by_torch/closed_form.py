"""Flows and weights in closed form, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers._barrier.closed_form import ClosedForm, Potential
from captum_attnflow.flow.solvers._barrier.problem import UNLIMITED
from captum_attnflow.flow.solvers._barrier.workspace import workspace


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

    def weigh(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
        n_networks, n_layers, n_tokens, _ = self._capacity.shape
        flows, weights = self._capacity.new_empty(2, 2, n_networks, n_layers, n_tokens)
        for layer in range(n_layers):
            room, share, is_flow = self._lesser_share(layer, potential, mu)
            weight = self.weight[:, layer]
            other = torch.sub(1, share, out=self._spare[2])
            across = torch.mul(share, other, out=weight).mul_(room)
            across.square_().div_(mu[:, None, None])
            flow = room.mul_(torch.where(is_flow, share, other))
            weight.div_(share.square_().add_(other.square_()))
            for sums, edges in ((flows, flow), (weights, weight)):
                torch.sum(edges, 2, out=sums[0, :, layer])
                torch.sum(edges, 1, out=sums[1, :, layer])
        return flows, weights

    def fill(self, potential: Potential, mu: Tensor, flow: Tensor) -> None:
        for layer in range(flow.shape[1]):
            room, share, is_flow = self._lesser_share(layer, potential, mu)
            of_flow = torch.where(is_flow, share, 1 - share)
            torch.mul(room.mul_(of_flow), self._scale, out=flow[:, layer])
        # Scaling back may round a saturated edge past its capacity.
        torch.minimum(flow, self._capacity, out=flow)

    def _lesser_share(
        self, layer: int, potential: Potential, mu: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Capacities; flow or room, what is less, as a share; whether it is flow."""
        room, share, root = self._spare
        fall, of_rest = share, root
        high, low = potential.high, potential.low
        torch.sub(high[:, layer, None], high[:, layer + 1, :, None], out=fall)
        torch.sub(low[:, layer, None], low[:, layer + 1, :, None], out=of_rest)
        torch.div(self._capacity[:, layer], self._scale, out=room)
        room.clamp_max_(UNLIMITED)
        quotient = fall.add_(of_rest).mul_(room).div_(mu[:, None, None])
        is_flow = quotient > 0
        torch.mul(quotient, quotient, out=root).add_(4).sqrt_()
        share = quotient.abs_().add_(root).add_(2).reciprocal_().mul_(2)
        return room, share, is_flow
