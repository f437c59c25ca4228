"""From what a forward function returns to the outputs of each query's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_attnflow.targets import Target


def select_classes(
    output: Any, targets: Sequence[Target] | None, n_rows: int
) -> Tensor:
    """Select the outputs of all classes where each row's target class is.

    Args:
        output (Tensor, array or list): What the forward function returned.
        targets (sequence of tuple, optional): Per row; the last index is the class.
        n_rows (int): Rows that were put in.

    Returns:
        Tensor: Shape ``(N, C)``; one column for one output per row.

    Raises:
        ValueError: If the output has not one row per input, or the targets do not
            select a class of it.
    """
    scores = _as_tensor(output)
    if scores.dim() == 0 or len(scores) != n_rows:
        raise ValueError(
            f"forward_func returned an output of shape {tuple(scores.shape)} for "
            f"{n_rows} inputs; it must return one row per input: a tensor of shape "
            f"({n_rows},) or ({n_rows}, classes)"
        )
    if targets is None:
        if scores.dim() <= 2:
            return scores.reshape(n_rows, -1)
        raise ValueError(
            f"forward_func returned {tuple(scores.shape[1:])} outputs per input and "
            "target is None; give target to choose which of them to explain"
        )
    lengths = {len(index) for index in targets}
    if lengths != {scores.dim() - 1}:
        raise ValueError(
            f"targets of {sorted(lengths)} indices were given, but forward_func "
            f"returned outputs of shape {tuple(scores.shape)}; give "
            f"{scores.dim() - 1} indices per target, or None for one output per input"
        )
    index = torch.tensor(list(targets), device=scores.device)
    sizes = torch.tensor(scores.shape[1:], device=scores.device)
    if bool(((index >= sizes) | (index < -sizes)).any()):
        raise ValueError(
            f"a target of {sorted(set(targets))} is out of range: forward_func "
            f"returned outputs of shape {tuple(scores.shape)}. Give indices into the "
            "dimensions after the first"
        )
    rows = torch.arange(n_rows, device=scores.device)
    places = (rows, *index[:, :-1].unbind(1))
    return scores[places]


def _as_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        scores = output
    else:
        try:
            scores = torch.as_tensor(output)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"forward_func returned a {type(output).__name__}; it must return a "
                "tensor with one row per input, such as model(...).logits"
            ) from error
    return scores if scores.is_floating_point() else scores.double()
