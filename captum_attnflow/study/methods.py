"""The attribution methods of a study, by name, with the settings they run with.

Those of :data:`captum_attnflow.pipelines.methods.METHODS` are the same here. A name
that begins with ``layer-`` is the same method at the output of the embeddings. The
settings are what a method runs with and what the manifest records. How it is run stands
in :mod:`captum_attnflow.study.adapters`, which is imported when a method runs, so that
names and settings can be read without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from captum_attnflow.pipelines.methods import solves_flows

if TYPE_CHECKING:
    from torch import Tensor

    from captum_attnflow.study.adapters import TextBatch

_ROWS_AT_ONCE = 64  # in one forward pass of Integrated Gradients


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
        solves_flows (bool): Is compiled before its first text.
    """

    scores: Callable[..., Tensor]
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True
    needs: str | None = None
    solves_flows: bool = False


def _run(module: str, function: str, batch: TextBatch, **settings: Any) -> Tensor:
    """Call a function of a module of this folder, which is imported for it."""
    found = getattr(import_module(f"captum_attnflow.study.{module}"), function)
    scores: Tensor = found(batch, **settings)
    return scores


def _adapter(function: str, **given: Any) -> Callable[..., Tensor]:
    return partial(_run, "adapters", function, **given)


def _own(method: str, description: str, **settings: Any) -> Method:
    return Method(
        _adapter("own_method", method=method),
        description,
        settings,
        solves_flows=solves_flows(method, settings),
    )


def _own_layer(method: str, **settings: Any) -> Method:
    return Method(
        _adapter("own_layer_method", method=method),
        f"{method} at the output of the embeddings",
        settings,
        solves_flows=solves_flows(method, settings),
    )


def _of_embeddings(
    class_name: str, description: str, has_baseline: bool, **settings: Any
) -> Method:
    """A gradient method of Captum, at the word embeddings."""
    scores = _adapter("embedding_method", method=class_name, has_baseline=has_baseline)
    return Method(scores, f"Captum's {class_name} {description}", settings)


def _by_removal(
    class_name: str, description: str, needs: str | None = None, **settings: Any
) -> Method:
    """A perturbation method of Captum, which replaces token ids."""
    return Method(
        _adapter("perturbation_method", method=class_name),
        f"Captum's {class_name} {description}",
        settings,
        batched=False,
        needs=needs,
    )


METHODS: dict[str, Method] = {
    "relevance-flow": _own(
        "relevance-flow",
        "RelevanceFlow by AttnLRP's rules",
        rules="attnlrp",
        path_steps=1,
        flow="conserved",
    ),
    "relevance-flow-cp": _own(
        "relevance-flow",
        "RelevanceFlow by CP-LRP's rules",
        rules="cp-lrp",
        path_steps=1,
        flow="conserved",
    ),
    "relevance-flow-0": _own(
        "relevance-flow",
        "RelevanceFlow without a path, one row per text",
        rules="attnlrp",
        path_steps=0,
        flow="conserved",
    ),
    "relevance-flow-maximum": _own(
        "relevance-flow",
        "maximum flows over signed relevance by the plain gradient, a path of 2 steps",
        rules="gradient",
        path_steps=2,
        flow="maximum",
    ),
    "attnlrp": _own("attnlrp", "AttnLRP", rules="attnlrp"),
    "cp-lrp": _own("attnlrp", "AttnLRP by CP-LRP's rules", rules="cp-lrp"),
    "layer-relevance-flow": _own_layer(
        "relevance-flow", rules="attnlrp", path_steps=1, flow="conserved"
    ),
    "layer-relevance-flow-cp": _own_layer(
        "relevance-flow", rules="cp-lrp", path_steps=1, flow="conserved"
    ),
    "layer-relevance-flow-0": _own_layer(
        "relevance-flow", rules="attnlrp", path_steps=0, flow="conserved"
    ),
    "layer-relevance-flow-maximum": _own_layer(
        "relevance-flow", rules="gradient", path_steps=2, flow="maximum"
    ),
    "layer-attnlrp": _own_layer("attnlrp", rules="attnlrp"),
    "layer-cp-lrp": _own_layer("attnlrp", rules="cp-lrp"),
    "generalized-attention-flow": _own(
        "generalized-attention-flow",
        "GeneralizedAttentionFlow in the paper's form",
        information="AGF",
        residual=None,
        game="joint",
    ),
    "generalized-attention-flow-free": _own(
        "generalized-attention-flow",
        "GeneralizedAttentionFlow with free residual edges, one flow per token",
        information="AGF",
        residual="free",
        game="independent",
    ),
    "generalized-attention-flow-attnlrp": _own(
        "generalized-attention-flow",
        "GeneralizedAttentionFlow over AttnLRP's gradients, free residual edges, one "
        "flow per token",
        information="AGF",
        residual="free",
        game="independent",
        gradient="attnlrp",
    ),
    "attention-flow": _own(
        "attention-flow", "AttentionFlow", residual=0.5, game="independent"
    ),
    "attention-rollout": _own("attention-rollout", "AttentionRollout", residual=0.5),
    "chefer-relevance": _own(
        "chefer-relevance",
        "relevance propagation of Chefer et al. (2021) at the read-out position",
    ),
    "slalom": Method(
        _adapter("slalom"),
        "SLALOM of this package, contributions",
        {"strategy": "eff", "score": "contribution"},
        batched=False,
    ),
    "last-layer-attention": Method(
        _adapter("last_layer_attention"),
        "attention of the last layer at the read-out position, mean over heads",
    ),
    "decompx": Method(
        partial(_run, "vectors", "decompx"),
        "DecompX (Modarressi et al. 2023): parts of the logit, from the weights of "
        "BERT-like and GPT-2-like models",
    ),
    "ifr": Method(
        partial(_run, "vectors", "information_flow_routes"),
        "information flow routes (Ferrando & Voita 2024): shares of messages in L1, "
        "from the weights of BERT-like, GPT-2-like and Llama-like models",
    ),
    "integrated-gradients": _of_embeddings(
        "IntegratedGradients",
        "on word embeddings",
        has_baseline=True,
        n_steps=50,
        internal_batch_size=_ROWS_AT_ONCE,
    ),
    "layer-integrated-gradients": Method(
        _adapter("layer_integrated_gradients"),
        "Captum's LayerIntegratedGradients at the output of the embeddings",
        {"n_steps": 50, "internal_batch_size": _ROWS_AT_ONCE},
    ),
    "input-x-gradient": _of_embeddings(
        "InputXGradient", "on word embeddings", has_baseline=False
    ),
    "saliency": _of_embeddings(
        "Saliency",
        "on word embeddings, sum of absolute gradients",
        has_baseline=False,
        abs=True,
    ),
    "deep-lift": _of_embeddings(
        "DeepLift",
        "on word embeddings; softmax and LayerNorm by gradients",
        has_baseline=True,
    ),
    "feature-ablation": _by_removal("FeatureAblation", "of token ids"),
    "shapley-value-sampling": _by_removal(
        "ShapleyValueSampling", "over token ids", n_samples=25
    ),
    "kernel-shap": _by_removal(
        "KernelShap", "over token ids", "scikit-learn", n_samples=200
    ),
    "lime": Method(
        _adapter("lime"),
        "Captum's Lime over token ids, with LIME's kernel for text",
        {"n_samples": 200, "alpha": 0.01, "kernel_width": 25},
        batched=False,
        needs="scikit-learn",
    ),
    "random": Method(_adapter("random_scores"), "uniform random scores", batched=False),
}
"""For each name in a table, the method and its settings."""
