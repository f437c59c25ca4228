r"""The algebraic start of the fit.

Multiplied by its denominator, the SLALOM function is linear and homogeneous in
:math:`w = e^s` and :math:`u = v e^s`:

.. math::
    \sum_j n_{qj} u_j - y_q \sum_j n_{qj} w_j = 0.

Without noise, ``2 V - 1`` generic queries leave one solution up to its scale. With
noise, ``u`` is eliminated by least squares, and ``w`` is the direction in which the
remaining error is smallest relative to the mass: the eigenvector of a ``V x V`` pencil.
The equation's error is the residual times the mass, so each query is divided by its
mass in the previous round (Sanathanan & Koerner 1963).
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.slalom._problem import Problem, State

_ROUNDS = 3
# Noise can make a weight negative; this share of the mean weight takes its place.
_LEAST_WEIGHT = 1e-3
_RIDGE = 1e-12


def algebraic_start(problem: Problem) -> State:
    """Return importances from the eigenproblem, and the best values for them."""
    weight = problem.columns.to(problem.counts)
    for _ in range(_ROUNDS):
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
    answers = torch.cat([problem.answers, torch.zeros_like(ridge)], 1)
    orthogonal, triangle = torch.linalg.qr(rows)
    times_answer = orthogonal * answers[..., None]
    remaining = times_answer - orthogonal @ (orthogonal.mT @ times_answer)
    # A column that is none must not be the smallest direction.
    beyond = ~problem.columns * (1 + 2 * problem.answers.abs().amax(1, keepdim=True))
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
    right = weighted.mT @ problem.answers[..., None]
    return torch.cholesky_solve(right, factor).squeeze(-1)


def _with_ridge(gram: Tensor, problem: Problem) -> Tensor:
    """Make a Gram matrix positive definite, also where there is no column."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    ridge = _RIDGE * trace * problem.columns + (~problem.columns).to(gram)
    return gram + torch.diag_embed(ridge)
