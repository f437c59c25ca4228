r"""Newton's method on the dual problem, whose unknowns are the potentials alone.

It ends what :class:`Newton` began: near the optimum it converges quadratically, or by
a factor of the weights' rounding a step. It needs no array of edges but their weights,
since flows on the central path follow from the potentials in closed form. Where both
complementarity products of an edge are ``mu`` and its multipliers differ by the fall
``d = p_tail - p_head`` of the potential, its flow is

.. math::
    x = \frac{2 u}{q + 2 + \sqrt{q^2 + 4}}, \qquad q = u d / \mu,

and ``x`` changes by ``-weight`` for a unit of ``d``, with the weight
``1 / (mu / x^2 + mu / y^2)``. Edges that never bind have ``x = mu / d``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.laplacian import IterativeSolver, Laplacian

# Imbalance at a node in the answer, in shares of the value; and what a linear system
# may leave, in shares of the imbalance before and of the value.
_IMBALANCE = 1e-10
_ACCURACY = 1e-4
_LEAST_ACCURACY = 1e-12
# The barrier parameter follows the value where the imbalance is at most this share of
# how far the parameter is off. The slope of the value in the parameter is clamped.
_IMBALANCE_WHILE_FOLLOWING = 1e-2
_SLOPES = (-10.0, 0.9)
# Layers are factored after a step that leaves more than this share of the imbalance.
_LITTLE = 0.5


@dataclass
class Potential:
    """Potentials as sums of two numbers each.

    Near the optimum the potential falls by as little as ``mu`` along an edge with much
    slack. One float64 near -1 is too coarse for that.
    """

    high: Tensor  # (B, L + 1, T), float64
    low: Tensor  # (B, L + 1, T), float64, below the last place of the other

    def add(self, change: Tensor) -> None:
        """Change it in place."""
        total, error = exact_sum(self.high, change)
        self.high, self.low = exact_sum(total, self.low + error)

    def select(self, index: Tensor) -> Potential:
        """Return those of some networks."""
        return Potential(self.high[index], self.low[index])


def exact_sum(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A sum and its rounding error (Knuth's TwoSum)."""
    total = left + right
    added = total - left
    return total, (left - (total - added)) + (right - added)


class ClosedForm(Protocol):
    """Passes over the inner edges of a batch, whose flows follow from potentials.

    Args:
        network (LayeredNetwork): Trimmed networks.
        scale (Tensor): Shape ``(B,)``, unit of flows, potentials being without one.
        dtype (dtype): Of the edges so far; how exact weights have to be may depend on
            it.

    Attributes:
        weight (Tensor): Shape ``(B, L, T, T)``, of the inner edges.
    """

    weight: Tensor

    def __init__(
        self, network: LayeredNetwork, scale: Tensor, dtype: torch.dtype
    ) -> None: ...

    def set_weights(self, potential: Potential, mu: Tensor) -> tuple[Tensor, Tensor]:
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


class DualNewton:
    """One Newton step on the potentials of a batch after the other.

    Args:
        network (LayeredNetwork): Trimmed networks.
        edges (ClosedForm): What does the work on their edges.
        potential (Potential): Where to start, near the optimum.
        mu (Tensor): Shape ``(B,)``, barrier parameter to start with.
        target (Callable): Gives the barrier parameter for flow values, both ``(B,)``.
        iterative_solver (type, optional): What to try first on linear systems.

    Attributes:
        potential (Potential): Of the nodes.
        mu (Tensor): Shape ``(B,)``, barrier parameter.
        source_flow (Tensor): Shape ``(B, T)``, flow from the source.
        sink_flow (Tensor): Shape ``(B, T)``, flow to the sink.
        relative_imbalance (Tensor): Shape ``(B,)``, largest imbalance at a node as a
            share of the value; infinite where potentials stand for no flow.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        edges: ClosedForm,
        potential: Potential,
        mu: Tensor,
        target: Callable[[Tensor], Tensor],
        iterative_solver: type[IterativeSolver] | None,
    ) -> None:
        self.potential = potential
        self.mu = mu
        self._network = network
        self._edges = edges
        self._find_target = target
        self._iterative_solver = iterative_solver
        self._last = (torch.zeros_like(mu), torch.full_like(mu, torch.nan))
        self._measure()

    @property
    def conserves(self) -> Tensor:
        """Whether what enters each node leaves it, ``(B,)``, bool."""
        return self.relative_imbalance <= _IMBALANCE

    def is_at_target(self, tolerance: float) -> Tensor:
        """Whether the barrier parameter is the value's own up to this share of it."""
        return (self.mu - self._target).abs() <= tolerance * self._target

    @property
    def has_diverged(self) -> Tensor:
        """Whether each network is too far off for a step to lead back, ``(B,)``."""
        return ~(self.relative_imbalance < 1)

    def step(self, tolerance: float) -> None:
        """Solve for flows that conserve; see :meth:`is_at_target`.

        Networks that have diverged stay as they are.
        """
        self._follow_target(tolerance)
        diverged = self.has_diverged
        if bool(diverged.any()):
            for values in (self._edges.weight, self._sums, self._imbalance):
                values[diverged] = 0
        laplacian = Laplacian(self._edges.weight, self._sums, self._iterative_solver)
        before = self.relative_imbalance
        accuracy = (_ACCURACY * before).clamp_min(_LEAST_ACCURACY) * self._value
        accuracy = torch.where(diverged, 1.0, accuracy)
        self.potential.add(laplacian.solve(-self._imbalance, accuracy))
        self._measure()
        # Small residuals leave large errors where weights differ by many orders.
        gains_little = (
            (self.relative_imbalance > _LITTLE * before) & ~self.conserves & ~diverged
        )
        if not laplacian.iterative or bool(gains_little.any()):
            self._iterative_solver = None

    def _follow_target(self, tolerance: float) -> None:
        """Let the barrier parameter follow the value, by secants.

        While the imbalance is large the value says nothing of the optimum's.
        """
        mu, target = self.mu, self._target
        off = (mu - target).abs() / target
        follows = (off > tolerance) & (
            self.relative_imbalance <= _IMBALANCE_WHILE_FOLLOWING * off
        )
        if not bool(follows.any()):
            return
        last_mu, last_target = self._last
        slope = ((target - last_target) / (mu - last_mu)).nan_to_num(0.0, 0.0, 0.0)
        better = mu + (target - mu) / (1 - slope.clamp(*_SLOPES))
        self._last = (
            torch.where(follows, mu, last_mu),
            torch.where(follows, target, last_target),
        )
        self.mu = torch.where(follows & (better > 0), better, mu)
        self._measure()

    def _measure(self) -> None:
        mu, high, low = self.mu, self.potential.high, self.potential.low
        flows, weights = self._edges.set_weights(self.potential, mu)
        source, sink = self._network.source, self._network.sink
        per_fall = mu[:, None]
        self.source_flow = torch.where(
            source, -per_fall / ((high[:, 0] + 1) + low[:, 0]), 0.0
        )
        self.sink_flow = torch.where(sink, per_fall / (high[:, -1] + low[:, -1]), 0.0)
        self._value = self.sink_flow.sum(1)
        self._target = self._find_target(self._value)
        into, out_of = _with_terminals(flows, self.source_flow, self.sink_flow)
        self._imbalance = into - out_of
        # Edges that never bind have a second, meaningless branch below 0.
        positive = (self.source_flow >= 0).all(1) & (self.sink_flow >= 0).all(1)
        relative_imbalance = self._imbalance.abs().amax((1, 2)) / self._value
        self.relative_imbalance = torch.where(positive, relative_imbalance, torch.inf)
        source_weight, sink_weight = (
            flow.square() / mu[:, None] for flow in (self.source_flow, self.sink_flow)
        )
        sums = _with_terminals(weights, source_weight, sink_weight)
        self._sums = torch.stack(sums, 2)


def _with_terminals(
    inner: Tensor, source: Tensor, sink: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums into the nodes and out of them, ``(B, L + 1, T)`` each."""
    into = torch.cat([source[:, None], inner[0]], 1)
    return into, torch.cat([inner[1], sink[:, None]], 1)
