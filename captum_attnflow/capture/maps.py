"""The attention of one layer, as its maps or as what determines them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

# Entries of maps that are formed at once, 16 MB in float32: the maps of all heads of a
# long text would take more memory than the model.
_MAX_ENTRIES_AT_ONCE = 1 << 22

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
        at_once = max(1, _MAX_ENTRIES_AT_ONCE // max(1, n_rows * n_queries * n_keys))
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


@dataclass(frozen=True)
class JoinedLayer(AttentionLayer):
    """One layer over consecutive parts of a batch.

    Attributes:
        parts_of_batch (tuple of AttentionLayer): Equal but for their rows.
    """

    parts_of_batch: tuple[AttentionLayer, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows = sum(part.shape[0] for part in self.parts_of_batch)
        _, n_heads, n_queries, n_keys = self.parts_of_batch[0].shape
        return n_rows, n_heads, n_queries, n_keys

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        weights, gradients, values = zip(
            *(part.maps(heads) for part in self.parts_of_batch), strict=True
        )
        is_known = all(part is not None for part in values)
        return AttentionMaps(
            torch.cat(weights),
            torch.cat(gradients),
            torch.cat(values) if is_known else None,
        )

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        return torch.cat([part.messages(heads) for part in self.parts_of_batch])

    def message_sums(self) -> MessageSums:
        """See :meth:`AttentionLayer.message_sums`."""
        sums = [part.message_sums() for part in self.parts_of_batch]
        return MessageSums(*(torch.cat(ends) for ends in zip(*sums, strict=True)))

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.weights_of`."""
        return torch.cat([part.weights_of(heads) for part in self.parts_of_batch])

    def select(self, rows: slice) -> AttentionLayer:
        """See :meth:`AttentionLayer.select`."""
        start, stop, _ = rows.indices(self.shape[0])
        parts, first = [], 0
        for part in self.parts_of_batch:
            inside = slice(max(0, start - first), max(0, stop - first))
            parts.append(part.select(inside))
            first += part.shape[0]
        return JoinedLayer(tuple(part for part in parts if part.shape[0]))

    def _find_fault(self) -> str | None:
        return next(filter(None, (part.fault for part in self.parts_of_batch)), None)


@dataclass(frozen=True)
class LoneQueryLayer(AttentionLayer):
    """A layer that computes one query per row, as a full map with zeros elsewhere.

    Models that are read at one token may leave all other queries of the last layer out.

    Attributes:
        layer (AttentionLayer): Shape ``(B, H, 1, T)``.
        position (Tensor): Shape ``(B, T)``, bool, the position of the query.
    """

    layer: AttentionLayer
    position: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See :attr:`AttentionLayer.shape`."""
        n_rows, n_heads, _, n_keys = self.layer.shape
        return n_rows, n_heads, self.position.shape[1], n_keys

    def maps(self, heads: slice = ALL_HEADS) -> AttentionMaps:
        """See :meth:`AttentionLayer.maps`."""
        weights, gradients, values = self.layer.maps(heads)
        return AttentionMaps(self._placed(weights), self._placed(gradients), values)

    def messages(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.messages`."""
        return self._placed(self.layer.messages(heads))

    def message_sums(self) -> MessageSums:
        """See :meth:`AttentionLayer.message_sums`."""
        given, received = self.layer.message_sums()
        position = self.position.to(given.device)
        return MessageSums(torch.where(position, given, 0), received)

    def weights_of(self, heads: slice = ALL_HEADS) -> Tensor:
        """See :meth:`AttentionLayer.weights_of`."""
        return self._placed(self.layer.weights_of(heads))

    def select(self, rows: slice) -> LoneQueryLayer:
        """See :meth:`AttentionLayer.select`."""
        return LoneQueryLayer(self.layer.select(rows), self.position[rows])

    def _placed(self, of_query: Tensor) -> Tensor:
        position = self.position.to(of_query.device)
        return torch.where(position[:, None, :, None], of_query, 0)

    def _find_fault(self) -> str | None:
        return self.layer.fault


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
        operands (tuple of Tensor): Queries, keys and values of a fused kernel, each
            with a place of its own in the graph, where sums of messages are wanted and
            all depend on the tokens.
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
    operands: tuple[Tensor, ...] = ()

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
        operand_gradients: Sequence[Tensor] = (),
    ) -> AttentionLayer:
        """Return the layer's attention, given gradients in what it keeps."""
        if self.fused is not None:
            fused = self.fused(gradient)
            if operand_gradients:
                operands = FusedOperands(self.probed.detach(), *operand_gradients)
                fused = replace(fused, operands=operands)
            return fused.transposed() if layout.axis else fused

        def heads_of_rows(tensor: Tensor) -> Tensor:
            rows = layout.rows_first(tensor)
            # Heads come in any dimensions.
            return rows.reshape(len(rows), -1, *rows.shape[-2:])

        relevance = None
        if self.scores is not None and score_gradient is not None:
            # A mask that was added in place leaves -inf. Scores there have no gradient,
            # and 0 times -inf is NaN.
            scores = self.scores.detach().masked_fill(score_gradient == 0, 0)
            relevance = (scores * score_gradient).permute(self.score_axes)
            relevance = heads_of_rows(relevance.reshape(self.probed.shape))
        return DenseLayer(
            heads_of_rows(self.probed.detach()),
            heads_of_rows(gradient),
            relevance,
            self.share_of_weights,
            self._values(heads_of_rows),
        )

    def _values(self, heads_of_rows: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Lay out the values as the map; heads may share them."""
        leading, n_features = self.probed.shape[:-2], self.values.shape[-1]
        if self.values.dim() != self.probed.dim() or any(
            size not in (1, wanted)
            for size, wanted in zip(self.values.shape, leading, strict=False)
        ):
            return None
        values = self.values.detach().expand(*leading, -1, n_features)
        return heads_of_rows(values)


@dataclass(frozen=True)
class RowLayout:
    """Where the rows are.

    Attributes:
        axis (int): The dimension of the rows, after unfolding.
        unfolded (tuple of int, optional): Sizes into which dimension 0 unfolds, where
            it holds rows and heads.
    """

    axis: int
    unfolded: tuple[int, int] | None = None

    def rows_first(self, tensor: Tensor) -> Tensor:
        """Unfold a tensor and move its rows into dimension 0."""
        if self.unfolded is not None:
            tensor = tensor.unflatten(0, self.unfolded)
        return tensor.movedim(self.axis, 0)


def layouts_of_map(
    shape: torch.Size, n_rows: int, n_heads: int | None
) -> list[RowLayout]:
    """List where the rows may be in a map ``(..., Tq, Tk)`` or what a kernel put out.

    Args:
        shape (Size): Its shape.
        n_rows (int): Rows of the batch.
        n_heads (int, optional): Heads, where they are known to come after the rows in
            one dimension.
    """
    if len(shape) > 3:
        fitting = [axis for axis in range(len(shape) - 2) if shape[axis] == n_rows]
        # With one row any axis of size 1 holds the same numbers.
        return [RowLayout(axis) for axis in (fitting[:1] if n_rows == 1 else fitting)]
    folded = shape[0]
    if folded % n_rows or n_heads not in (None, folded // n_rows):
        return []
    in_each = folded // n_rows
    rows_outside = RowLayout(0, (n_rows, in_each))
    if n_heads is not None or n_rows == 1 or in_each == 1:
        return [rows_outside]
    return [rows_outside, RowLayout(1, (in_each, n_rows))]


def layouts_of_tokens(
    shape: Sequence[int], n_rows: int, n_tokens: int | None = None
) -> list[RowLayout]:
    """List where the rows may be in a tensor ``(rows, T, ...)`` or ``(T, rows, ...)``.

    Args:
        shape (sequence of int): Its shape.
        n_rows (int): Rows of the batch.
        n_tokens (int, optional): ``T``, if it is known.
    """
    if len(shape) < 2:
        return []
    fitting = [
        axis
        for axis in (0, 1)
        if shape[axis] == n_rows and n_tokens in (None, shape[1 - axis])
    ]
    if tuple(shape[:2]) == (1, 1):
        fitting = fitting[:1]  # one token of one row
    return [RowLayout(axis) for axis in fitting]
