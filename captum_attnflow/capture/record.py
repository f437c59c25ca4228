"""The captured attention of one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class UnsupportedAttentionError(ValueError):
    """The model's attention was not found, or is not of a supported kind."""


class Route(NamedTuple):
    """Which sequence attends to which in a layer, by their order in the record."""

    queries: int
    keys: int


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of tokens that takes part in attention.

    Attributes:
        length (int): Positions, padding included.
        inputs (tuple of int): Which inputs of the forward function hold it.
    """

    length: int
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class AttentionRecord:
    """Attention probabilities of one model and the output's gradient in them.

    Attributes:
        weights (tuple[Tensor, ...]): One ``A`` per layer, from the input upwards,
            each of shape ``(B, H, T, T)`` with queries in rows and keys in columns;
            probabilities in [0, 1], in the model's dtype. ``H`` may differ by layer.
        gradients (tuple[Tensor, ...]): ``dy / dA`` of the selected output ``y``, of
            the same shapes.
        output (Tensor): Shape ``(B,)``, the selected output ``y``.
        sequences (tuple[TokenSequence, ...]): One, or an encoder's and a decoder's.
            Their positions are counted through, the encoder's first. Left out, it is
            the one of all layers.
        routes (tuple[Route, ...]): Which sequence attends to which, layer by layer: a
            decoder's layer is one of self-attention and one of cross-attention.
        input_relevance (Tensor, optional): Shape ``(B, ...)`` of the input or of its
            embeddings, in units of ``y``; None unless a path was followed.
    """

    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    output: Tensor
    sequences: tuple[TokenSequence, ...] = ()
    routes: tuple[Route, ...] = ()
    input_relevance: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.routes:
            object.__setattr__(self, "routes", (Route(0, 0),) * len(self.weights))
        if not self.sequences:
            alone = TokenSequence(int(self.weights[0].shape[-1]), (0,))
            object.__setattr__(self, "sequences", (alone,))
        for name, tensors in (("weights", self.weights), ("gradients", self.gradients)):
            for layer, tensor in enumerate(tensors):
                if not bool(tensor.isfinite().all()):
                    raise ValueError(
                        f"the attention {name} of layer {layer} hold NaN or infinite "
                        "entries. Check the input and the attention mask (a row that "
                        "masks every key gives NaN), or run the model in float32"
                    )

    @property
    def n_tokens(self) -> int:
        """Token positions ``T`` of all sequences, padding included."""
        return sum(sequence.length for sequence in self.sequences)

    def positions(self, sequence: int) -> slice:
        """Return the positions of a sequence among those of all."""
        start = sum(before.length for before in self.sequences[:sequence])
        return slice(start, start + self.sequences[sequence].length)

    def read_out(self) -> Tensor:
        """Find the positions at which the output is read.

        These are the queries of the last layer whose attention the output depends on:
        [CLS] of a sentence classifier, all positions under mean pooling.

        Returns:
            Tensor: Shape ``(B, T)``, bool.
        """
        # Padded queries may keep a gradient of a head that sees nothing of them.
        attends = self.weights[-1] > 0
        queries = ((self.gradients[-1] != 0) & attends).any(-1).any(1)
        read_out = queries.new_zeros(len(queries), self.n_tokens)
        read_out[:, self.positions(self.routes[-1].queries)] = queries
        return read_out

    def select(self, rows: slice) -> AttentionRecord:
        """Return the record of some examples."""
        relevance = self.input_relevance
        return replace(
            self,
            weights=tuple(weights[rows] for weights in self.weights),
            gradients=tuple(gradients[rows] for gradients in self.gradients),
            output=self.output[rows],
            input_relevance=None if relevance is None else relevance[rows],
        )

    @staticmethod
    def concatenate(records: Sequence[AttentionRecord]) -> AttentionRecord:
        """Join the records of consecutive parts of a batch."""
        if len(records) == 1:
            return records[0]
        weights = zip(*(record.weights for record in records), strict=True)
        gradients = zip(*(record.gradients for record in records), strict=True)
        relevances = [
            record.input_relevance
            for record in records
            if record.input_relevance is not None
        ]
        return replace(
            records[0],
            weights=tuple(torch.cat(parts) for parts in weights),
            gradients=tuple(torch.cat(parts) for parts in gradients),
            output=torch.cat([record.output for record in records]),
            input_relevance=torch.cat(relevances) if relevances else None,
        )
