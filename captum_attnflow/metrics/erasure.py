"""Metrics of faithfulness by erasure of tokens: one table, one function for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import TargetType, log_usage
from captum_attnflow._checks import check_choice, check_type
from captum_attnflow.metrics.evaluation import (
    Level,
    Part,
    RemovalOptions,
    TensorOrTensors,
    Value,
    level_values,
)

TENTHS_TO_HALF = (0.1, 0.2, 0.3, 0.4, 0.5)
ERASER_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.5)
ALL_TENTHS = tuple(tenth / 10 for tenth in range(11))


def probability_fall(before: Tensor, after: Tensor) -> Tensor:
    r""":math:`p(x) - p(x')`."""
    return before.exp() - after.exp()


def log_ratio(before: Tensor, after: Tensor) -> Tensor:
    r""":math:`\log p(x') - \log p(x)`."""
    return after - before


def probability(before: Tensor, after: Tensor) -> Tensor:
    r""":math:`p(x')`."""
    return after.exp()


def mean(values: Tensor, fractions: Sequence[float]) -> Tensor:
    """Plain mean over the levels, ``(B, K)`` to ``(B,)``."""
    return values.mean(1)


def area(values: Tensor, fractions: Sequence[float]) -> Tensor:
    """Trapezoidal area over the levels divided by their span, ``(B, K)`` to ``(B,)``.

    Raises:
        ValueError: If the levels do not increase.
    """
    levels = torch.tensor(fractions, dtype=values.dtype)
    if len(levels) < 2 or not bool((levels.diff() > 0).all()):
        raise ValueError(
            f"fractions={tuple(fractions)}; an area needs at least two levels that "
            "increase, such as (0, 0.5, 1)"
        )
    return torch.trapezoid(values, levels, dim=1) / (levels[-1] - levels[0])


@dataclass(frozen=True)
class Metric:
    """A faithfulness metric: what it removes, its value at a level, its summary.

    Attributes:
        part (str): Removes the ``"highest"`` tokens, or the ``"rest"``.
        value (Callable): Of the log probabilities with and without them.
        summary (Callable): Of the values ``(B, K)`` and the levels; gives ``(B,)``.
        fractions (tuple of float): The usual levels.
        better (str): Whether ``"higher"`` or ``"lower"`` values are more faithful.
    """

    part: Part
    value: Value
    summary: Callable[[Tensor, Sequence[float]], Tensor]
    fractions: tuple[float, ...]
    better: Literal["higher", "lower"]

    def levels(self, fractions: Sequence[float]) -> list[Level]:
        """Return the levels of the given fractions for the part that it removes.

        Raises:
            ValueError: If there are none or one is not in [0, 1].
        """
        try:
            levels = [float(fraction) for fraction in fractions]
        except (TypeError, ValueError, RuntimeError):
            levels = []
        if not levels or not all(0 <= level <= 1 for level in levels):
            raise ValueError(
                f"fractions={fractions!r}; give at least one share of the tokens, each "
                "from 0 to 1, such as 0.1 for 10 %"
            )
        return [Level(level, self.part) for level in levels]


METRICS: dict[str, Metric] = {
    "aopc": Metric("highest", probability_fall, mean, TENTHS_TO_HALF, "higher"),
    "log_odds": Metric("highest", log_ratio, mean, TENTHS_TO_HALF, "lower"),
    "comprehensiveness": Metric(
        "highest", probability_fall, mean, ERASER_LEVELS, "higher"
    ),
    "sufficiency": Metric("rest", probability_fall, mean, ERASER_LEVELS, "lower"),
    "deletion_area": Metric("highest", probability, area, ALL_TENTHS, "lower"),
    "insertion_area": Metric("rest", probability, area, ALL_TENTHS, "higher"),
}
"""The metrics of faithfulness by their names in a table."""


def metric_values(
    name: str, fractions: Sequence[float], options: RemovalOptions, *arguments: Any
) -> Tensor:
    """Evaluate one metric at given levels, before its summary; shape ``(B, K)``."""
    metric = METRICS[name]
    wanted = {name: (metric.value, metric.levels(fractions))}
    return level_values(wanted, *arguments, **options)[name]


def summarised_values(
    name: str, fractions: Sequence[float], options: RemovalOptions, *arguments: Any
) -> Tensor:
    """Evaluate one metric at given levels; shape ``(B,)``."""
    values = metric_values(name, fractions, options, *arguments)
    return METRICS[name].summary(values, fractions)


@log_usage()
def faithfulness(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    metrics: Sequence[str] = tuple(METRICS),
    **options: Unpack[RemovalOptions],
) -> dict[str, Tensor]:
    """Evaluate several metrics at their usual levels, each set of tokens only once.

    Takes the arguments of the single functions, see :mod:`captum_attnflow.metrics`,
    and ``metrics``, keys of :data:`METRICS`, in place of ``fractions``.

    Returns:
        dict[str, Tensor]: One value per example, ``(B,)``, float64, by metric.

    Raises:
        ValueError: If a metric is unknown; otherwise see there.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> values = faithfulness(
        ...     lambda ids: model(ids).logits,
        ...     ids,
        ...     attributions=torch.tensor([[0.0, 0, 2, 0, 1, 0, 0]]),
        ...     target=1,
        ...     metrics=["comprehensiveness", "sufficiency"],
        ...     removal="delete",
        ...     keep=torch.tensor([True, False, False, False, False, False, True]),
        ... )
        >>> bool(values["comprehensiveness"] > values["sufficiency"])
        True
    """
    accepted = f"a list of names among {', '.join(METRICS)}"
    check_type("metrics", metrics, (list, tuple), accepted)
    for name in metrics:
        check_choice("metrics", name, METRICS)
    chosen = {name: METRICS[name] for name in metrics}
    wanted = {
        name: (metric.value, metric.levels(metric.fractions))
        for name, metric in chosen.items()
    }
    arguments = (inputs, attributions, baselines, target, additional_forward_args)
    values = level_values(wanted, forward_func, *arguments, **options)
    return {
        name: metric.summary(values[name], metric.fractions)
        for name, metric in chosen.items()
    }


@log_usage()
def aopc(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = TENTHS_TO_HALF,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Area over the perturbation curve (Samek et al. 2017); higher is more faithful.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \big( p(x) - p(x \setminus x_k) \big)

    The levels are 10 to 50 % by default. AttCAT's code (NeurIPS 2022) takes nine from
    1/9 to 1: ``fractions=[ninth / 9 for ninth in range(1, 10)]``.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [-1, 1]; 0 where no token can be removed.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("aopc", fractions, options, forward_func, *given)


@log_usage()
def log_odds(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = TENTHS_TO_HALF,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Log-odds (Shrikumar et al. 2017, as in AttCAT); lower is more faithful.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \log \frac{p(x \setminus x_k)}{p(x)}

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64; 0 where no token can be removed.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("log_odds", fractions, options, forward_func, *given)


@log_usage()
def comprehensiveness(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ERASER_LEVELS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Comprehensiveness (ERASER, DeYoung et al. 2020); higher is more faithful.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \big( p(x) - p(x \setminus x_k) \big)

    The plain mean over ERASER's levels 1, 5, 10, 20 and 50 %. It differs from
    :func:`aopc` in the levels only.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [-1, 1]; 0 where no token can be removed.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values(
        "comprehensiveness", fractions, options, forward_func, *given
    )


@log_usage()
def sufficiency(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ERASER_LEVELS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Sufficiency (ERASER, DeYoung et al. 2020); lower is more faithful.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \big( p(x) - p(x_k) \big)

    Only the tokens of highest score and those of ``keep`` are left. The plain mean over
    ERASER's levels 1, 5, 10, 20 and 50 %.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [-1, 1]; 0 where no token can be removed.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("sufficiency", fractions, options, forward_func, *given)


@log_usage()
def deletion_curve(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ALL_TENTHS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Deletion curve :math:`p(x \setminus x_k)` over the levels (RISE, 2018).

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B, K)``, float64, in [0, 1]; one value per level.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return metric_values("deletion_area", fractions, options, forward_func, *given)


@log_usage()
def deletion_area(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ALL_TENTHS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Area under the deletion curve; lower is more faithful.

    Trapezoids over the levels, divided by their span: a mean probability.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [0, 1].
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("deletion_area", fractions, options, forward_func, *given)


@log_usage()
def insertion_curve(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ALL_TENTHS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Insertion curve :math:`p(x_k)` over the levels (RISE, 2018).

    At level 0 only the tokens of ``keep`` are left.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B, K)``, float64, in [0, 1]; one value per level.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return metric_values("insertion_area", fractions, options, forward_func, *given)


@log_usage()
def insertion_area(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    fractions: Sequence[float] = ALL_TENTHS,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Area under the insertion curve; higher is more faithful.

    Trapezoids over the levels, divided by their span: a mean probability.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [0, 1].
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("insertion_area", fractions, options, forward_func, *given)
