r"""Information tensors: what an attention edge can carry.

``A`` are attention probabilities, ``G`` the gradient of the selected output in them,
both ``(B, H, T, T)`` with queries in rows; :math:`E_h` is the mean over heads,
:math:`(x)_+ = max(x, 0)`. The definitions of Azarkhalili & Libbrecht (ACL 2025) are
taken from public restatements; the positive part is per head, before the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import check_choice, described
from captum_attnflow.capture import (
    AttentionLayer,
    AttentionRecord,
    UnsupportedAttentionError,
)

Information = Literal["AF", "GF", "AGF", "relevance", "counter-relevance"]


def attention(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`A`, for :math:`AF = E_h(A)` (Abnar & Zuidema 2020)."""
    return weights


def positive_gradient(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`(G)_+` where the head attends at all, for :math:`GF = E_h((G)_+)`.

    A masked key has a gradient but no attention: without the restriction flow would
    pass through padding.
    """
    return gradients.clamp_min(0) * (weights > 0)


def positive_attention_gradient(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`(A \odot G)_+`, for :math:`AGF`, the variant reported best."""
    return (weights * gradients).clamp_min(0)


def relevance(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`A \odot G`: what an edge contributes to the output through a head.

    Gradient times activation. Without a positive part of its own, so that heads that
    contradict each other cancel.
    """
    return weights * gradients


def counter_relevance(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`-A \odot G`: what an edge takes from the output through a head."""
    return -weights * gradients


# Of each head; a capacity is the positive part of their mean.
INFORMATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AF": attention,
    "GF": positive_gradient,
    "AGF": positive_attention_gradient,
    "relevance": relevance,
    "counter-relevance": counter_relevance,
}


def information_tensor(record: AttentionRecord, information: Information) -> Tensor:
    """Compute one information tensor for all layers.

    Args:
        record (AttentionRecord): Captured attention and gradients.
        information (str): A key of :data:`INFORMATION`.

    Returns:
        Tensor: Shape ``(B, L, T, T)``, float64 in ``[0, inf)``, on the record's device.
        Rows of positions that make no queries in a layer are 0.

    Raises:
        UnsupportedAttentionError: If the maps are not of all tokens by all tokens.
    """
    check_choice("information", information, INFORMATION)
    of_head = INFORMATION[information]

    def of_heads(layer: AttentionLayer, heads: slice) -> Tensor:
        weights, gradients = layer.maps(heads)
        # In float64: half-precision products would underflow.
        return of_head(weights.double(), gradients.double())

    summed = _sum_over_heads(record, of_heads)
    n_heads = summed.new_tensor([layer.shape[1] for layer in record.layers])
    return summed.div_(n_heads[:, None, None]).clamp_min_(0)


def message_tensor(record: AttentionRecord) -> Tensor:
    """Compute the relevance that keys get from queries, for all layers.

    Args:
        record (AttentionRecord): Captured under propagation rules.

    Returns:
        Tensor: Shape ``(B, L, T, T)``, float64, in units of the output, on the record's
        device; see :meth:`captum_attnflow.capture.AttentionLayer.messages`.

    Raises:
        UnsupportedAttentionError: If the maps are not of all tokens by all tokens.
    """
    return _sum_over_heads(record, lambda layer, heads: layer.messages(heads).double())


def _sum_over_heads(
    record: AttentionRecord, of_heads: Callable[[AttentionLayer, slice], Tensor]
) -> Tensor:
    """Sum maps over heads and place them among all tokens."""
    refuse_other_shapes(record)
    n_rows, n_tokens = len(record.output), record.n_tokens
    placed = torch.zeros(
        (n_rows, len(record.layers), n_tokens, n_tokens),
        dtype=torch.float64,
        device=record.output.device,
    )
    for number, (layer, route) in enumerate(
        zip(record.layers, record.routes, strict=True)
    ):
        queries, keys = record.positions(route.queries), record.positions(route.keys)
        total = placed[:, number, queries, keys]
        for heads in layer.head_groups():
            total += of_heads(layer, heads).sum(1)
    return placed


def refuse_other_shapes(record: AttentionRecord) -> None:
    """Refuse maps that are not of all tokens by all tokens.

    Raises:
        UnsupportedAttentionError: With the shapes, and what may be the reason.
        ValueError: If it is no record.
    """
    if not isinstance(record, AttentionRecord):
        raise ValueError(
            f"record={described(record)}; give an AttentionRecord, as "
            "captum_attnflow.capture makes it"
        )
    shapes = [layer.shape[-2:] for layer in record.layers]
    expected = [
        (record.sequences[queries].length, record.sequences[keys].length)
        for queries, keys in record.routes
    ]
    if shapes != expected:
        raise UnsupportedAttentionError(
            f"the attention maps have shapes (queries, keys) {shapes}; a flow needs "
            "every layer to map the same tokens to themselves, or those of a decoder "
            f"to those of one encoder. {_why(shapes)}"
        )


def _why(shapes: Sequence[tuple[int, ...]]) -> str:
    if all(queries < keys for queries, keys in shapes):
        return (
            "Every layer has fewer queries than keys. Either a key-value cache holds "
            "the other tokens: pass the whole sequence and no past_key_values. Or "
            "attention is windowed and only that of its global tokens has a map "
            "(Longformer), which is not supported"
        )
    return (
        "The number of tokens changes on the way, as in encoders that pool (Funnel) or "
        "end in attention pooling (SigLIP), or whose last layer has some of the "
        "queries; one query alone is supported where it is that of a token. Attribute "
        "to an output before the pooling, or let the last layer have all queries. If a "
        "tower with attention of its own makes some of the tokens (LLaVA), pass what "
        "it puts out as an input of its own: (ids, image features)"
    )
