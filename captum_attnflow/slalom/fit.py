"""Fits SLALOM functions to what a model answered, with error bars.

An algebraic start (:mod:`~captum_attnflow.slalom._start`), then Levenberg-Marquardt
in float64, with priors whose precisions the data choose
(:mod:`~captum_attnflow.slalom._posterior`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow._options import check_type
from captum_attnflow.slalom._levenberg_marquardt import minimise
from captum_attnflow.slalom._posterior import Posterior, Precisions
from captum_attnflow.slalom._problem import Problem, State
from captum_attnflow.slalom._start import algebraic_start
from captum_attnflow.slalom.data import QueryData
from captum_attnflow.slalom.model import SlalomModel

_MAX_ROUNDS = 40
_STEPS_PER_ROUND = 4
_MAX_LAST_STEPS = 60
# Relative change of a precision at which the rounds end, and of the energy.
_SETTLED = 0.05
_ROUND_TOLERANCE = 1e-5
_LAST_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class SlalomFit:
    """Fitted SLALOM functions of a batch of texts.

    Attributes:
        model (SlalomModel): The functions.
        value_standard_error (Tensor): Shape ``(B, V)``, in units of the output.
        importance_standard_error (Tensor): Shape ``(B, V)``, of the centred
            importances. Where the data say nothing it is the spread of the prior.
        identified (Tensor): Shape ``(B,)``, in [0, 1], share of the ``V - 1``
            differences of importances that the data determine rather than the prior;
            1 for a text of one type.
        noise (Tensor): Shape ``(B,)``, standard deviation of an answer around the
            function, in units of the output.
        spread (Tensor): Shape ``(B,)``, standard deviation of the answers; 1 where they
            are equal up to rounding.
        steps (Tensor): Shape ``(B,)``, int64, Levenberg-Marquardt steps taken.
    """

    model: SlalomModel
    value_standard_error: Tensor
    importance_standard_error: Tensor
    identified: Tensor
    noise: Tensor
    spread: Tensor
    steps: Tensor


def fit_slalom(data: QueryData, sink: bool = False) -> SlalomFit:
    """Fit one SLALOM function to the queries of each text.

    Args:
        data (QueryData): Queries and answers.
        sink (bool): Fit an always-present token besides the types.

    Raises:
        ValueError: If data is no QueryData, or a text has no query.

    Returns:
        SlalomFit: Functions and error bars, float64. A text's fit does not depend on
        the others of the batch.

    Examples::

        >>> counts = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
        >>> data = QueryData.pad([counts], [torch.tensor([2.0, -1.0, 1.0])])
        >>> fit = fit_slalom(data)
        >>> [round(value, 6) for value in fit.model.value[0].tolist()]
        [2.0, -1.0]
        >>> ratio = fit.model.importance[0].diff().exp()  # 1 = (2 * 2 - 1) / (2 + 1)
        >>> round(float(ratio), 6)
        0.5
    """
    check_type("data", data, QueryData, "QueryData, as QueryData.pad makes it")
    check_type("sink", sink, bool, "True or False")
    if not bool((data.weights > 0).any(1).all()):
        raise ValueError("a text of data has no query of positive weight; ask one")
    problem = Problem.of(data, sink)
    state = algebraic_start(problem)
    precisions = Precisions.initial(problem, state)
    running = torch.ones_like(problem.scale, dtype=torch.bool)
    total_steps = torch.zeros_like(running, dtype=torch.int64)
    for _ in range(_MAX_ROUNDS):
        posterior = Posterior(problem, precisions)
        state, steps = minimise(
            posterior, state, running, _STEPS_PER_ROUND, _ROUND_TOLERANCE
        )
        total_steps += steps
        improved = posterior.improved(state)
        settled = improved.change(precisions) < _SETTLED
        precisions = improved.where(running, precisions)
        running = running & ~settled
        if not bool(running.any()):
            break
    posterior = Posterior(problem, precisions)
    everywhere = torch.ones_like(running)
    state, steps = minimise(
        posterior, state, everywhere, _MAX_LAST_STEPS, _LAST_TOLERANCE
    )
    return _answer(posterior, state, total_steps + steps, sink)


def _answer(posterior: Posterior, state: State, steps: Tensor, sink: bool) -> SlalomFit:
    """Undo the standardisation."""
    problem = posterior.problem
    scale, offset = problem.scale[:, None], problem.offset[:, None]
    value = (state.value * scale + offset) * problem.columns
    value_variance, importance_variance = posterior.variances(state)
    _, n_importances = posterior.determined(state)
    differences = problem.types.sum(1) - 1
    identified = torch.where(
        differences > 0, n_importances / differences.clamp_min(1), 1.0
    )
    n_types = value.shape[1] - sink
    types = slice(n_types)
    return SlalomFit(
        model=SlalomModel(
            value=value[:, types],
            importance=state.importance[:, types],
            types=problem.types[:, types],
            sink_value=value[:, -1] if sink else None,
            sink_importance=state.importance[:, -1] if sink else None,
        ),
        value_standard_error=value_variance.sqrt()[:, types] * scale,
        importance_standard_error=importance_variance.sqrt()[:, types],
        identified=identified,
        noise=problem.scale / posterior.precisions.noise.sqrt(),
        spread=problem.scale,
        steps=steps,
    )
