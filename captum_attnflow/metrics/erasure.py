"""Mean change of the prediction as the tokens of highest score go, or stay alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import TargetType, log_usage
from captum_attnflow.metrics._levels import RemovalOptions
from captum_attnflow.metrics._reading import TensorOrTensors
from captum_attnflow.metrics.table import (
    ERASER_LEVELS,
    TENTHS_TO_HALF,
    summarised_values,
)


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

    The tokens of highest score, and those kept in any case, are all that is left. The
    plain mean over ERASER's levels 1, 5, 10, 20 and 50 %.

    See :mod:`captum_attnflow.metrics` for the arguments and what they raise.

    Returns:
        Tensor: Shape ``(B,)``, float64, in [-1, 1]; 0 where no token can be removed.
    """
    given = (inputs, attributions, baselines, target, additional_forward_args)
    return summarised_values("sufficiency", fractions, options, forward_func, *given)
