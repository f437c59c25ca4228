"""The rules, and which operation has which. A new one is a function and a line here.

Elementwise functions are differentiated along their secant; products share relevance
among their factors; what norms divide by is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow.capture.rules.call import (
    Call,
    ElementwiseFunction,
    Place,
    held_constant,
    scale_gradient,
    substitute,
)

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules

# -- elementwise functions, sums and products

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
    if call.name in _SHIFTS and any(constant.numel() > 1 for constant in constants):
        return output
    function = rules.functions.compose(call, output, rules.is_active, curves=False)
    if function is not None:
        rules.functions.note(output, function)
    elif call.name in _SHIFTS:
        rules.note_sum(call, output)
    if call.name not in _SHIFTS:
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
            return call.with_arguments({place: held_constant(operand)}).run()
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


# -- what mixes features or tokens: products of matrices, attention

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
    active: list[tuple[Place, Any]] = [
        (i, x) for i, x in enumerate(operands, 1) if rules.is_active(x)
    ]
    gates: dict[Place, Any] = {
        place: held_constant(x)
        for place, x in active
        if x in rules.gates and rules.share_of(x) is None
    }
    if 0 < len(gates) < len(active):
        rules.note("gate", call)
        flat = flat.with_arguments(gates)
        active = [(i, x) for i, x in active if i not in gates]
    return contract(rules, flat, active)


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


# -- norms in one call: what divides is constant (Ali et al. 2022, Eq. 7)


def layer_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`(x - E[x]) / \overline{\sqrt{Var[x] + \epsilon}} \cdot w + b`."""
    x, shape, weight = _values(call, ("input", "normalized_shape", "weight"))
    dims = tuple(range(-len(shape), 0))
    return _normalised(rules, call, x, weight, dims, _eps(call), centred=True)


def rms_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`x / \overline{\sqrt{E[x^2] + \epsilon}} \cdot w`."""
    x, shape, weight = _values(call, ("input", "normalized_shape", "weight"))
    dims = tuple(range(-len(shape), 0))
    eps = call.value(3, "eps", torch.finfo(x.dtype).eps)
    return _normalised(rules, call, x, weight, dims, eps, centred=False)


def group_norm(rules: PropagationRules, call: Call) -> Any:
    """LayerNorm over groups of channels."""
    x, groups, weight = _values(call, ("input", "num_groups", "weight"))
    grouped = x.unflatten(1, (groups, -1))
    dims = tuple(range(2, grouped.dim()))
    if weight is not None:
        weight = weight.view(groups, -1, *[1] * (x.dim() - 2))
    return _normalised(rules, call, grouped, weight, dims, _eps(call), centred=True)


def instance_norm(rules: PropagationRules, call: Call) -> Any:
    """LayerNorm of every channel, where it takes the statistics of its input."""
    if call.value(5, "use_input_stats", True) is False:
        return call.run()
    x, weight, bias = (
        call.value(place, name)
        for place, name in ((0, "input"), (3, "weight"), (4, "bias"))
    )
    eps = call.value(7, "eps", 1e-5)
    channels = (x, x.shape[1], weight, bias, eps)
    return group_norm(rules, call._replace(func=F.group_norm, args=channels, kwargs={}))


def normalize(rules: PropagationRules, call: Call) -> Any:
    r""":math:`x / \overline{\max(\|x\|_p, \epsilon)}`."""
    rules.note("normalisation", call)
    return _unit(
        call.value(0, "input"),
        call.value(1, "p", 2.0),
        call.value(2, "dim", 1),
        call.value(3, "eps", 1e-12),
    )


def cosine_similarity(rules: PropagationRules, call: Call) -> Any:
    """The product of two normalised vectors."""
    dim, eps = call.value(2, "dim", 1), call.value(3, "eps", 1e-8)
    rules.note("normalisation", call)
    one, other = (
        _unit(call.value(place, name), 2.0, dim, eps)
        for place, name in enumerate(("x1", "x2"))
    )
    with rules:
        return (one * other).sum(dim)


def _normalised(
    rules: PropagationRules,
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    dims: tuple[int, ...],
    eps: float,
    centred: bool,
) -> Tensor:
    """Run a norm; what it divides by and its weight are constants."""
    rules.note("normalisation", call)
    with torch.no_grad():
        value: Tensor = call.run()
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if centred:
            variance = precise.var(dims, correction=0, keepdim=True)
        else:
            variance = precise.square().mean(dims, keepdim=True)
        factor = (variance + eps).rsqrt()
        if weight is not None:
            factor = factor * weight
    given = call.value(0, "input")
    return substitute(value, given, factor, dims if centred else (), tuple(x.shape))


def _unit(x: Tensor, p: float, dim: int, eps: float) -> Tensor:
    norm: Tensor = x.detach().norm(p, dim, keepdim=True)
    return x / norm.clamp_min(eps)


def _eps(call: Call) -> float:
    eps: float = call.value(4, "eps", 1e-5)
    return eps


def _values(call: Call, names: Sequence[str]) -> list[Any]:
    return [call.value(place, name) for place, name in enumerate(names)]


# -- the table


def _names(text: str) -> set[str]:
    return set(text.split())


Rule = Callable[["PropagationRules", Call], Any]

ACTIVATIONS = _names(
    """
    _threshold abs atan arctan celu clamp clamp_max clamp_min cos cosh elu erf erfc
    exp exp2 expit expm1 gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu
    log1p log_sigmoid logsigmoid mish relu relu6 selu sigmoid silu sin sinc sinh
    softplus softshrink softsign special_erf special_exp2 special_expit
    special_expm1 special_log1p special_sinc sqrt square tan tanh tanhshrink
    threshold
    """
)
_SHIFTS = {"__rsub__", "add", "neg", "rsub", "sub", "subtract"}
_RECIPROCALS = {"__rdiv__", "reciprocal", "rsqrt"}
_PRODUCTS = {"mul", "multiply"}
_QUOTIENTS = {"div", "divide", "true_divide"}
_POWERS = {"__rpow__", "float_power", "pow"}

# From which an activation may be written out.
ELEMENTWISE = ACTIVATIONS | _SHIFTS | _PRODUCTS | _QUOTIENTS | _POWERS | _RECIPROCALS

CONTRACTIONS = _names(
    """
    __matmul__ __rmatmul__ addbmm addmm addmv baddbmm bilinear bmm chain_matmul dot
    einsum inner linalg_vecdot linear matmul mm mv outer
    scaled_dot_product_attention tensordot vdot
    """
)

RULE_OF: dict[str, Rule] = {
    **dict.fromkeys(CONTRACTIONS, contraction),
    **dict.fromkeys(ACTIVATIONS, identity),
    **dict.fromkeys(_SHIFTS, shift_or_scale),
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(_QUOTIENTS, quotient),
    **dict.fromkeys(_POWERS, power),
    **dict.fromkeys(_RECIPROCALS, reciprocal),
    **dict.fromkeys(["addcdiv", "addcmul"], multiplied_sum),
    **dict.fromkeys(["softmax", "special_softmax"], softmax),
    **dict.fromkeys(["argmax", "argsort", "sort", "topk"], choice),
    "baddbmm": added_contraction,
    "cosine_similarity": cosine_similarity,
    "einsum": einsum,
    "glu": gated_linear_unit,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "lerp": interpolation,
    "normalize": normalize,
    "rms_norm": rms_norm,
    "scaled_dot_product_attention": fused_attention,
}

# After which an elementwise function is still one.
CASTS = _names(
    """
    bfloat16 clone contiguous double float half to type type_as
    """
)

# Views, choices and sums, through which a gate stays one.
FOLLOWED = CASTS | _names(
    """
    H T __getitem__ adjoint amax broadcast_to cat chunk detach dropout expand
    expand_as flatten gather index_select mH mT masked_fill masked_select max moveaxis
    movedim narrow permute repeat repeat_interleave reshape reshape_as scatter scatter_
    select split squeeze stack sum swapaxes t take_along_dim transpose unbind unflatten
    unsqueeze view
    view_as where
    """
)

# Moves and picks.
_MOVES = _names(
    """
    __setitem__ as_strided concat concatenate copy_ diag_embed diagonal dsplit
    dstack fill_ flip hsplit hstack index_copy index_copy_ index_fill index_fill_
    index_put index_put_ masked_fill_ masked_scatter masked_scatter_ nan_to_num
    positive ravel requires_grad_ roll rot90 squeeze_ swapdims take
    tensor_split tile tril triu unfold unsqueeze_ view_as_complex
    view_as_real vsplit vstack zero_
    """
)
# Sums and means; dropout.
_SUMS = _names(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d alpha_dropout avg_pool1d avg_pool2d
    avg_pool3d cumsum cumulative_trapezoid diff dropout_ feature_alpha_dropout
    feature_dropout index_add index_add_ mean nanmean nansum scatter_add
    scatter_add_ scatter_reduce trace
    """
)
# Linear maps, of parameters.
_MAPS = _names(
    """
    _grouped_mm batch_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    embedding embedding_bag fold grid_sample grouped_mm interpolate
    multi_head_attention_forward pad pixel_shuffle pixel_unshuffle
    """
)
# The slope is f(x) / x by itself.
_PICKS = _names(
    """
    adaptive_max_pool1d adaptive_max_pool2d amin aminmax cummax cummin fmax fmin
    max_pool1d max_pool2d maximum median min minimum prelu rrelu
    """
)
# What is divided by, where it matters, and logarithms of outputs.
_STATISTICS = _names(
    """
    linalg_norm linalg_vector_norm log log10 log2 log_softmax logsumexp norm
    special_log_softmax special_logsumexp std std_mean var var_mean
    """
)

# What keeps its gradient.
LINEAR = FOLLOWED | _MOVES | _SUMS | _MAPS | _PICKS | _STATISTICS

# Nodes of the autograd graph that rules replace.
REPLACED_NODES = {
    f"{name}Backward0"
    for name in [
        "Elu",
        "Erf",
        "Gelu",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyRelu",
        "Mish",
        "NativeGroupNorm",
        "NativeLayerNorm",
        "FusedRmsNorm",
        "Relu",
        "Rsqrt",
        "Sigmoid",
        "Silu",
        "Softplus",
        "Tanh",
    ]
}
