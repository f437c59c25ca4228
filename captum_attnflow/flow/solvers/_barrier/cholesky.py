"""Block Cholesky: the direct solver of layered Laplacian systems.

One sweep over the layers factors a whole batch in dense products, ``O(L T^3)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
