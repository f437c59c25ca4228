"""Tensors are refused with what is accepted, before arithmetic fails on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["floats", "bools", "integers"]

_DTYPES = {
    "floats": (torch.float64, torch.float32, torch.float16, torch.bfloat16),
    "bools": (torch.bool,),
    "integers": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
_CONVERSIONS = {"floats": "double", "bools": "bool", "integers": "long"}


def check_tensor(
    name: str, given: object, kind: Kind, shape: Sequence[int | str] | None = None
) -> None:
    """Refuse what is no ordinary tensor of a kind and a shape.

    Args:
        name (str): Of the argument.
        given (object): What was given for it.
        kind (str): ``"floats"``, ``"bools"`` or ``"integers"``.
        shape (sequence of int or str, optional): Sizes, or letters of any size from 1
            on, the same for the same letter; ``"B"`` may be 0.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name} is a {type(given).__name__}; give a tensor, such as "
            "torch.as_tensor(...)"
        )
    _refuse_other_storage(name, given)
    if given.dtype not in _DTYPES[kind]:
        raise ValueError(
            f"{name} is a Tensor of {given.dtype}; give one of {kind}, such as "
            f"{name}.{_CONVERSIONS[kind]}()"
        )
    if shape is not None and not _fits(tuple(given.shape), shape):
        wanted = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; give a tensor of shape ({wanted})"
        )


def check_dense(name: str, given: object, accepted: str) -> None:
    """Refuse what is no ordinary tensor of real numbers.

    Args:
        name (str): Of the argument.
        given (object): What was given for it.
        accepted (str): What is accepted, such as ``"token ids (B, T)"``.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name} is a {type(given).__name__}; give a tensor: {accepted}"
        )
    _refuse_other_storage(name, given)
    if given.is_complex():
        raise ValueError(
            f"{name} is a tensor of {given.dtype}; give real numbers: {accepted}"
        )


def check_finite(name: str, given: Tensor) -> None:
    """Refuse a tensor with entries that are NaN or infinite.

    Raises:
        ValueError: Saying how many there are.
    """
    is_other = ~given.isfinite()
    if bool(is_other.any()):
        raise ValueError(
            f"{name} holds {int(is_other.sum())} entries of {given.numel()} that are "
            "NaN or infinite; give finite ones, by a model and inputs that make them"
        )


def _refuse_other_storage(name: str, given: Tensor) -> None:
    if given.is_nested:
        kind, advice = "nested", f"{name}.to_padded_tensor(0)"
    elif given.is_quantized:
        kind, advice = "quantized", f"{name}.dequantize()"
    elif given.layout != torch.strided:
        kind, advice = "sparse", f"{name}.to_dense()"
    elif given.is_meta:
        kind, advice = "meta", "one on a device that holds its values"
    else:
        return
    raise ValueError(f"{name} is a {kind} tensor; give {advice}")


def _fits(given: tuple[int, ...], wanted: Sequence[int | str]) -> bool:
    if len(given) != len(wanted):
        return False
    sizes: dict[int | str, int] = {}
    return all(
        size == (name if isinstance(name, int) else sizes.setdefault(name, size))
        and (isinstance(name, int) or name == "B" or size > 0)
        for size, name in zip(given, wanted, strict=True)
    )
