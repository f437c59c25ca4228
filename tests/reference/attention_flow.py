"""Abnar & Zuidema's attention flow, one pair of nodes at a time, by networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
from torch import Tensor


def attention_flow(attentions: list[Tensor], read_out: int) -> np.ndarray:
    """Maximum flow from every input token to one output position of one example.

    ``attentions`` holds one ``(H, T, T)`` map per layer.
    """
    graph = nx.DiGraph()
    n_tokens = attentions[0].shape[-1]
    for layer, heads in enumerate(attentions):
        mixed = 0.5 * heads.double().mean(0).numpy() + 0.5 * np.eye(n_tokens)
        mixed /= mixed.sum(-1, keepdims=True)
        for above in range(n_tokens):
            for below in range(n_tokens):
                graph.add_edge(
                    (layer, below), (layer + 1, above), capacity=mixed[above, below]
                )
    sink = (len(attentions), read_out)
    return np.array(
        [
            nx.maximum_flow_value(
                graph, (0, token), sink, flow_func=nx.algorithms.flow.edmonds_karp
            )
            for token in range(n_tokens)
        ]
    )
