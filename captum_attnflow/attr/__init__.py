"""What a Captum user calls: one attribution method per file."""

from captum_attnflow.attr.attention_flow import AttentionFlow, LayerAttentionFlow
from captum_attnflow.attr.attention_rollout import (
    AttentionRollout,
    LayerAttentionRollout,
)
from captum_attnflow.attr.attn_lrp import AttnLRP, LayerAttnLRP
from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.attr.chefer_relevance import (
    CheferRelevance,
    LayerCheferRelevance,
)
from captum_attnflow.attr.generalized_attention_flow import (
    GeneralizedAttentionFlow,
    LayerGeneralizedAttentionFlow,
)
from captum_attnflow.attr.generation import GenerationAttribution
from captum_attnflow.attr.relevance_flow import LayerRelevanceFlow, RelevanceFlow
from captum_attnflow.slalom.attribution import SLALOM
from captum_attnflow.slalom.layer import LayerSLALOM

__all__ = [
    "AttentionAttribution",
    "AttentionFlow",
    "AttentionRollout",
    "AttnLRP",
    "CheferRelevance",
    "GeneralizedAttentionFlow",
    "GenerationAttribution",
    "LayerAttentionAttribution",
    "LayerAttentionFlow",
    "LayerAttentionRollout",
    "LayerAttnLRP",
    "LayerCheferRelevance",
    "LayerGeneralizedAttentionFlow",
    "LayerRelevanceFlow",
    "LayerSLALOM",
    "RelevanceFlow",
    "SLALOM",
]
