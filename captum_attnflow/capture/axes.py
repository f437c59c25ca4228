"""Which axis of what a call puts out is which axis of what it took in.

Keys are the axis that a softmax runs over, wherever a model keeps them and wherever it
moves them to; sizes do not tell, since heads, rows and tokens may be as many. Calls
that move axes are run once more on an empty tensor, whose sizes and strides are all
different.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Axes = tuple[int | None, ...]
"""For each axis of a tensor the axis of another that it is; None if it is none."""

_SWAPS = {"swapaxes", "swapdims", "t", "transpose"}
TRANSPOSITIONS = _SWAPS | {"T", "H", "mT", "mH", "adjoint"}
TRANSPOSITIONS |= {"moveaxis", "movedim", "permute"}
# Which of a tensor's axes these keep does not depend on sizes; of views it does.
_SLICES = {"__getitem__", "narrow", "unsqueeze"}
_VIEWS = {"expand", "reshape", "squeeze", "unflatten", "view", "view_as", "reshape_as"}


def name_of(func: Callable[..., Any]) -> str:
    """Name a torch function; an attribute, such as ``mT``, by its own name."""
    name = func.__name__
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")  # type: ignore[attr-defined]
    return name


def axes_after(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operand: Tensor,
    output: Tensor,
) -> Axes:
    """Find the axes of an operand in what a call made of it.

    Args:
        func (Callable): A torch function that contracts nothing.
        args (tuple): Its arguments.
        kwargs (dict): Its named arguments.
        operand (Tensor): One of the arguments.
        output (Tensor): What it returned.

    Returns:
        tuple: For each axis of the output the operand's; None for one that is new, cut
        out, or made of several.

    Examples::

        >>> x = torch.ones(2, 3, 3)
        >>> axes_after(torch.transpose, (x, 1, 2), {}, x, x.transpose(1, 2))
        (0, 2, 1)
        >>> axes_after(torch.flatten, (x, 0, 1), {}, x, x.flatten(0, 1))
        (None, 2)
    """
    name, n_dims = name_of(func), operand.dim()
    shape: tuple[int, ...] | None = None
    if name in TRANSPOSITIONS:
        shape = tuple(range(2, 2 + n_dims))
    elif name in _SLICES or name == "flatten":
        shape = tuple(size + 1 for size in operand.shape)
    elif name in _VIEWS:
        shape = tuple(operand.shape)
    moved = None if shape is None else _again(func, args, kwargs, operand, shape)
    if shape is not None and moved is not None:
        return _by_strides(shape, moved, cut=name in _SLICES)
    missing = output.dim() - n_dims
    if missing < 0:
        return (None,) * output.dim()
    return tuple(
        axis - missing
        if axis >= missing and operand.shape[axis - missing] == size
        else None
        for axis, size in enumerate(output.shape)
    )


def compose(axes: Axes, before: Axes) -> Axes:
    """Follow axes through a further call: those of its operand were ``before``."""
    return tuple(None if axis is None else before[axis] for axis in axes)


def _again(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operand: Tensor,
    shape: tuple[int, ...],
) -> Tensor | None:
    """Run a call on an empty tensor of some shape; None if it cannot be."""
    empty = torch.empty(shape, device="meta")

    def replaced(arg: Any) -> Any:
        return empty if arg is operand else arg

    try:
        with torch._C.DisableTorchFunction():
            moved = func(
                *map(replaced, args),
                **{key: replaced(value) for key, value in kwargs.items()},
            )
    except (RuntimeError, IndexError, NotImplementedError, TypeError):
        return None
    return moved if isinstance(moved, Tensor) and moved._is_view() else None


def _by_strides(shape: tuple[int, ...], moved: Tensor, cut: bool) -> Axes:
    """Know axes of a contiguous tensor of a shape again, in a view of it.

    Axes of size 1 have no stride of their own: they are taken in their order, from the
    last.
    """
    strides = torch.empty(shape, device="meta").stride()
    axes: list[int | None] = [None] * moved.dim()
    left = list(range(len(shape)))
    places = sorted(
        range(moved.dim()), key=lambda axis: (moved.shape[axis] == 1, -axis)
    )
    for place in places:
        size, stride = moved.shape[place], moved.stride(place)
        found = [
            axis
            for axis in left
            if shape[axis] == size == 1
            or (strides[axis] == stride and shape[axis] > 1 and size == shape[axis])
            or (cut and strides[axis] == stride and 0 < size < shape[axis])
        ]
        if found:
            axes[place] = found[-1]
            left.remove(found[-1])
    return tuple(axes)
