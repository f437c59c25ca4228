r"""The attribution methods of a study, by name, with the settings they run with.

One method is one entry of :data:`METHODS`: a function of a batch of texts and the
entry's settings that returns one score per token, ``(B, T)``, for the predicted class's
logit. Scores of special tokens and padding are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from captum._utils.models.linear_model import SkLearnLasso
from captum.attr import (
    DeepLift,
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerIntegratedGradients,
    Lime,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_attnflow.attr import (
    AttentionAttribution,
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
)
from captum_attnflow.capacity.information import information_tensor
from captum_attnflow.capture import AttentionRecord, capture_attention
from captum_attnflow.study.batch import TextBatch

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Method:
    """An attribution method with documented settings.

    Attributes:
        scores (Callable): Takes a batch and the settings, returns scores ``(B, T)``.
        description (str): What it computes.
        settings (mapping): Passed to ``scores``; JSON values.
        batched (bool): Takes several texts at once. If not, it is given one text at
            a time and a seed of its own for each, as methods with random numbers need.
        needs (str, optional): A package of the extra ``study`` that it imports.
    """

    scores: Callable[..., Tensor]
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True
    needs: str | None = None


def attention_method(method: type[AttentionAttribution]) -> Callable[..., Tensor]:
    """Run a method of this package; the settings are those of its constructor."""

    def scores(batch: TextBatch, **settings: Any) -> Tensor:
        attributions: Tensor = method(batch.forward, **settings).attribute(
            batch.ids, target=batch.predicted, additional_forward_args=batch.arguments
        )
        return attributions

    return scores


def embedding_method(
    method: Callable[..., Any], has_baseline: bool
) -> Callable[..., Tensor]:
    """Run a method of Captum on word embeddings; scores are sums over features.

    The baseline is the embedding of the reference token at every token that can be
    removed. The settings are those of ``attribute``.
    """

    def scores(batch: TextBatch, **settings: Any) -> Tensor:
        words = batch.model.get_input_embeddings()
        if has_baseline:
            settings["baselines"] = words(batch.reference_ids).detach()
        attributions: Tensor = method(_FromEmbeddings(batch)).attribute(
            words(batch.ids).detach().requires_grad_(),
            target=batch.predicted,
            additional_forward_args=batch.arguments,
            **settings,
        )
        return attributions.detach().sum(-1)

    return scores


class _FromEmbeddings(nn.Module):
    """The classifier as a module of word embeddings; DeepLift takes modules only."""

    def __init__(self, batch: TextBatch) -> None:
        super().__init__()
        self.model = batch.model
        self.names = tuple(batch.others)

    def forward(self, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        others = dict(zip(self.names, arguments, strict=True))
        logits: Tensor = self.model(inputs_embeds=embeddings, **others).logits
        return logits


def _layer_integrated_gradients(batch: TextBatch, **settings: Any) -> Tensor:
    body = batch.model.base_model
    layer = getattr(body, "embeddings", batch.model.get_input_embeddings())
    attributions: Tensor = LayerIntegratedGradients(batch.forward, layer).attribute(
        batch.ids,
        baselines=batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
        internal_batch_size=_ROWS_AT_ONCE,
        **settings,
    )
    return attributions.sum(-1)


def perturbation_method(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """Run a method of Captum that replaces token ids by the reference token.

    One feature per token that can be removed. The settings are those of ``attribute``.
    """

    def scores(batch: TextBatch, **settings: Any) -> Tensor:
        removable = ~(batch.special | batch.padding)
        # Special tokens share a feature with the first word; they are their own
        # baseline, so that this costs no evaluation and changes none.
        features = (removable.cumsum(1) - 1).clamp_min(0) * removable
        attributions: Tensor = method(batch.forward).attribute(
            batch.ids,
            baselines=batch.reference_ids,
            target=batch.predicted,
            additional_forward_args=batch.arguments,
            feature_mask=features,
            perturbations_per_eval=_ROWS_AT_ONCE,
            **settings,
        )
        return attributions

    return scores


def lime_kernel(kept: Tensor, kernel_width: float) -> float:
    """Weigh a perturbed text as LIME's text explainer does.

    By a Gaussian of 100 times the cosine distance between the tokens kept and all.

    Args:
        kept (Tensor): Shape ``(1, n)``, 1 for every token kept.
        kernel_width (float): Width of the kernel.
    """
    distance = 100 * (1 - math.sqrt(kept.double().mean().item()))
    return math.exp(-((distance / kernel_width) ** 2) / 2)


def _lime(
    batch: TextBatch, alpha: float, kernel_width: float, **settings: Any
) -> Tensor:
    def similarity(original: Any, perturbed: Any, kept: Tensor, **_: Any) -> float:
        return lime_kernel(kept, kernel_width)

    def method(forward: Callable[..., Any]) -> Lime:
        return Lime(forward, SkLearnLasso(alpha=alpha), similarity_func=similarity)

    return perturbation_method(method)(batch, **settings)


def _capture(batch: TextBatch) -> tuple[AttentionRecord, Tensor]:
    """Attention with its gradients, and the share of each read-out position."""
    record = capture_attention(
        batch.forward, (batch.ids,), batch.predicted, batch.arguments
    )
    share = record.read_out().double()
    return record, share / share.sum(1, keepdim=True).clamp_min(1)


def _last_layer_attention(batch: TextBatch) -> Tensor:
    record, read_out = _capture(batch)
    last = information_tensor(record, "AF")[:, -1]  # (B, T, T)
    return torch.einsum("bi,bij->bj", read_out, last)


def _chefer_relevance(batch: TextBatch) -> Tensor:
    r"""Relevance of Chefer et al. (ICCV 2021), at the read-out positions.

    Their rule for self-attention: :math:`\bar A = E_h((\nabla A \odot A)_+)`,
    :math:`R \leftarrow R + \bar A R` layer by layer, from :math:`R = I`.
    """
    record, read_out = _capture(batch)
    layers = information_tensor(record, "AGF")  # (B, L, T, T)
    relevance = torch.eye(record.n_tokens, dtype=layers.dtype).to(layers)
    for layer in layers.unbind(1):
        relevance = relevance + layer @ relevance
    return torch.einsum("bi,bij->bj", read_out, relevance)


def _random(batch: TextBatch) -> Tensor:
    return torch.rand(batch.ids.shape)


METHODS: dict[str, Method] = {
    "generalized-attention-flow": Method(
        attention_method(GeneralizedAttentionFlow),
        "GeneralizedAttentionFlow in the paper's form",
        {"information": "AGF", "residual": None, "game": "joint"},
    ),
    "generalized-attention-flow-free": Method(
        attention_method(GeneralizedAttentionFlow),
        "GeneralizedAttentionFlow with free residual edges, one flow per token",
        {"information": "AGF", "residual": "free", "game": "independent"},
    ),
    "attention-flow": Method(
        attention_method(AttentionFlow),
        "AttentionFlow",
        {"residual": 0.5, "game": "independent"},
    ),
    "attention-rollout": Method(
        attention_method(AttentionRollout), "AttentionRollout", {"residual": 0.5}
    ),
    "last-layer-attention": Method(
        _last_layer_attention,
        "attention of the last layer at the read-out position, mean over heads",
    ),
    "chefer-relevance": Method(
        _chefer_relevance,
        "relevance propagation of Chefer et al. (2021) at the read-out position",
    ),
    "integrated-gradients": Method(
        embedding_method(IntegratedGradients, has_baseline=True),
        "Captum's IntegratedGradients on word embeddings",
        {"n_steps": 50, "internal_batch_size": _ROWS_AT_ONCE},
    ),
    "layer-integrated-gradients": Method(
        _layer_integrated_gradients,
        "Captum's LayerIntegratedGradients at the output of the embeddings",
        {"n_steps": 50},
    ),
    "input-x-gradient": Method(
        embedding_method(InputXGradient, has_baseline=False),
        "Captum's InputXGradient on word embeddings",
    ),
    "saliency": Method(
        embedding_method(Saliency, has_baseline=False),
        "Captum's Saliency on word embeddings, sum of absolute gradients",
        {"abs": True},
    ),
    "deep-lift": Method(
        embedding_method(DeepLift, has_baseline=True),
        "Captum's DeepLift on word embeddings; softmax and LayerNorm by gradients",
    ),
    "feature-ablation": Method(
        perturbation_method(FeatureAblation),
        "Captum's FeatureAblation of token ids",
        batched=False,
    ),
    "shapley-value-sampling": Method(
        perturbation_method(ShapleyValueSampling),
        "Captum's ShapleyValueSampling over token ids",
        {"n_samples": 25},
        batched=False,
    ),
    "kernel-shap": Method(
        perturbation_method(KernelShap),
        "Captum's KernelShap over token ids",
        {"n_samples": 200},
        batched=False,
        needs="scikit-learn",
    ),
    "lime": Method(
        _lime,
        "Captum's Lime over token ids, with LIME's kernel for text",
        {"n_samples": 200, "alpha": 0.01, "kernel_width": 25},
        batched=False,
        needs="scikit-learn",
    ),
    "random": Method(_random, "uniform random scores", batched=False),
}
