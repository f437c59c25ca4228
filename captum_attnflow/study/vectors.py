r"""Attributions that follow vectors through a model: DecompX and IFR.

**DecompX** (Modarressi et al., ACL 2023) writes a model's vectors as sums over tokens.

Every position holds one vector per token of the text, its parts, whose sum is the
model's own vector there. They pass through the model side by side:

- **Attention** mixes the parts of the positions by its weights, which are taken as
  they are.
- **LayerNorm** centres every part and divides it by the deviation of the sum.
- **Activations** :math:`f` multiply every part by the slope :math:`f(x) / x` of the
  sum :math:`x` (their zero-origin slope).
- **A bias** :math:`b` is shared among the parts :math:`v_k` by
  :math:`\lvert\langle b, v_k\rangle\rvert`; where all of these are 0, evenly. The
  biases of values and output of an attention are one, shared when the residual stream
  has been added.

At the classifier's outputs the parts are numbers, the tokens' scores, and their sum is
the logit: biases are shared out, nothing is left over. That costs what ``T`` texts cost
in the linear layers, and memory for ``T`` times the model's vectors.

**Information flow routes** (Ferrando & Voita, EMNLP 2024) need no gradient.

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

from collections.abc import Callable

import torch
from torch import Tensor

from captum_attnflow.study.batch import TextBatch
from captum_attnflow.study.weights import (
    Activation,
    Block,
    ClassifierWeights,
    Feedforward,
    Linear,
    Norm,
    Trace,
    read_weights,
)

_MAX_NUMBERS_AT_ONCE = 1 << 24


@torch.no_grad()
def decompx(batch: TextBatch) -> Tensor:
    """Run DecompX text by text on the maps of one forward pass.

    Args:
        batch (TextBatch): Texts, with the predicted class of each.

    Returns:
        Tensor: Shape ``(B, T)``, in the model's dtype; 0 on padding. A text's scores
        sum to the logit of its class.

    Raises:
        ValueError: If the model's weights are not known, or its blocks are gated.
    """
    weights = read_weights(batch.model, "decompx")
    trace = Trace.of(batch, weights)
    positions = weights.position(batch)
    scores = torch.zeros(
        batch.ids.shape, dtype=trace.streams[0].dtype, device=batch.ids.device
    )
    for text, is_token in enumerate(~batch.padding):
        columns = is_token.nonzero()[:, 0]
        read = int((columns == positions[text]).nonzero())
        parts = classifier_parts(weights, trace.of_text(text, columns), read)
        scores[text, columns] = parts[:, batch.predicted[text]]
    return scores


def classifier_parts(weights: ClassifierWeights, trace: Trace, position: int) -> Tensor:
    """Split the classifier's outputs for one text into parts.

    Args:
        weights (ClassifierWeights): The model.
        trace (Trace): Of the text, without padding.
        position (int): Where the text is read.

    Returns:
        Tensor: Shape ``(T, C)``, one part per token and class.
    """
    stream = trace.streams[0]
    parts = stream.new_zeros(len(stream), *stream.shape)
    parts.diagonal().copy_(stream.mT)  # a token's own vector is all it has at first
    for block, heads in zip(weights.blocks, trace.maps, strict=True):
        parts = _attend(block, heads, parts, weights.norm_first)
        parts = _feed_forward(block.feedforward, parts, weights.norm_first)
    read = parts[position]
    for step in weights.head:
        read = _apply(step, read)
    return read


def _attend(block: Block, heads: Tensor, parts: Tensor, norm_first: bool) -> Tensor:
    """Mix parts ``(T, S, D)`` of positions by attention ``(H, T, T)``."""
    values = block.values(len(heads))
    taken = _by_position(block.norm, parts) if norm_first else parts
    of_heads = (taken @ values.weight.mT).unflatten(-1, (len(heads), -1))
    mixed = heads @ of_heads.permute(2, 0, 1, 3).flatten(2)  # (H, T, S * d)
    mixed = mixed.unflatten(2, (len(parts), -1)).permute(1, 2, 0, 3).flatten(2)
    parts = parts + mixed @ block.output.weight.mT
    # Attention sums to 1, so that the bias of the values passes whole.
    parts = _share_bias(parts, block.output(values.bias))
    return parts if norm_first else _by_position(block.norm, parts)


def _feed_forward(
    feedforward: Feedforward | None, parts: Tensor, norm_first: bool
) -> Tensor:
    if feedforward is None:
        raise ValueError(
            "decompx has no rule for the gated feed-forward layers of this model, "
            "products of two activations: it was published for BERT. Leave decompx "
            "out for this model"
        )
    inner = (feedforward.expand, feedforward.activation, feedforward.contract)
    if norm_first:
        return parts + _by_position((feedforward.norm, *inner), parts)
    return _by_position(feedforward.norm, parts + _by_position(inner, parts))


Step = Norm | Linear | Activation


def _by_position(steps: Step | tuple[Step, ...], parts: Tensor) -> Tensor:
    """Apply steps to some positions at a time, since the middle layers are wide."""
    steps = steps if isinstance(steps, tuple) else (steps,)
    at_once = max(1, _MAX_NUMBERS_AT_ONCE // parts[0].numel())
    done = []
    for some in parts.split(at_once):
        for step in steps:
            some = _apply(step, some)
        done.append(some)
    return torch.cat(done)


def _apply(step: Step, parts: Tensor) -> Tensor:
    """Apply a step to parts ``(..., S, D)``."""
    if isinstance(step, Linear):
        return _share_bias(parts @ step.weight.mT, step.bias)
    total = parts.sum(-2, keepdim=True)
    if isinstance(step, Norm):
        scaled = step.centred(parts) / step.deviation(total) * step.weight
        return scaled if step.bias is None else _share_bias(scaled, step.bias)
    return parts * _slope(step, total)


def _slope(activation: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
    r"""Return :math:`f(x) / x`, and 0 at 0, where there is nothing to pass on."""
    is_zero = total == 0
    return torch.where(is_zero, 0, activation(total) / total.where(~is_zero, 1))


def _share_bias(parts: Tensor, bias: Tensor) -> Tensor:
    """Add a bias ``(D,)`` to parts ``(..., S, D)``, to each in proportion."""
    weights = (parts @ bias).abs()
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights, 1)
    shares = weights / weights.sum(-1, keepdim=True)
    return parts + shares[..., None] * bias


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
