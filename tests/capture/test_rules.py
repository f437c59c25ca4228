"""Every rule on small functions, beside the formula that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.lrp import part
from torch import Tensor, nn

from captum_attnflow.capture.rules import PropagationRules, Rules

Function = Callable[[Tensor], Tensor]


def propagated(
    function: Function, x: Tensor, rules: Rules = "attnlrp"
) -> tuple[Tensor, Tensor, PropagationRules]:
    """Value, gradient of an uneven sum by rules, and what the rules noted."""
    source = x.detach().requires_grad_().clone()
    with PropagationRules(rules) as mode:
        mode.add_source(source)
        value = function(source)
    mode.check(value)
    (gradient,) = torch.autograd.grad((value * uneven(value)).sum(), source)
    return value.detach(), gradient, mode


def uneven(value: Tensor) -> Tensor:
    return torch.arange(1.0, value.numel() + 1).reshape(value.shape).cos().to(value)


def gradient_of(rewrite: Function, x: Tensor) -> Tensor:
    source = x.detach().requires_grad_()
    value = rewrite(source)
    return torch.autograd.grad((value * uneven(value)).sum(), source)[0]


def assert_is(function: Function, rewrite: Function, x: Tensor, **options: Any):
    """The value is the function's, the gradient the rewrite's, all is known."""
    value, gradient, mode = propagated(function, x, **options)
    with torch.no_grad():
        torch.testing.assert_close(value, function(x.clone()))
        torch.testing.assert_close(value, rewrite(x.clone()))
    torch.testing.assert_close(gradient, gradient_of(rewrite, x), rtol=1e-7, atol=1e-9)
    assert not mode.unknown
    return mode


def features(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8)), dtype=torch.float64)


def by_norm(x: Tensor, dim: Any = -1, eps: float = 0.0) -> Tensor:
    return x / (x.detach().square().sum(dim, keepdim=True) + eps).sqrt()


def by_root_mean_square(x: Tensor, eps: float = 0.0) -> Tensor:
    return x / (x.detach().square().mean(-1, keepdim=True) + eps).sqrt()


def centred(x: Tensor, dim: Any = -1) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def by_deviation(x: Tensor, eps: float = 1e-5, dim: Any = -1) -> Tensor:
    variance = centred(x, dim).detach().square().mean(dim, keepdim=True)
    return centred(x, dim) / (variance + eps).sqrt()


def biased_variance(x: Tensor) -> Tensor:
    return x.var(-1, keepdim=True, unbiased=False)


WEIGHT = torch.linspace(0.5, 2, 8, dtype=torch.float64).requires_grad_()
BIAS = torch.linspace(-1, 1, 8, dtype=torch.float64).requires_grad_()

NORMS: dict[str, tuple[Function, Function]] = {
    "layer_norm": (
        lambda x: F.layer_norm(x, (8,), WEIGHT, BIAS),
        lambda x: by_deviation(x) * WEIGHT + BIAS,
    ),
    "layer_norm over two dimensions": (
        lambda x: F.layer_norm(x, (3, 8), eps=0.1),
        lambda x: by_deviation(x, 0.1, (-2, -1)),
    ),
    "rms_norm": (
        lambda x: F.rms_norm(x, (8,), WEIGHT, 1e-3),
        lambda x: by_root_mean_square(x, 1e-3) * WEIGHT,
    ),
    "rms_norm of no epsilon": (
        lambda x: F.rms_norm(x, (8,)),
        lambda x: by_root_mean_square(x, torch.finfo(x.dtype).eps),
    ),
    "group_norm": (
        lambda x: F.group_norm(x, 3, WEIGHT[:3], BIAS[:3], 0.1),
        lambda x: by_deviation(x, 0.1) * WEIGHT[:3, None] + BIAS[:3, None],
    ),
    "instance_norm": (
        lambda x: F.instance_norm(x, weight=WEIGHT[:3], bias=BIAS[:3], eps=0.1),
        lambda x: by_deviation(x, 0.1) * WEIGHT[:3, None] + BIAS[:3, None],
    ),
    "normalize": (lambda x: F.normalize(x, dim=-1), by_norm),
    "normalize by the largest": (
        lambda x: F.normalize(x, p=torch.inf, dim=-1),
        lambda x: x / x.detach().abs().amax(-1, keepdim=True),
    ),
    "x / x.norm()": (lambda x: x / x.norm(dim=-1, keepdim=True), by_norm),
    "x / vector_norm, clamped": (
        lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(1e-6),
        by_norm,
    ),
    "x /= norm": (lambda x: x.clone().div_(x.norm(dim=-1, keepdim=True)), by_norm),
    "x * rsqrt": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1),
        lambda x: by_root_mean_square(x, 0.1),
    ),
    "x / std": (
        lambda x: centred(x) / x.std(-1, keepdim=True, unbiased=False),
        lambda x: by_deviation(x, 0),
    ),
    "x / sqrt": (
        lambda x: centred(x) / torch.sqrt(biased_variance(x) + 0.1),
        lambda x: by_deviation(x, 0.1),
    ),
    "x * pow(-0.5)": (
        lambda x: centred(x) * (biased_variance(x) + 0.1).pow(-0.5),
        lambda x: by_deviation(x, 0.1),
    ),
    "x * (1 / sqrt)": (
        lambda x: centred(x) * (1 / torch.sqrt(biased_variance(x) + 0.1)),
        lambda x: by_deviation(x, 0.1),
    ),
    "x * sqrt.reciprocal": (
        lambda x: centred(x) * (biased_variance(x) + 0.1).sqrt().reciprocal(),
        lambda x: by_deviation(x, 0.1),
    ),
    "x * pow(0.5) ** -1": (
        lambda x: centred(x) * ((biased_variance(x) + 0.1) ** 0.5) ** -1,
        lambda x: by_deviation(x, 0.1),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_divide_by_a_constant(name):
    function, rewrite = NORMS[name]
    mode = assert_is(function, rewrite, features())
    assert sum(n for (rule, _), n in mode.counts.items() if rule == "normalisation")


def test_statistics_that_were_learned_are_linear():
    norm = nn.BatchNorm1d(3).double().eval()
    norm.running_var.fill_(2)
    assert_is(norm, lambda x: x / (2 + norm.eps) ** 0.5, features())


class Gelu(torch.autograd.Function):
    """An activation whose backward pass is written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.gelu(x).sum(), x)
        return gradient * slope


ACTIVATIONS: dict[str, Function] = {
    **{
        name: getattr(F, name)
        for name in [
            "celu",
            "elu",
            "gelu",
            "hardshrink",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "leaky_relu",
            "logsigmoid",
            "mish",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "softplus",
            "softshrink",
            "softsign",
            "tanh",
            "tanhshrink",
        ]
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in [
            "abs",
            "atan",
            "cos",
            "erf",
            "exp",
            "exp2",
            "expm1",
            "sin",
            "square",
        ]
    },
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: (
        0.5
        * x
        * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "gelu of Megatron": lambda x: (
        x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    ),
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu, cast": lambda x: x * torch.sigmoid(1.702 * x.float().double()),
    "gelu of an autograd Function": lambda x: 1 * Gelu.apply(x),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swish by sigmoid": lambda x: x * x.sigmoid(),
    "swish by quotient": lambda x: x / (1 + torch.exp(-x)),
    "swish by reciprocal": lambda x: x * torch.reciprocal(1 + torch.exp(-x)),
    "swish by 1 / x": lambda x: x * (1 / (1 + torch.exp(-x))),
    "sigmoid by hand": lambda x: 1 / (1 + (-x).exp()),
    "sigmoid by powers": lambda x: 1 / (1 + 2 ** (-x)),
    "hard swish by hand": lambda x: x * F.relu6(x + 3) / 6,
    "squared relu": lambda x: torch.square(F.relu(x)),
    "squared relu by pow": lambda x: F.relu(x) ** 2,
    "mish by hand": lambda x: x * torch.tanh(torch.log1p(x.exp())),
    "softsign by hand": lambda x: x / (1 + x.abs()),
    "swish of a learned slope": lambda x: x * torch.sigmoid(WEIGHT * x),
    "elu by where": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=x.dtype)),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "tensor exponent": lambda x: torch.pow(x, torch.tensor(3.0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_follow_their_secant_from_0(name):
    function, x = ACTIVATIONS[name], features()
    with torch.no_grad():
        at_zero = function(torch.zeros_like(x))
        slope = (function(x) - at_zero) / x
    assert_is(function, lambda x: x * slope + at_zero, x)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - {"threshold"}))
def test_at_0_the_slope_is_the_derivative(name):
    x = torch.zeros(1, 1, 8, dtype=torch.float64)
    _, gradient, _ = propagated(ACTIVATIONS[name], x)
    torch.testing.assert_close(gradient, gradient_of(ACTIVATIONS[name], x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_near_0_a_secant_is_no_rounding_error(dtype):
    x = torch.logspace(-7, 0, 50).to(dtype)
    for function in (torch.sigmoid, F.gelu, ACTIVATIONS["gelu_new"], F.softplus):
        source = x.clone().requires_grad_()
        with PropagationRules("attnlrp") as mode:
            mode.add_source(source)
            value = function(source)
        (slope,) = torch.autograd.grad(value.sum(), source)
        exact = x.double()
        at_zero = function(exact * 0)
        expected = (function(exact) - at_zero) / exact
        error = (slope.double() - expected).abs().max()
        assert error < 3 * torch.finfo(dtype).eps ** 0.5, function


def test_a_bias_is_no_part_of_an_activation():
    function = lambda x: F.gelu(x @ torch.eye(8).double() + BIAS)  # noqa: E731
    expected = gradient_of(
        lambda x: (x + BIAS) * (F.gelu(x + BIAS) / (x + BIAS)).detach(), x := features()
    )
    torch.testing.assert_close(propagated(function, x)[1], expected)
    fused = lambda x: F.gelu(F.linear(x, torch.eye(8).double(), BIAS))  # noqa: E731
    torch.testing.assert_close(propagated(fused, x)[1], expected)


IN_PLACE: dict[str, tuple[Function, Function]] = {
    "relu_": (lambda x: x.clone().relu_(), F.relu),
    "F.relu": (lambda x: F.relu(x.clone(), inplace=True), F.relu),
    "input by name": (lambda x: F.relu(input=x.clone(), inplace=True), F.relu),
    "nn.SiLU": (lambda x: nn.SiLU(inplace=True)(x.clone()), F.silu),
    "F.elu_": (lambda x: F.elu_(x.clone()), F.elu),
    "swish": (lambda x: x.clone().mul_(torch.sigmoid(x)), F.silu),
    "swish of itself": (lambda x: (y := x.clone()).mul_(y.sigmoid()), F.silu),
    "then scaled": (lambda x: F.relu(x).mul_(2).add_(1), lambda x: 2 * F.relu(x) + 1),
    "then added to": (lambda x: F.gelu(x).add_(x), lambda x: F.gelu(x) + x),
    "a part": (
        lambda x: torch.cat([(y := x.clone())[..., :4].relu_(), y[..., 4:]], -1),
        lambda x: torch.cat([F.relu(x[..., :4]), x[..., 4:]], -1),
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_forms_have_the_rules_of_the_others(name):
    in_place, other = IN_PLACE[name]
    x = features()
    value, gradient, mode = propagated(in_place, x)
    expected_value, expected, _ = propagated(other, x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected)
    assert not mode.unknown


def test_what_changed_in_place_is_no_function_of_what_was():
    """``y`` is a ReLU at first, then another thing, whose product is of two."""
    matrix = features(8, 8)

    def function(x: Tensor) -> Tensor:
        y = F.relu(x)
        y.mul_(x @ matrix)
        return y * x

    def rewrite(x: Tensor) -> Tensor:
        slope = (x > 0).double().detach()
        y = part(x * slope, 0.5) * part(x @ matrix, 0.5)
        return part(y, 0.5) * part(x, 0.5)

    assert_is(function, rewrite, features())


MATRIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).double()
PARAMETER = nn.Parameter(MATRIX + 1)


def halves(x: Tensor, y: Tensor) -> Tensor:
    return part(x, 0.5) * part(y, 0.5)


def halves_of_matrices(x: Tensor, y: Tensor) -> Tensor:
    return part(x, 0.5) @ part(y, 0.5)


def secant_of(x: Tensor, function: Function) -> Tensor:
    return x * (function(x) / x).detach()


PRODUCTS: dict[str, tuple[Function, Function]] = {
    "gated MLP": (
        lambda x: F.silu(x @ MATRIX) * (x @ MATRIX.T),
        lambda x: halves(secant_of(x @ MATRIX, F.silu), x @ MATRIX.T),
    ),
    "gated in place": (
        lambda x: (x @ MATRIX.T).mul_(F.silu(x @ MATRIX)),
        lambda x: halves(secant_of(x @ MATRIX, F.silu), x @ MATRIX.T),
    ),
    "gated by chunks": (
        lambda x: (lambda gate, up: F.silu(gate) * up)(*x.chunk(2, -1)),
        lambda x: halves(secant_of(x[..., :4], F.silu), x[..., 4:]),
    ),
    "glu": (
        lambda x: F.glu(x),
        lambda x: halves(
            x[..., :4],
            x[..., 4:] * ((x[..., 4:].sigmoid() - 0.5) / x[..., 4:]).detach() + 0.5,
        ),
    ),
    "addcmul": (
        lambda x: torch.addcmul(x, x @ MATRIX, x @ MATRIX.T, value=3),
        lambda x: x + 3 * halves(x @ MATRIX, x @ MATRIX.T),
    ),
    "lerp": (
        lambda x: torch.lerp(x, x @ MATRIX, 0.3),
        lambda x: 0.7 * x + 0.3 * (x @ MATRIX),
    ),
    "lerp by features": (
        lambda x: torch.lerp(x, x @ MATRIX, x @ MATRIX.T),
        lambda x: x + halves(x @ MATRIX.T, x @ MATRIX - x),
    ),
    "matmul": (lambda x: x @ x.mT, lambda x: halves_of_matrices(x, x.mT)),
    "bmm": (
        lambda x: torch.bmm(x, mat2=(x @ MATRIX).mT),
        lambda x: halves_of_matrices(x, (x @ MATRIX).mT),
    ),
    "baddbmm": (
        lambda x: torch.baddbmm(x @ MATRIX[:, :3], x, x.mT, beta=0.5, alpha=2),
        lambda x: 0.5 * (x @ MATRIX[:, :3]) + 2 * halves_of_matrices(x, x.mT),
    ),
    "baddbmm into nothing": (
        lambda x: torch.full((2, 3, 3), torch.nan).double().baddbmm_(x, x.mT, beta=0),
        lambda x: halves_of_matrices(x, x.mT),
    ),
    "einsum": (
        lambda x: torch.einsum("bid,bjd->bij", x, x @ MATRIX),
        lambda x: halves_of_matrices(x, (x @ MATRIX).mT),
    ),
    "einsum of three": (
        lambda x: torch.einsum("bid,bid,bid->bid", x, x @ MATRIX, x @ MATRIX.T),
        lambda x: part(x, 1 / 3) * part(x @ MATRIX, 1 / 3) * part(x @ MATRIX.T, 1 / 3),
    ),
    "cosine similarity": (
        lambda x: F.cosine_similarity(x, x @ MATRIX, dim=-1),
        lambda x: halves(by_norm(x), by_norm(x @ MATRIX)).sum(-1),
    ),
    "soft-capping": (
        lambda x: 5 * torch.tanh(x @ x.mT / 5),
        lambda x: 5 * secant_of(halves_of_matrices(x, x.mT) / 5, torch.tanh),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_factors_have_equal_parts(name):
    assert_is(*PRODUCTS[name], features())


CONSTANTS: dict[str, Function] = {
    "matmul": lambda x: x @ PARAMETER.T,
    "matmul from the left": lambda x: PARAMETER[:3, :3] @ x,
    "bmm": lambda x: torch.bmm(x, PARAMETER.expand(2, 8, 8)),
    "baddbmm": lambda x: torch.baddbmm(x, x, PARAMETER.expand(2, 8, 8)),
    "einsum": lambda x: torch.einsum("bid,de->bie", x, PARAMETER),
    "linear": lambda x: F.linear(x, PARAMETER, BIAS),
    "addmm": lambda x: torch.addmm(BIAS, x[0], PARAMETER),
    "scale": lambda x: x * WEIGHT / BIAS.exp(),
    "mask": lambda x: x * (x > 0),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_parameters_are_constants_also_where_they_require_gradients(name):
    assert_is(CONSTANTS[name], CONSTANTS[name], features())


def router(x: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = (x @ MATRIX[:, :4]).softmax(-1).topk(2, -1)
    return weights / weights.sum(-1, keepdim=True) * 2.5, chosen


def sigmoid_router(x: Tensor) -> tuple[Tensor, Tensor]:
    scores = (x @ MATRIX[:, :4]).sigmoid()
    chosen = (scores + BIAS[:4]).topk(2, -1).indices
    weights = scores.gather(-1, chosen)
    weights /= weights.sum(-1, keepdim=True)
    return weights * 2.5, chosen


EXPERTS = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(4)).double()


def experts(x: Tensor, chosen: Tensor) -> Tensor:
    outputs = torch.einsum("btd,kde->btke", x, EXPERTS)
    return outputs.gather(2, chosen[..., None].expand(*chosen.shape, 8))


@pytest.mark.parametrize("route", [router, sigmoid_router])
@pytest.mark.parametrize("mix", ["mul", "einsum", "in place"])
def test_routers_of_experts_are_constants(route, mix):
    def mixed(weights: Tensor, outputs: Tensor) -> Tensor:
        if mix == "einsum":
            return torch.einsum("btk,btkd->btd", weights, outputs)
        if mix == "mul":
            return (outputs * weights[..., None]).sum(2)
        return outputs.contiguous().mul_(weights.unsqueeze(-1)).sum(2)

    def function(x: Tensor) -> Tensor:
        weights, chosen = route(x)
        return mixed(weights, experts(x, chosen))

    def rewrite(x: Tensor) -> Tensor:
        weights, chosen = route(x.detach())
        return (weights[..., None] * experts(x, chosen)).sum(2)

    mode = assert_is(function, rewrite, features())
    assert sum(n for (rule, _), n in mode.counts.items() if rule == "gate") == 1


UNKNOWN: dict[str, Function] = {
    "cumprod": lambda x: x.cumprod(1),
    "lstm": nn.LSTM(8, 8).double(),
    "gru": nn.GRU(8, 8).double(),
    "round": lambda x: x.round() + x,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_rule_knows_is_named_and_keeps_its_gradient(name):
    def function(x: Tensor) -> Tensor:
        output = UNKNOWN[name](x)
        return output if isinstance(output, Tensor) else output[0]

    x = features()
    _, gradient, mode = propagated(function, x)
    assert mode.unknown == {name}
    torch.testing.assert_close(gradient, gradient_of(function, x))


class SumOfTokens(torch.autograd.Function):
    """Not elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(1).cumsum(1).flip(1)


def test_autograd_functions_that_are_no_activations_are_named():
    x = features()
    _, gradient, mode = propagated(SumOfTokens.apply, x)
    assert mode.unknown == {"SumOfTokensBackward"}
    torch.testing.assert_close(gradient, gradient_of(lambda x: x.cumsum(1), x))


def test_what_does_not_depend_on_the_tokens_has_no_rule():
    other = features().requires_grad_()
    _, gradient, mode = propagated(
        lambda x: x + F.gelu(other) * other.cumprod(1), x=features()
    )
    torch.testing.assert_close(gradient, uneven(gradient))
    assert not mode.counts
    assert not mode.unknown
