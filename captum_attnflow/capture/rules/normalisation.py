"""Rules of norms in one call: what divides is constant (Ali et al. 2022, Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow.capture.rules.call import Call, substitute

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules


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
