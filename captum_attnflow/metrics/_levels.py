"""Values at the levels of any number of metrics, each set of tokens evaluated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from captum._utils.common import _format_additional_forward_args
from captum._utils.typing import TargetType
from captum.attr._utils.common import _validate_target
from torch import Tensor

from captum_attnflow.metrics.evaluation import Output, RemovalMode, TokenRemoval
from captum_attnflow.metrics.removal import NOTHING, Level, plan_removals

TensorOrTensors = Tensor | tuple[Tensor, ...]
Value = Callable[[Tensor, Tensor], Tensor]
"""Of the target's log probabilities with all tokens and without a set of them."""


class RemovalOptions(TypedDict, total=False):
    """Options that all metrics share, by keyword.

    Attributes:
        removal (str): ``"replace"`` (default) puts the baseline in a token's place;
            ``"delete"`` takes the token out of the input and of every argument that
            shares its axis, so that the model sees a shorter text.
        output (str): ``"logits"`` (default): a softmax over the last dimension of the
            output makes probabilities, the logistic function if it has a single
            output. ``"probabilities"``: the output holds them already; a probability of
            0 counts as 1e-38, so that log odds stay finite.
        keep (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; tokens that are
            never removed and not counted: special tokens belong here. Default: None.
        padding (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; positions that
            hold no token. They are cut off before the model runs, whatever the
            removal. Default: None.
        internal_batch_size (int, optional): Most rows in one forward pass; all of one
            length by default.
        n_tie_samples (int): Up to so many choices among tied tokens are all evaluated,
            of more so many random ones. Default: 32.
        seed (int): Seed of these random choices. Default: 0.
        show_progress (bool): Show a progress bar. Default: False.
    """

    removal: RemovalMode
    output: Output
    keep: Tensor | None
    padding: Tensor | None
    internal_batch_size: int | None
    n_tie_samples: int
    seed: int
    show_progress: bool


def level_values(
    wanted: Mapping[str, tuple[Value, Sequence[Level]]],
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any,
    target: TargetType,
    additional_forward_args: object,
    *,
    removal: RemovalMode = "replace",
    output: Output = "logits",
    keep: Tensor | None = None,
    padding: Tensor | None = None,
    internal_batch_size: int | None = None,
    n_tie_samples: int = 32,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """Evaluate values at levels; expectations where scores tie.

    ``wanted`` holds values with their levels, by any name; for the other arguments see
    :mod:`captum_attnflow.metrics` and :class:`RemovalOptions`.

    Returns:
        dict[str, Tensor]: Shape ``(B, K)``, float64, by the names given.
    """
    tokens = _only_tensor("inputs", inputs)
    scores = _token_scores(attributions, tokens)
    absent = _read_mask("padding", padding, scores)
    removable = ~(absent | _read_mask("keep", keep, scores))
    _validate_target(len(tokens), target)
    if n_tie_samples < 1:
        raise ValueError(f"n_tie_samples={n_tie_samples} must be at least 1")
    levels = dict.fromkeys(
        [NOTHING, *(level for _, levels in wanted.values() for level in levels)]
    )
    numbers = {level: number for number, level in enumerate(levels)}
    removals = plan_removals(scores, removable, list(numbers), n_tie_samples, seed)
    model = TokenRemoval(
        forward_func=forward_func,
        inputs=tokens,
        baselines=baselines,
        target=target,
        additional=_format_additional_forward_args(additional_forward_args),
        removal=removal,
        output=output,
        padding=absent.to(tokens.device),
        internal_batch_size=internal_batch_size,
        show_progress=show_progress,
    )
    after = model.log_probability(removals)
    before = removals.expectation(after)[:, numbers[NOTHING]][removals.example]
    return {
        name: removals.expectation(value(before, after))[
            :, [numbers[level] for level in levels_of_value]
        ]
        for name, (value, levels_of_value) in wanted.items()
    }


def read_levels(fractions: Sequence[float]) -> tuple[float, ...]:
    """Refuse anything but shares of the tokens.

    Raises:
        ValueError: If there are none or one is not in [0, 1].
    """
    levels = tuple(float(fraction) for fraction in fractions)
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(
            f"fractions={fractions!r}; give at least one share of the tokens, each "
            "from 0 to 1, such as 0.1 for 10 %"
        )
    return levels


def _only_tensor(name: str, given: TensorOrTensors) -> Tensor:
    tensors = given if isinstance(given, tuple) else (given,)
    if len(tensors) != 1 or tensors[0].dim() < 2:
        raise ValueError(
            f"{name} have shapes {[tuple(tensor.shape) for tensor in tensors]}; give "
            "one tensor of tokens, (B, T) or (B, T, D), and everything else in "
            "additional_forward_args"
        )
    return tensors[0].detach()


def _token_scores(attributions: TensorOrTensors, tokens: Tensor) -> Tensor:
    """Sum attributions over features; shape ``(B, T)``, on the CPU."""
    given = _only_tensor("attributions", attributions)
    if given.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"attributions have shape {tuple(given.shape)} for inputs of shape "
            f"{tuple(tokens.shape)}; one score, or one per feature, is needed for each "
            "of the tokens"
        )
    scores = given.cpu().double().flatten(2).sum(2) if given.dim() > 2 else given.cpu()
    if not bool(scores.isfinite().all()):
        example = int((~scores.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the attributions of example {example} hold NaN or infinite values, which "
            "cannot be ranked"
        )
    return scores


def _read_mask(name: str, mask: Tensor | None, scores: Tensor) -> Tensor:
    """Broadcast a mask; shape ``(B, T)``, bool, on the CPU."""
    if mask is None:
        return torch.zeros(scores.shape, dtype=torch.bool)
    fits = mask.shape in (scores.shape, scores.shape[1:])
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; give bool "
            f"of shape {tuple(scores.shape)} or {tuple(scores.shape[1:])}"
        )
    return mask.cpu().expand(scores.shape)
