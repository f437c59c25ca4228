r"""Flows on the central path as functions of the potentials alone.

Where both complementarity products of an edge are ``mu`` and its multipliers differ by
the fall ``d = p_tail - p_head`` of the potential, its flow is

.. math::
    x = \frac{2 u}{q + 2 + \sqrt{q^2 + 4}}, \qquad q = u d / \mu,

and ``x`` changes by ``-weight`` for a unit of ``d``, with the weight
``1 / (mu / x^2 + mu / y^2)``. Edges that never bind have ``x = mu / d``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork


@dataclass
class Potential:
    """Potentials as sums of two numbers each.

    Near the optimum an edge with much room sees a fall of as little as ``mu``, which
    one number near -1 is too coarse for.
    """

    high: Tensor  # (B, L + 1, T), float64
    low: Tensor  # (B, L + 1, T), float64, below the last place of the other

    def add(self, change: Tensor) -> None:
        """Change it in place."""
        total, lost = exact_sum(self.high, change)
        self.high, self.low = exact_sum(total, self.low + lost)

    def select(self, index: Tensor) -> Potential:
        return Potential(self.high[index], self.low[index])


def exact_sum(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A sum, and what rounding has lost of it (Knuth's TwoSum)."""
    total = left + right
    added = total - left
    return total, (left - (total - added)) + (right - added)


class ClosedForm(Protocol):
    """Passes over the inner edges of a batch, whose flows follow from potentials.

    Args:
        network (LayeredNetwork): Trimmed networks.
        scale (Tensor): Shape ``(B,)``, unit of flows, potentials being without one.
        dtype (dtype): Of the edges on the way here, where that tells how exact the
            weights need to be.

    Attributes:
        weight (Tensor): Shape ``(B, L, T, T)``, of the inner edges.
    """

    weight: Tensor

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None: ...

    def weigh(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Set the weights.

        Args:
            potential (Potential): Of the nodes.
            mu (Tensor): Shape ``(B,)``, in units of ``scale``.

        Returns:
            tuple[Tensor, Tensor]: Sums of flows and of weights, ``(2, B, L, T)`` each,
            into the heads and out of the tails of each layer of edges.
        """
        ...

    def fill(self, potential: Potential, mu: Tensor, flow: Tensor) -> None:
        """Write the flows in the units of the capacities, ``(B, L, T, T)``."""
        ...
