r"""Information flow routes (Ferrando & Voita, EMNLP 2024), without any gradient.

At every position, a block's attention adds messages to the residual stream: of each
head and each token attended to, :math:`A^h_{ij}\, (x_j W_V^h + b_V^h)\, W_O^h`. How
much of their sum :math:`y` a message :math:`m` makes up is its proximity in the L1
norm,

.. math:: \max\big(0, \lVert y\rVert_1 - \lVert y - m\rVert_1\big),

as a share of all messages' and of the residual stream's. What is decided here:

- An edge from a token to a position is the sum over heads of its messages' shares, and
  the residual stream is one more message from the position itself.
- The bias of the output projection is in the sum, but is no message.
- Feed-forward layers and norms stay at their position and mix nothing, so that what
  enters them comes out of them. In a model that normalises behind the sum, as BERT
  does, the sum is taken before the norm.
- A token's score is all flow that reaches it from the position where the classifier
  reads: the product of the blocks' edges, without the threshold by which the paper
  draws its graphs. Scores sum to 1 and are those of the text, whatever the class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.study.batch import TextBatch
from captum_attnflow.study.weights import Block, Trace, read_weights

_MAX_NUMBERS_AT_ONCE = 1 << 22


@torch.no_grad()
def information_flow_routes(batch: TextBatch) -> Tensor:
    """Carry one unit from the read-out position down the edges.

    Args:
        batch (TextBatch): Texts; the predicted class is not read.

    Returns:
        Tensor: Shape ``(B, T)``, in the model's dtype, in [0, 1]; 0 on padding.

    Raises:
        ValueError: If the model's weights are not known.
    """
    weights = read_weights(batch.model, "ifr")
    trace = Trace.of(batch, weights)
    positions = weights.position(batch)
    scores = torch.zeros(
        batch.ids.shape, dtype=trace.streams[0].dtype, device=batch.ids.device
    )
    for text, is_token in enumerate(~batch.padding):
        columns = is_token.nonzero()[:, 0]
        seen = trace.of_text(text, columns)
        flow = (columns == positions[text]).to(scores.dtype)
        layers = zip(weights.blocks, seen.streams, seen.maps, strict=True)
        for block, stream, heads in reversed(list(layers)):
            flow = flow @ edges(block, stream, heads, weights.norm_first)
        scores[text, columns] = flow
    return scores


def edges(block: Block, stream: Tensor, heads: Tensor, norm_first: bool) -> Tensor:
    """Compute the edges of one block.

    Args:
        block (Block): The block.
        stream (Tensor): Residual stream below it, ``(T, D)``, without padding.
        heads (Tensor): Its attention, ``(H, T, T)``.
        norm_first (bool): Whether the block normalises what it attends to.

    Returns:
        Tensor: Shape ``(T, T)``, in [0, 1], queries in rows, which sum to 1.
    """
    taken = block.norm(stream) if norm_first else stream
    values = block.values(len(heads))(taken).unflatten(-1, (len(heads), -1))
    outputs = block.output.weight.unflatten(-1, (len(heads), -1))  # (D, H, d)
    messages = torch.einsum("jhd,ehd->hje", values, outputs)  # (H, T, D)
    total = stream + (heads @ messages).sum(0) + block.output.bias
    found = torch.diag(_proximity(total, stream))
    at_once = max(1, _MAX_NUMBERS_AT_ONCE // stream.numel())
    for rows in torch.arange(len(stream)).split(at_once):
        for attention, message in zip(heads[:, rows], messages, strict=True):
            found[rows] += _proximity(total[rows, None], attention[..., None] * message)
    norm = found.sum(1, keepdim=True)
    # A sum that no message is near passes on what it was.
    own = torch.eye(len(stream)).to(found)
    return torch.where(norm > 0, found / norm.where(norm > 0, 1), own)


def _proximity(total: Tensor, message: Tensor) -> Tensor:
    """Compare sums with messages, each ``(..., D)``; shape ``(...)``."""
    distance = (total - message).abs().sum(-1)
    return (total.abs().sum(-1) - distance).clamp_min(0)
