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
- The bias of the output projection is in the sum, but is not a message.
- Feed-forward layers and norms stay at their position and mix nothing, so that what
  enters them comes out of them. In a model that normalises behind the sum, as BERT
  does, the sum is taken before the norm.
- A token's score is all flow that reaches it from the position where the classifier
  reads: the product of the blocks' edges, without the threshold by which the paper
  draws its graphs. Scores sum to 1 and are those of the text, whatever the class.

Most methods of a study need a model's forward function alone. These need its weights,
which every family of models names differently, and one pass that records its maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_attnflow.study.adapters import TextBatch

_MAX_NUMBERS_AT_ONCE = 1 << 24

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer.

    Attributes:
        weight (Tensor): Shape ``(D_out, D_in)``.
        bias (Tensor): Shape ``(D_out,)``; zeros where the layer has none.
    """

    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(layer: Any) -> Linear:
        """Read a layer of torch."""
        weight = layer.weight.detach()
        absent = layer.bias is None
        bias = weight.new_zeros(len(weight)) if absent else layer.bias.detach()
        return Linear(weight, bias)

    @staticmethod
    def of_conv1d(layer: Any) -> Linear:
        """Read a layer of GPT-2, which keeps its weight as ``(D_in, D_out)``."""
        return Linear(layer.weight.detach().mT, layer.bias.detach())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map vectors ``(..., D_in)`` to ``(..., D_out)``."""
        return F.linear(vectors, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm, or RMSNorm, which takes no mean and adds no bias.

    Attributes:
        weight (Tensor): Shape ``(D,)``.
        bias (Tensor, optional): Shape ``(D,)``; None for RMSNorm.
        epsilon (float): Added to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    epsilon: float

    @staticmethod
    def of(layer: nn.LayerNorm) -> Norm:
        """Read a LayerNorm of torch."""
        return Norm(layer.weight.detach(), layer.bias.detach(), layer.eps)

    def centred(self, vectors: Tensor) -> Tensor:
        """Take the mean over features from each vector; RMSNorm does not."""
        if self.bias is None:
            return vectors
        return vectors - vectors.mean(-1, keepdim=True)

    def deviation(self, vectors: Tensor) -> Tensor:
        """Return the divisor of vectors ``(..., D)``, of shape ``(..., 1)``."""
        square = self.centred(vectors).square().mean(-1, keepdim=True)
        return (square + self.epsilon).sqrt()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Normalise vectors ``(..., D)``."""
        scaled = self.centred(vectors) / self.deviation(vectors) * self.weight
        return scaled if self.bias is None else scaled + self.bias


@dataclass(frozen=True, eq=False)
class Feedforward:
    """Two linear layers with an activation between, and the norm of the sublayer."""

    expand: Linear
    activation: Activation
    contract: Linear
    norm: Norm


@dataclass(frozen=True, eq=False)
class Block:
    """A transformer block.

    Attributes:
        module (Module): Takes the residual stream.
        attention (Module): Returns the map, as its second output, if it attends
            eagerly.
        value (Linear): The values of all heads; queries may share those of a head.
        output (Linear): Of the heads' outputs, side by side.
        norm (Norm): Of the attention's sublayer.
        feedforward (Feedforward, optional): None where the sublayer is gated.
    """

    module: nn.Module
    attention: nn.Module
    value: Linear
    output: Linear
    norm: Norm
    feedforward: Feedforward | None

    def values(self, n_heads: int) -> Linear:
        """Return the values of each head, also where heads share them."""
        head_size = self.output.weight.shape[1] // n_heads
        groups = n_heads * head_size // len(self.value.bias)
        weight = self.value.weight.unflatten(0, (-1, head_size))
        bias = self.value.bias.unflatten(0, (-1, head_size))
        return Linear(
            weight.repeat_interleave(groups, 0).flatten(0, 1),
            bias.repeat_interleave(groups, 0).flatten(),
        )


@dataclass(frozen=True, eq=False)
class ClassifierWeights:
    """A sequence classifier from its first block on.

    Attributes:
        blocks (tuple of Block): From the input upwards.
        norm_first (bool): A sublayer's norm comes before it, as in GPT-2, or behind
            the residual sum, as in BERT.
        head (tuple): What follows the last block at the read-out position: norms,
            linear layers and activations.
        read_out (str): The ``"first"`` token is read, or the ``"last"`` one that is
            not padding.
    """

    blocks: tuple[Block, ...]
    norm_first: bool
    head: tuple[Norm | Linear | Activation, ...]
    read_out: Literal["first", "last"]

    def position(self, batch: TextBatch) -> Tensor:
        """Return the position at which each text is read, shape ``(B,)``."""
        if self.read_out == "first":
            return torch.zeros_like(batch.ids[:, 0])
        padding_id = batch.model.config.pad_token_id
        is_token = torch.ones_like(batch.ids)
        if padding_id is not None:
            is_token = (batch.ids != padding_id).long()
        return is_token.cumsum(1).mul(is_token).argmax(1)


@dataclass(frozen=True, eq=False)
class Trace:
    """Residual streams and attention maps of a forward pass, block by block.

    Attributes:
        streams (tuple of Tensor): Residual stream below each block, ``(B, T, D)``.
        maps (tuple of Tensor): Attention of each block, ``(B, H, T, T)``.
    """

    streams: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]

    @staticmethod
    @torch.no_grad()
    def of(batch: TextBatch, weights: ClassifierWeights) -> Trace:
        """Run a batch once, attending eagerly, since fused kernels form no maps.

        The hooks here are removed again. Those of transformers, by which it returns
        maps, would stay in the model.
        """
        streams, maps = [], []

        def see_stream(module: nn.Module, taken: tuple[Any, ...]) -> None:
            streams.append(taken[0])

        def see_map(module: nn.Module, taken: Any, returned: tuple[Any, ...]) -> None:
            maps.append(returned[1])

        handles = []
        try:
            for block in weights.blocks:
                handles.append(block.module.register_forward_pre_hook(see_stream))
                handles.append(block.attention.register_forward_hook(see_map))
            with _eager_attention(batch.model):
                batch.forward(batch.ids, *batch.arguments)
        finally:
            for handle in handles:
                handle.remove()
        return Trace(tuple(streams), tuple(maps))

    def of_text(self, text: int, columns: Tensor) -> Trace:
        """Return the trace of one text, without padding and batch dimension."""
        return Trace(
            tuple(stream[text][columns] for stream in self.streams),
            tuple(heads[text][:, columns][:, :, columns] for heads in self.maps),
        )


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def read_weights(model: PreTrainedModel, method: str) -> ClassifierWeights:
    """Read a classifier's weights.

    Args:
        model (PreTrainedModel): The classifier.
        method (str): The method that needs them, named in the error.

    Raises:
        ValueError: If the model's family is not known.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in _FAMILIES:
            return _FAMILIES[kind.__name__](model)
    raise ValueError(
        f"{method} follows vectors through the weights of a model, which are known of "
        f"{', '.join(_FAMILIES)}, but not of {type(model).__name__}. Leave {method} "
        "out for this model"
    )


def _bert(model: Any) -> ClassifierWeights:
    pooler = model.bert.pooler
    head = (Linear.of(pooler.dense), pooler.activation, Linear.of(model.classifier))
    return _bert_like(model.bert, head)


def _roberta(model: Any) -> ClassifierWeights:
    head = model.classifier
    steps = (Linear.of(head.dense), torch.tanh, Linear.of(head.out_proj))
    return _bert_like(model.roberta, steps)


def _electra(model: Any) -> ClassifierWeights:
    head = model.classifier
    steps = (Linear.of(head.dense), head.activation, Linear.of(head.out_proj))
    return _bert_like(model.electra, steps)


def _bert_like(
    encoder: Any, head: tuple[Norm | Linear | Activation, ...]
) -> ClassifierWeights:
    blocks = tuple(
        Block(
            module=layer,
            attention=layer.attention.self,
            value=Linear.of(layer.attention.self.value),
            output=Linear.of(layer.attention.output.dense),
            norm=Norm.of(layer.attention.output.LayerNorm),
            feedforward=Feedforward(
                Linear.of(layer.intermediate.dense),
                layer.intermediate.intermediate_act_fn,
                Linear.of(layer.output.dense),
                Norm.of(layer.output.LayerNorm),
            ),
        )
        for layer in encoder.encoder.layer
    )
    return ClassifierWeights(blocks, False, head, "first")


def _distilbert(model: Any) -> ClassifierWeights:
    blocks = tuple(
        Block(
            module=layer,
            attention=layer.attention,
            value=Linear.of(layer.attention.v_lin),
            output=Linear.of(layer.attention.out_lin),
            norm=Norm.of(layer.sa_layer_norm),
            feedforward=Feedforward(
                Linear.of(layer.ffn.lin1),
                layer.ffn.activation,
                Linear.of(layer.ffn.lin2),
                Norm.of(layer.output_layer_norm),
            ),
        )
        for layer in model.distilbert.transformer.layer
    )
    head = (Linear.of(model.pre_classifier), F.relu, Linear.of(model.classifier))
    return ClassifierWeights(blocks, False, head, "first")


def _gpt2(model: Any) -> ClassifierWeights:
    blocks = []
    for layer in model.transformer.h:
        projections = Linear.of_conv1d(layer.attn.c_attn)
        width = len(projections.bias) // 3  # queries, keys, values
        blocks.append(
            Block(
                module=layer,
                attention=layer.attn,
                value=Linear(
                    projections.weight[2 * width :], projections.bias[2 * width :]
                ),
                output=Linear.of_conv1d(layer.attn.c_proj),
                norm=Norm.of(layer.ln_1),
                feedforward=Feedforward(
                    Linear.of_conv1d(layer.mlp.c_fc),
                    layer.mlp.act,
                    Linear.of_conv1d(layer.mlp.c_proj),
                    Norm.of(layer.ln_2),
                ),
            )
        )
    head = (Norm.of(model.transformer.ln_f), Linear.of(model.score))
    return ClassifierWeights(tuple(blocks), True, head, "last")


def _llama(model: Any) -> ClassifierWeights:
    blocks = tuple(
        Block(
            module=layer,
            attention=layer.self_attn,
            value=Linear.of(layer.self_attn.v_proj),
            output=Linear.of(layer.self_attn.o_proj),
            norm=_rms_norm(layer.input_layernorm),
            feedforward=None,
        )
        for layer in model.model.layers
    )
    head = (_rms_norm(model.model.norm), Linear.of(model.score))
    return ClassifierWeights(blocks, True, head, "last")


def _rms_norm(layer: Any) -> Norm:
    return Norm(layer.weight.detach(), None, layer.variance_epsilon)


_FAMILIES: dict[str, Callable[[Any], ClassifierWeights]] = {
    "BertForSequenceClassification": _bert,
    "DistilBertForSequenceClassification": _distilbert,
    "ElectraForSequenceClassification": _electra,
    "GPT2ForSequenceClassification": _gpt2,
    "LlamaForSequenceClassification": _llama,
    "MistralForSequenceClassification": _llama,
    "Qwen2ForSequenceClassification": _llama,
    "RobertaForSequenceClassification": _roberta,
}


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
    parts.diagonal().copy_(stream.mT)  # at first a token has its own vector only
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
    r"""Return :math:`f(x) / x`, and 0 at 0, where nothing flows."""
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
        norm_first (bool): Whether the block normalises its input before attention.

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
    # Where no message is near the sum, a position passes on itself alone.
    own = torch.eye(len(stream)).to(found)
    return torch.where(norm > 0, found / norm.where(norm > 0, 1), own)


def _proximity(total: Tensor, message: Tensor) -> Tensor:
    """Compare sums with messages, each ``(..., D)``; shape ``(...)``."""
    distance = (total - message).abs().sum(-1)
    return (total.abs().sum(-1) - distance).clamp_min(0)
