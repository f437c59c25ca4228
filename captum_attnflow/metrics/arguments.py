"""The arguments that metrics share: tokens, scores, masks, baselines and options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense

TensorOrTensors = Tensor | tuple[Tensor, ...]
RemovalMode = Literal["replace", "delete"]
Output = Literal["logits", "probabilities"]


class EvaluationOptions(TypedDict, total=False):
    """Options of every function that removes tokens, by keyword.

    Attributes:
        removal (str): ``"replace"`` (default) puts the baseline in a token's place;
            ``"delete"`` takes the token out of the input and of every argument that
            shares its axis, so that the model sees a shorter text.
        output (str): ``"logits"`` (default): a softmax over the last dimension of the
            output makes probabilities, the logistic function if it has a single
            output. ``"probabilities"``: the output holds them already; a probability of
            0 counts as 1e-38, so that log odds stay finite.
        keep (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; tokens that are
            never removed and not counted, such as special tokens. Default: None.
        padding (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; positions that
            hold no token. They are cut off before the model runs, with either removal.
            Default: None.
        internal_batch_size (int, optional): Most rows in one forward pass. Default:
            None, all rows of one length.
        show_progress (bool): Show a progress bar. Default: False.
    """

    removal: RemovalMode
    output: Output
    keep: Tensor | None
    padding: Tensor | None
    internal_batch_size: int | None
    show_progress: bool


class RemovalOptions(EvaluationOptions, total=False):
    """Options that all metrics share, by keyword: :class:`EvaluationOptions`, and ties.

    Attributes:
        n_tie_samples (int): If there are at most this many choices among tied tokens,
            all are evaluated, otherwise this many random ones. Default: 32.
        seed (int): Seed of these random choices. Default: 0.
    """

    n_tie_samples: int
    seed: int


def only_tensor(name: str, given: TensorOrTensors) -> Tensor:
    """Take the one tensor of tokens, given alone or in a tuple as in Captum.

    Raises:
        ValueError: If there are several, or it has no dimension of tokens.
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


def read_inputs(inputs: TensorOrTensors) -> Tensor:
    """Take the one tensor of token ids or embeddings.

    Raises:
        ValueError: If there are several, or it holds bools.
    """
    tokens = only_tensor("inputs", inputs)
    if tokens.dtype == torch.bool:
        raise ValueError(
            "inputs are of dtype torch.bool; give token ids, integers, or embeddings"
        )
    return tokens


def read_token_scores(
    attributions: TensorOrTensors, tokens: Tensor | None = None
) -> Tensor:
    """Sum attributions over features; shape ``(B, T)``, on the CPU.

    Args:
        attributions (Tensor): Shape ``(B, T)`` or ``(B, T, D)``.
        tokens (Tensor, optional): Shape ``(B, T, ...)``, the inputs that they score.

    Raises:
        ValueError: If they have another shape or are not finite.
    """
    given = only_tensor("attributions", attributions)
    if tokens is not None and given.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"attributions have shape {tuple(given.shape)} for inputs of shape "
            f"{tuple(tokens.shape)}; give one score, or one per feature, for each of "
            "the tokens"
        )
    scores = given.cpu().double().flatten(2).sum(2) if given.dim() > 2 else given.cpu()
    if not bool(scores.isfinite().all()):
        example = int((~scores.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the attributions of example {example} hold NaN or infinite values, which "
            "cannot be ranked; give finite values"
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


def read_levels(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return shares of the tokens, at least one, each in [0, 1].

    Raises:
        ValueError: If there are none or one is not in [0, 1].
    """
    try:
        levels = tuple(float(fraction) for fraction in fractions)
    except (TypeError, ValueError, RuntimeError):
        levels = ()
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(
            f"fractions={fractions!r}; give at least one share of the tokens, each "
            "from 0 to 1, such as 0.1 for 10 %"
        )
    return levels


def n_of_share(fraction: float, n_tokens: int) -> int:
    """Return how many of ``n_tokens`` tokens a share is, rounded up."""
    # In floating point, 0.07 * 100 is a little more than 7. Without the margin it would
    # round up to 8.
    return math.ceil(fraction * n_tokens - 1e-9)


def read_baseline(baselines: Any, inputs: Tensor) -> Tensor:
    """Broadcast what replaces tokens to the shape and dtype of the inputs.

    Raises:
        ValueError: If there is none, or it does not fit the inputs.
    """
    if isinstance(baselines, tuple) and len(baselines) == 1:
        (baselines,) = baselines
    if baselines is None:
        raise ValueError(
            'removal="replace" needs baselines: the id of the reference token, such as '
            "tokenizer.mask_token_id, or its embedding; or give "
            'removal="delete", which needs none'
        )
    if isinstance(baselines, Tensor):
        check_dense("baselines", baselines, "an embedding, or shaped like the inputs")
    try:
        given = torch.as_tensor(baselines, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"baselines={baselines!r} is no number and no tensor; give the id of the "
            "reference token, its embedding, or a tensor shaped like the inputs"
        ) from error
    if given.is_floating_point() and not inputs.is_floating_point():
        raise ValueError(
            f"baselines={baselines!r} cannot replace token ids, which are integers; "
            "give the id of the reference token"
        )
    try:
        return given.to(inputs.dtype).expand(inputs.shape)
    except RuntimeError as error:
        raise ValueError(
            f"baselines of shape {tuple(given.shape)} do not fit inputs of shape "
            f"{tuple(inputs.shape)}; give a number, one embedding, or a tensor shaped "
            "like the inputs"
        ) from error
