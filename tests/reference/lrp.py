"""AttnLRP and CP-LRP by hand: transformers in which each operation is its rewrite.

Every function has the value of an operation and the gradient that a rule gives it, as
Achtibat et al. (*AttnLRP*, ICML 2024) and Ali et al. (ICML 2022) have it. The models
are written out in them, from the names of transformers' weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# -- operations


def part(x: Tensor, share: float) -> Tensor:
    """The same value, with a share of the relevance."""
    return share * x + (1 - share) * x.detach()


def activation(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """AttnLRP, Eq. 9: x * (f(x) / x), for functions through the origin."""
    value = function(x.detach())
    return x * torch.where(x == 0, 0, value / x.detach())


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.detach().square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean_square = x.detach().square().mean(-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps) * weight


def erf_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


# -- attention


@dataclass
class Attention:
    """One attention: weights as they mix values, and products of queries and keys."""

    weights: Tensor
    products: Tensor

    def messages(self, output: Tensor, share: float) -> Tensor:
        """Relevance that each key gets of each query, ``(B, Tq, Tk)``."""
        of_weights, of_products = torch.autograd.grad(
            output, (self.weights, self.products), retain_graph=True
        )
        values = (1 - share) * self.weights * of_weights
        keys = self.products * of_products / 2
        return (values + keys).sum(1).detach()


@dataclass
class Replica:
    """A forward pass.

    Attributes:
        share: What attention weights get: 1/2 under AttnLRP, 0 under CP-LRP.
        inputs: What stands for each input.
        attentions: In the order in which they ran.
        stream: The residual stream behind the last of them.
        output: What the model returns.
    """

    share: float
    inputs: list[Tensor] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    stream: Tensor | None = None
    output: Tensor | None = None

    def enter(self, found: Tensor) -> Tensor:
        self.inputs.append(found.detach().requires_grad_())
        return self.inputs[-1]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        added: Tensor | float = 0.0,
        cap: float | None = None,
    ) -> Tensor:
        """Heads ``(B, H, T, D)`` to tokens ``(B, T, H * D)``; ``added`` to scores."""
        products = part(query, 0.5) @ part(key, 0.5).mT
        scores = products * scale
        if cap is not None:
            scores = cap * activation(scores / cap, torch.tanh)
        weights = part((scores + added).softmax(-1), self.share)
        self.attentions.append(Attention(weights, products))
        mixed = weights @ part(value, 1 - self.share)
        return mixed.transpose(1, 2).flatten(2)

    def scores(self, target: Tensor) -> list[Tensor]:
        """Input times gradient, of each input."""
        gradients = torch.autograd.grad(target.sum(), self.inputs, retain_graph=True)
        return [
            (x * gradient).detach()
            for x, gradient in zip(self.inputs, gradients, strict=True)
        ]

    def stream_relevance(self, target: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(target.sum(), self.stream, retain_graph=True)
        return (self.stream * gradient).sum(-1).detach()


def heads(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def causal(n_tokens: int, window: int | None = None) -> Tensor:
    """0 where a key is seen, -inf elsewhere."""
    distance = torch.arange(n_tokens)[:, None] - torch.arange(n_tokens)
    seen = (distance >= 0) & (distance < (window or n_tokens))
    return torch.zeros(n_tokens, n_tokens).masked_fill(~seen, -torch.inf)


# -- models


def bert(model: nn.Module, ids: Tensor, share: float) -> Replica:
    replica, network = Replica(share), model.bert
    tables = network.embeddings
    x = replica.enter(tables.word_embeddings(ids))
    x = x + tables.position_embeddings.weight[: ids.shape[1]]
    x = layer_norm(x + tables.token_type_embeddings.weight[0], tables.LayerNorm)
    n_heads = model.config.num_attention_heads
    for layer in network.encoder.layer:
        attention = layer.attention.self
        query, key, value = (
            heads(linear(x), n_heads)
            for linear in (attention.query, attention.key, attention.value)
        )
        mixed = replica.attend(query, key, value, query.shape[-1] ** -0.5)
        x = replica.stream = x + layer.attention.output.dense(mixed)
        x = layer_norm(x, layer.attention.output.LayerNorm)
        up = activation(layer.intermediate.dense(x), erf_gelu)
        x = layer_norm(x + layer.output.dense(up), layer.output.LayerNorm)
    pooled = activation(network.pooler.dense(x[:, 0]), torch.tanh)
    replica.output = model.classifier(pooled)
    return replica


def gpt2(model: nn.Module, ids: Tensor, share: float) -> Replica:
    replica, network = Replica(share), model.transformer
    x = replica.enter(network.wte(ids)) + network.wpe.weight[: ids.shape[1]]
    for layer in network.h:
        normed = layer_norm(x, layer.ln_1)
        joined = normed @ layer.attn.c_attn.weight + layer.attn.c_attn.bias
        query, key, value = (
            heads(one, model.config.n_head) for one in joined.chunk(3, -1)
        )
        mixed = replica.attend(
            query, key, value, query.shape[-1] ** -0.5, causal(ids.shape[1])
        )
        mixed = mixed @ layer.attn.c_proj.weight + layer.attn.c_proj.bias
        x = replica.stream = x + mixed
        up = layer_norm(x, layer.ln_2) @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias
        up = activation(up, tanh_gelu)
        x = x + up @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
    replica.output = model.lm_head(layer_norm(x, network.ln_f))
    return replica


def rotated(x: Tensor, base: float) -> Tensor:
    """Rotary embeddings, a pair of features after another."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * base ** -(torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def grouped_attention(
    replica: Replica, layer: nn.Module, x: Tensor, config, **options
) -> Tensor:
    attention, n_key_heads = layer.self_attn, config.num_key_value_heads
    base = config.rope_parameters["rope_theta"]
    query = rotated(heads(attention.q_proj(x), config.num_attention_heads), base)
    key = rotated(heads(attention.k_proj(x), n_key_heads), base)
    value = heads(attention.v_proj(x), n_key_heads)
    groups = config.num_attention_heads // n_key_heads
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    return attention.o_proj(
        replica.attend(query, key, value, query.shape[-1] ** -0.5, **options)
    )


def gated(mlp: nn.Module, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A gated MLP: half of the relevance to the gate."""
    gate = activation(mlp.gate_proj(x), function)
    return mlp.down_proj(part(gate, 0.5) * part(mlp.up_proj(x), 0.5))


def llama(model: nn.Module, ids: Tensor, share: float) -> Replica:
    replica, network, eps = Replica(share), model.model, model.config.rms_norm_eps
    x = replica.enter(network.embed_tokens(ids))
    for layer in network.layers:
        normed = rms_norm(x, layer.input_layernorm.weight, eps)
        mixed = grouped_attention(
            replica, layer, normed, model.config, added=causal(ids.shape[1])
        )
        x = replica.stream = x + mixed
        normed = rms_norm(x, layer.post_attention_layernorm.weight, eps)
        x = x + gated(layer.mlp, normed, silu)
    replica.output = model.lm_head(rms_norm(x, network.norm.weight, eps))
    return replica


def gemma2(model: nn.Module, ids: Tensor, share: float) -> Replica:
    replica, network, config = Replica(share), model.model, model.config

    def norm(x: Tensor, module: nn.Module) -> Tensor:
        return rms_norm(x, 1 + module.weight, config.rms_norm_eps)

    x = replica.enter(network.embed_tokens.weight[ids]) * config.hidden_size**0.5
    for layer, kind in zip(network.layers, config.layer_types, strict=True):
        window = config.sliding_window if kind == "sliding_attention" else None
        mixed = grouped_attention(
            replica,
            layer,
            norm(x, layer.input_layernorm),
            config,
            added=causal(ids.shape[1], window),
            cap=config.attn_logit_softcapping,
        )
        x = replica.stream = x + norm(mixed, layer.post_attention_layernorm)
        up = gated(layer.mlp, norm(x, layer.pre_feedforward_layernorm), tanh_gelu)
        x = x + norm(up, layer.post_feedforward_layernorm)
    cap = config.final_logit_softcapping
    logits = model.lm_head(norm(x, network.norm))
    replica.output = cap * activation(logits / cap, torch.tanh)
    return replica


def bloom(model: nn.Module, ids: Tensor, share: float) -> Replica:
    replica, network = Replica(share), model.transformer
    n_heads, n_tokens = model.config.n_head, ids.shape[1]
    slopes = torch.tensor([2 ** (-8 * (h + 1) / n_heads) for h in range(n_heads)])
    alibi = slopes[:, None, None] * torch.arange(n_tokens)
    x = replica.enter(network.word_embeddings(ids))
    x = layer_norm(x, network.word_embeddings_layernorm)
    for layer in network.h:
        normed = layer_norm(x, layer.input_layernorm)
        joined = layer.self_attention.query_key_value(normed)
        query, key, value = joined.unflatten(-1, (n_heads, 3, -1)).unbind(-2)
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        mixed = replica.attend(
            query, key, value, query.shape[-1] ** -0.5, alibi + causal(n_tokens)
        )
        x = replica.stream = x + layer.self_attention.dense(mixed)
        normed = layer_norm(x, layer.post_attention_layernorm)
        up = activation(layer.mlp.dense_h_to_4h(normed), tanh_gelu)
        x = x + layer.mlp.dense_4h_to_h(up)
    replica.output = model.lm_head(layer_norm(x, network.ln_f))
    return replica


def t5(model: nn.Module, ids: Tensor, decoder_ids: Tensor, share: float) -> Replica:
    """An encoder and a decoder; the bias of positions is added to the scores."""
    replica, config = Replica(share), model.config

    def norm(x: Tensor, module: nn.Module) -> Tensor:
        return rms_norm(x, module.weight, config.layer_norm_epsilon)

    def attend(x: Tensor, of: Tensor, attention: nn.Module, added: Tensor) -> Tensor:
        query = heads(attention.q(x), config.num_heads)
        key, value = (
            heads(linear(of), config.num_heads) for linear in (attention.k, attention.v)
        )
        return attention.o(replica.attend(query, key, value, 1.0, added))

    def feed_forward(x: Tensor, sublayer: nn.Module) -> Tensor:
        up = activation(
            sublayer.DenseReluDense.wi(norm(x, sublayer.layer_norm)), torch.relu
        )
        return x + sublayer.DenseReluDense.wo(up)

    def bias(stack: nn.Module, n_tokens: int) -> Tensor:
        return stack.block[0].layer[0].SelfAttention.compute_bias(n_tokens, n_tokens)

    x = replica.enter(model.shared(ids))
    added = bias(model.encoder, ids.shape[1])
    for block in model.encoder.block:
        first, second = block.layer
        normed = norm(x, first.layer_norm)
        x = x + attend(normed, normed, first.SelfAttention, added)
        x = feed_forward(x, second)
    encoded = norm(x, model.encoder.final_layer_norm)
    x = replica.enter(model.shared(decoder_ids))
    n_tokens = decoder_ids.shape[1]
    added = bias(model.decoder, n_tokens) + causal(n_tokens)
    for block in model.decoder.block:
        first, second, third = block.layer
        normed = norm(x, first.layer_norm)
        x = x + attend(normed, normed, first.SelfAttention, added)
        normed = norm(x, second.layer_norm)
        nowhere = torch.zeros(())
        x = x + attend(normed, encoded, second.EncDecAttention, nowhere)
        replica.stream = x
        x = feed_forward(x, third)
    x = norm(x, model.decoder.final_layer_norm)
    if config.scale_decoder_outputs:
        x = x * config.d_model**-0.5
    replica.output = model.lm_head(x)
    return replica


def _vit_layers(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Every layer with its linear maps: to queries, keys and values, out of the heads,
    and the two of the MLP. transformers 5.0 has other names for them."""
    if hasattr(model, "layers"):
        for layer in model.layers:
            attention, mlp = layer.attention, layer.mlp
            inner = attention.q_proj, attention.k_proj, attention.v_proj
            yield layer, inner, attention.o_proj, mlp.fc1, mlp.fc2
    else:
        for layer in model.encoder.layer:
            attention, outer = layer.attention.attention, layer.attention.output.dense
            inner = attention.query, attention.key, attention.value
            yield layer, inner, outer, layer.intermediate.dense, layer.output.dense


def vit(model: nn.Module, pixels: Tensor, share: float) -> Replica:
    """The last hidden state, behind the last norm."""
    replica, embeddings = Replica(share), model.embeddings
    projection = embeddings.patch_embeddings.projection
    patches = nn.functional.conv2d(
        replica.enter(pixels), projection.weight, projection.bias, projection.stride
    )
    patches = patches.flatten(2).mT
    x = torch.cat([embeddings.cls_token.expand(len(pixels), -1, -1), patches], 1)
    x = x + embeddings.position_embeddings
    n_heads = model.config.num_attention_heads
    for layer, inner, outer, up, down in _vit_layers(model):
        normed = layer_norm(x, layer.layernorm_before)
        query, key, value = (heads(linear(normed), n_heads) for linear in inner)
        mixed = replica.attend(query, key, value, query.shape[-1] ** -0.5)
        x = replica.stream = x + outer(mixed)
        wide = activation(up(layer_norm(x, layer.layernorm_after)), erf_gelu)
        x = x + down(wide)
    replica.output = layer_norm(x, model.layernorm)
    return replica


# -- the conserved flow


def conserved_scores(
    messages: list[tuple[slice, slice, Tensor]], top: Tensor
) -> Tensor:
    """r_l[k] = r_{l+1}[k] - sum_j E_l[k, j] + sum_i E_l[i, k], node by node.

    Args:
        messages: Positions of queries and keys, and ``(B, Tq, Tk)``, layer by layer.
        top: Relevance where the output is read, ``(B, T)``.
    """
    relevance = top.clone()
    for queries, keys, handed in reversed(messages):
        below = relevance.clone()
        for i, query in enumerate(range(top.shape[1])[queries]):
            for k, key in enumerate(range(top.shape[1])[keys]):
                below[:, query] -= handed[:, i, k]
                below[:, key] += handed[:, i, k]
        relevance = below
    return relevance
