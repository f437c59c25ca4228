r"""Grounded graph Laplacians of layered networks, and how to solve them.

Edges join neighbouring token layers only, so the weighted Laplacian, with the
terminals grounded, has ``T x T`` blocks on three diagonals. Two methods solve it.

**Block Cholesky.** One sweep over the layers factors a whole batch in dense products,
``O(L T^3)``.

**Preconditioned conjugate gradients**, ``O(L T^2)`` an iteration. Edges join
neighbouring layers only, so every other layer of nodes is eliminated exactly (red-black
ordering): its own block is diagonal. What is left needs half the iterations, each of
the same two products.

Attention mixes fast: the weights between two layers are close to a matrix of rank one.
The preconditioner replaces each block :math:`W_l` by
:math:`r_l c_l^\top / s_l`, the product of its row sums and column sums over its total,
which keeps the diagonal and couples neighbouring layers through two numbers only. On
networks of mixing attention it needs 1 to 8 iterations for eight digits. On others the
kernels compiled by Numba go on with another preconditioner, from 64 tokens on: the
factors of the layers in float32 (``numba_factors``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from captum_attnflow.flow.network import LayeredNetwork

# The Laplacian of a cluster that only weak edges ground is singular in floating
# point. This share of the diagonal keeps its factor real and is far below the
# accuracy that any step needs.
RELATIVE_RIDGE = 1e-14
# Iterations after which another solver costs less. The work of the direct one grows
# with the cube of the tokens, that of an iteration with their square. Factors in
# float32, which serve two systems, take as long as 50 iterations at (12, 128) and 240
# at (6, 512).
_MAX_ITERATIONS = 30
_TOKENS_PER_ITERATION = 2
# Iterations between two checks whether residuals are small. On a CPU a check is free;
# waiting for another device takes longer than a few iterations.
_ITERATIONS_A_CHECK = {"cpu": 1}
_ELSEWHERE = 4


class IterativeSolver(Protocol):
    """Solves systems of one batch of Laplacians by iterating.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, see :class:`Laplacian`.
        sums (Tensor): Shape ``(B, L + 1, 2, T)``, see :func:`node_sums`.
        diagonal (Tensor): Shape ``(B, L + 1, T)``, positive.

    Attributes:
        most_iterations (int, optional): After how many it is given up; by default as
            many as cost less than what comes next.
    """

    most_iterations: ClassVar[int | None] = None

    def __init__(self, weight: Tensor, sums: Tensor, diagonal: Tensor) -> None: ...

    def solve(
        self, right_side: Tensor, tolerance: Tensor, max_iterations: int
    ) -> tuple[Tensor, bool]:
        """Iterate until every residual is small at every node.

        Args:
            right_side (Tensor): Shape ``(B, L + 1, T)``.
            tolerance (Tensor): Shape ``(B,)``, largest residual at a node.
            max_iterations (int): Iterations before giving up.

        Returns:
            tuple[Tensor, bool]: The solution and whether all residuals are small.
        """
        ...


class Laplacian:
    """A batch of Laplacians, solved iteratively or directly.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, weight of the edge from node ``j`` of
            layer ``l`` to node ``i`` of layer ``l + 1`` at ``[b, l, i, j]``.
        sums (Tensor): Shape ``(B, L + 1, 2, T)``, see :func:`node_sums`.
        solvers (tuple): Types of :class:`IterativeSolver` to try in turn, before
            :class:`BlockCholesky`.

    A node without any weight gets a unit diagonal: its solution is its right side.

    Attributes:
        solvers (tuple): Those that have not failed so far.
    """

    def __init__(
        self, weight: Tensor, sums: Tensor, solvers: tuple[type[IterativeSolver], ...]
    ) -> None:
        diagonal = sums.sum(2)
        diagonal.masked_fill_(diagonal == 0, 1.0).mul_(1 + RELATIVE_RIDGE)
        self.solvers = solvers
        self._weight = weight
        self._diagonal = diagonal
        self._sums = sums
        self._iterative: IterativeSolver | None = None
        self._direct: BlockCholesky | None = None

    def solve(
        self, right_side: Tensor, tolerance: Tensor, at_source: float = 0.0
    ) -> Tensor:
        """Solve for node potentials with the source and the sink held fixed.

        Args:
            right_side (Tensor): Shape ``(B, L + 1, T)``.
            tolerance (Tensor): Shape ``(B,)``, residual at a node that an iterative
                solver may leave.
            at_source (float): Potential of the source; that of the sink is 0.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``.
        """
        if at_source:
            right_side = right_side.clone()
            right_side[:, 0] += at_source * self._sums[:, 0, 0]
        while self.solvers:
            if self._iterative is None:
                self._iterative = self.solvers[0](
                    self._weight, self._sums, self._diagonal
                )
            solution, is_solved = self._iterative.solve(
                right_side, tolerance, self._most_iterations(right_side.shape[-1])
            )
            if is_solved:
                return solution
            self.solvers, self._iterative = self.solvers[1:], None
        if self._direct is None:
            self._direct = BlockCholesky(self._weight, self._diagonal)
        return self._direct.solve(right_side)

    def _most_iterations(self, n_tokens: int) -> int:
        most = self.solvers[0].most_iterations
        if most is not None:
            return most
        is_last = len(self.solvers) == 1
        per_iteration = _TOKENS_PER_ITERATION * (1 if is_last else 2)
        return max(_MAX_ITERATIONS, n_tokens // per_iteration)


def node_sums(weight: Tensor, source: Tensor, sink: Tensor) -> Tensor:
    """Sum the weights into each node and out of it, the terminals' included.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, see :class:`Laplacian`.
        source (Tensor): Shape ``(B, T)``, weight of the edges from the source.
        sink (Tensor): Shape ``(B, T)``, weight of the edges to the sink.

    Returns:
        Tensor: Shape ``(B, L + 1, 2, T)``.
    """
    n_networks, n_layers, n_tokens, _ = weight.shape
    sums = weight.new_empty(n_networks, n_layers + 1, 2, n_tokens)
    torch.sum(weight, -1, out=sums[:, 1:, 0])
    torch.sum(weight, -2, out=sums[:, :-1, 1])
    sums[:, 0, 0], sums[:, -1, 1] = source, sink
    return sums


class BlockCholesky:
    """Factor of a batch of block-tridiagonal Laplacians.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, see :class:`Laplacian`.
        diagonal (Tensor): Shape ``(B, L + 1, T)``, positive.
    """

    def __init__(self, weight: Tensor, diagonal: Tensor) -> None:
        blocks = torch.diag_embed(diagonal)
        self._factors: list[Tensor] = []
        self._couplings: list[Tensor] = []
        block = blocks[:, 0]
        for layer in range(weight.shape[1]):
            factor, _ = torch.linalg.cholesky_ex(block)
            coupling = torch.linalg.solve_triangular(
                factor, weight[:, layer].mT.to(block.dtype), upper=False
            )
            self._factors.append(factor)
            self._couplings.append(coupling)
            block = torch.baddbmm(blocks[:, layer + 1], coupling.mT, coupling, alpha=-1)
        self._factors.append(torch.linalg.cholesky_ex(block)[0])

    def solve(self, right_side: Tensor) -> Tensor:
        """Solve for node potentials; both sides have shape ``(B, L + 1, T)``."""
        forward: list[Tensor] = []
        for layer, factor in enumerate(self._factors):
            column = right_side[:, layer, :, None]
            if layer:
                coupling = self._couplings[layer - 1].mT
                column = torch.baddbmm(column, coupling, forward[-1])
            forward.append(torch.linalg.solve_triangular(factor, column, upper=False))
        last = self._factors[-1].mT
        solution = [torch.linalg.solve_triangular(last, forward[-1], upper=True)]
        for layer in reversed(range(len(self._couplings))):
            column = torch.baddbmm(forward[layer], self._couplings[layer], solution[-1])
            factor = self._factors[layer].mT
            solution.append(torch.linalg.solve_triangular(factor, column, upper=True))
        return torch.stack(solution[::-1], 1)[..., 0]


class NodeValues:
    """Values of some layers of nodes, ``(layers, B, T)``, and views for products."""

    def __init__(self, values: Tensor) -> None:
        n_networks = values.shape[1]
        self.values = values
        self.rows = values.view(-1, 1, values.shape[2])
        self.but_first = self.rows[n_networks:]
        self.but_last = self.rows[:-n_networks]


class RedBlackLaplacian:
    """A batch of Laplacians without their even layers of nodes.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, see :class:`Laplacian`.
        sums (Tensor): Shape ``(B, L + 1, 2, T)``, sums of the weights into each node
            and out of it, terminals included.
        diagonal (Tensor): Shape ``(B, L + 1, T)``, positive.
    """

    def __init__(self, weight: Tensor, sums: Tensor, diagonal: Tensor) -> None:
        layers = weight.transpose(0, 1)
        # Blocks whose tail is even and head odd, and blocks whose tail is odd.
        self._into_odd = layers[0::2].flatten(0, 1)
        self._out_of_odd = layers[1::2].flatten(0, 1)
        self._tails_of_odd = self._into_odd.mT
        self._heads_of_odd = self._out_of_odd.mT
        inverse = 1 / diagonal
        self._diagonal = diagonal.transpose(0, 1)[1::2]
        self._even_inverse = inverse.transpose(0, 1)[0::2].contiguous()
        even = NodeValues(torch.empty_like(self._even_inverse))
        self._even = even.values
        ends_odd = len(even.values) == len(self._diagonal)
        self._even_below_odd = even.rows if ends_odd else even.but_last
        self._even_above_odd = even.but_first
        self._ends_odd = ends_odd
        self._preconditioner = RankOnePreconditioner(sums, inverse)

    def reduce(self, right_side: Tensor) -> NodeValues:
        """Right side of the odd layers, from ``(L + 1, B, T)`` of all layers."""
        torch.mul(right_side[0::2], self._even_inverse, out=self._even)
        odd = NodeValues(right_side[1::2].clone())
        self._add_even(odd, sign=1)
        return odd

    def expand(self, solution: NodeValues, right_side: Tensor) -> Tensor:
        """Solution of all layers, from that of the odd ones."""
        whole = torch.empty_like(right_side)
        whole[1::2] = solution.values
        self._gather_even(solution)
        torch.mul(
            self._even.add_(right_side[0::2]), self._even_inverse, out=whole[0::2]
        )
        return whole

    def apply(self, odd: NodeValues, out: NodeValues) -> None:
        """Multiply by the reduced matrix."""
        self._gather_even(odd)
        self._even.mul_(self._even_inverse)
        torch.mul(odd.values, self._diagonal, out=out.values)
        self._add_even(out, sign=-1)

    def precondition(self, odd: NodeValues) -> Tensor:
        """Apply the preconditioner."""
        return self._preconditioner.solve(odd)

    def _gather_even(self, odd: NodeValues) -> None:
        """Sum the odd values that each even node sees."""
        self._even.zero_()
        self._even_below_odd.baddbmm_(odd.rows, self._into_odd)
        self._even_above_odd.baddbmm_(self._odd_below_even(odd), self._heads_of_odd)

    def _add_even(self, odd: NodeValues, sign: int) -> None:
        """Add the even values that each odd node sees."""
        odd.rows.baddbmm_(self._even_below_odd, self._tails_of_odd, alpha=sign)
        self._odd_below_even(odd).baddbmm_(
            self._even_above_odd, self._out_of_odd, alpha=sign
        )

    def _odd_below_even(self, odd: NodeValues) -> Tensor:
        return odd.but_last if self._ends_odd else odd.rows


class RankOnePreconditioner:
    r"""Exact solver of the reduced Laplacian whose blocks are replaced by rank one.

    Neighbouring layers see two numbers of each other: a block couples
    :math:`c_l^\top x` below it with :math:`r_l^\top x` above it. With ``V`` these
    vectors, scaled by :math:`s_l^{-1/2}`, and ``K`` the exchange of the two numbers of
    each block, the Laplacian is :math:`D - V K V^\top`, and its inverse by Woodbury, as
    :math:`K^2 = 1`,
    :math:`D^{-1} + D^{-1} V (K - V^\top D^{-1} V)^{-1} V^\top D^{-1}`. The inverse of
    the reduced Laplacian is the part of it that belongs to the odd layers.

    Args:
        sums (Tensor): Shape ``(B, L + 1, 2, T)``, see :class:`RedBlackLaplacian`.
        inverse (Tensor): Shape ``(B, L + 1, T)``, of the diagonal.
    """

    def __init__(self, sums: Tensor, inverse: Tensor) -> None:
        n_networks, n_layers, _ = inverse.shape
        total = sums[:, 1:, 0].sum(-1)
        root = total.clamp_min_(torch.finfo(total.dtype).tiny).rsqrt_()
        # Two vectors a node layer, of the block below and of the block above. The first
        # layer has no block below and the last none above: these two vectors are 0.
        basis = sums * pad(root, (1, 1)).unfold(1, 2, 1)[..., None]
        scaled = basis * inverse[:, :, None]
        exchange = _exchange(n_layers, inverse.dtype, inverse.device)
        system = exchange.repeat(n_networks, 1, 1)
        grid = (n_networks, n_layers, 2, n_layers, 2)
        own = system.view(grid).diagonal(dim1=1, dim2=3)
        own -= (scaled @ basis.mT).permute(0, 2, 3, 1)
        # A singular system raises no error: the residuals show whether it converges.
        coefficients, _ = torch.linalg.inv_ex(system)
        coefficients = coefficients.view(grid)[:, 1::2, :, 1::2].permute(0, 3, 1, 2, 4)
        odd = scaled[:, 1::2]
        corrections = coefficients.flatten(2, 3) @ odd
        self._corrections = corrections.transpose(1, 2).flatten(2)
        self._products = odd.transpose(0, 1).flatten(0, 1).mT
        self._inverse = inverse.transpose(0, 1)[1::2]

    def solve(self, residual: NodeValues) -> Tensor:
        """Apply to residuals of shape ``((L + 1) // 2, B, T)``."""
        n_layers, n_networks, n_tokens = residual.values.shape
        seen = torch.bmm(residual.rows, self._products)
        seen = seen.view(n_layers, n_networks, 2).transpose(0, 1)
        correction = torch.bmm(seen.reshape(n_networks, 1, -1), self._corrections)
        correction = correction.view(n_networks, n_layers, n_tokens).transpose(0, 1)
        return correction.addcmul_(residual.values, self._inverse)


@lru_cache(maxsize=16)
def _exchange(n_layers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix ``K`` that exchanges the two numbers of each block of edges.

    Returns:
        Tensor: Shape ``(2 * n_layers, 2 * n_layers)``.
    """
    layers = torch.eye(n_layers, dtype=dtype, device=device)
    swap = torch.eye(2, dtype=dtype, device=device).flip(0)
    return torch.kron(layers, swap).roll((1, 1), (0, 1))


class TorchConjugateGradients(IterativeSolver):
    """Conjugate gradients (Hestenes & Stiefel 1952) by torch, on any device."""

    def __init__(self, weight: Tensor, sums: Tensor, diagonal: Tensor) -> None:
        self._system = RedBlackLaplacian(weight, sums, diagonal)

    def solve(
        self, right_side: Tensor, tolerance: Tensor, max_iterations: int
    ) -> tuple[Tensor, bool]:
        system = self._system
        right_side = right_side.transpose(0, 1).contiguous()
        residual = system.reduce(right_side)
        solution, direction, image = (
            NodeValues(torch.zeros_like(residual.values)) for _ in range(3)
        )
        tolerance = tolerance.to(right_side.dtype)
        energy = torch.ones_like(tolerance)
        # The energy of a system that is solved already is 0.
        least = torch.finfo(energy.dtype).tiny
        small = False
        at_once = _ITERATIONS_A_CHECK.get(right_side.device.type, _ELSEWHERE)
        for iteration in range(1, max_iterations + 1):
            step = system.precondition(residual)
            energy_before, energy = energy, (step * residual.values).sum((0, 2))
            momentum = energy / energy_before.clamp_min_(least)
            torch.addcmul(
                step, direction.values, momentum[:, None], out=direction.values
            )
            system.apply(direction, out=image)
            curvature = (direction.values * image.values).sum((0, 2)).clamp_min_(least)
            length = (energy / curvature)[:, None]
            solution.values.addcmul_(direction.values, length)
            residual.values.addcmul_(image.values, length, value=-1)
            if iteration % at_once and iteration < max_iterations:
                continue
            small = bool((residual.values.abs().amax((0, 2)) <= tolerance).all())
            if small:
                break
        return system.expand(solution, right_side).transpose(0, 1), small


# Imbalance at a node in the answer, in shares of the value; and what a linear system
# may leave, in shares of the imbalance before and of the value.
_IMBALANCE = 1e-10
_ACCURACY = 1e-4
_LEAST_ACCURACY = 1e-12
# The barrier parameter follows the value where the imbalance is at most this share of
# how far the parameter is off. The slope of the value in the parameter is clamped.
_IMBALANCE_WHILE_FOLLOWING = 1e-2
_SLOPES = (-10.0, 0.9)
# The next solver is tried after a step that leaves more than this share of imbalance.
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
        solvers (tuple): What to try in turn on linear systems, see :class:`Laplacian`.

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
        solvers: tuple[type[IterativeSolver], ...],
    ) -> None:
        self.potential = potential
        self.mu = mu
        self._network = network
        self._edges = edges
        self._find_target = target
        self._solvers = solvers
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
        laplacian = Laplacian(self._edges.weight, self._sums, self._solvers)
        before = self.relative_imbalance
        accuracy = (_ACCURACY * before).clamp_min(_LEAST_ACCURACY) * self._value
        accuracy = torch.where(diverged, 1.0, accuracy)
        self.potential.add(laplacian.solve(-self._imbalance, accuracy))
        self._measure()
        # Small residuals leave large errors where weights differ by many orders.
        gains_little = (
            (self.relative_imbalance > _LITTLE * before) & ~self.conserves & ~diverged
        )
        # One that has failed in this step has given way already.
        drops = bool(gains_little.any()) and laplacian.solvers == self._solvers
        self._solvers = laplacian.solvers[1 if drops else 0 :]

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
