"""Rules of what acts element by element: activations, products, quotients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_attnflow.capture.rules.call import Call, scale_gradient, substitute
from captum_attnflow.capture.rules.contraction import contract
from captum_attnflow.capture.rules.tracking import ElementwiseFunction

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules

# What deviations are made of, too: one of them makes no activation yet.
_NOT_CURVED = {"clamp", "clamp_max", "clamp_min", "sqrt"}


def identity(rules: PropagationRules, call: Call) -> Any:
    """Elementwise functions of one operand that depends on the tokens."""
    output = secant(rules, call, curves=call.name not in _NOT_CURVED)
    if output is None:
        return call.run()
    rules.gates.follow(call, output)
    return output


def shift_or_scale(rules: PropagationRules, call: Call) -> Any:
    """Sums, and products with constants: linear.

    An elementwise function, shifted or scaled by one number or scaled by a vector,
    stays one. Shifted by a vector, such as the bias of a linear layer, it is what an
    activation is applied to: a root.
    """
    output = call.run()
    constants = [arg for arg in call.tensors() if not rules.is_active(arg)]
    if call.name in SHIFTS and any(constant.numel() > 1 for constant in constants):
        return output
    function = rules.functions.compose(call, output, rules.is_active, curves=False)
    if function is not None:
        rules.functions.note(output, function)
    elif call.name in SHIFTS:
        rules.note_sum(call, output)
    if call.name not in SHIFTS:
        rules.gates.follow(call, output)
    return output


def product(rules: PropagationRules, call: Call) -> Any:
    """Elementwise products: of one tensor's functions, with a gate, or of two."""
    (left, a), (right, b) = call.operand(0, "input"), call.operand(1, "other")
    if not (rules.is_active(a) and rules.is_active(b)):
        return shift_or_scale(rules, call)
    if rules.share_of(a) is not None or rules.share_of(b) is not None:
        return contract(rules, call, [(left, a), (right, b)])
    output = secant(rules, call)
    if output is not None:
        return output
    for place, operand in ((left, a), (right, b)):
        if operand in rules.gates:
            rules.note("gate", call)
            return call.with_arguments({place: operand.detach()}).run()
    rules.note("uniform", call)
    return call.with_arguments(
        {left: scale_gradient(a, 0.5), right: scale_gradient(b, 0.5)}
    ).run()


def quotient(rules: PropagationRules, call: Call) -> Any:
    """Division: what divides is a constant, as the deviation in a norm."""
    (_, a), (right, b) = call.operand(0, "input"), call.operand(1, "other")
    if not rules.is_active(b):
        return shift_or_scale(rules, call)
    if not rules.is_active(a):
        return reciprocal(rules, call)
    output = secant(rules, call)
    if output is None:
        rules.note("normalisation", call)
        output = call.with_arguments({right: b.detach()}).run()
    if a in rules.gates:
        rules.gates.mark(output)
    return output


def power(rules: PropagationRules, call: Call) -> Any:
    """Powers: elementwise, but a negative one divides."""
    (_, base), (_, exponent) = call.operand(0, "input"), call.operand(1, "exponent")
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        exponent = None if rules.is_active(exponent) else exponent.item()
    if not rules.is_active(base) or not isinstance(exponent, (int, float)):
        return identity(rules, call)
    if exponent < 0:
        return reciprocal(rules, call)
    output = secant(rules, call, curves=exponent != 0.5)
    return call.run() if output is None else output


def reciprocal(rules: PropagationRules, call: Call) -> Any:
    """What a tensor will be divided by: constant, unless it is an activation.

    A sigmoid may be written ``1 / (1 + exp(-x))``, a norm ``1 / sqrt(variance)``: in
    the former an activation came before.
    """
    operand = next(arg for arg in call.tensors() if rules.is_active(arg))
    if rules.functions.of(operand).is_curved:
        output = secant(rules, call)
        if output is not None:
            return output
    rules.note("normalisation", call)
    return call.run().detach()


def multiplied_sum(rules: PropagationRules, call: Call) -> Any:
    """``addcmul`` and ``addcdiv``: a sum with a product or quotient."""
    (_, addend), (_, a), (_, b) = (
        call.operand(place, name)
        for place, name in enumerate(("input", "tensor1", "tensor2"))
    )
    factor = call.kwargs.get("value", 1)
    with rules:
        return addend + factor * (a * b if call.name == "addcmul" else a / b)


def interpolation(rules: PropagationRules, call: Call) -> Any:
    """``lerp``: linear in its ends, unless its weight depends on the tokens."""
    (_, start), (_, end), (_, weight) = (
        call.operand(place, name)
        for place, name in enumerate(("input", "end", "weight"))
    )
    if not rules.is_active(weight):
        return call.run()
    with rules:
        return start + weight * (end - start)


def gated_linear_unit(rules: PropagationRules, call: Call) -> Any:
    """``glu``: one half of the features times the sigmoid of the other."""
    features, dim = call.value(0, "input"), call.value(1, "dim", -1)
    with rules:
        value, gate = features.chunk(2, dim)
        return value * gate.sigmoid()


def secant(rules: PropagationRules, call: Call, curves: bool = True) -> Tensor | None:
    """Run an elementwise call as a secant; None if it is none through the origin."""
    operands = [arg for arg in call.tensors() if rules.is_active(arg)]
    roots = [rules.functions.of(arg).root for arg in operands]
    if not roots or any(root is not roots[0] for root in roots):
        return None
    value = call.run()
    function = rules.functions.compose(call, value, rules.is_active, curves)
    output = None if function is None else along_secant(value, function)
    if function is None or output is None:
        return None
    rules.note("identity", call)
    rules.functions.note(output, function)
    return output


def along_secant(value: Tensor, function: ElementwiseFunction) -> Tensor | None:
    r"""Differentiate an elementwise function as its secant from 0.

    AttnLRP, Eq. 9: :math:`f(x) \to x\, \overline{(f(x) - f(0)) / x} + f(0)`, with the
    derivative at 0 where x is 0.

    Args:
        value (Tensor): The function's value, with its own gradient, which it loses.
        function (ElementwiseFunction): The function.

    Returns:
        Tensor or None: The same value; None if the function has none at 0.
    """
    root = function.root
    with torch.no_grad():
        at_zero = torch.as_tensor(function.at_zero())
        largest = at_zero.abs().amax().item()
        if not math.isfinite(largest):
            return None
        # Nearer to 0 the derivative, which differs by the order of x, is closer than
        # rounding of the difference by x, or of a value that is subnormal.
        kind = torch.finfo(value.dtype)
        precision = kind.tiny if largest == 0 else 1.0
        size, limit = root.abs(), (kind.eps * precision) ** 0.5
        slope = (value - at_zero if largest else value) / root
    if root.numel() and size.amin().item() < limit:
        near = size < limit
        (derivative,) = torch.autograd.grad(
            value.sum(), root, retain_graph=True, allow_unused=True
        )
        slope = (
            slope.masked_fill(near, 0)
            if derivative is None
            else torch.where(near, derivative, slope)
        )
    return substitute(value, root, slope)


SHIFTS = {"__rsub__", "add", "neg", "rsub", "sub", "subtract"}
