"""One call of attention, between the forward pass and the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_attnflow.capture.attention_layer import (
    AttentionLayer,
    DenseLayer,
    FusedLayer,
)
from captum_attnflow.capture.rows import RowLayout, layouts_of_map
from captum_attnflow.capture.streams import Stack


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention.

    Attributes:
        probed (Tensor): What ran through the probe: the map, or the output of a fused
            kernel, as the rest of the model uses it.
        values (Tensor): What the map weighs, with the keys last but one.
        n_heads (int, optional): Heads, where batch and heads share a dimension.
        rows_outside (bool): Whether it is known that the heads come after the batch
            there.
        fused (Callable, optional): Makes the layer of the gradient in ``probed``;
            None where that is the map.
        scores (Tensor, optional): The product of queries and keys behind a map, where
            rules propagate relevance through it.
        score_axes (tuple of int): The axes of that product in the order of the map's:
            queries last but one, keys last.
        share_of_weights (float): See :meth:`AttentionLayer.messages`.
        mixed (list of GradientEdge): Where the mixed values are in the graph.
    """

    probed: Tensor
    values: Tensor
    n_heads: int | None
    rows_outside: bool = False
    fused: Callable[[Tensor], FusedLayer] | None = None
    scores: Tensor | None = None
    score_axes: tuple[int, ...] = ()
    share_of_weights: float = 0.0
    mixed: list[GradientEdge] = field(default_factory=list)

    def n_rows(self) -> int:
        """Rows of a part of the batch, where dimension 0 tells."""
        folded, heads = len(self.probed), self.n_heads
        return folded // heads if self.probed.dim() == 3 and heads else folded

    def lengths(self) -> tuple[int, int]:
        """Queries and keys."""
        if self.fused is None:
            return self.probed.shape[-2], self.probed.shape[-1]
        return self.probed.shape[-2], self.values.shape[-2]

    def layouts(self, n_rows: int) -> list[RowLayout]:
        """List where so many rows of a batch may be in the probed tensor."""
        known = self.n_heads if self.rows_outside else None
        return layouts_of_map(self.probed.shape, n_rows, known)

    def layer(
        self,
        gradient: Tensor,
        layout: RowLayout,
        score_gradient: Tensor | None = None,
    ) -> AttentionLayer:
        """Return the layer's attention, given gradients in ``probed`` and scores."""
        if self.fused is not None:
            fused = self.fused(gradient)
            return fused.transposed() if layout.axis else fused

        def heads_of_rows(tensor: Tensor) -> Tensor:
            rows = layout.rows_first(tensor)
            # Heads come in any dimensions.
            return rows.reshape(len(rows), -1, *rows.shape[-2:])

        relevance = None
        if self.scores is not None and score_gradient is not None:
            # A mask may have been added in place.
            scores = self.scores.detach().masked_fill(score_gradient == 0, 0)
            relevance = (scores * score_gradient).permute(self.score_axes)
            relevance = heads_of_rows(relevance.reshape(self.probed.shape))
        return DenseLayer(
            heads_of_rows(self.probed.detach()),
            heads_of_rows(gradient),
            relevance,
            self.share_of_weights,
        )


def sequence_lengths(stack: Stack, calls: Sequence[AttentionCall]) -> dict[int, int]:
    """Return the tokens of each sequence of a stack that has keys."""
    return {
        route.keys: calls[call].lengths()[1]
        for call, route in zip(stack.calls, stack.routes, strict=True)
    }
