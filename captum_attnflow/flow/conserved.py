r"""The conserved flow: relevance that attention carries, accounted for node by node.

Attention is all that mixes positions. So once it is known which relevance
:math:`E_l[i, k]` layer :math:`l` hands from position :math:`i` down to position
:math:`k` (see :meth:`captum_attnflow.capture.AttentionLayer.messages`), the relevance
at every node follows from the top, with nothing known of the residual stream:

.. math::
    r_l[k] = r_{l+1}[k] - \sum_j E_l[k, j] + \sum_i E_l[i, k],

from :math:`r_L`, the output at the positions where it is read, 0 elsewhere. What a
position does not hand on, :math:`r_{l+1}[k] - \sum_j E_l[k, j]`, flows on its residual
edge. This is a flow: signed, conserved at every node, its value the output, its sources
the tokens. So the scores :math:`r_0` **sum to the output**, biases counted where they
act, with no solver.

This method is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow._tensors import check_finite, check_tensor


@dataclass(frozen=True, eq=False)
class ConservedFlow:
    """A signed flow on the layered network of a batch of examples.

    Attributes:
        flow (Tensor): Shape ``(B, L, T, T)``, float64, in units of the output;
            ``flow[b, l, i, j]`` leads from node ``j`` of token layer ``l`` (below, the
            key) to node ``i`` of layer ``l + 1`` (above, the query). Residual edges are
            on the diagonal, with what attention hands from a position to itself.
        scores (Tensor): Shape ``(B, T)``, float64, the flow that leaves each token.
        imbalance (Tensor): Shape ``(B,)``, float64, the largest difference at a node
            between what enters and what leaves, in units of the output.
    """

    flow: Tensor
    scores: Tensor
    imbalance: Tensor


def conserve(messages: Tensor, read_out: Tensor) -> ConservedFlow:
    """Let relevance flow from the read-out down to the tokens.

    Args:
        messages (Tensor): Shape ``(B, L, T, T)``, float64, relevance that each key (in
            columns) gets from each query (in rows), in units of the output.
        read_out (Tensor): Shape ``(B, T)``, float64, relevance at the top; its sum is
            the output.

    Returns:
        ConservedFlow: Its scores sum to that of ``read_out``.

    Raises:
        ValueError: If one is no tensor of floats of that shape, or not finite.

    Examples::

        >>> messages = torch.tensor([[[[0.0, 0.0], [0.75, 0.5]]]], dtype=torch.float64)
        >>> read_out = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
        >>> conserved = conserve(messages, read_out)
        >>> conserved.scores
        tensor([[0.7500, 1.2500]], dtype=torch.float64)
        >>> conserved.flow[0, 0]  # the second token keeps 0.75 and hands itself 0.5
        tensor([[0.0000, 0.0000],
                [0.7500, 1.2500]], dtype=torch.float64)
    """
    check_tensor("messages", messages, "floats", ("B", "L", "T", "T"))
    ends = (len(messages), messages.shape[-1])
    check_tensor("read_out", read_out, "floats", ends)
    check_finite("messages", messages)
    check_finite("read_out", read_out)
    flow = messages.clone()
    relevance = read_out
    imbalance = read_out.new_zeros(len(read_out))
    for layer in reversed(range(messages.shape[1])):
        edges = flow[:, layer]
        edges.diagonal(dim1=-2, dim2=-1).add_(relevance - edges.sum(-1))
        handed_on = edges.sum(-1)
        imbalance = torch.maximum(imbalance, (relevance - handed_on).abs().amax(1))
        relevance = edges.sum(-2)
    return ConservedFlow(flow, relevance, imbalance)


def read_out_relevance(
    output: Tensor, read_out: Tensor, streams: Tensor | None
) -> Tensor:
    r"""Share an output out among the positions where it is read.

    One position has it all. Several, as under mean pooling, have the relevance of
    their residual streams behind the last attention, and equal parts of what that
    leaves of the output (biases of the head).

    Args:
        output (Tensor): Shape ``(B,)``.
        read_out (Tensor): Shape ``(B, T)``, bool; without any, all positions.
        streams (Tensor, optional): Shape ``(B, T)``, stream times gradient.

    Returns:
        Tensor: Shape ``(B, T)``, float64, whose rows sum to the output.

    Raises:
        ValueError: If one is no tensor of that kind and shape.

    Examples::

        >>> read_out_relevance(
        ...     torch.tensor([3.0]),
        ...     torch.tensor([[True, False, True]]),
        ...     torch.tensor([[2.0, 0.0, 0.0]]),
        ... )
        tensor([[2.5000, 0.0000, 0.5000]], dtype=torch.float64)
    """
    check_tensor("read_out", read_out, "bools", ("B", "T"))
    check_tensor("output", output, "floats", (len(read_out),))
    if streams is not None:
        check_tensor("streams", streams, "floats", read_out.shape)
    read = (read_out | ~read_out.any(1, keepdim=True)).double()
    of_streams = torch.zeros_like(read) if streams is None else streams.double() * read
    left = output.double() - of_streams.sum(1)
    return of_streams + read * (left / read.sum(1))[:, None]
