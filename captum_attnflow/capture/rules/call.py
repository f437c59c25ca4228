"""Calls of torch functions, which rules rewrite, and what their tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.axes import TRANSPOSITIONS, Axes, axes_after, compose

Place = int | str


class Call(NamedTuple):
    """One call of a torch function.

    Attributes:
        name (str): By which rules find it, such as ``"matmul"``.
        func (Callable): What runs.
        args (tuple): Positional arguments.
        kwargs (dict): Named arguments.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Run it as the model asked for."""
        return self.func(*self.args, **self.kwargs)

    def with_arguments(self, changed: dict[Place, Any]) -> Call:
        """Return the call with some arguments changed, by place or by name."""
        args = tuple(changed.get(i, arg) for i, arg in enumerate(self.args))
        named = {name: changed.get(name, arg) for name, arg in self.kwargs.items()}
        return self._replace(args=args, kwargs=named)

    def operand(self, place: int, name: str) -> tuple[Place, Any]:
        """Return where an operand stands and what it is; None if it is not given."""
        if place < len(self.args):
            return place, self.args[place]
        return name, self.kwargs.get(name)

    def value(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, or a default where it is not given or None."""
        given = self.operand(place, name)[1]
        return default if given is None else given

    def operands(self) -> list[tuple[Place, Any]]:
        """Return all arguments with where they stand."""
        return [*enumerate(self.args), *self.kwargs.items()]

    def tensors(self) -> Iterator[Tensor]:
        """Go through the tensors among the arguments."""
        for arg in (*self.args, *self.kwargs.values()):
            if isinstance(arg, Tensor):
                yield arg
            elif isinstance(arg, (list, tuple, dict)):
                yield from tensors_in(arg)


def tensors_in(given: Any) -> Iterator[Tensor]:
    """Go through the tensors in nested tuples, lists and dicts."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from tensors_in(part)
    elif isinstance(given, dict):
        yield from tensors_in(list(given.values()))


def out_of_place(call: Call) -> Call | None:
    """Return the call that computes what an in-place one writes; None if it is none."""
    if call.kwargs.get("inplace"):
        return call._replace(kwargs={**call.kwargs, "inplace": False})
    if not call.name.endswith("_") or call.name.startswith("__"):
        return None
    base = call.name[:-1]
    func = getattr(torch.Tensor, base, None) or getattr(F, base, None)
    return None if func is None else call._replace(name=base, func=func)


def nodes_between(arguments: Iterable[Tensor], output: Any) -> set[Node]:
    """Return the nodes of the autograd graph that a call has made."""
    before = {
        get_gradient_edge(argument).node
        for argument in arguments
        if argument.requires_grad
    }
    pending: list[Node | None] = [
        get_gradient_edge(part).node
        for part in tensors_in(output)
        if part.requires_grad
    ]
    made: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in before or node in made:
            continue
        made.add(node)
        pending.extend(parent for parent, _ in node.next_functions)
    return made


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, where torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return the same values; the gradient in them is scaled."""
    if factor == 1:
        return x
    scaled: Tensor = _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled


def held_constant(x: Tensor) -> Tensor:
    """Return the same values, without a gradient in them.

    Scaled by 0 and not cut: the graph tells that it was there.
    """
    return scale_gradient(x, 0.0)


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


@dataclass(frozen=True)
class ElementwiseFunction:
    """What makes a tensor of another, element by element.

    Attributes:
        root (Tensor): The other.
        at_zero (Callable): Computes its value where the root is 0.
        is_curved (bool): Whether an activation lies between them, not only scaling,
            shifting, clamping and roots, which deviations are made of.
    """

    root: Tensor
    at_zero: Callable[[], Any]
    is_curved: bool


class ElementwiseFunctions:
    """Which tensors are elementwise functions of which.

    So a function that is written in several calls has one root. What was changed in
    place since is no such function any more.
    """

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, operand: Any) -> ElementwiseFunction | None:
        """Return what is known of an operand."""
        known = self._known.get(operand) if isinstance(operand, Tensor) else None
        if known is None:
            return None
        function: ElementwiseFunction = known[0]
        current = version(operand), version(function.root)
        return function if known[1:] == current else None

    def of(self, operand: Tensor) -> ElementwiseFunction:
        """Return what an operand is a function of, at least of itself."""

        def zero() -> Tensor:
            return torch.zeros((), dtype=operand.dtype, device=operand.device)

        return self.get(operand) or ElementwiseFunction(operand, zero, False)

    def note(self, output: Tensor, function: ElementwiseFunction) -> None:
        """Note what an output is a function of."""
        self._known[output] = (function, version(output), version(function.root))

    def compose(
        self, call: Call, output: Any, takes_part: Callable[[Any], bool], curves: bool
    ) -> ElementwiseFunction | None:
        """Return the function that a call makes of its operands' functions.

        Args:
            call (Call): An elementwise call.
            output (Any): What it returned.
            takes_part (Callable): Tells the operands that are no constants.
            curves (bool): Whether the call makes it an activation.

        Returns:
            ElementwiseFunction or None: None if the operands have several roots, or
            are broadcast.
        """
        functions = {
            place: self.of(operand)
            for place, operand in call.operands()
            if takes_part(operand)
        }
        roots = [function.root for function in functions.values()]
        if not roots or any(root is not roots[0] for root in roots):
            return None
        if not isinstance(output, Tensor) or output.shape != roots[0].shape:
            return None

        def at_zero() -> Any:
            zeros = {place: of.at_zero() for place, of in functions.items()}
            return call.with_arguments(zeros).run()

        curved = curves or any(of.is_curved for of in functions.values())
        return ElementwiseFunction(roots[0], at_zero, curved)


class Gates:
    """Which tensors a softmax or a choice of the highest put out."""

    def __init__(self) -> None:
        self._marked = WeakTensorKeyDictionary()

    def __contains__(self, operand: Any) -> bool:
        return isinstance(operand, Tensor) and operand in self._marked

    def mark(self, output: Any) -> None:
        """Note what a softmax or a choice put out."""
        for part in tensors_in(output):
            self._marked[part] = True

    def follow(self, call: Call, output: Any) -> None:
        """Note that what was made of a gate is one.

        Features that are picked by chosen indices are none, but scores are.
        """
        if not len(self._marked):
            return
        marked = [arg for arg in call.tensors() if arg in self._marked]
        if any(arg.is_floating_point() for arg in marked) or (
            marked and _picks_features(call)
        ):
            self.mark(output)

    def overwrite(self, target: Tensor, value: Tensor) -> None:
        """Note that a tensor has another's values."""
        if value in self._marked:
            self._marked[target] = True
        elif target in self._marked:
            del self._marked[target]


class ScoreProducts:
    """Which products of queries and keys tensors come from.

    They are followed through scales, masks, biases and the softmax to the weights.
    """

    def __init__(self) -> None:
        self._product_of = WeakTensorKeyDictionary()
        self._multiples = WeakTensorKeyDictionary()  # products, perhaps scaled

    def note(self, product: Any) -> None:
        """Note a product of two factors that depend on the tokens."""
        if isinstance(product, Tensor) and product.dim() >= 2:
            self._product_of[product] = product, tuple(range(product.dim()))
            self._multiples[product] = True

    def follow(self, call: Call, output: Any) -> None:
        """Note what a call, which contracts nothing, made of a product.

        A sum of two is a product itself. Attention sinks are a further column, dropped
        behind the softmax.
        """
        if not len(self._product_of) or not isinstance(output, Tensor):
            return
        known = [arg for arg in call.tensors() if arg in self._product_of]
        if not known or output.dim() < 2:
            return
        are_multiples = all(arg in self._multiples for arg in known)
        if call.name == "add" and len(known) > 1 and are_multiples:
            self.note(output)
            return
        # A statistic of scores, such as their maximum, has fewer axes of theirs.
        found = max((self._axes_in(call, arg, output) for arg in known), key=_n_known)
        if _n_known(found) >= 2:
            self._product_of[output] = found
        is_same = call.name in TRANSPOSITIONS or _scales(call)
        if are_multiples and is_same:
            self._multiples[output] = True

    def _axes_in(
        self, call: Call, operand: Tensor, output: Tensor
    ) -> tuple[Tensor, Axes]:
        """Find the axes of the product that an operand comes from in an output."""
        product, before = self._product_of[operand]
        axes = axes_after(call.func, call.args, call.kwargs, operand, output)
        if call.name in _JOINS and output.dim() == operand.dim():
            axes = tuple(range(output.dim()))
        return product, compose(axes, before)

    def of(self, weights: Tensor) -> tuple[Tensor, tuple[int, ...]] | None:
        """Return the product that attention weights come from.

        Args:
            weights (Tensor): Shape ``(..., queries, keys)``.

        Returns:
            tuple or None: The product, and its axes in the order of the weights'.
        """
        found = self._product_of.get(weights)
        if found is None:
            return None
        product, axes = found
        *leading, queries, keys = axes
        # The axis of a lone query may be added behind the product.
        if keys is None or (queries is None and weights.shape[-2] != 1):
            return None
        last = (keys,) if queries is None else (queries, keys)
        sizes = tuple(product.shape[axis] for axis in last)
        if sizes != tuple(weights.shape[-len(last) :]):
            return None
        left = [axis for axis in range(product.dim()) if axis not in last]
        followed = [axis for axis in leading if axis is not None]
        left = followed if sorted(followed) == left else left
        return product, (*left, *last)

    def keep(self, target: Tensor, copy: Tensor) -> None:
        """Note the copy of a tensor that will be changed in place.

        Biases and masks may be added to the product itself.
        """
        found = self._product_of.get(target)
        if found is None:
            return
        product, axes = found
        self._product_of[copy] = found
        if target in self._multiples:
            self._multiples[copy] = True
        if not _share_storage(product, target):
            return
        places = {axis: place for place, axis in enumerate(axes)}
        for tensor, (known, before) in list(self._product_of.items()):
            if known is product:  # of the copy from here on
                of_copy = tuple(None if a is None else places.get(a) for a in before)
                self._product_of[tensor] = copy, of_copy

    def overwrite(self, target: Tensor, value: Tensor) -> None:
        """Note that a tensor has another's values."""
        product = self._product_of.get(value)
        if product is not None:
            self._product_of[target] = product
        if value in self._multiples:
            self._multiples[target] = True
        elif target in self._multiples:
            del self._multiples[target]


_JOINS = {"cat", "concat", "concatenate", "pad"}
_SCALES = {"div", "divide", "float", "mul", "multiply", "to", "true_divide"}


def _n_known(found: tuple[Tensor, Axes]) -> int:
    return sum(axis is not None for axis in found[1])


def _scales(call: Call) -> bool:
    """Whether a call multiplies by one number."""
    return call.name in _SCALES and sum(arg.numel() > 1 for arg in call.tensors()) == 1


def _picks_features(call: Call) -> bool:
    if call.name not in ("gather", "take_along_dim"):
        return False
    name, place = ("dim", 1) if call.name == "gather" else ("dim", 2)
    return call.value(place, name) in (-1, call.value(0, "input").dim() - 1)


def _share_storage(one: Tensor, other: Tensor) -> bool:
    pointers = {part.untyped_storage().data_ptr() for part in (one, other)}
    return len(pointers) == 1
