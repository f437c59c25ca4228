"""From attention to capacities, and from capacities to the network.

Pure batched functions, one equation each.
"""

from captum_attnflow.flow.build import build_network
from captum_attnflow.flow.information import (
    INFORMATION,
    Information,
    information_tensor,
    message_tensor,
    refuse_other_shapes,
)
from captum_attnflow.flow.residual import Residual, add_residual, check_residual

__all__ = [
    "INFORMATION",
    "Information",
    "Residual",
    "add_residual",
    "build_network",
    "check_residual",
    "information_tensor",
    "message_tensor",
    "refuse_other_shapes",
]
