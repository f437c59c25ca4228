"""What metrics read: one tensor of tokens, a score for each, masks over them."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense

TensorOrTensors = Tensor | tuple[Tensor, ...]


def only_tensor(name: str, given: TensorOrTensors) -> Tensor:
    """Take the one tensor of tokens, given alone or in a tuple as Captum has it.

    Raises:
        ValueError: If there are more, or it has no dimension of tokens.
    """
    tensors = given if isinstance(given, tuple) else (given,)
    for tensor in tensors:
        check_dense(name, tensor, "one of tokens, (B, T) or (B, T, D)")
    if len(tensors) != 1 or tensors[0].dim() < 2 or tensors[0].numel() == 0:
        raise ValueError(
            f"{name} have shapes {[tuple(tensor.shape) for tensor in tensors]}; give "
            "one tensor of tokens, (B, T) or (B, T, D), and everything else in "
            "additional_forward_args; ids[None] makes a batch of one text"
        )
    return tensors[0].detach()


def read_token_scores(attributions: TensorOrTensors) -> Tensor:
    """Sum attributions over features; shape ``(B, T)``, on the CPU.

    Raises:
        ValueError: If they have another shape or are not finite.
    """
    given = only_tensor("attributions", attributions)
    scores = given.cpu().double().flatten(2).sum(2) if given.dim() > 2 else given.cpu()
    if not bool(scores.isfinite().all()):
        example = int((~scores.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the attributions of example {example} hold NaN or infinite values, which "
            "cannot be ranked"
        )
    return scores


def read_mask(name: str, mask: Tensor | None, scores: Tensor) -> Tensor:
    """Broadcast a mask; shape ``(B, T)``, bool, on the CPU.

    Raises:
        ValueError: If it has another shape or dtype.
    """
    if mask is None:
        return torch.zeros(scores.shape, dtype=torch.bool)
    check_dense(name, mask, f"bool of shape {tuple(scores.shape)}")
    fits = mask.shape in (scores.shape, scores.shape[1:])
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; give bool "
            f"of shape {tuple(scores.shape)} or {tuple(scores.shape[1:])}"
        )
    return mask.cpu().expand(scores.shape)
