"""What the model computed: attention maps and their gradients.

This room knows torch and Captum, never a flow.
"""

from captum_attnflow.capture.attention import capture_attention
from captum_attnflow.capture.elements import tokens_of_elements
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.record import AttentionRecord, UnsupportedAttentionError

__all__ = [
    "AttentionRecord",
    "InputPath",
    "UnsupportedAttentionError",
    "capture_attention",
    "tokens_of_elements",
]
