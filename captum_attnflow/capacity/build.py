"""The layered network of a captured encoder."""

from __future__ import annotations

from captum_attnflow.capacity.information import Information, information_tensor
from captum_attnflow.capacity.residual import Residual, add_residual
from captum_attnflow.capture import AttentionRecord
from captum_attnflow.network import LayeredNetwork


def build_network(
    record: AttentionRecord, information: Information, residual: Residual
) -> LayeredNetwork:
    """Join every token to the source and every read-out position to the sink.

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
    read_out = record.read_out()
    source = read_out.new_ones(read_out.shape)
    return LayeredNetwork(
        capacity=capacity,
        source=~read_out if residual == "free" else source,
        sink=read_out,
    )
