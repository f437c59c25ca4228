"""What a Captum user calls: one attribution method per file."""

from captum.attr import LLMGradientAttribution

from captum_attnflow.attr._base import AttentionAttribution
from captum_attnflow.attr._layer import LayerAttentionAttribution
from captum_attnflow.attr.attention_flow import AttentionFlow, LayerAttentionFlow
from captum_attnflow.attr.attention_rollout import (
    AttentionRollout,
    LayerAttentionRollout,
)
from captum_attnflow.attr.generalized_attention_flow import (
    GeneralizedAttentionFlow,
    LayerGeneralizedAttentionFlow,
)
from captum_attnflow.attr.relevance_flow import LayerRelevanceFlow, RelevanceFlow

# Captum admits methods to its LLM wrapper by this list of classes.
LLMGradientAttribution.SUPPORTED_METHODS += (LayerAttentionAttribution,)

__all__ = [
    "AttentionAttribution",
    "AttentionFlow",
    "AttentionRollout",
    "GeneralizedAttentionFlow",
    "LayerAttentionAttribution",
    "LayerAttentionFlow",
    "LayerAttentionRollout",
    "LayerGeneralizedAttentionFlow",
    "LayerRelevanceFlow",
    "RelevanceFlow",
]
