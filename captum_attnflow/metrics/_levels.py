"""Values at the levels of any number of metrics, each set of tokens evaluated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import TargetType, format_additional_forward_args
from captum_attnflow._checks import check_callable, check_flags, check_integer
from captum_attnflow.metrics._reading import (
    TensorOrTensors,
    only_tensor,
    read_mask,
    read_token_scores,
)
from captum_attnflow.metrics.evaluation import Output, RemovalMode, TokenRemoval
from captum_attnflow.metrics.removal import NOTHING, AnyLevel, plan_removals
from captum_attnflow.targets import targets_of_texts

Value = Callable[[Tensor, Tensor], Tensor]
"""Of the target's log probabilities with all tokens and without a set of them."""


class EvaluationOptions(TypedDict, total=False):
    """Options of whatever removes tokens, by keyword.

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
        n_tie_samples (int): Up to so many choices among tied tokens are all evaluated,
            of more so many random ones. Default: 32.
        seed (int): Seed of these random choices. Default: 0.
    """

    n_tie_samples: int
    seed: int


def level_values(
    wanted: Mapping[str, tuple[Value, Sequence[AnyLevel]]],
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any,
    target: TargetType,
    additional_forward_args: object,
    *,
    n_tie_samples: int = 32,
    seed: int = 0,
    **options: Unpack[EvaluationOptions],
) -> dict[str, Tensor]:
    """Evaluate values at levels; expectations where scores tie.

    ``wanted`` holds values with their levels, by any name; for the other arguments see
    :mod:`captum_attnflow.metrics` and :class:`RemovalOptions`.

    Returns:
        dict[str, Tensor]: Shape ``(B, K)``, float64, by the names given.
    """
    model, removable = read_removal(
        forward_func, inputs, baselines, target, additional_forward_args, **options
    )
    scores = _scores_of(model.inputs, attributions)
    check_integer("n_tie_samples", n_tie_samples, 1)
    check_integer("seed", seed)
    levels = dict.fromkeys(
        [NOTHING, *(level for _, levels in wanted.values() for level in levels)]
    )
    numbers = {level: number for number, level in enumerate(levels)}
    removals = plan_removals(scores, removable, list(numbers), n_tie_samples, seed)
    after = model.log_probability(removals)
    before = removals.expectation(after)[:, numbers[NOTHING]][removals.example]
    return {
        name: removals.expectation(value(before, after))[
            :, [numbers[level] for level in levels_of_value]
        ]
        for name, (value, levels_of_value) in wanted.items()
    }


def read_removal(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    baselines: Any,
    target: TargetType,
    additional_forward_args: object,
    *,
    removal: RemovalMode = "replace",
    output: Output = "logits",
    keep: Tensor | None = None,
    padding: Tensor | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> tuple[TokenRemoval, Tensor]:
    """Read what removes tokens, and which ones may be removed.

    See :mod:`captum_attnflow.metrics` and :class:`EvaluationOptions`.

    Returns:
        tuple: The model without tokens, and the removable ones, ``(B, T)``, bool, on
        the CPU.
    """
    check_callable("forward_func", forward_func)
    check_flags(show_progress=show_progress)
    tokens = only_tensor("inputs", inputs)
    if tokens.dtype == torch.bool:
        raise ValueError(
            "inputs are of dtype torch.bool; give token ids, integers, or embeddings"
        )
    positions = tokens.new_empty(tokens.shape[:2])
    absent = read_mask("padding", padding, positions)
    kept = read_mask("keep", keep, positions)
    targets_of_texts(target, len(tokens))
    if isinstance(target, Tensor) and target.dim() > 1:
        target = target.flatten()  # (B, 1), as topk(1) and argmax(keepdim=True) give
    model = TokenRemoval(
        forward_func=forward_func,
        inputs=tokens,
        baselines=baselines,
        target=target,
        additional=format_additional_forward_args(additional_forward_args),
        removal=removal,
        output=output,
        padding=absent.to(tokens.device),
        internal_batch_size=internal_batch_size,
        show_progress=show_progress,
    )
    return model, ~(absent | kept)


def read_levels(fractions: Sequence[float]) -> tuple[float, ...]:
    """Refuse anything but shares of the tokens.

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


def _scores_of(tokens: Tensor, attributions: TensorOrTensors) -> Tensor:
    """Read one score per token; shape ``(B, T)``, on the CPU."""
    given = only_tensor("attributions", attributions)
    if given.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"attributions have shape {tuple(given.shape)} for inputs of shape "
            f"{tuple(tokens.shape)}; give one score, or one per feature, for each of "
            "the tokens"
        )
    return read_token_scores(given)
