"""One call of attention, between the forward pass and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_attnflow.capture.attention_layer import (
    AttentionLayer,
    DenseLayer,
    FusedLayer,
)


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention.

    Attributes:
        probed (Tensor): What ran through the probe: the map, or the output of a fused
            kernel, as the rest of the model uses it.
        values (Tensor): What the map weighs.
        n_heads (int, optional): Heads, where batch and heads share a dimension.
        fused (Callable, optional): Makes the layer of the gradient in ``probed``;
            None where that is the map.
    """

    probed: Tensor
    values: Tensor
    n_heads: int | None
    fused: Callable[[Tensor], FusedLayer] | None = None

    def n_rows(self, expected: int | None) -> int:
        """Rows of the batch; ``expected`` settles heads folded in unknown number."""
        folded = len(self.probed)
        if self.probed.dim() > 3:
            return folded
        if self.n_heads is not None:
            return folded // self.n_heads
        return expected if expected and folded % expected == 0 else folded

    def layer(self, gradient: Tensor, n_rows: int) -> AttentionLayer:
        """Return the layer's attention, given the gradient in what was probed."""
        if self.fused is not None:
            return self.fused(gradient)
        weights = self.probed.detach()
        shape = (n_rows, -1, *weights.shape[-2:])  # heads come in any dimensions
        return DenseLayer(weights.reshape(shape), gradient.reshape(shape))
