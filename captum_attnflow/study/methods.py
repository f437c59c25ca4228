"""The attribution methods of a study, by name, with the settings they run with.

One method is one entry of :data:`METHODS`; the settings are what it runs with and what
the manifest records. How it is run stands in :mod:`captum_attnflow.study.adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum.attr import (
    DeepLift,
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor

from captum_attnflow.attr import (
    AttentionFlow,
    AttentionRollout,
    CheferRelevance,
    GeneralizedAttentionFlow,
    LayerAttnLRP,
    LayerRelevanceFlow,
)
from captum_attnflow.study.adapters import (
    ROWS_AT_ONCE,
    attention_method,
    embedding_method,
    last_layer_attention,
    layer_integrated_gradients,
    layer_method,
    lime,
    perturbation_method,
    random_scores,
    slalom,
)
from captum_attnflow.study.decompx import decompx
from captum_attnflow.study.ifr import information_flow_routes


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


METHODS: dict[str, Method] = {
    "relevance-flow": Method(
        layer_method(LayerRelevanceFlow),
        "LayerRelevanceFlow at the output of the embeddings",
        {"rules": "attnlrp", "path_steps": 1, "flow": "conserved"},
    ),
    "relevance-flow-cp": Method(
        layer_method(LayerRelevanceFlow),
        "LayerRelevanceFlow by CP-LRP's rules",
        {"rules": "cp-lrp", "path_steps": 1, "flow": "conserved"},
    ),
    "relevance-flow-0": Method(
        layer_method(LayerRelevanceFlow),
        "LayerRelevanceFlow without a path, one row per text",
        {"rules": "attnlrp", "path_steps": 0, "flow": "conserved"},
    ),
    "relevance-flow-maximum": Method(
        layer_method(LayerRelevanceFlow),
        "maximum flows over signed relevance by the plain gradient, a path of 2 steps",
        {"rules": "gradient", "path_steps": 2, "flow": "maximum"},
    ),
    "attnlrp": Method(
        layer_method(LayerAttnLRP),
        "LayerAttnLRP at the output of the embeddings",
        {"rules": "attnlrp"},
    ),
    "cp-lrp": Method(
        layer_method(LayerAttnLRP),
        "LayerAttnLRP by CP-LRP's rules",
        {"rules": "cp-lrp"},
    ),
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
    "generalized-attention-flow-attnlrp": Method(
        attention_method(GeneralizedAttentionFlow),
        "GeneralizedAttentionFlow over AttnLRP's gradients, free residual edges, one "
        "flow per token",
        {
            "information": "AGF",
            "residual": "free",
            "game": "independent",
            "gradient": "attnlrp",
        },
    ),
    "attention-flow": Method(
        attention_method(AttentionFlow),
        "AttentionFlow",
        {"residual": 0.5, "game": "independent"},
    ),
    "attention-rollout": Method(
        attention_method(AttentionRollout), "AttentionRollout", {"residual": 0.5}
    ),
    "slalom": Method(
        slalom,
        "SLALOM of this package, contributions",
        {"strategy": "eff", "score": "contribution"},
        batched=False,
    ),
    "last-layer-attention": Method(
        last_layer_attention,
        "attention of the last layer at the read-out position, mean over heads",
    ),
    "chefer-relevance": Method(
        attention_method(CheferRelevance),
        "relevance propagation of Chefer et al. (2021) at the read-out position",
    ),
    "decompx": Method(
        decompx,
        "DecompX (Modarressi et al. 2023): parts of the logit, from the weights of "
        "BERT-like and GPT-2-like models",
    ),
    "ifr": Method(
        information_flow_routes,
        "information flow routes (Ferrando & Voita 2024): shares of messages in L1, "
        "from the weights of BERT-like, GPT-2-like and Llama-like models",
    ),
    "integrated-gradients": Method(
        embedding_method(IntegratedGradients, has_baseline=True),
        "Captum's IntegratedGradients on word embeddings",
        {"n_steps": 50, "internal_batch_size": ROWS_AT_ONCE},
    ),
    "layer-integrated-gradients": Method(
        layer_integrated_gradients,
        "Captum's LayerIntegratedGradients at the output of the embeddings",
        {"n_steps": 50, "internal_batch_size": ROWS_AT_ONCE},
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
        lime,
        "Captum's Lime over token ids, with LIME's kernel for text",
        {"n_samples": 200, "alpha": 0.01, "kernel_width": 25},
        batched=False,
        needs="scikit-learn",
    ),
    "random": Method(random_scores, "uniform random scores", batched=False),
}
