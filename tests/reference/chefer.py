"""Relevance propagation of Chefer et al. (2021), from transformers' own attentions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def relevance_of(model: nn.Module, ids: Tensor, read: tuple[int, ...]) -> np.ndarray:
    """All rows of R for one text, ``ids`` of shape ``(T,)``; the model is eager.

    ``read`` selects from the text's logits.
    """
    with torch.enable_grad():
        output = model(ids[None], output_attentions=True)
        maps = _weighed(output.logits[0][read], output.attentions)
    relevance = np.eye(len(ids))
    for layer in maps:
        relevance = relevance + np.matmul(layer, relevance)
    return relevance


def relevance_of_both_sides(
    model: nn.Module, encoder_ids: Tensor, decoder_ids: Tensor, read: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """R of the encoder's tokens and of the decoder's, in rows of the decoder's."""
    with torch.enable_grad():
        output = model(
            input_ids=encoder_ids[None],
            decoder_input_ids=decoder_ids[None],
            output_attentions=True,
        )
        kinds = (
            output.encoder_attentions,
            output.decoder_attentions,
            output.cross_attentions,
        )
        selected = output.logits[0][read]
        below, above, across = (_weighed(selected, maps) for maps in kinds)
    r_ee, r_dd = np.eye(len(encoder_ids)), np.eye(len(decoder_ids))
    r_de = np.zeros((len(decoder_ids), len(encoder_ids)))
    for layer in below:
        r_ee = r_ee + layer @ r_ee
    for self_attention, cross_attention in zip(above, across, strict=True):
        r_dd, r_de = r_dd + self_attention @ r_dd, r_de + self_attention @ r_de
        r_de = r_de + _normalised(r_dd).T @ cross_attention @ _normalised(r_ee)
    return r_de, r_dd


def _weighed(selected: Tensor, attentions: Sequence[Tensor]) -> list[np.ndarray]:
    """The mean over heads of what is positive of gradient times attention."""
    gradients = torch.autograd.grad(selected, attentions, retain_graph=True)
    layers = []
    for attention, gradient in zip(attentions, gradients, strict=True):
        heads = attention[0].detach().double().numpy()
        slopes = gradient[0].double().numpy()
        mean = np.zeros(heads.shape[1:])
        for head, slope in zip(heads, slopes, strict=True):
            for query in range(mean.shape[0]):
                for key in range(mean.shape[1]):
                    product = slope[query, key] * head[query, key]
                    mean[query, key] += max(product, 0.0) / len(heads)
        layers.append(mean)
    return layers


def _normalised(relevance: np.ndarray) -> np.ndarray:
    result = np.eye(len(relevance))
    for row in range(len(relevance)):
        added = relevance[row] - np.eye(len(relevance))[row]
        if added.sum() > 0:
            result[row] += added / added.sum()
    return result
