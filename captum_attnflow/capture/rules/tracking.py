"""What tensors of a forward pass come from, as far as rules need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

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
        if isinstance(product, Tensor) and product.dim() >= 3:
            self._product_of[product] = product
            self._multiples[product] = True

    def follow(self, call: Call, output: Any) -> None:
        """Note what a call, which contracts nothing, made of a product.

        A transposed product, or a sum of two, is a product itself. Attention sinks are
        a further column, dropped behind the softmax.
        """
        if not len(self._product_of) or not isinstance(output, Tensor):
            return
        known = [arg for arg in call.tensors() if arg in self._product_of]
        if not known or output.dim() < 2:
            return
        are_multiples = all(arg in self._multiples for arg in known)
        is_sum = call.name == "add" and len(known) > 1
        if are_multiples and (is_sum or call.name in _TRANSPOSITIONS):
            self.note(output)
        elif call.name not in _TRANSPOSITIONS or _keeps_last_two(call):
            for arg in known:
                product = self._product_of[arg]
                same_keys = output.shape[-1] == arg.shape[-1] or call.name in _RESIZING
                if output.shape[-2] == product.shape[-2] and same_keys:
                    self._product_of[output] = product
            if are_multiples and _scales(call):
                self._multiples[output] = True

    def of(self, weights: Tensor) -> Tensor | None:
        """Return the product that attention weights come from."""
        product: Tensor | None = self._product_of.get(weights)
        if product is None or product.shape[-2:] != weights.shape[-2:]:
            return None
        return product

    def keep(self, target: Tensor, copy: Tensor) -> None:
        """Note the copy of a tensor that will be changed in place.

        Biases and masks may be added to the product itself.
        """
        product = self._product_of.get(target)
        if product is None:
            return
        self._product_of[copy] = product
        if target in self._multiples:
            self._multiples[copy] = True
        if _share_storage(product, target):
            for tensor, known in list(self._product_of.items()):
                if known is product:
                    self._product_of[tensor] = copy

    def overwrite(self, target: Tensor, value: Tensor) -> None:
        """Note that a tensor has another's values."""
        product = self._product_of.get(value)
        if product is not None:
            self._product_of[target] = product
        if value in self._multiples:
            self._multiples[target] = True
        elif target in self._multiples:
            del self._multiples[target]


_RESIZING = {"__getitem__", "cat", "concat", "concatenate", "narrow", "pad"}
_SCALES = {"div", "divide", "float", "mul", "multiply", "to", "true_divide"}
_SWAPS = {"swapaxes", "swapdims", "transpose"}
_TRANSPOSITIONS = (
    _SWAPS | {"T", "adjoint", "mH", "mT", "moveaxis", "movedim"} | {"permute", "t"}
)


def _scales(call: Call) -> bool:
    """Whether a call multiplies by one number."""
    return call.name in _SCALES and sum(arg.numel() > 1 for arg in call.tensors()) == 1


def _keeps_last_two(call: Call) -> bool:
    """Whether a call that transposes leaves queries and keys where they are."""
    if call.name not in _SWAPS:
        return False
    n_dims = call.value(0, "input").dim()
    swapped = (
        call.value(place, f"dim{place - 1}", call.kwargs.get(f"axis{place - 1}"))
        for place in (1, 2)
    )
    return all(dim % n_dims < n_dims - 2 for dim in swapped)


def _picks_features(call: Call) -> bool:
    if call.name not in ("gather", "take_along_dim"):
        return False
    name, place = ("dim", 1) if call.name == "gather" else ("dim", 2)
    return call.value(place, name) in (-1, call.value(0, "input").dim() - 1)


def _share_storage(one: Tensor, other: Tensor) -> bool:
    pointers = {part.untyped_storage().data_ptr() for part in (one, other)}
    return len(pointers) == 1
