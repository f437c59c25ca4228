"""What the model computed: attention maps and their gradients.

This room knows torch and Captum, never a flow.
"""

from captum_attnflow.capture.attention import capture_attention, capture_targets
from captum_attnflow.capture.attention_layer import (
    AttentionLayer,
    DenseLayer,
    FusedLayer,
)
from captum_attnflow.capture.elements import tokens_of_elements
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.record import (
    AttentionRecord,
    Route,
    TokenSequence,
    UnsupportedAttentionError,
)

__all__ = [
    "AttentionLayer",
    "AttentionRecord",
    "DenseLayer",
    "FusedLayer",
    "InputPath",
    "Route",
    "TokenSequence",
    "UnsupportedAttentionError",
    "capture_attention",
    "capture_targets",
    "tokens_of_elements",
]
