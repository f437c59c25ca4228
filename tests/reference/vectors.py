"""BERT and GPT-2 classifiers in numpy, and what follows vectors through them, by loops.

One text, one position, one head, one token at a time, from the names of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

Vector = np.ndarray


def tanh_gelu(x: Vector) -> Vector:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: Vector) -> Vector:
    return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])


@dataclass
class Layer:
    """Weights as ``(out, in)``; norms as (weight, bias)."""

    q: tuple[Vector, Vector]
    k: tuple[Vector, Vector]
    v: tuple[Vector, Vector]
    o: tuple[Vector, Vector]
    norm_1: tuple[Vector, Vector]
    up: tuple[Vector, Vector]
    down: tuple[Vector, Vector]
    norm_2: tuple[Vector, Vector]


@dataclass
class Replica:
    layers: list[Layer]
    n_heads: int
    epsilon: float
    causal: bool
    norm_first: bool
    activation: Callable[[Vector], Vector]
    embed: Callable[[Sequence[int]], list[Vector]]
    head: list  # of ("linear", W, b), ("norm", w, b) and ("activation", f)


def replica_of(model: nn.Module) -> Replica:
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    make = _gpt2 if "transformer.wte.weight" in weights else _bert
    return make(model.config, weights)


def _bert(config, w) -> Replica:
    def pair(name):
        return w[f"{name}.weight"], w[f"{name}.bias"]

    def embed(ids):
        base = "bert.embeddings."
        word, at, kind = (
            w[f"{base}{n}_embeddings.weight"]
            for n in ("word", "position", "token_type")
        )
        sums = [word[token] + at[i] + kind[0] for i, token in enumerate(ids)]
        scale = pair("bert.embeddings.LayerNorm")
        return [layer_norm(x, scale, config.layer_norm_eps) for x in sums]

    layers = []
    for i in range(config.num_hidden_layers):
        base = f"bert.encoder.layer.{i}."
        layers.append(
            Layer(
                *(pair(f"{base}attention.self.{n}") for n in ("query", "key", "value")),
                o=pair(f"{base}attention.output.dense"),
                norm_1=pair(f"{base}attention.output.LayerNorm"),
                up=pair(f"{base}intermediate.dense"),
                down=pair(f"{base}output.dense"),
                norm_2=pair(f"{base}output.LayerNorm"),
            )
        )
    head = [
        ("linear", *pair("bert.pooler.dense")),
        ("activation", np.tanh),
        ("linear", *pair("classifier")),
    ]
    return Replica(
        layers,
        config.num_attention_heads,
        config.layer_norm_eps,
        causal=False,
        norm_first=False,
        activation=erf_gelu,
        embed=embed,
        head=head,
    )


def _gpt2(config, w) -> Replica:
    def pair(name):
        return w[f"{name}.weight"].T, w[f"{name}.bias"]

    def embed(ids):
        word, at = w["transformer.wte.weight"], w["transformer.wpe.weight"]
        return [word[token] + at[i] for i, token in enumerate(ids)]

    layers = []
    for i in range(config.n_layer):
        base = f"transformer.h.{i}."
        weight, bias = pair(f"{base}attn.c_attn")
        parts = zip(np.split(weight, 3), np.split(bias, 3), strict=True)
        layers.append(
            Layer(
                *parts,
                o=pair(f"{base}attn.c_proj"),
                norm_1=pair(f"{base}ln_1"),
                up=pair(f"{base}mlp.c_fc"),
                down=pair(f"{base}mlp.c_proj"),
                norm_2=pair(f"{base}ln_2"),
            )
        )
    head = [
        ("norm", *pair("transformer.ln_f")),
        ("linear", w["score.weight"], np.zeros(len(w["score.weight"]))),
    ]
    return Replica(
        layers,
        config.n_head,
        config.layer_norm_epsilon,
        causal=True,
        norm_first=True,
        activation=tanh_gelu,
        embed=embed,
        head=head,
    )


def layer_norm(x: Vector, scale: tuple[Vector, Vector], epsilon: float) -> Vector:
    return (x - x.mean()) / np.sqrt(x.var() + epsilon) * scale[0] + scale[1]


def linear(x: Vector, weights: tuple[Vector, Vector]) -> Vector:
    return weights[0] @ x + weights[1]


def attention(replica: Replica, layer: Layer, xs: list[Vector]) -> np.ndarray:
    """Weights ``[head][query][key]`` over what a layer attends to."""
    n, size = len(xs), len(layer.q[1]) // replica.n_heads
    result = np.zeros((replica.n_heads, n, n))
    for h in range(replica.n_heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(n):
            keys = range(i + 1) if replica.causal else range(n)
            query = linear(xs[i], layer.q)[part]
            logits = [query @ linear(xs[j], layer.k)[part] for j in keys]
            raised = np.exp(np.array(logits) / math.sqrt(size))
            result[h, i, : len(raised)] = raised / raised.sum()
    return result


# DecompX: parts[i][k] is what position i has of token k.


def share(parts: list[Vector], bias: Vector) -> list[Vector]:
    weights = [abs(float(bias @ part)) for part in parts]
    total = sum(weights)
    n = len(parts)
    return [
        part + (w / total if total > 0 else 1 / n) * bias
        for part, w in zip(parts, weights, strict=True)
    ]


def norm_parts(parts: list[Vector], scale, epsilon: float) -> list[Vector]:
    deviation = np.sqrt(np.var(sum(parts)) + epsilon)
    return share([(p - p.mean()) / deviation * scale[0] for p in parts], scale[1])


def linear_parts(parts: list[Vector], weights) -> list[Vector]:
    return share([weights[0] @ part for part in parts], weights[1])


def activated(parts: list[Vector], function) -> list[Vector]:
    total = sum(parts)
    slope = np.array([function(np.array([x]))[0] / x for x in total])
    return [part * slope for part in parts]


def decompx(model: nn.Module, ids: Sequence[int], read: int) -> np.ndarray:
    """Parts of the classifier's outputs, ``[token][class]``."""
    replica = replica_of(model)
    stream = replica.embed(ids)
    n = len(stream)
    parts = [[stream[i] * (i == k) for k in range(n)] for i in range(n)]
    for layer in replica.layers:
        parts = decompx_layer(replica, layer, parts)
    left = parts[read]
    for kind, *weights in replica.head:
        if kind == "linear":
            left = linear_parts(left, weights)
        elif kind == "norm":
            left = norm_parts(left, weights, replica.epsilon)
        else:
            left = activated(left, weights[0])
    return np.array(left)


def decompx_layer(replica: Replica, layer: Layer, parts):
    n, epsilon = len(parts), replica.epsilon
    taken = parts
    if replica.norm_first:
        taken = [norm_parts(p, layer.norm_1, epsilon) for p in parts]
    maps = attention(replica, layer, [sum(p) for p in taken])
    size = len(layer.v[1]) // replica.n_heads
    bias = layer.o[0] @ layer.v[1] + layer.o[1]
    above = []
    for i in range(n):
        row = []
        for k in range(n):
            heads = [
                sum(
                    maps[h, i, j]
                    * (layer.v[0][h * size : (h + 1) * size] @ taken[j][k])
                    for j in range(n)
                )
                for h in range(replica.n_heads)
            ]
            row.append(parts[i][k] + layer.o[0] @ np.concatenate(heads))
        row = share(row, bias)
        if not replica.norm_first:
            row = norm_parts(row, layer.norm_1, epsilon)
        inner = norm_parts(row, layer.norm_2, epsilon) if replica.norm_first else row
        inner = linear_parts(inner, layer.up)
        inner = linear_parts(activated(inner, replica.activation), layer.down)
        row = [a + b for a, b in zip(row, inner, strict=True)]
        if not replica.norm_first:
            row = norm_parts(row, layer.norm_2, epsilon)
        above.append(row)
    return above


# Information flow routes.


def information_flow_routes(
    model: nn.Module, ids: Sequence[int], read: int
) -> np.ndarray:
    """Flow that reaches each token from the position that is read."""
    replica = replica_of(model)
    stream = replica.embed(ids)
    n = len(stream)
    reaching = np.eye(n)
    for layer in replica.layers:
        edges, stream = flow_layer(replica, layer, stream)
        reaching = edges @ reaching
    return reaching[read]


def flow_layer(replica: Replica, layer: Layer, stream: list[Vector]):
    n, epsilon = len(stream), replica.epsilon
    taken = stream
    if replica.norm_first:
        taken = [layer_norm(x, layer.norm_1, epsilon) for x in stream]
    maps = attention(replica, layer, taken)
    size = len(layer.v[1]) // replica.n_heads
    edges, above = np.zeros((n, n)), []
    for i in range(n):
        messages = []  # (token, vector)
        for j in range(n):
            value = linear(taken[j], layer.v)
            for h in range(replica.n_heads):
                part = slice(h * size, (h + 1) * size)
                vector = layer.o[0][:, part] @ value[part]
                messages.append((j, maps[h, i, j] * vector))
        messages.append((i, stream[i]))
        total = sum(vector for _, vector in messages) + layer.o[1]
        for token, vector in messages:
            distance = np.abs(total - vector).sum()
            edges[i, token] += max(0.0, np.abs(total).sum() - distance)
        edges[i] /= edges[i].sum()
        above.append(feed_forward(replica, layer, total))
    return edges, above


def feed_forward(replica: Replica, layer: Layer, x: Vector) -> Vector:
    if replica.norm_first:
        inner = linear(layer_norm(x, layer.norm_2, replica.epsilon), layer.up)
        return x + linear(replica.activation(inner), layer.down)
    x = layer_norm(x, layer.norm_1, replica.epsilon)
    inner = replica.activation(linear(x, layer.up))
    return layer_norm(x + linear(inner, layer.down), layer.norm_2, replica.epsilon)
