"""Grounded graph Laplacians of layered networks, and how to solve them.

Edges join neighbouring token layers only, so the weighted Laplacian, with the
terminals grounded, has ``T x T`` blocks on three diagonals.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.cholesky import BlockCholesky

# The Laplacian of a cluster that only weak edges ground is singular in floating
# point. This share of the diagonal keeps its factor real and is far below the
# accuracy that any step needs.
_RELATIVE_RIDGE = 1e-14
# Iterations after which the direct solver is the cheaper one: its work grows with the
# cube of the tokens, that of an iteration with their square.
_MAX_ITERATIONS = 30
_TOKENS_PER_ITERATION = 2


class IterativeSolver(Protocol):
    """Solves systems of one batch of Laplacians by iterating.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, see :class:`Laplacian`.
        sums (Tensor): Shape ``(B, L + 1, 2, T)``, see :func:`node_sums`.
        diagonal (Tensor): Shape ``(B, L + 1, T)``, positive.
    """

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
        iterative_solver (type, optional): What to try first.

    A node without any weight gets a unit diagonal: its solution is its right side.

    Attributes:
        iterative (bool): Whether the iterative solver has served so far.
    """

    def __init__(
        self,
        weight: Tensor,
        sums: Tensor,
        iterative_solver: type[IterativeSolver] | None,
    ) -> None:
        diagonal = sums.sum(2)
        diagonal.masked_fill_(diagonal == 0, 1.0).mul_(1 + _RELATIVE_RIDGE)
        self.iterative = iterative_solver is not None
        self._weight = weight
        self._diagonal = diagonal
        self._source = sums[:, 0, 0]
        self._direct: BlockCholesky | None = None
        if iterative_solver:
            self._iterative_solver = iterative_solver(weight, sums, diagonal)

    def solve(
        self, right_side: Tensor, tolerance: Tensor, at_source: float = 0.0
    ) -> Tensor:
        """Solve for node potentials with the source and the sink held fixed.

        Args:
            right_side (Tensor): Shape ``(B, L + 1, T)``.
            tolerance (Tensor): Shape ``(B,)``, residual at a node that the iterative
                solver may leave.
            at_source (float): Potential of the source; that of the sink is 0.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``.
        """
        if at_source:
            right_side = right_side.clone()
            right_side[:, 0] += at_source * self._source
        if self.iterative:
            n_tokens = right_side.shape[-1]
            solution, self.iterative = self._iterative_solver.solve(
                right_side,
                tolerance,
                max(_MAX_ITERATIONS, n_tokens // _TOKENS_PER_ITERATION),
            )
            if self.iterative:
                return solution
        if self._direct is None:
            self._direct = BlockCholesky(self._weight, self._diagonal)
        return self._direct.solve(right_side)


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
