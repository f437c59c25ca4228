"""The weights of classifiers, family by family, and one pass that records their maps.

Most methods of a study need a model's forward function alone. Methods that follow
vectors through the model need its weights, and every family names these differently.
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

from captum_attnflow.study.batch import TextBatch

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
