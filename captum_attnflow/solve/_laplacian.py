"""Block-tridiagonal graph Laplacians of layered networks.

Edges join neighbouring token layers only, so the weighted Laplacian, with the
terminals grounded, has ``T x T`` blocks on three diagonals. One sweep of block
Cholesky factors a whole batch in ``O(L T^3)`` dense matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The Laplacian of a cluster that only weak edges ground is singular in floating
# point. This share of the diagonal keeps its factor real and is far below the
# accuracy that any step needs.
_RELATIVE_RIDGE = 1e-14


class LaplacianFactor:
    """Block Cholesky factor of a batch of grounded Laplacians.

    Args:
        weight (Tensor): Shape ``(B, L, T, T)``, weight of the edge from node ``j`` of
            layer ``l`` to node ``i`` of layer ``l + 1`` at ``[b, l, i, j]``.
        ground (Tensor): Shape ``(B, L + 1, T)``, weight of the edges to the grounded
            terminals.

    A node without any weight gets a unit diagonal: its solution is its right side.
    """

    def __init__(self, weight: Tensor, ground: Tensor) -> None:
        diagonal = ground.clone()
        diagonal[:, 1:] += weight.sum(-1)
        diagonal[:, :-1] += weight.sum(-2)
        diagonal += (diagonal == 0).to(diagonal.dtype)
        diagonal *= 1 + _RELATIVE_RIDGE
        self._factors: list[Tensor] = []
        self._couplings: list[Tensor] = []
        block = torch.diag_embed(diagonal[:, 0])
        for layer in range(weight.shape[1]):
            factor, _ = torch.linalg.cholesky_ex(block)
            coupling = torch.linalg.solve_triangular(
                factor, weight[:, layer].mT, upper=False
            )
            self._factors.append(factor)
            self._couplings.append(coupling)
            block = torch.diag_embed(diagonal[:, layer + 1])
            block = torch.baddbmm(block, coupling.mT, coupling, alpha=-1)
        self._factors.append(torch.linalg.cholesky_ex(block)[0])

    def solve(self, right_side: Tensor) -> Tensor:
        """Solve for node potentials; both sides have shape ``(B, L + 1, T)``."""
        forward: list[Tensor] = []
        for layer, factor in enumerate(self._factors):
            column = right_side[:, layer, :, None]
            if layer:
                column = column + self._couplings[layer - 1].mT @ forward[-1]
            forward.append(torch.linalg.solve_triangular(factor, column, upper=False))
        last = forward[-1]
        solution = [torch.linalg.solve_triangular(factor.mT, last, upper=True)]
        for layer in reversed(range(len(self._couplings))):
            column = forward[layer] + self._couplings[layer] @ solution[-1]
            solution.append(
                torch.linalg.solve_triangular(
                    self._factors[layer].mT, column, upper=True
                )
            )
        return torch.stack(solution[::-1], 1)[..., 0]
