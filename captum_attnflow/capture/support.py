"""Which attention can be captured, in words for those whose is not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from captum_attnflow.capture.record import UnsupportedAttentionError

_SUPPORTED = (
    "Supported is softmax attention that runs as torch operations in the calling "
    "thread (torch.nn.MultiheadAttention, F.scaled_dot_product_attention, or written "
    "out: a softmax, or exponentials divided by their sum, then matmul, einsum, or "
    "multiply and sum). Not seen are TorchScript, flash and flex kernels (load a "
    'transformers model with attn_implementation="sdpa" or "eager"), and models that '
    "run in worker "
    "threads (pass DataParallel's .module). A model without attention, such as a "
    "convolutional network, has nothing that a flow could follow: take SLALOM or "
    "IntegratedGradients"
)
_SCRIPT = (
    "It is TorchScript, whose operations cannot be seen: pass the Python model that it "
    "was traced or scripted from"
)


def why_none_is_found(forward_func: Callable[..., Any]) -> str:
    """Say why a forward function may have shown no attention, and what to do."""
    parts = forward_func.modules() if isinstance(forward_func, nn.Module) else ()
    script = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    is_script = any(isinstance(part, script) for part in (forward_func, *parts))
    return _SCRIPT if is_script else _SUPPORTED


def refuse_kernels_without_gradient(kernels: Collection[str]) -> None:
    """Refuse a pass in which integer-quantised kernels cut the gradient off.

    Raises:
        UnsupportedAttentionError: If there are any.
    """
    if kernels:
        raise UnsupportedAttentionError(
            f"integer-quantised kernels have no gradient ({', '.join(sorted(kernels))})"
            ", so that what passes through them would have no score. Load the model in "
            "float32, bfloat16 or float16"
        )
