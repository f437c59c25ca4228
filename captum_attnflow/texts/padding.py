"""Where padding is, read from the additional arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnflow._options import check_integer, check_shape, check_type
from captum_attnflow._tensors import check_dense
from captum_attnflow._warnings import warn_caller


def find_padding(
    forward_func: Callable[..., Any],
    n_inputs: int,
    additional: Sequence[Any] | None,
    shape: tuple[int, int],
) -> Tensor:
    """Find which positions are padding, from the attention mask among the arguments.

    The mask is the argument ``(B, T)`` whose parameter has ``mask`` or ``padding`` in
    its name; true means padding in the latter case, a token otherwise. Where the
    forward function does not name its parameters (``*args``), it is the only argument
    of that shape that holds nothing but zeros and ones, with a one in every row. Such
    an argument of another name is no mask; it is warned of, since padding would be
    taken for tokens.

    Args:
        forward_func (Callable): The forward function.
        n_inputs (int): Parameters before the additional arguments.
        additional (sequence, optional): The additional arguments.
        shape (tuple[int, int]): Texts and positions, ``(B, T)``.

    Returns:
        Tensor: Shape ``(B, T)``, bool, ``True`` at padding.

    Raises:
        ValueError: If several arguments could be the mask.
    """
    check_shape(shape)
    accepted = "the tuple of additional arguments, or None"
    check_type("additional", additional, (tuple, list, type(None)), accepted)
    arguments = list(additional or ())
    names = parameter_names(forward_func, n_inputs, len(arguments))
    alike = [
        (name, argument)
        for name, argument in zip(names, arguments, strict=True)
        if isinstance(argument, Tensor)
        and not argument.is_nested
        and tuple(argument.shape) == shape
        # Of an encoder and a decoder, the tokens are the encoder's.
        and "decoder" not in name
    ]
    for name, argument in alike:
        check_dense(name or "an additional argument", argument, f"of shape {shape}")
    found = [
        (name, argument.cpu() != 0)
        for name, argument in alike
        if "mask" in name or "padding" in name or (not name and _is_mask(argument))
    ]
    if not found:
        _warn_of_unread_masks(alike)
        return torch.zeros(shape, dtype=torch.bool)
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} of the additional arguments look like attention masks "
            f"{[name or 'unnamed' for name, _ in found]}; give forward_func named "
            'parameters, of which only the mask has "mask" in its name'
        )
    name, mask = found[0]
    return mask if "padding" in name else ~mask


def _warn_of_unread_masks(arguments: Sequence[tuple[str, Tensor]]) -> None:
    for name, argument in arguments:
        # Token types of pairs of texts are zeros and ones, too.
        if "type" not in name and _is_mask(argument) and not bool(argument.all()):
            warn_caller(
                f"the argument {name!r} holds zeros and ones like an attention mask, "
                "but its name does not say so, and all positions are taken for tokens. "
                "If it is one, name forward_func's parameter attention_mask"
            )


def _is_mask(argument: Tensor) -> bool:
    binary = ((argument == 0) | (argument == 1)).all()
    return bool(binary) and bool((argument == 1).any(1).all())


def parameter_names(
    forward_func: Callable[..., Any], n_inputs: int, n_additional: int
) -> list[str]:
    """Name the parameters of the additional arguments.

    Args:
        forward_func (Callable): The forward function.
        n_inputs (int): Parameters before the additional arguments.
        n_additional (int): How many arguments there are.

    Returns:
        list of str: Empty where a parameter has no name, as of ``*args``.
    """
    check_integer("n_inputs", n_inputs, 0)
    check_integer("n_additional", n_additional, 0)
    while isinstance(forward_func, nn.DataParallel):
        forward_func = forward_func.module
    if isinstance(forward_func, nn.Module):
        forward_func = forward_func.forward
    try:
        parameters = inspect.signature(forward_func).parameters.values()
    except (TypeError, ValueError):
        return [""] * n_additional
    named = [
        parameter.name
        for parameter in parameters
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ][n_inputs : n_inputs + n_additional]
    return named + [""] * (n_additional - len(named))
