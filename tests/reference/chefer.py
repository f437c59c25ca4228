"""Relevance propagation of Chefer et al. (2021), from transformers' own attentions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def relevance_of_cls(model: nn.Module, ids: Tensor, target: int) -> np.ndarray:
    """Scores of one text, ``ids`` of shape ``(T,)``; the model attends eagerly."""
    with torch.enable_grad():
        output = model(ids[None], output_attentions=True)
        gradients = torch.autograd.grad(output.logits[0, target], output.attentions)
    n_tokens = len(ids)
    relevance = np.eye(n_tokens)
    for attention, gradient in zip(output.attentions, gradients, strict=True):
        heads = attention[0].detach().double().numpy()
        slopes = gradient[0].double().numpy()
        mean = np.zeros((n_tokens, n_tokens))
        for head, slope in zip(heads, slopes, strict=True):
            for query in range(n_tokens):
                for key in range(n_tokens):
                    product = slope[query, key] * head[query, key]
                    mean[query, key] += max(product, 0.0) / len(heads)
        relevance = relevance + np.matmul(mean, relevance)
    return relevance[0]
