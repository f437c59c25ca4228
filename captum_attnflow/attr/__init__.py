"""What a Captum user calls: one attribution method per file.

Each name is imported when it is first read: one method loads no other, and SLALOM,
which has a room of its own and derives from the bases here, closes no circle.
"""

from typing import TYPE_CHECKING

from captum_attnflow._lazy import lazy_names

if TYPE_CHECKING:
    from captum_attnflow.attr.attention_flow import AttentionFlow, LayerAttentionFlow
    from captum_attnflow.attr.attention_rollout import (
        AttentionRollout,
        LayerAttentionRollout,
    )
    from captum_attnflow.attr.attn_lrp import AttnLRP, LayerAttnLRP
    from captum_attnflow.attr.base import (
        AttentionAttribution,
        LayerAttentionAttribution,
    )
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
else:
    _MODULES = {
        "captum_attnflow.attr.attention_flow": (
            "AttentionFlow",
            "LayerAttentionFlow",
        ),
        "captum_attnflow.attr.attention_rollout": (
            "AttentionRollout",
            "LayerAttentionRollout",
        ),
        "captum_attnflow.attr.attn_lrp": ("AttnLRP", "LayerAttnLRP"),
        "captum_attnflow.attr.base": (
            "AttentionAttribution",
            "LayerAttentionAttribution",
        ),
        "captum_attnflow.attr.chefer_relevance": (
            "CheferRelevance",
            "LayerCheferRelevance",
        ),
        "captum_attnflow.attr.generalized_attention_flow": (
            "GeneralizedAttentionFlow",
            "LayerGeneralizedAttentionFlow",
        ),
        "captum_attnflow.attr.generation": ("GenerationAttribution",),
        "captum_attnflow.attr.relevance_flow": ("LayerRelevanceFlow", "RelevanceFlow"),
        "captum_attnflow.slalom.attribution": ("SLALOM",),
        "captum_attnflow.slalom.layer": ("LayerSLALOM",),
    }
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)

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
