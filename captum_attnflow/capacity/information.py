r"""Information tensors: what an attention edge can carry.

``A`` are attention probabilities, ``G`` the gradient of the selected output in them,
both ``(B, H, T, T)`` with queries in rows; :math:`E_h` is the mean over heads,
:math:`(x)_+ = max(x, 0)`. The definitions of Azarkhalili & Libbrecht (ACL 2025) are
taken from public restatements; the positive part is per head, before the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow.capture import AttentionRecord, UnsupportedAttentionError

Information = Literal["AF", "GF", "AGF", "relevance", "counter-relevance"]


def attention(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`AF = E_h(A)` (Abnar & Zuidema 2020)."""
    return weights.mean(1)


def positive_gradient(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`GF = E_h((G)_+)` where a head attends at all.

    A masked key has a gradient but no attention: without the restriction flow would
    pass through padding.
    """
    return (gradients.clamp_min(0) * (weights > 0)).mean(1)


def positive_attention_gradient(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`AGF = E_h((A \odot G)_+)`, the variant reported best."""
    return (weights * gradients).clamp_min(0).mean(1)


def relevance(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`(E_h(A \odot G))_+`: what an edge contributes to the output.

    Gradient times activation; the positive part is taken after the mean over heads, so
    that heads that contradict each other cancel.
    """
    return (weights * gradients).mean(1).clamp_min(0)


def counter_relevance(weights: Tensor, gradients: Tensor) -> Tensor:
    r""":math:`(-E_h(A \odot G))_+`: what an edge takes from the output."""
    return relevance(weights, -gradients)


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
    shapes = [tuple(weights.shape[-2:]) for weights in record.weights]
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
    combine = INFORMATION[information]
    n_rows, n_tokens = len(record.output), record.n_tokens
    placed = record.weights[0].new_zeros(
        (n_rows, len(shapes), n_tokens, n_tokens), dtype=torch.float64
    )
    layers = zip(record.weights, record.gradients, record.routes, strict=True)
    for layer, (weights, gradients, route) in enumerate(layers):
        queries, keys = record.positions(route.queries), record.positions(route.keys)
        # One layer at a time in float64: half-precision products would underflow.
        placed[:, layer, queries, keys] = combine(weights.double(), gradients.double())
    return placed


def _why(shapes: list[tuple[int, ...]]) -> str:
    if all(queries < keys for queries, keys in shapes):
        return (
            "Every layer has fewer queries than keys. Either a key-value cache holds "
            "the other tokens: pass the whole sequence and no past_key_values. Or "
            "attention is windowed and only that of its global tokens has a map "
            "(Longformer), which is not supported"
        )
    return (
        "The number of tokens changes on the way, as in encoders that pool (Funnel) or "
        "end in attention pooling (SigLIP), which are not supported: attribute to an "
        "output before the pooling"
    )
