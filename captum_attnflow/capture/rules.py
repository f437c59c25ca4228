r"""Propagation rules: another backward pass behind the same forward pass.

Layer-wise relevance propagation can be written as input times a gradient in which some
operations are differentiated as if they were others (Ali et al., ICML 2022; Achtibat et
al., *AttnLRP*, ICML 2024). Forward values stay. The rules, where :math:`\bar{x}` is
held constant:

- **identity** (AttnLRP, Eq. 9), elementwise functions: :math:`f(x) \to x\,
  \overline{(f(x) - f(0)) / x} + f(0)`, the secant through the origin.
- **normalisation** (Ali et al., Eq. 7), LayerNorm, RMSNorm and division by what depends
  on the tokens: the divisor is constant.
- **uniform** (AttnLRP, Eq. 13 and 15), products of two factors that depend on the
  tokens: half of the relevance to each.
- **gate**, a softmax or a choice of the highest that multiplies other features, such as
  a router of experts: a constant.
- **attention**, the weights that mix values over tokens: AttnLRP gives them half of the
  relevance, which goes on through the softmax by its own gradient; CP-LRP (Ali et al.,
  Eq. 9) holds them constant.

Everything else keeps its gradient: linear layers, convolutions, sums, views (the
epsilon rule of LRP for an epsilon of 0).

A function that depends on several operations, such as a GELU written out as
:math:`x (1 + \tanh u(x)) / 2`, is one elementwise function: what is computed from one
tensor element by element is followed back to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.record import Propagation, UnsupportedAttentionError
from captum_attnflow.capture.streams import DependencyGraph

Rules = Literal["gradient", "attnlrp", "cp-lrp"]
RULES: tuple[str, ...] = get_args(Rules)

# What attention weights get of the relevance of weights times values.
_SHARE_OF_WEIGHTS = {"attnlrp": 0.5, "cp-lrp": 0.0}

# Below this a secant of a function with f(0) != 0 is mostly rounding; its derivative at
# 0 stands in, which differs by the order of x.
_SMALL = 1e-3


class Call(NamedTuple):
    """One call of a torch function."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Run it as the model asked for."""
        return self.func(*self.args, **self.kwargs)

    def with_arguments(self, changed: dict[int | str, Any]) -> Call:
        """Return the call with some arguments changed, by place or by name."""
        args = tuple(changed.get(i, arg) for i, arg in enumerate(self.args))
        named = {name: changed.get(name, arg) for name, arg in self.kwargs.items()}
        return self._replace(args=args, kwargs=named)

    def operand(self, place: int, name: str) -> tuple[int | str, Any]:
        """Return where an operand stands and what it is; None if it is not given."""
        if place < len(self.args):
            return place, self.args[place]
        return name, self.kwargs.get(name)


@dataclass(frozen=True)
class _Elementwise:
    """A tensor that is an elementwise function of another.

    Attributes:
        root (Tensor): The other.
        at_zero (Callable): Computes its value where the root is 0.
        is_curved (bool): Whether more than scaling and shifting lies between them.
    """

    root: Tensor
    at_zero: Callable[[], Any]
    is_curved: bool


class PropagationRules(TorchFunctionMode):
    """Changes the backward pass of what runs while it is active.

    Only what depends on the tokens takes part: parameters are constants also where they
    require gradients. Sources of such dependence are named by :meth:`add_source`.

    Args:
        rules (str): ``"attnlrp"`` or ``"cp-lrp"``.

    Attributes:
        counts (Counter): How often a rule met an operation, by ``(rule, operation)``.
        unknown (set of str): Operations without a rule that are not known to be linear;
            they kept their gradients.
        without_gradient (set of str): Operations of integer-quantised kernels.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.share_of_weights = _SHARE_OF_WEIGHTS[rules]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unknown: set[str] = set()
        self.without_gradient: set[str] = set()
        self._graph = DependencyGraph(())
        self._elementwise = WeakTensorKeyDictionary()
        self._gates = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()
        self._scores = WeakTensorKeyDictionary()  # what follows from products q k^T
        self._last: Tensor | None = None  # what the last attention put out
        self._mixed = 0  # which source that is
        self._streams = WeakTensorKeyDictionary()

    def add_source(self, tensor: Tensor) -> None:
        """Name a tensor of the graph that depends on the tokens."""
        if tensor.requires_grad:
            self._graph.add(tensor)

    def add_attention(self, probed: Tensor) -> None:
        """Name what an attention put out, its weights or its output."""
        self.add_source(probed)
        self._last, self._mixed = probed, self._graph.n_sources - 1

    def stream_behind(self, probed: Tensor) -> Tensor | None:
        """Return where an attention joined what led past it, the residual stream."""
        stream: Tensor | None = self._streams.get(probed)
        return stream

    def check(self, selected: Tensor) -> None:
        """Look whether all operations between the tokens and an output were seen.

        Args:
            selected (Tensor): The output.

        Raises:
            UnsupportedAttentionError: If some ran where no rule can change them, or have
                no gradient.
            ValueError: If the output does not depend on the tokens.
        """
        if self.without_gradient:
            names = ", ".join(sorted(self.without_gradient))
            raise UnsupportedAttentionError(
                f"integer-quantised kernels have no gradient ({names}), so that "
                "relevance would pass them by. Load the model in float32, bfloat16 or "
                "float16"
            )
        if not self.is_active(selected):
            raise ValueError(
                "the output does not depend on the inputs through autograd: forward_func "
                "may run under torch.no_grad(), detach what it computes, or be TorchScript"
            )
        names = {node.name() for node in self._graph.dependent_nodes(selected)}
        unseen = sorted(names & _CHANGED)
        if unseen:
            raise UnsupportedAttentionError(
                f"{', '.join(unseen)} in the graph of the output ran where no rule can "
                "change them: TorchScript, torch.compile and worker threads hide their "
                "operations. Pass the Python model itself, in the calling thread"
            )
        own = {"_ScaledBackward", "_SubstitutedBackward"}
        self.unknown |= {
            name for name in names if name.endswith("Backward") and name not in own
        }

    def summary(self) -> Propagation:
        """Return what the rules did."""
        counts = {f"{rule}: {name}": n for (rule, name), n in self.counts.items()}
        return Propagation(counts, tuple(sorted(self.unknown)))

    def above_weights(self, weights: Tensor) -> Tensor:
        """Apply the rule of attention weights, whose own gradient is then the whole.

        Args:
            weights (Tensor): Attention weights that are about to mix values.
        """
        self.counts["attention", "matmul"] += 1
        # Scaled by 0 and not cut: the graph tells which layer feeds on which.
        return scale_gradient(weights, self.share_of_weights)

    def add_weights(self, weights: Tensor) -> None:
        """Name attention weights as the product with the values will see them."""
        self.add_attention(weights)
        self._weights[weights] = True

    def scores_of(self, weights: Tensor) -> Tensor | None:
        """Return the product of queries and keys that attention weights come from."""
        product: Tensor | None = self._scores.get(weights)
        self._scores = WeakTensorKeyDictionary()  # they hold their products
        return product

    def is_active(self, operand: Any) -> bool:
        """Whether an operand depends on the tokens through autograd."""
        return (
            isinstance(operand, Tensor)
            and operand.requires_grad
            and self._graph.depends(operand)
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle one torch call; the mode is inactive inside."""
        call = Call(func.__name__, func, args, kwargs or {})
        if not torch.is_grad_enabled():
            return call.run()
        in_place = _out_of_place(call)
        if in_place is not None and in_place.name in _RULE_OF and self._any(call):
            return args[0].copy_(self._apply(in_place))
        return self._apply(call)

    def _apply(self, call: Call) -> Any:
        if call.name == "__get__":
            return call.run()
        output = self._run(call)
        self._follow_scores(call, output)
        return output

    def _run(self, call: Call) -> Any:
        rule = _RULE_OF.get(call.name)
        if rule is not None and self._any(call):
            return rule(self, call)
        output = call.run()
        if call.name in _FOLLOWED:
            self._follow(call, output)
        elif call.name not in _LINEAR and rule is None and self._any(call):
            # Their graph is there, but yields zeros.
            if str(call.func).startswith("quantized."):
                self.without_gradient.add(str(call.func))
            elif any(self.is_active(part) for part in _tensors(output)):
                self.unknown.add(call.name)
        return output

    def _any(self, call: Call) -> bool:
        return any(self.is_active(arg) for arg in _tensors((call.args, call.kwargs)))

    def _follow(self, call: Call, output: Any) -> None:
        """Keep track of gates through views, choices and casts."""
        if any(arg in self._gates for arg in _tensors((call.args, call.kwargs))):
            for part in _tensors(output):
                self._gates[part] = True

    def _follow_scores(self, call: Call, output: Any) -> None:
        """Keep track of scores, through masks, biases and the softmax, to weights."""
        if len(self._scores) == 0 or not isinstance(output, Tensor):
            return
        for arg in _tensors((call.args, call.kwargs)):
            product = self._scores.get(arg)
            if product is not None and output.shape[-2:] == product.shape[-2:]:
                self._scores[output] = product

    # -- what rules are made of

    def note_scores(self, product: Any) -> None:
        """Note a product of two factors that depend on the tokens."""
        if isinstance(product, Tensor) and product.dim() >= 3:
            self._scores[product] = product

    def note_sum(self, call: Call, output: Any) -> None:
        """Note where the last attention joins what does not depend on it."""
        if self._last is not None and isinstance(output, Tensor):
            behind = [
                self._mixed in self._graph.ancestors(arg)
                for arg in _tensors(call.args)
                if self.is_active(arg)
            ]
            if len(behind) == 2 and behind[0] != behind[1]:
                self._streams[self._last] = output

    def note(self, rule: str, call: Call) -> None:
        """Count a rule that met an operation."""
        self.counts[rule, call.name] += 1

    def mark_gate(self, output: Any) -> None:
        """Note what a softmax or a choice put out."""
        for part in _tensors(output):
            self._gates[part] = True

    def is_gate(self, operand: Any) -> bool:
        """Whether an operand comes from a softmax or a choice."""
        return isinstance(operand, Tensor) and operand in self._gates

    def is_weights(self, operand: Any) -> bool:
        """Whether an operand is attention weights below their rule."""
        return isinstance(operand, Tensor) and operand in self._weights

    def elementwise(self, operand: Tensor) -> _Elementwise:
        """Return what an operand is an elementwise function of, at least of itself."""
        known: _Elementwise | None = self._elementwise.get(operand)
        if known is not None:
            return known
        zero = operand.new_zeros(())
        return _Elementwise(operand, lambda: zero, is_curved=False)

    def track(self, call: Call, output: Tensor, is_curved: bool) -> _Elementwise | None:
        """Note an elementwise function; None if its operands have several roots."""
        operands = {
            place: arg
            for place, arg in [*enumerate(call.args), *call.kwargs.items()]
            if self.is_active(arg)
        }
        functions = {place: self.elementwise(arg) for place, arg in operands.items()}
        roots = [function.root for function in functions.values()]
        if any(root is not roots[0] for root in roots) or not isinstance(
            output, Tensor
        ):
            return None
        if output.shape != roots[0].shape:
            return None

        def at_zero() -> Any:
            with torch.no_grad():
                zeros = {place: of.at_zero() for place, of in functions.items()}
                return call.with_arguments(zeros).run()

        curved = is_curved or any(of.is_curved for of in functions.values())
        return _Elementwise(roots[0], at_zero, curved)

    def secant(self, call: Call, rule: str = "identity") -> Tensor | None:
        r"""Run an elementwise function as a secant; None if it is none.

        :math:`f(x) \to x\, \overline{(f(x) - f(0)) / x} + f(0)` with the derivative at
        0 where x is 0.
        """
        value = call.run()
        function = self.track(call, value, is_curved=True)
        if function is None:
            return None
        self.note(rule, call)
        root = function.root
        with torch.no_grad():
            at_zero = torch.as_tensor(function.at_zero())
            passes_zero = bool((at_zero == 0).all())
            small = root == 0 if passes_zero else root.abs() < _SMALL
            slope = (value - at_zero) / root
        if bool(small.any()):
            (derivative,) = torch.autograd.grad(
                value.sum(), root, retain_graph=True, allow_unused=True
            )
            if derivative is not None:
                slope = torch.where(small, derivative, slope)
        output = substitute(value, root * slope.to(root.dtype))
        self._elementwise[output] = function
        return output


# -- the rules: one function and one line of the table each


def identity(rules: PropagationRules, call: Call) -> Any:
    """Elementwise functions of one operand that depends on the tokens."""
    output = rules.secant(call)
    return call.run() if output is None else output


def shift_or_scale(rules: PropagationRules, call: Call) -> Any:
    """Sums: linear; by a constant, an elementwise function stays one."""
    output = call.run()
    function = rules.track(call, output, is_curved=False)
    if function is not None:
        rules._elementwise[output] = function
    else:
        rules.note_sum(call, output)
    return output


def product(rules: PropagationRules, call: Call) -> Any:
    """Elementwise products: of one tensor's functions, with a gate, or of two."""
    (left, a), (right, b) = call.operand(0, "input"), call.operand(1, "other")
    if not (rules.is_active(a) and rules.is_active(b)):
        return shift_or_scale(rules, call)
    if rules.elementwise(a).root is rules.elementwise(b).root:
        output = rules.secant(call)
        if output is not None:
            return output
    for place, operand in ((left, a), (right, b)):
        if rules.is_gate(operand):
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
        output = shift_or_scale(rules, call)
    elif rules.is_active(a) and rules.elementwise(a).root is rules.elementwise(b).root:
        output = rules.secant(call)
    else:
        rules.note("normalisation", call)
        output = call.with_arguments({right: b.detach()}).run()
    if rules.is_gate(a):
        rules.mark_gate(output)
    return output


def power(rules: PropagationRules, call: Call) -> Any:
    """Powers: elementwise, but a negative one divides."""
    _, exponent = call.operand(1, "exponent")
    if isinstance(exponent, (int, float)) and exponent >= 0:
        return identity(rules, call)
    return reciprocal(rules, call)


def reciprocal(rules: PropagationRules, call: Call) -> Any:
    """What a tensor will be divided by: constant, unless it is an activation.

    A sigmoid may be written ``1 / (1 + exp(-x))``, a norm ``1 / sqrt(variance)``: in
    the former an elementwise function came before.
    """
    operand = next(arg for arg in call.args if rules.is_active(arg))
    if rules.elementwise(operand).is_curved:
        return identity(rules, call)
    rules.note("normalisation", call)
    return call.run().detach()


def contraction(rules: PropagationRules, call: Call) -> Any:
    """Products of matrices: half to each factor; attention weights have their rule."""
    first, second = _FACTORS.get(call.name, ((0, "input"), (1, "mat2")))
    (left, a), (right, b) = call.operand(*first), call.operand(*second)
    if b is None:
        right, b = call.operand(second[0], "other")
    return _contract(rules, call, [(left, a), (right, b)])


def _contract(
    rules: PropagationRules, call: Call, operands: list[tuple[int | str, Any]]
) -> Any:
    active = [(place, x) for place, x in operands if rules.is_active(x)]
    if len(active) < 2:
        return call.run()
    if any(rules.is_weights(x) for _, x in active):
        share = 1 - rules.share_of_weights
        changed = {
            place: scale_gradient(x, share)
            for place, x in active
            if not rules.is_weights(x)
        }
    else:
        rules.note("uniform", call)
        changed = {
            place: scale_gradient(x, 1 / len(active)) for place, x in active
        }
        output = call.with_arguments(changed).run()
        rules.note_scores(output)
        return output
    return call.with_arguments(changed).run()


def einsum(rules: PropagationRules, call: Call) -> Any:
    """Contractions by letters; a factor that keeps all its letters may be a gate."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    flat = call._replace(args=(equation, *operands))
    places = list(enumerate(operands, 1))
    gates = {
        place: x.detach()
        for place, x in places
        if rules.is_gate(x) and not rules.is_weights(x) and rules.is_active(x)
    }
    others = [x for place, x in places if place not in gates and rules.is_active(x)]
    if gates and others:
        rules.note("gate", call)
        flat = flat.with_arguments(dict(gates))
    return _contract(rules, flat, list(enumerate(flat.args))[1:])


def fused_attention(rules: PropagationRules, call: Call) -> Any:
    """Attention in one kernel: the uniform rule twice, over scores and over values."""
    share = rules.share_of_weights
    names = ("query", "key", "value")
    operands = [call.operand(place, name) for place, name in enumerate(names)]
    (_, query), (_, key), (_, value) = operands
    scored = [rules.is_active(query), rules.is_active(key)]
    if not rules.is_active(value):
        share = 1.0
    elif not any(scored):
        share = 0.0
    each = share / max(1, sum(scored))
    rules.note("attention", call)
    factors = (each, each, 1 - share)
    return call.with_arguments(
        {
            place: scale_gradient(operand, factor)
            for (place, operand), factor in zip(operands, factors, strict=True)
            if rules.is_active(operand)
        }
    ).run()


def softmax(rules: PropagationRules, call: Call) -> Any:
    """A softmax keeps its gradient; what it does is known where it is used."""
    output = call.run()
    rules.mark_gate(output)
    return output


def choice(rules: PropagationRules, call: Call) -> Any:
    """Which are highest: what is picked by it is a gate."""
    output = call.run()
    rules.mark_gate(output)
    return output


def gated_linear_unit(rules: PropagationRules, call: Call) -> Any:
    """``glu``: one half of the features times the sigmoid of the other."""
    features, dim = call.operand(0, "input")[1], call.operand(1, "dim")[1]
    with rules:
        value, gate = features.chunk(2, -1 if dim is None else dim)
        return value * gate.sigmoid()


def layer_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`(x - E[x]) / \overline{\sqrt{Var[x] + \epsilon}} \cdot w + b`."""
    x, shape, weight, bias, eps = _arguments(
        call, ("input", "normalized_shape", "weight", "bias", "eps"), eps=1e-5
    )
    dims = tuple(range(-len(shape), 0))
    return _normalised(rules, call, x, dims, weight, bias, eps, centred=True)


def rms_norm(rules: PropagationRules, call: Call) -> Any:
    r""":math:`x / \overline{\sqrt{E[x^2] + \epsilon}} \cdot w`."""
    x, shape, weight, eps = _arguments(
        call, ("input", "normalized_shape", "weight", "eps")
    )
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _normalised(rules, call, x, dims, weight, None, eps, centred=False)


def group_norm(rules: PropagationRules, call: Call) -> Any:
    """LayerNorm over groups of channels."""
    x, groups, weight, bias, eps = _arguments(
        call, ("input", "num_groups", "weight", "bias", "eps"), eps=1e-5
    )
    features = [1, -1] + [1] * (x.dim() - 2)
    weight, bias = (
        None if given is None else given.view(features) for given in (weight, bias)
    )
    rules.note("normalisation", call)
    grouped = x.reshape(len(x), groups, -1)
    normalised = _divide_by_deviation(grouped, (-1,), eps, centred=True).view_as(x)
    return substitute(_without_graph(call), _affine(normalised, weight, bias))


def instance_norm(rules: PropagationRules, call: Call) -> Any:
    """LayerNorm of every channel, where it takes the statistics of its input."""
    names = ("input", "running_mean", "running_var", "weight", "bias")
    x, _, _, weight, bias = _arguments(call, names)
    uses_input = call.operand(5, "use_input_stats")[1]
    if uses_input is False:
        return call.run()
    eps = call.operand(7, "eps")[1]
    grouped = Call("group_norm", F.group_norm, (x, x.shape[1], weight, bias), {})
    rewrite = group_norm(rules, grouped._replace(kwargs={"eps": eps or 1e-5}))
    return substitute(_without_graph(call), rewrite)


def normalize(rules: PropagationRules, call: Call) -> Any:
    r""":math:`x / \overline{\max(\|x\|_p, \epsilon)}`."""
    (_, x), (_, p), (_, dim) = (
        call.operand(place, name) for place, name in enumerate(("input", "p", "dim"))
    )
    eps = call.operand(3, "eps")[1]
    rules.note("normalisation", call)
    with torch.no_grad():
        norm = x.norm(2.0 if p is None else p, 1 if dim is None else dim, keepdim=True)
        divisor = norm.clamp_min(1e-12 if eps is None else eps)
    return x / divisor


def _normalised(
    rules: PropagationRules,
    call: Call,
    x: Tensor,
    dims: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    rules.note("normalisation", call)
    normalised = _divide_by_deviation(x, dims, eps, centred)
    return substitute(_without_graph(call), _affine(normalised, weight, bias))


def _divide_by_deviation(
    x: Tensor, dims: tuple[int, ...], eps: float, centred: bool
) -> Tensor:
    if centred:
        x = x - x.mean(dims, keepdim=True)
    precise = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    deviation = (precise.square().mean(dims, keepdim=True) + eps).sqrt()
    return x / deviation.to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight.detach()
    return x if bias is None else x + bias.detach()


def _without_graph(call: Call) -> Tensor:
    with torch.no_grad():
        value: Tensor = call.run()
    return value


def _arguments(call: Call, names: Sequence[str], **defaults: Any) -> list[Any]:
    given = [call.operand(place, name)[1] for place, name in enumerate(names)]
    return [
        defaults.get(name) if value is None else value
        for name, value in zip(names, given, strict=True)
    ]


# -- tools of the rules


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return the same values; the gradient in them is scaled."""
    return x if factor == 1 else _Scaled.apply(x, factor)


def substitute(value: Tensor, rewrite: Tensor) -> Tensor:
    """Return a value whose gradient is that of a rewrite of it."""
    substituted: Tensor = _Substituted.apply(rewrite, value.detach())
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


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))


def _out_of_place(call: Call) -> Call | None:
    """Return the call that computes what an in-place one writes; None if it is none."""
    if call.kwargs.get("inplace"):
        return call._replace(kwargs={**call.kwargs, "inplace": False})
    base = call.name[:-1]
    if not call.name.endswith("_") or call.name.startswith("__"):
        return None
    func = getattr(torch.Tensor, base, None)
    return None if func is None else replace_function(call, base, func)


def replace_function(call: Call, name: str, func: Callable[..., Any]) -> Call:
    """Return a call of another function with the same arguments."""
    return call._replace(name=name, func=func)


# Nodes of the graph of operations that rules replace.
_CHANGED = {
    f"{name}Backward0"
    for name in (
        "Elu Erf Gelu Hardsigmoid Hardswish Hardtanh LeakyRelu Mish NativeGroupNorm "
        "NativeLayerNorm FusedRmsNorm Relu Rsqrt Sigmoid Silu Softplus Tanh"
    ).split()
}

_FACTORS = {
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    "addbmm": ((1, "batch1"), (2, "batch2")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "linear": ((0, "input"), (1, "weight")),
    "mv": ((0, "input"), (1, "vec")),
}

_ELEMENTWISE = """
    abs celu clamp clamp_max clamp_min cos elu erf exp expit expm1 gelu hardsigmoid
    hardswish hardtanh leaky_relu log1p logsigmoid mish relu relu6 selu sigmoid silu sin
    softplus softshrink softsign sqrt square tan tanh tanhshrink
""".split()

_RULE_OF: dict[str, Callable[[PropagationRules, Call], Any]] = {
    **dict.fromkeys(_ELEMENTWISE, identity),
    **dict.fromkeys(["add", "sub", "__rsub__", "neg"], shift_or_scale),
    **dict.fromkeys(["mul", "multiply"], product),
    **dict.fromkeys(["div", "divide", "true_divide"], quotient),
    **dict.fromkeys(["pow"], power),
    **dict.fromkeys(["rsqrt", "reciprocal", "__rdiv__", "__rpow__"], reciprocal),
    **dict.fromkeys(
        ["matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "dot", "inner"]
        + list(_FACTORS),
        contraction,
    ),
    "einsum": einsum,
    "scaled_dot_product_attention": fused_attention,
    "softmax": softmax,
    "topk": choice,
    "argmax": choice,
    "glu": gated_linear_unit,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "normalize": normalize,
}

# Views, casts and choices, through which a gate stays one.
_FOLLOWED = set(
    """
    __getitem__ bfloat16 clone contiguous detach double dropout expand flatten float
    gather half index_select masked_fill permute reshape scatter squeeze sum t to
    transpose type type_as unflatten unsqueeze view where
    """.split()
)
# What is linear, picks or moves, and what statistics are divided by.
_LINEAR = _FOLLOWED | set(
    """
    __get__ __set__ __setitem__ __len__ adaptive_avg_pool1d adaptive_avg_pool2d alpha_dropout amax amin
    as_strided avg_pool1d avg_pool2d batch_norm broadcast_tensors broadcast_to cat chunk
    concat concatenate conv1d conv2d conv3d conv_transpose1d conv_transpose2d copy_
    cumsum cumulative_trapezoid diagonal diff dim dropout_ embedding embedding_bag
    expand_as feature_dropout flip fold hstack index_add index_add_ index_copy
    index_copy_ index_fill index_put index_put_ interpolate is_floating_point
    is_nested isfinite linear log_softmax masked_fill_ masked_scatter masked_scatter_ masked_select max
    max_pool1d max_pool2d maximum mean min minimum movedim moveaxis nan_to_num narrow new_empty
    new_full new_ones new_tensor new_zeros norm numel one_hot ones_like pad pixel_shuffle
    pixel_unshuffle positive ravel repeat repeat_interleave requires_grad_ reshape_as roll rot90
    scatter_ scatter_add scatter_add_ select size split split_with_sizes stack std std_mean
    stride swapaxes swapdims take take_along_dim tensor_split tile tril triu unbind unfold
    var var_mean vector_norm view_as vstack zeros_like zero_ fill_ dequantize item tolist
    cpu cuda is_contiguous element_size data_ptr ne eq lt gt le ge all any isnan isinf
    multi_head_attention_forward grouped_mm _grouped_mm logsumexp log
    """.split()
)
