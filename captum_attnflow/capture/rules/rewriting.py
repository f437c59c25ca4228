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


def substitute(
    value: Tensor,
    x: Tensor,
    factor: Tensor,
    centred_over: tuple[int, ...] = (),
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    r"""Give a value the gradient of :math:`f\, (x - E[x])`, with a constant :math:`f`.

    Args:
        value (Tensor): No view, and of no use without its new gradient.
        x (Tensor): In the autograd graph, of the value's shape.
        factor (Tensor): :math:`f`, broadcastable to ``shape``.
        centred_over (tuple of int): The dimensions of :math:`E[x]`; none for
            :math:`f\, x`.
        shape (tuple of int, optional): In which ``x`` is centred and multiplied; its
            own by default.

    Returns:
        Tensor: The value itself, which a model may change in place.
    """
    substituted: Tensor = _Substituted.apply(  # type: ignore[no-untyped-call]
        x, value.detach_(), factor, centred_over, shape or x.shape
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
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        factor: Tensor,
        centred_over: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> Tensor:
        ctx.dtype, ctx.factor = x.dtype, factor
        ctx.centred_over, ctx.shape = centred_over, shape
        ctx.mark_dirty(value)  # it would be a view otherwise
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_x = gradient.reshape(ctx.shape) * ctx.factor
        if ctx.centred_over:
            of_x = of_x - of_x.mean(ctx.centred_over, keepdim=True)
        return of_x.reshape(gradient.shape).to(ctx.dtype), None, None, None, None


# Their names in the autograd graph.
OWN_NODES = {"_ScaledBackward", "_SubstitutedBackward"}
