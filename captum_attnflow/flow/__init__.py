"""From attention to capacities, to the network, to flows, to token scores.

Pure batched functions, one equation each.
"""

from captum_attnflow.flow.information import (
    INFORMATION,
    Information,
    Residual,
    add_residual,
    build_network,
    check_residual,
    information_tensor,
    message_sums,
    message_tensor,
    refuse_other_shapes,
)
from captum_attnflow.flow.solvers.barrier.compilation import compile_kernels

__all__ = [
    "INFORMATION",
    "Information",
    "Residual",
    "add_residual",
    "build_network",
    "check_residual",
    "compile_kernels",
    "information_tensor",
    "message_sums",
    "message_tensor",
    "refuse_other_shapes",
]
