r"""From captured attention to the network: information, residual edges, terminals.

The information of an attention edge is what it can carry.

``A`` are attention probabilities, ``G`` the gradient of the selected output in them,
both ``(B, H, T, T)`` with queries in rows; :math:`E_h` is the mean over heads,
:math:`(x)_+ = max(x, 0)`. The definitions of Azarkhalili & Libbrecht (ACL 2025) are
taken from public restatements; the positive part is per head, before the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._checks import (
    OneTextError,
    check_choice,
    check_tensor,
    counted,
    described,
)
from captum_attnflow._memory import free_memory
from captum_attnflow.capture.record import (
    AttentionLayer,
    AttentionMaps,
    AttentionRecord,
    UnsupportedAttentionError,
)
from captum_attnflow.flow.network import LayeredNetwork

Information = str
"""A key of :data:`INFORMATION`."""

Residual = float | Literal["free"] | None
"""What a residual edge can carry: a share, any amount, or nothing: there is none."""

# A capacity in float64, its flow, the copies of both that an explanation selects, and
# 26 bytes that the barrier solver took at (12, 768), measured.
_BYTES_PER_EDGE = 50
_SMALL = 1 << 28  # bytes, below which nothing is looked for


def attention(maps: AttentionMaps) -> Tensor:
    r""":math:`A`, for :math:`AF = E_h(A)` (Abnar & Zuidema 2020)."""
    return maps.weights


def positive_gradient(maps: AttentionMaps) -> Tensor:
    r""":math:`(G)_+` where the head attends at all, for :math:`GF = E_h((G)_+)`.

    A masked key has a gradient but no attention: without the restriction flow would
    pass through padding.
    """
    return maps.gradients.clamp_min(0) * (maps.weights > 0)


def positive_attention_gradient(maps: AttentionMaps) -> Tensor:
    r""":math:`(A \odot G)_+`, for :math:`AGF`, the variant reported best."""
    return (maps.weights * maps.gradients).clamp_min(0)


def relevance(maps: AttentionMaps) -> Tensor:
    r""":math:`A \odot G`: what an edge contributes to the output through a head.

    Gradient times activation. Without a positive part of its own, so that heads that
    contradict each other cancel.
    """
    return maps.weights * maps.gradients


def counter_relevance(maps: AttentionMaps) -> Tensor:
    r""":math:`-A \odot G`: what an edge takes from the output through a head."""
    return -maps.weights * maps.gradients


# Of some heads; a capacity is the positive part of the mean over all. A new tensor is a
# function of maps and a line here.
INFORMATION: dict[str, Callable[[AttentionMaps], Tensor]] = {
    "AF": attention,
    "GF": positive_gradient,
    "AGF": positive_attention_gradient,
    "relevance": relevance,
    "counter-relevance": counter_relevance,
}
"""For each name, the function from attention maps to the information tensor."""


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
        maps = layer.maps(heads)
        # In float64: half-precision products would underflow.
        return of_head(
            maps._replace(
                weights=maps.weights.double(), gradients=maps.gradients.double()
            )
        )

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


def message_sums(record: AttentionRecord) -> Tensor:
    """Compute what tokens get from others less what they hand on, over all layers.

    Args:
        record (AttentionRecord): Captured under propagation rules.

    Returns:
        Tensor: Shape ``(B, T)``, float64, in units of the output: column sums of
        :func:`message_tensor` less its row sums.

    Raises:
        UnsupportedAttentionError: If the maps are not of all tokens by all tokens.
    """
    refuse_other_shapes(record)
    net = torch.zeros(
        (len(record.output), record.n_tokens),
        dtype=torch.float64,
        device=record.output.device,
    )
    for layer, route in zip(record.layers, record.routes, strict=True):
        given, received = layer.message_sums()
        net[:, record.positions(route.queries)] -= given.to(net.device)
        net[:, record.positions(route.keys)] += received.to(net.device)
    return net


def _sum_over_heads(
    record: AttentionRecord, of_heads: Callable[[AttentionLayer, slice], Tensor]
) -> Tensor:
    """Sum maps over heads and place them among all tokens."""
    refuse_other_shapes(record)
    n_rows, n_tokens = len(record.output), record.n_tokens
    _refuse_what_does_not_fit(record)
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


def _refuse_what_does_not_fit(record: AttentionRecord) -> None:
    """Refuse a network that memory has no room for, before any of it is taken.

    Raises:
        ValueError: Saying how many tokens would fit.
    """
    n_rows, n_layers = len(record.output), len(record.layers)
    needed = _BYTES_PER_EDGE * n_rows * n_layers * record.n_tokens**2
    if needed < _SMALL:
        return
    free = free_memory(record.output.device)
    if free is None or needed <= free:
        return
    fitting = math.isqrt(free // (_BYTES_PER_EDGE * n_rows * n_layers))
    raise OneTextError(
        f"the network of {counted(n_rows, 'text')} of "
        f"{counted(record.n_tokens, 'token')} and {counted(n_layers, 'layer')} needs "
        f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: so many texts "
        f"of at most {counted(fitting, 'token')} would fit. Give fewer texts at once, "
        "shorter ones, or take the scores alone (attribute()) of RelevanceFlow or "
        "AttnLRP, whose memory grows with the tokens and not with their square",
        "memory has no room for the network of the text",
    )


def refuse_other_shapes(record: AttentionRecord) -> None:
    """Refuse maps that are not of all tokens by all tokens.

    Raises:
        UnsupportedAttentionError: With the shapes, and what may be the reason.
        ValueError: If it is not a record.
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
        "it puts out as an input of its own: (ids, image features); or take "
        "ImageTextGenerator for what such a model generates"
    )


def check_residual(residual: Residual) -> None:
    """Refuse anything but ``None``, ``"free"`` or a fraction.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    is_fraction = isinstance(residual, (int, float)) and 0 < residual < 1
    is_free = isinstance(residual, str) and residual == "free"
    if residual is not None and not is_free and not is_fraction:
        raise ValueError(
            f"residual={described(residual)} is unknown; give None (no residual "
            'edges; "none" in the shell), a '
            'fraction between 0 and 1 such as 0.5 (rows renormalised), or "free" '
            "(residual edges that never bind)"
        )


def add_residual(capacity: Tensor, residual: Residual) -> Tensor:
    r"""Add residual edges from each token to itself one layer above.

    Args:
        capacity (Tensor): Shape ``(B, L, T, T)``, in ``[0, inf)``.
        residual (float, str, optional): ``None`` adds nothing (Azarkhalili & Libbrecht
            2025). A fraction ``r`` normalises the rows to sum 1 and mixes
            :math:`(1 - r) C + r I`, then renormalises; on attention weights and 0.5
            this is Abnar & Zuidema's :math:`0.5 A + 0.5 I` (2020). ``"free"`` makes
            residual edges infinite.

    Returns:
        Tensor: Same shape, in ``[0, inf]``.

    Raises:
        ValueError: If ``residual`` is something else, or a capacity out of its range.

    Examples::

        >>> attention = torch.tensor([[[[0.8, 0.2], [0.5, 0.5]]]])
        >>> add_residual(attention, 0.5)
        tensor([[[[0.9000, 0.1000],
                  [0.2500, 0.7500]]]])
    """
    check_residual(residual)
    check_tensor("capacity", capacity, "floats", ("B", "L", "T", "T"))
    if capacity.numel() and not bool(
        (capacity.amin() >= 0) & (capacity.amax() < torch.inf)
    ):
        raise ValueError(
            "capacity holds entries that are negative, NaN or infinite; give those in "
            "[0, inf), to which residual edges are added"
        )
    if residual is None:
        return capacity
    identity = torch.eye(
        capacity.shape[-1], dtype=capacity.dtype, device=capacity.device
    )
    if isinstance(residual, str):
        return torch.where(identity > 0, torch.inf, capacity)
    mixed = (1 - residual) * _normalise_rows(capacity) + residual * identity
    return _normalise_rows(mixed)


def _normalise_rows(capacity: Tensor) -> Tensor:
    total = capacity.sum(-1, keepdim=True)
    return capacity / (total + (total == 0))


def build_network(
    record: AttentionRecord, information: Information, residual: Residual
) -> LayeredNetwork:
    """Join every token to the source and every read-out position to the sink.

    An encoder and a decoder make one network over the tokens of both, the encoder's
    first. A layer of the decoder is two of the network, self-attention and
    cross-attention. Where a layer has no queries of a token, the token is carried along
    by an edge that never binds; so is a decoder's token past the cross-attention, also
    without residual edges, since nothing else leads on from its self-attention.

    With ``residual="free"`` a read-out position is not a source: its own residual path
    would carry any amount of flow to the sink.

    Args:
        record (AttentionRecord): Captured attention and gradients.
        information (str): See :func:`information_tensor`.
        residual (float, str, optional): See :func:`add_residual`.

    Returns:
        LayeredNetwork: One network per example, float64.
    """
    capacity = add_residual(information_tensor(record, information), residual)
    carried = _carried(record, past_cross_attention=residual is None)
    capacity.diagonal(dim1=-2, dim2=-1).masked_fill_(
        carried.to(capacity.device), torch.inf
    )
    read_out = record.read_out()
    source = read_out.new_ones(read_out.shape)
    return LayeredNetwork(
        capacity=capacity,
        source=~read_out if residual == "free" else source,
        sink=read_out,
    )


def _carried(record: AttentionRecord, past_cross_attention: bool) -> Tensor:
    """Which positions an edge that never binds carries, shape ``(L, T)``, bool."""
    carried = torch.ones(len(record.routes), record.n_tokens, dtype=torch.bool)
    for layer, (queries, keys) in enumerate(record.routes):
        is_cross = queries != keys
        carried[layer, record.positions(queries)] = is_cross and past_cross_attention
    return carried
