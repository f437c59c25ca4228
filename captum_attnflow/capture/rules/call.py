"""Calls of torch functions, as values that rules rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

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
