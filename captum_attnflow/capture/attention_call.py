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
        scores (Tensor, optional): The product of queries and keys behind a map, where
            rules propagate relevance through it.
        share_of_weights (float): See :meth:`AttentionLayer.messages`.
    """

    probed: Tensor
    values: Tensor
    n_heads: int | None
    fused: Callable[[Tensor], FusedLayer] | None = None
    scores: Tensor | None = None
    share_of_weights: float = 0.0

    def n_rows(self, expected: int | None) -> int:
        """Rows of the batch; ``expected`` settles heads folded in unknown number."""
        folded = len(self.probed)
        if self.probed.dim() > 3:
            return folded
        if self.n_heads is not None:
            return folded // self.n_heads
        return expected if expected and folded % expected == 0 else folded

    def layer(
        self, gradient: Tensor, n_rows: int, score_gradient: Tensor | None = None
    ) -> AttentionLayer:
        """Return the layer's attention, given gradients in ``probed`` and scores."""
        if self.fused is not None:
            return self.fused(gradient)
        weights = self.probed.detach()
        shape = (n_rows, -1, *weights.shape[-2:])  # heads come in any dimensions
        relevance = None
        if self.scores is not None and score_gradient is not None:
            # A mask may have been added in place.
            scores = self.scores.detach().masked_fill(score_gradient == 0, 0)
            relevance = (scores * score_gradient).reshape(shape)
        return DenseLayer(
            weights.reshape(shape),
            gradient.reshape(shape),
            relevance,
            self.share_of_weights,
        )
