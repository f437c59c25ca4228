"""The captured attention of one forward and one backward pass, layer by layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Entries of maps that are formed at once, or one head's: those of all heads of a long
# text would take more memory than the model. Fewer on a CPU, whose cache holds them:
# the information tensor of a text of 512 tokens takes a fourth of the time (6 layers,
# 12 heads). A GPU would start many small kernels in place of a few.
_MAX_ENTRIES_AT_ONCE = 1 << 22
_CACHED_ENTRIES = 1 << 18

ALL_HEADS = slice(None)


class AttentionMaps(NamedTuple):
    """What heads of a layer compute, and the output's gradient in it.

    Attributes:
        weights (Tensor): ``A``, shape ``(B, heads, Tq, Tk)``.
        gradients (Tensor): ``dy / dA``, of the same shape.
        values (Tensor, optional): What the weights mix, shape ``(B, heads, Tk, D)``;
            None where the model lays them out in a way that is not known.
    """

    weights: Tensor
    gradients: Tensor
    values: Tensor | None = None


class MessageSums(NamedTuple):
    """Messages of a layer, summed over heads and over one of their ends.

    Attributes:
        given (Tensor): Shape ``(B, Tq)``, float64, what each query hands to keys.
        received (Tensor): Shape ``(B, Tk)``, float64, what each key gets from queries.
    """

    given: Tensor
    received: Tensor


class AttentionLayer(ABC):
    """Attention weights of one layer and the output's gradient in them."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Rows ``B``, heads ``H``, queries ``Tq`` and keys ``Tk``."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the maps are."""

    @abstractmethod
    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """Return weights, gradients and values of some heads."""

    @abstractmethod
    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        r"""Return the relevance that each key hands to each query, under rules.

        Attention weights ``A`` have a share :math:`w` of the relevance of weights times
        values, half under AttnLRP and none under CP-LRP; the rest is that of the
        values. The share goes on through the softmax to the scores :math:`S = q k^T`
        and from there in halves to the query, where it stays, and to the key:

        .. math:: (1 - w)\, A \odot G + \tfrac{1}{2}\, S \odot \nabla S.

        Returns:
            Tensor: Shape ``(B, heads, Tq, Tk)``, in units of the output.
        """

    def message_sums(self) -> MessageSums:
        """Sum :meth:`messages` over heads, and over keys or queries."""
        given, received = [], []
        for heads in self.head_groups():
            messages = self.messages(heads).double()
            given.append(messages.sum((1, 3)))
            received.append(messages.sum((1, 2)))
        return MessageSums(torch.stack(given).sum(0), torch.stack(received).sum(0))

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """Return the weights of some heads, shape ``(B, heads, Tq, Tk)``."""
        return self.maps(heads).weights

    @abstractmethod
    def select(self, rows: slice) -> AttentionLayer:
        """Return the attention of some rows."""

    @cached_property
    def fault(self) -> str | None:
        """What holds NaN or infinite entries, if anything does."""
        return self._find_fault()

    @abstractmethod
    def _find_fault(self) -> str | None:
        """Look at what the weights and the gradients come from."""

    def parts(self) -> Iterator[AttentionMaps]:
        """Go through the maps, a few heads at a time where they are large."""
        for heads in self.head_groups():
            yield self.maps(heads)

    def head_groups(self) -> Iterator[slice]:
        """Go through the heads, a few at a time where maps are large."""
        n_rows, n_heads, n_queries, n_keys = self.shape
        most = _CACHED_ENTRIES if self.device.type == "cpu" else _MAX_ENTRIES_AT_ONCE
        at_once = max(1, most // max(1, n_rows * n_queries * n_keys))
        for first in range(0, n_heads, at_once):
            yield slice(first, first + at_once)


@dataclass(frozen=True)
class DenseLayer(AttentionLayer):
    """Maps that the model itself has computed.

    Attributes:
        weights (Tensor): ``A``, shape ``(B, H, Tq, Tk)``.
        gradients (Tensor): ``dy / dA``, of the same shape.
        score_relevance (Tensor, optional): Scores times the gradient in them, of the
            same shape.
        share_of_weights (float): See :meth:`AttentionLayer.messages`.
        values (Tensor, optional): What they mix, shape ``(B, H, Tk, D)``.
    """

    weights: Tensor
    gradients: Tensor
    score_relevance: Tensor | None = None
    share_of_weights: float = 0.0
    values: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows, n_heads, n_queries, n_keys = self.weights.shape
        return n_rows, n_heads, n_queries, n_keys

    @property
    def device(self) -> torch.device:
        """See :attr:`AttentionLayer.device`."""
        return self.weights.device

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        values = None if self.values is None else self.values[:, heads]
        return AttentionMaps(self.weights[:, heads], self.gradients[:, heads], values)

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        weights, gradients = self.weights[:, heads], self.gradients[:, heads]
        of_values = (1 - self.share_of_weights) * weights * gradients
        if self.score_relevance is None:
            return of_values
        return of_values + self.score_relevance[:, heads] / 2

    def select(self, rows: slice) -> DenseLayer:
        """See :meth:`AttentionLayer.select`."""
        relevance, values = self.score_relevance, self.values
        return replace(
            self,
            weights=self.weights[rows],
            gradients=self.gradients[rows],
            score_relevance=None if relevance is None else relevance[rows],
            values=None if values is None else values[rows],
        )

    def _find_fault(self) -> str | None:
        return _first_fault(weights=[self.weights], gradients=[self.gradients])


class FusedOperands(NamedTuple):
    """What a fused kernel put out, and gradients in what it took.

    Attributes:
        output (Tensor): ``O``, shape ``(B, H, Tq, Dv)``.
        query_gradient (Tensor): Of the shape of the queries, like the others of theirs.
        key_gradient (Tensor): In the keys.
        value_gradient (Tensor): In the values.
    """

    output: Tensor
    query_gradient: Tensor
    key_gradient: Tensor
    value_gradient: Tensor


@dataclass(frozen=True)
class FusedLayer(AttentionLayer):
    r"""What went into and came back to a fused kernel, which forms no map.

    With the gradient :math:`dO` of its output these determine everything:
    :math:`A = softmax(q k^T)` and :math:`dy / dA = dO\, v^T`. Memory grows with the
    tokens, and with their square only for the heads that are asked for.

    Attributes:
        query (Tensor): Shape ``(B, H, Tq, D)``.
        key (Tensor): Shape ``(B, Hk, Tk, D)``; ``Hk`` divides ``H`` (grouped heads).
        value (Tensor): Shape ``(B, Hk, Tk, Dv)``.
        mask (Tensor, optional): See :func:`attention_weights`.
        is_causal (bool): See :func:`attention_weights`.
        scale (float, optional): See :func:`attention_weights`.
        share_of_weights (float): See :meth:`AttentionLayer.messages`.
        output_gradient (Tensor): ``dO``, shape ``(B, H, Tq, Dv)``.
        operands (FusedOperands, optional): Output and gradients for
            :meth:`message_sums` without a map; None if the caller needs maps anyway, or
            if queries, keys or values do not depend on the tokens.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float | None
    share_of_weights: float
    output_gradient: Tensor
    operands: FusedOperands | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows, n_heads, n_queries, _ = self.query.shape
        return n_rows, n_heads, n_queries, self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """See :attr:`AttentionLayer.device`."""
        return self.query.device

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        weights, gradients, _ = self._form(heads)
        return AttentionMaps(weights, gradients, self._of_heads(self.value, heads))

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        weights, gradients, scores = self._form(heads)
        share, relevance = self.share_of_weights, weights * gradients
        if share == 0:
            return relevance
        # The softmax' own gradient: A * (dA - sum of A * dA), with dA = share * G.
        score_gradient = relevance - weights * relevance.sum(-1, keepdim=True)
        return (1 - share) * relevance + share * scores * score_gradient / 2

    def message_sums(self) -> MessageSums:
        r"""Sum messages, without a map where the operands' gradients are known.

        With the operands' gradients by the rules, of which queries and keys have half
        the weights' share each and values the rest, sums over one end of a map are
        scalar products at the other:

        .. math::
            \sum_k M_{qk} = (1 - w)\, O_q \cdot dO_q + q_q \cdot \nabla q_q, \qquad
            \sum_q M_{qk} = v_k \cdot \nabla v_k + k_k \cdot \nabla k_k.
        """
        if self.operands is None:
            return super().message_sums()
        of, share = self.operands, self.share_of_weights
        given = (1 - share) * _products(of.output, self.output_gradient)
        received = _products(self.value, of.value_gradient)
        if share:
            given = given + _products(self.query, of.query_gradient)
            received = received + _products(self.key, of.key_gradient)
        return MessageSums(given, received)

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.weights_of`."""
        return self._weights_and_scores(heads)[0]

    def _form(self, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Form weights, gradients and scores, without mask, of some heads."""
        weights, scores = self._weights_and_scores(heads)
        value = self._of_heads(self.value, heads).to(scores)
        gradients = self.output_gradient[:, heads].to(scores) @ value.mT
        return weights, gradients, scores

    def _weights_and_scores(self, heads: slice) -> tuple[Tensor, Tensor]:
        mask = self.mask
        if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
            mask = mask[..., heads, :, :]
        # Fused kernels compute in float32, too: scores of float16 may overflow, and
        # gradients underflow.
        precision = torch.promote_types(self.query.dtype, torch.float32)
        query = self.query[:, heads].to(precision)
        key = self._of_heads(self.key, heads).to(precision)
        scores = attention_scores(query, key, self.scale)
        return weights_of_scores(scores, mask, self.is_causal), scores

    def _of_heads(self, grouped: Tensor, heads: slice) -> Tensor:
        """Take the keys or the values of some heads, which may share them."""
        n_heads = self.query.shape[1]
        groups = n_heads // grouped.shape[1]
        return grouped[:, torch.arange(n_heads, device=grouped.device)[heads] // groups]

    def transposed(self) -> FusedLayer:
        """Return the layer of a kernel that was given heads before rows."""
        mask = self.mask
        if mask is not None and mask.dim() > 2:  # (..., Tq, Tk) for every head
            mask = mask.expand(1, *mask.shape) if mask.dim() == 3 else mask
            mask = mask.transpose(0, 1)
        return replace(
            self,
            query=self.query.transpose(0, 1),
            key=self.key.transpose(0, 1),
            value=self.value.transpose(0, 1),
            mask=mask,
            output_gradient=self.output_gradient.transpose(0, 1),
            operands=self.operands
            and FusedOperands(*(part.transpose(0, 1) for part in self.operands)),
        )

    def select(self, rows: slice) -> FusedLayer:
        """See :meth:`AttentionLayer.select`."""
        mask = self.mask
        if mask is not None and mask.dim() == 4 and len(mask) > 1:
            mask = mask[rows]
        return replace(
            self,
            query=self.query[rows],
            key=self.key[rows],
            value=self.value[rows],
            mask=mask,
            output_gradient=self.output_gradient[rows],
            operands=self.operands
            and FusedOperands(*(part[rows] for part in self.operands)),
        )

    def _find_fault(self) -> str | None:
        return _first_fault(
            weights=[self.query, self.key], gradients=[self.value, self.output_gradient]
        )


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention weights, as torch's documentation defines them.

    Args:
        query (Tensor): Shape ``(..., Tq, D)``.
        key (Tensor): Shape ``(..., Tk, D)``.
        mask (Tensor, optional): Broadcastable to ``(..., Tq, Tk)``: bool, True where a
            key is seen, or a float to be added to the scores.
        is_causal (bool): Whether a query sees no later keys; then there is no mask.
        scale (float, optional): Factor of the scores; :math:`1 / \sqrt{D}` by default.

    Returns:
        Tensor: Shape ``(..., Tq, Tk)``. Rows that see no key are 0, as the fused
        kernels have it.
    """
    scores = attention_scores(query, key, scale)
    return weights_of_scores(scores, mask, is_causal)


def attention_scores(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Scaled products of queries and keys; see :func:`attention_weights`."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return (query * scale) @ key.mT


def weights_of_scores(
    scores: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Softmax over the keys that are seen; see :func:`attention_weights`."""
    if is_causal:
        mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    precision = scores.dtype if scores.dtype == torch.float64 else torch.float32
    weights = scores.softmax(-1, dtype=precision).to(scores.dtype)
    if mask is None:
        return weights
    # A query that sees no key has attention to none, where a softmax would be NaN.
    return weights.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)


def _products(values: Tensor, gradients: Tensor) -> Tensor:
    """Scalar products ``(B, H, T, D)`` by token, summed over heads: ``(B, T)``."""
    precision = torch.promote_types(values.dtype, torch.float32)
    products = values.to(precision) * gradients.to(precision)
    return products.sum((1, 3), dtype=torch.float64)


def _first_fault(**made_of: list[Tensor]) -> str | None:
    for name, tensors in made_of.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            return name
    return None


class UnsupportedAttentionError(ValueError):
    """The model's attention was not found, or is not of a supported kind."""


@dataclass(frozen=True, eq=False)
class InputRelevance:
    """Relevance of what stands for an input: floats, or embeddings of token ids.

    Attributes:
        index (int): Which input.
        relevance (Tensor): Shape ``(B, ...)``, input or displacement times gradient, in
            units of the output.
        tokens (Tensor, optional): The token that each element makes, int64, of the
            relevance's shape, -1 for none; None where dimension 1 is that of the
            tokens.
    """

    index: int
    relevance: Tensor
    tokens: Tensor | None = None

    def select(self, rows: slice) -> InputRelevance:
        """Return the relevance of some examples."""
        return replace(
            self, relevance=self.relevance[rows], tokens=_rows(self.tokens, rows)
        )

    @staticmethod
    def concatenate(parts: Sequence[InputRelevance]) -> InputRelevance:
        """Join what stands for an input in consecutive parts of a batch."""
        return InputRelevance(
            parts[0].index,
            torch.cat([part.relevance for part in parts]),
            _joined([part.tokens for part in parts]),
        )


@dataclass(frozen=True)
class Propagation:
    """What propagation rules did in a forward pass.

    Attributes:
        counts (dict): How often a rule met an operation, by ``"rule: operation"``.
        unknown (tuple of str): Operations on tokens that no rule knows and that are not
            linear; they kept their gradients.
    """

    counts: Mapping[str, int]
    unknown: tuple[str, ...] = ()


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
        layers (tuple[AttentionLayer, ...]): From the input upwards; each gives the
            attention probabilities ``A`` in [0, 1] and ``dy / dA`` of the selected
            output ``y``, queries in rows and keys in columns, in the model's dtype; of
            fused kernels in float32 at least. The number of heads may differ by layer.
        output (Tensor): Shape ``(B,)``, the selected output ``y``.
        sequences (tuple[TokenSequence, ...]): One, or an encoder's and a decoder's.
            Their positions are counted through, the encoder's first. Left out, it is
            the one of all layers.
        routes (tuple[Route, ...]): Which sequence attends to which, layer by layer: a
            decoder's layer is one of self-attention and one of cross-attention.
        input_relevance (tuple[InputRelevance, ...]): Of what stands for the inputs,
            where propagation rules or a path ask for it.
        read_out_relevance (Tensor, optional): Shape ``(B, Tq)``, in units of ``y``, by
            propagation rules, of the residual stream behind the last attention, at its
            queries; None where the gradient is plain or no stream was found.
        propagation (Propagation, optional): Which rules met what; None where the
            gradient is plain.
        elements (dict): For an input, by its number, the token that each of its
            elements makes, of its shape, int64, -1 for none. Inputs whose elements make
            several have no entry, nor has the only input of a sequence if it is the
            ids of all its tokens.
    """

    layers: tuple[AttentionLayer, ...]
    output: Tensor
    sequences: tuple[TokenSequence, ...] = ()
    routes: tuple[Route, ...] = ()
    input_relevance: tuple[InputRelevance, ...] = ()
    read_out_relevance: Tensor | None = None
    propagation: Propagation | None = None
    elements: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.routes:
            object.__setattr__(self, "routes", (Route(0, 0),) * len(self.layers))
        if not self.sequences:
            alone = TokenSequence(self.layers[0].shape[-1], (0,))
            object.__setattr__(self, "sequences", (alone,))
        for number, layer in enumerate(self.layers):
            if layer.fault is not None:
                raise ValueError(
                    f"the attention {layer.fault} of layer {number} hold NaN or "
                    "infinite entries. Check the input, the model's weights and the "
                    "attention mask (a row that masks every key gives NaN), or run the "
                    "model in float32"
                )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The maps ``A`` of every layer, each of shape ``(B, H, Tq, Tk)``."""
        return tuple(layer.maps().weights for layer in self.layers)

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """The gradients ``dy / dA`` of every layer, of the shapes of the maps."""
        return tuple(layer.maps().gradients for layer in self.layers)

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
        read = [
            ((gradients != 0) & (weights > 0)).any(-1).any(1)
            for weights, gradients, _ in self.layers[-1].parts()
        ]
        queries = torch.stack(read).any(0)
        read_out = queries.new_zeros(len(queries), self.n_tokens)
        read_out[:, self.positions(self.routes[-1].queries)] = queries
        return read_out

    def attention_received(self) -> Tensor:
        """Mean attention that each token has from the queries that see it.

        A token with many times the others' is an attention sink: heads with nothing to
        look at rest there, on the first token of most language models.

        Returns:
            Tensor: Shape ``(B, T)``, float64, the mean over layers, heads, and queries
            whose weight is above 0; 0 where there is none.
        """
        shape = (len(self.output), self.n_tokens)
        total = torch.zeros(shape, dtype=torch.float64, device=self.output.device)
        n_seen = torch.zeros_like(total)
        for layer, route in zip(self.layers, self.routes, strict=True):
            keys = self.positions(route.keys)
            for heads in layer.head_groups():
                weights = layer.weights_of(heads)
                total[:, keys] += weights.sum((1, 2), dtype=torch.float64)
                n_seen[:, keys] += (weights > 0).sum((1, 2))
        return total / n_seen.clamp(min=1)

    def select(self, rows: slice) -> AttentionRecord:
        """Return the record of some examples."""
        return replace(
            self,
            layers=tuple(layer.select(rows) for layer in self.layers),
            output=self.output[rows],
            input_relevance=tuple(of.select(rows) for of in self.input_relevance),
            read_out_relevance=_rows(self.read_out_relevance, rows),
            elements={index: of[rows] for index, of in self.elements.items()},
        )

    @staticmethod
    def concatenate(records: Sequence[AttentionRecord]) -> AttentionRecord:
        """Join the records of consecutive parts of a batch."""
        if len(records) == 1:
            return records[0]
        # That file imports this one.
        from captum_attnflow.capture.composed import JoinedLayer

        layers = zip(*(record.layers for record in records), strict=True)
        return replace(
            records[0],
            layers=tuple(JoinedLayer(parts) for parts in layers),
            output=torch.cat([record.output for record in records]),
            input_relevance=tuple(
                InputRelevance.concatenate(parts)
                for parts in zip(
                    *(record.input_relevance for record in records), strict=True
                )
            ),
            read_out_relevance=_joined(
                [record.read_out_relevance for record in records]
            ),
            elements={
                index: torch.cat([record.elements[index] for record in records])
                for index in records[0].elements
                if all(index in record.elements for record in records)
            },
        )


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join the rows of all parts; None if a part has none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None
