"""What the model computed: attention maps and their gradients.

This room knows torch and Captum, never a flow.
"""

from captum_attnflow.capture.forward import capture_attention, capture_targets
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.record import (
    AttentionLayer,
    AttentionMaps,
    AttentionRecord,
    DenseLayer,
    FusedLayer,
    InputRelevance,
    Propagation,
    Route,
    TokenSequence,
    UnsupportedAttentionError,
)
from captum_attnflow.capture.rules import RULES, Rules

__all__ = [
    "AttentionLayer",
    "AttentionMaps",
    "AttentionRecord",
    "DenseLayer",
    "FusedLayer",
    "InputPath",
    "InputRelevance",
    "Propagation",
    "RULES",
    "Route",
    "Rules",
    "TokenSequence",
    "UnsupportedAttentionError",
    "capture_attention",
    "capture_targets",
]
