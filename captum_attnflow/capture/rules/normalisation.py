"""Rules of norms in one call: what divides is constant (Ali et al. 2022, Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow.capture.rules.call import Call
from captum_attnflow.capture.rules.rewriting import substitute

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules


def layer_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`(x - E[x]) / \overline{\sqrt{Var[x] + \epsilon}} \cdot w + b`."""
    x, shape, weight, bias = _values(
        call, ("input", "normalized_shape", "weight", "bias")
    )
    dims = tuple(range(-len(shape), 0))
    normalised = _divide_by_deviation(x - x.mean(dims, keepdim=True), dims, _eps(call))
    return _normalised(rules, call, normalised, weight, bias)


def rms_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`x / \overline{\sqrt{E[x^2] + \epsilon}} \cdot w`."""
    x, shape, weight = _values(call, ("input", "normalized_shape", "weight"))
    dims = tuple(range(-len(shape), 0))
    eps = call.value(3, "eps", torch.finfo(x.dtype).eps)
    return _normalised(rules, call, _divide_by_deviation(x, dims, eps), weight, None)


def group_norm(rules: PropagationRules, call: Call) -> Any:
    """LayerNorm over groups of channels."""
    x, groups, weight, bias = _values(call, ("input", "num_groups", "weight", "bias"))
    grouped = x.reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normalised = _divide_by_deviation(centred, (-1,), _eps(call)).view_as(x)
    features = [1, -1] + [1] * (x.dim() - 2)
    weight, bias = (
        None if given is None else given.view(features) for given in (weight, bias)
    )
    return _normalised(rules, call, normalised, weight, bias)


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
    normalised: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return what a norm returns, with the gradient of a rewrite; weights constant."""
    rules.note("normalisation", call)
    if weight is not None:
        normalised = normalised * weight.detach()
    if bias is not None:
        normalised = normalised + bias.detach()
    return substitute(_without_graph(call), normalised)


def _divide_by_deviation(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    precise = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    deviation = (precise.square().mean(dims, keepdim=True) + eps).sqrt()
    return x / deviation.to(x.dtype)


def _unit(x: Tensor, p: float, dim: int, eps: float) -> Tensor:
    norm: Tensor = x.detach().norm(p, dim, keepdim=True)
    return x / norm.clamp_min(eps)


def _without_graph(call: Call) -> Tensor:
    with torch.no_grad():
        value: Tensor = call.run()
    return value


def _eps(call: Call) -> float:
    eps: float = call.value(4, "eps", 1e-5)
    return eps


def _values(call: Call, names: Sequence[str]) -> list[Any]:
    return [call.value(place, name) for place, name in enumerate(names)]
