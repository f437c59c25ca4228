"""Rules of what mixes features or tokens: products of matrices, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_attnflow.capture.rules.call import Call, Place, scale_gradient

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules

# Where the factors stand, if not first and second.
_FACTORS = {
    "addbmm": ((1, "batch1"), (2, "batch2")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "addmv": ((1, "mat"), (2, "vec")),
    "bilinear": ((0, "input1"), (1, "input2")),
    "linear": ((0, "input"), (1, "weight")),
}
_SECOND = ("other", "mat2", "vec", "vec2", "tensor", "y")


def contraction(rules: PropagationRules, call: Call) -> Any:
    """Products of matrices: half to each factor; attention weights have their rule."""
    if call.name in _FACTORS:
        factors = [call.operand(*where) for where in _FACTORS[call.name]]
    else:
        factors = [call.operand(0, "input"), _second(call)]
    return contract(rules, call, factors)


def contract(
    rules: PropagationRules, call: Call, factors: Sequence[tuple[Place, Any]]
) -> Any:
    """Run a call that is linear in each of some factors, by the uniform rule."""
    active = [(place, x) for place, x in factors if rules.is_active(x)]
    if len(active) < 2:
        return call.run()
    shares = [rules.share_of(x) for _, x in active]
    of_weights = [share for share in shares if share is not None]
    if of_weights:  # the rule above the weights has given them theirs
        return call.with_arguments(
            {
                place: scale_gradient(x, 1 - of_weights[0])
                for (place, x), share in zip(active, shares, strict=True)
                if share is None
            }
        ).run()
    rules.note("uniform", call)
    output = call.with_arguments(
        {place: scale_gradient(x, 1 / len(active)) for place, x in active}
    ).run()
    rules.scores.note(output)
    return output


def added_contraction(rules: PropagationRules, call: Call) -> Any:
    """``baddbmm``: what is added to scores, such as ALiBi, is no part of them."""
    addend = call.operand(0, "input")[1]
    a, b = call.operand(1, "batch1")[1], call.operand(2, "batch2")[1]
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    factors = Call(call.name, _scaled_bmm, (a, b, alpha), {})
    product = contract(rules, factors, [(0, a), (1, b)])
    if beta == 0:  # it may be uninitialised memory
        return product
    output = product + beta * addend
    rules.scores.follow(Call("add", torch.add, (product,), {}), output)
    return output


def _scaled_bmm(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return torch.bmm(a, b) * alpha


def einsum(rules: PropagationRules, call: Call) -> Any:
    """Contractions by letters; one that comes from a router is a gate."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    flat = call._replace(args=(equation, *operands))
    active = [(i, x) for i, x in enumerate(operands, 1) if rules.is_active(x)]
    gates: dict[Place, Any] = {
        place: x.detach()
        for place, x in active
        if x in rules.gates and rules.share_of(x) is None
    }
    if 0 < len(gates) < len(active):
        rules.note("gate", call)
        flat = flat.with_arguments(gates)
    return contract(rules, flat, [*enumerate(flat.args)][1:])


def fused_attention(rules: PropagationRules, call: Call) -> Any:
    """Attention in one kernel: the uniform rule twice, over scores and over values."""
    names = ("query", "key", "value")
    operands = [call.operand(place, name) for place, name in enumerate(names)]
    query, key, value = (operand for _, operand in operands)
    share = rules.share([query, key], value)
    each = share / max(1, rules.is_active(query) + rules.is_active(key))
    rules.note("attention", call)
    return call.with_arguments(
        {
            place: scale_gradient(operand, factor)
            for (place, operand), factor in zip(
                operands, (each, each, 1 - share), strict=True
            )
            if rules.is_active(operand)
        }
    ).run()


def softmax(rules: PropagationRules, call: Call) -> Any:
    """A softmax keeps its gradient; what it does is known where it is used."""
    return choice(rules, call)


def choice(rules: PropagationRules, call: Call) -> Any:
    """Which are highest: what is picked by it is a gate."""
    output = call.run()
    rules.gates.mark(output)
    return output


def _second(call: Call) -> tuple[Place, Any]:
    if len(call.args) > 1:
        return 1, call.args[1]
    return next(
        ((name, call.kwargs[name]) for name in _SECOND if name in call.kwargs),
        (1, None),
    )
