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
    """Give a value the gradient of a rewrite of it.

    Args:
        value (Tensor): No view, and of no use without its new gradient.
        rewrite (Tensor): In the autograd graph.

    Returns:
        Tensor: The value itself, which a model may change in place.
    """
    substituted: Tensor = _Substituted.apply(  # type: ignore[no-untyped-call]
        rewrite, value.detach_()
    )
    return substituted


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.detach()  # no view, whose base must not be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _Substituted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rewrite: Tensor, value: Tensor) -> Tensor:
        ctx.mark_dirty(value)  # it would be a view otherwise
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# Their names in the autograd graph.
OWN_NODES = {"_ScaledBackward", "_SubstitutedBackward"}
