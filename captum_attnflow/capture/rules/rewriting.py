"""The same values with another gradient: what all rules are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return the same values; the gradient in them is scaled."""
    if factor == 1:
        return x
    scaled: Tensor = _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled


def substitute(value: Tensor, rewrite: Tensor) -> Tensor:
    """Return a value whose gradient is that of a rewrite of it."""
    substituted: Tensor = _Substituted.apply(  # type: ignore[no-untyped-call]
        rewrite, value.detach()
    )
    return substituted


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _Substituted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rewrite: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# Their names in the autograd graph.
OWN_NODES = {"_ScaledBackward", "_SubstitutedBackward"}
