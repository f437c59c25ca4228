"""What tensors of a forward pass come from, as far as rules need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.axes import TRANSPOSITIONS, Axes, axes_after, compose
from captum_attnflow.capture.rules.call import Call, tensors_in, version


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
