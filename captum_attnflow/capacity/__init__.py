"""From attention to capacities, and from capacities to the network.

Pure batched functions, one equation each.
"""

from captum_attnflow.capacity.build import build_network
from captum_attnflow.capacity.information import (
    INFORMATION,
    Information,
    information_tensor,
    message_tensor,
    refuse_other_shapes,
)
from captum_attnflow.capacity.residual import Residual, add_residual, check_residual

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
