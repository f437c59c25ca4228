"""Which of the additional arguments belong to texts or to their tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def rows_of(argument: Any, n_texts: int, rows: Tensor) -> Any:
    """Take the rows of an argument that has one per text; others pass through."""
    if isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == n_texts:
        return argument[rows.to(argument.device)]
    return argument


def columns_of(
    argument: Any, shape: tuple[int, int], rows: Tensor, columns: Tensor
) -> Any:
    """Take rows of an argument, and columns where it shares the token axis.

    The token axis is dimension 1 of a tensor ``(B, T, ...)`` or ``(1, T, ...)``, or the
    last two of an attention mask ``(B, H, T, T)`` as far as they have ``T`` columns.

    Args:
        argument (Any): An additional argument of the forward function.
        shape (tuple[int, int]): Texts and positions, ``(B, T)``.
        rows (Tensor): Shape ``(N,)``, int64, text of each query.
        columns (Tensor): Shape ``(N, L)``, int64, positions of each query.
    """
    n_texts, n_positions = shape
    if not isinstance(argument, Tensor) or argument.dim() < 2:
        return rows_of(argument, n_texts, rows)
    device = argument.device
    rows, columns = rows.to(device), columns.to(device)
    if len(argument) == 1 < n_texts:
        argument = argument.expand(n_texts, *argument.shape[1:])
    if len(argument) != n_texts:
        return argument
    if argument.shape[1] == n_positions:
        return argument[rows[:, None], columns]
    taken = argument[rows]
    each = torch.arange(len(rows), device=device)[:, None]
    if argument.dim() == 4 and argument.shape[2] == n_positions:
        taken = taken[each, :, columns].transpose(1, 2)
    if argument.dim() == 4 and argument.shape[3] == n_positions:
        taken = taken[each, :, :, columns].permute(0, 2, 3, 1)
    return taken


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
    of that shape that holds nothing but zeros and ones, with a one in every row.

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
    arguments = list(additional or ())
    names = _parameter_names(forward_func, n_inputs, len(arguments))
    found = [
        (name, argument.cpu() != 0)
        for name, argument in zip(names, arguments, strict=True)
        if isinstance(argument, Tensor)
        and tuple(argument.shape) == shape
        and ("mask" in name or "padding" in name or (not name and _is_mask(argument)))
    ]
    if not found:
        return torch.zeros(shape, dtype=torch.bool)
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} of the additional arguments look like attention masks "
            f"{[name or 'unnamed' for name, _ in found]}; give forward_func named "
            'parameters, of which only the mask has "mask" in its name'
        )
    name, mask = found[0]
    return mask if "padding" in name else ~mask


def _is_mask(argument: Tensor) -> bool:
    binary = ((argument == 0) | (argument == 1)).all()
    return bool(binary) and bool((argument == 1).any(1).all())


def _parameter_names(
    forward_func: Callable[..., Any], n_inputs: int, n_additional: int
) -> list[str]:
    """Names of the additional arguments, empty where there is none."""
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
