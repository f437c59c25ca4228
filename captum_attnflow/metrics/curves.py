"""Deletion and insertion curves (Petsiuk et al., RISE, BMVC 2018), and their areas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import TargetType, log_usage
from captum_attnflow.metrics._levels import RemovalOptions
from captum_attnflow.metrics._reading import TensorOrTensors
from captum_attnflow.metrics.table import (
    ALL_TENTHS,
    metric_values,
    summarised_values,
)


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

    At level 0 only the tokens that are kept in any case are there.

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
