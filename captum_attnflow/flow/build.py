"""The layered network of a captured transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.capture import AttentionRecord
from captum_attnflow.flow.information import Information, information_tensor
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.residual import Residual, add_residual


def build_network(
    record: AttentionRecord, information: Information, residual: Residual
) -> LayeredNetwork:
    """Join every token to the source and every read-out position to the sink.

    An encoder and a decoder make one network over the tokens of both, the encoder's
    first. A layer of the decoder is two of the network, self-attention and
    cross-attention. Where a layer has no queries of a token, the token is carried along
    by an edge that never binds; so is a decoder's token past the cross-attention, also
    without residual edges, since nothing else leads on from its self-attention.

    With ``residual="free"`` a read-out position is no source: its own residual path
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
