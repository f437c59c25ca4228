r"""Fits SLALOM functions to the outputs of a model, with error bars.

Levenberg-Marquardt steps in float64 lower the negative log posterior. Between rounds
of steps the precisions of the priors are set to those of the largest evidence
(:mod:`~captum_attnflow.slalom.posterior`).

The start comes from a linear problem. Multiplied by its denominator, the SLALOM
function is linear and homogeneous in :math:`w = e^s` and :math:`u = v e^s`:

.. math::
    \sum_j n_{qj} u_j - y_q \sum_j n_{qj} w_j = 0.

Without noise, ``2 V - 1`` generic queries leave one solution up to its scale. With
noise, ``u`` is eliminated by least squares, and ``w`` is the direction in which the
remaining error is smallest relative to the mass: the eigenvector of a ``V x V`` pencil.
The equation's error is the residual times the mass, so each query is divided by its
mass in the previous round (Sanathanan & Koerner 1963).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow._checks import check_type
from captum_attnflow.slalom.model import SlalomModel
from captum_attnflow.slalom.posterior import Posterior, Precisions, Problem, State
from captum_attnflow.slalom.queries import QueryData

# The rounds end where each precision changes by less than this, relative to itself.
_SETTLED = 0.05
_MAX_ROUNDS = 40
# Most steps in a round and after the last, and the decrease of the energy, relative to
# 1 + energy, at which they end.
_STEPS_PER_ROUND = 4
_ROUND_TOLERANCE = 1e-5
_MAX_LAST_STEPS = 60
_LAST_TOLERANCE = 1e-12

# Rounds of the start; noise can make a weight negative, and this share of the mean
# weight takes its place.
_START_ROUNDS = 3
_LEAST_WEIGHT = 1e-3
_RIDGE = 1e-12

# Damping of the first step, and its bounds.
_FIRST_DAMPING = 1e-3
_DAMPING = (1e-15, 1e9)
# A step changes a weight by a factor of e**2 at most.
_LARGEST_STEP = 2.0


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
        noise (Tensor): Shape ``(B,)``, standard deviation of an output around the
            function, in units of the output.
        spread (Tensor): Shape ``(B,)``, standard deviation of the outputs; 1 where they
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
        data (QueryData): Queries and outputs.
        sink (bool): Fit an always-present token besides the types.

    Raises:
        ValueError: If ``data`` is not a QueryData, a text has no query, or a query no
            token and there is no sink.

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
        raise ValueError(
            "a text of data has no query of positive weight; each text must have one"
        )
    is_empty = (data.weights > 0) & (data.counts.sum(-1) == 0)
    if not sink and bool(is_empty.any()):
        raise ValueError(
            "a query of data holds no token, where a function without a sink has no "
            "value; leave it out, or give sink=True"
        )
    problem = Problem.of(data, sink)
    state = _algebraic_start(problem)
    precisions = Precisions.initial(problem, state)
    running = torch.ones_like(problem.scale, dtype=torch.bool)
    total_steps = torch.zeros_like(running, dtype=torch.int64)
    for _ in range(_MAX_ROUNDS):
        posterior = Posterior(problem, precisions)
        state, steps = _minimise(
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
    state, steps = _minimise(
        posterior, state, everywhere, _MAX_LAST_STEPS, _LAST_TOLERANCE
    )
    return _unstandardised(posterior, state, total_steps + steps, sink)


def _unstandardised(
    posterior: Posterior, state: State, steps: Tensor, sink: bool
) -> SlalomFit:
    """Return the fit in units of the outputs, with its standard errors."""
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


def _algebraic_start(problem: Problem) -> State:
    """Return importances from the eigenproblem, and the best values for them."""
    weight = problem.columns.to(problem.counts)
    for _ in range(_START_ROUNDS):
        mass = (problem.counts @ weight[..., None])[..., 0]
        scaled = problem.counts * (
            problem.weights.sqrt() / torch.where(mass > 0, mass, 1)
        ).unsqueeze(-1)
        weight = _smallest_direction(problem, scaled)
    importance = torch.where(problem.columns, weight.clamp_min(1e-300).log(), 0.0)
    importance = importance - problem.mean_over_types(importance)
    importance = torch.where(problem.columns, importance, 0.0)
    return State.at(problem, _best_values(problem, importance), importance)


def _smallest_direction(problem: Problem, scaled: Tensor) -> Tensor:
    """Solve the eigenproblem for rows of counts over masses, ``(B, Q, K)``.

    By orthogonal factors: products of matrices would square the condition number.
    """
    # Rows below the queries make the columns independent.
    largest = scaled.flatten(1).norm(dim=1)[:, None]
    ridge = torch.where(problem.columns, _RIDGE * largest, 1.0)
    rows = torch.cat([scaled, torch.diag_embed(ridge)], 1)
    outputs = torch.cat([problem.outputs, torch.zeros_like(ridge)], 1)
    orthogonal, triangle = torch.linalg.qr(rows)
    times_output = orthogonal * outputs[..., None]
    remaining = times_output - orthogonal @ (orthogonal.mT @ times_output)
    # A padded column must not become the smallest direction.
    beyond = ~problem.columns * (1 + 2 * problem.outputs.abs().amax(1, keepdim=True))
    remaining = torch.cat([remaining, torch.diag_embed(beyond)], 1)
    right = torch.linalg.svd(remaining, full_matrices=False).Vh[:, -1:].mT
    whole: Tensor = torch.linalg.solve_triangular(triangle, right, upper=True)
    direction = whole.squeeze(-1) * problem.columns
    direction = direction * torch.where(direction.sum(1, keepdim=True) < 0, -1.0, 1.0)
    n_columns = problem.columns.sum(1, keepdim=True)
    mean = direction.abs().sum(1, keepdim=True) / n_columns
    return (direction / mean).clamp_min(_LEAST_WEIGHT) * problem.columns


def _best_values(problem: Problem, importance: Tensor) -> Tensor:
    share = problem.shares(importance)
    weighted = share * problem.weights[..., None]
    factor = torch.linalg.cholesky(_with_ridge(weighted.mT @ share, problem))
    right = weighted.mT @ problem.outputs[..., None]
    return torch.cholesky_solve(right, factor).squeeze(-1)


def _with_ridge(gram: Tensor, problem: Problem) -> Tensor:
    """Make a Gram matrix positive definite, also at padded columns."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    ridge = _RIDGE * trace * problem.columns + (~problem.columns).to(gram)
    return gram + torch.diag_embed(ridge)


def _minimise(
    posterior: Posterior,
    state: State,
    running: Tensor,
    max_steps: int,
    tolerance: float,
) -> tuple[State, Tensor]:
    """Lower the energy of the running texts by Levenberg-Marquardt steps.

    Args:
        posterior (Posterior): The objective.
        state (State): Where to start.
        running (Tensor): Shape ``(B,)``, bool, texts whose parameters may change.
            A text's steps do not depend on the others.
        max_steps (int): Most steps, refused ones included.
        tolerance (float): A text is done when a step lowers its energy by less,
            relative to 1 + energy.

    Returns:
        tuple[State, Tensor]: The state, and the steps of each text, ``(B,)``, int64.
    """
    n_columns = state.value.shape[1]
    energy = posterior.energy(state)
    damping = torch.full_like(energy, _FIRST_DAMPING)
    steps = torch.zeros_like(running, dtype=torch.int64)
    for _ in range(max_steps):
        if not bool(running.any()):
            break
        gradient, hessian = posterior.system(state)
        extra = damping[:, None] * hessian.diagonal(dim1=1, dim2=2)
        factor, failed = torch.linalg.cholesky_ex(hessian + torch.diag_embed(extra))
        step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        value = state.value + step[:, :n_columns]
        change = step[:, n_columns:].clamp(-_LARGEST_STEP, _LARGEST_STEP)
        change = change - posterior.problem.mean_over_types(change)
        importance = state.importance + change * posterior.problem.columns
        trial = State.at(posterior.problem, value, importance)
        lower = posterior.energy(trial)
        accepted = running & (failed == 0) & (lower <= energy)
        steps = steps + running
        gain = energy - lower
        stuck = ~accepted & (damping >= _DAMPING[1])
        done = (accepted & (gain <= tolerance * (1 + energy))) | stuck
        state = trial.where(accepted, state)
        energy = torch.where(accepted, lower, energy)
        damping = torch.where(accepted, damping / 10, damping * 10).clamp(*_DAMPING)
        running = running & ~done
    return state, steps
