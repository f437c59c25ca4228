"""Levenberg-Marquardt steps on the posterior, all texts of a batch together."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.slalom._posterior import Posterior
from captum_attnflow.slalom._problem import State

_FIRST_DAMPING = 1e-3
_DAMPING = (1e-15, 1e9)
# Weights change by a factor of e**2 in a step at most.
_LARGEST_STEP = 2.0


def minimise(
    posterior: Posterior,
    state: State,
    running: Tensor,
    max_steps: int,
    tolerance: float,
) -> tuple[State, Tensor]:
    """Lower the energy of the running texts.

    Args:
        posterior (Posterior): The objective.
        state (State): Where to start.
        running (Tensor): Shape ``(B,)``, bool, texts to move. A text's steps do not
            depend on the others.
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
        move = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        value = state.value + move[:, :n_columns]
        change = move[:, n_columns:].clamp(-_LARGEST_STEP, _LARGEST_STEP)
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
