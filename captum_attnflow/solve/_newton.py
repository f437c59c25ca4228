"""One predictor-corrector step of the barrier problem after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.solve._barrier_problem import Problem, State, dot
from captum_attnflow.solve._laplacian import Laplacian
from captum_attnflow.solve._workspace import WORKSPACE

_STEP_SHARE = 0.999
# Imbalance at a node, in shares of the value: in the answer, left by a predictor, left
# by the last correctors and by early ones.
_IMBALANCE = 1e-10
_PREDICTOR_ACCURACY = 1e-5
_CORRECTOR_ACCURACY = 1e-11
_EARLY_ACCURACY = 1e-5
# The same after a step that gained little, leaving more than this share: where weights
# differ by many orders, small residuals leave large errors. After so many such steps on
# end the layers are factored; the more tokens, the dearer that is.
_CAREFUL_ACCURACY = 1e-8
_LITTLE = 0.7
_MOST_STALLED = 4
_TOKENS_PER_STALLED = 128
# From a mu of this many targets on, steps only centre.
_NEAR = 2.0
# Relative change of a flow or multiplier in the step before the last, at most.
_LAST_FALL = 0.18
# From this many tokens on, iterating is cheaper than factoring.
_ITERATIVE_FROM_TOKENS = 48


class Newton:
    """One predictor-corrector step after the other, in place.

    With ``ratio = dx / room``, whose halves belong to ``x`` and ``-y``, the Newton
    equations reduce to ``dx = weight * (push + rise(p + dp))``, where the two pushes
    sum to ``push``; the predictor has none.

    Args:
        problem (Problem): The problem.
        state (State): Where to start; overwritten by each step.
        scratch (Tensor): Flat memory for six numbers an edge.
    """

    def __init__(self, problem: Problem, state: State, scratch: Tensor) -> None:
        self.problem = problem
        self.state = state
        self.mu = state.product()
        self.stalled = torch.zeros_like(self.mu)  # steps on end that gained little
        self._iterative = problem.n_tokens >= _ITERATIVE_FROM_TOKENS
        self._early_accuracy = _EARLY_ACCURACY
        self._fall = torch.ones_like(self.mu)  # largest share of a variable used
        self._scratch = scratch
        edges = scratch[: 6 * state.room[0].numel()].view(6, *state.room[0].shape)
        self._ratio, self._push = edges[:2], edges[2:4]
        self._weight, self._dx = edges[4:]
        self._rise = self._ratio[0]
        self._flow_parts, self._weight_parts, self._dx_parts, self._rise_parts = (
            problem.split(edges)
            for edges in (state.room[0], self._weight, self._dx, self._rise)
        )

    @staticmethod
    def of(problem: Problem, state: State) -> Newton:
        """Start with memory of the workspace."""
        n_edges = state.room[0].numel()
        return Newton(problem, state, WORKSPACE.empty((6 * n_edges,), like=state.room))

    def select(self, index: Tensor) -> Newton:
        part = Newton(
            self.problem.select(index), self.state.select(index), self._scratch
        )
        part.stalled, part._fall = self.stalled[index], self._fall[index]
        part._iterative, part._early_accuracy = self._iterative, self._early_accuracy
        return part

    def converged(self, target: Tensor, tolerance: float) -> Tensor:
        """Whether each network is centred at its target and conserves flow."""
        state = self.state
        near = (self.mu <= (1 + tolerance) * target) & (self._fall <= _LAST_FALL)
        if not bool(near.any()):
            return near
        product = torch.mul(state.room, state.price, out=self._ratio)
        most, least = product.amax(-1).amax(0), product.amin(-1).amin(0)
        near &= torch.maximum(most - target, target - least) <= tolerance * target
        lost = self.problem.divergence(self._flow_parts).abs().amax((1, 2))
        return near & (lost <= _IMBALANCE * self.problem.value(state.room[0]))

    def step(self, target: Tensor) -> None:
        """Move towards the target by a predictor-corrector or a centring step."""
        mu = self.mu
        predicting = mu > _NEAR * target
        laplacian = self._laplacian()
        imbalance = self.problem.divergence(self._flow_parts)
        if bool(predicting.any()):
            aim = self._predict(laplacian, imbalance, mu, target, predicting)
        else:
            aim = target
            self._push.zero_()
        # The farther from the target, the more imbalance may be left for later. Close
        # to it steps shrink quadratically, so that the last one tells how far this is.
        far = torch.maximum(mu / target, self._fall**4 / _LAST_FALL**4).clamp_min(1)
        accuracy = _CORRECTOR_ACCURACY * far**2
        change = self._correct(
            laplacian, imbalance, aim, accuracy.clamp_max(self._early_accuracy)
        )
        fall = self._fall
        self._advance(change)
        left = torch.where(predicting, self.mu / mu, self._fall / fall)
        self.stalled = (self.stalled + 1) * (left > _LITTLE)
        most_stalled = int(self.stalled.max())
        if most_stalled:
            self._early_accuracy = _CAREFUL_ACCURACY
        patience = max(_MOST_STALLED, self.problem.n_tokens // _TOKENS_PER_STALLED)
        self._iterative = laplacian.iterative and most_stalled < patience

    def _laplacian(self) -> Laplacian:
        room, price = self.state.room, self.state.price
        weight = torch.div(price[0], room[0], out=self._weight)
        weight.addcdiv_(price[1], room[1])
        torch.div(self.problem.alive, weight, out=weight)
        return Laplacian(*self._weight_parts, iterative=self._iterative)

    def _predict(
        self,
        laplacian: Laplacian,
        imbalance: Tensor,
        mu: Tensor,
        target: Tensor,
        predicting: Tensor,
    ) -> Tensor:
        """Aim straight at the optimum; choose ``mu`` and the second-order terms."""
        problem, price = self.problem, self.state.price
        tolerance = _PREDICTOR_ACCURACY * problem.value(self.state.room[0])
        potential = laplacian.solve(-imbalance, tolerance, at_source=-1.0)
        problem.rise(potential, at_source=-1.0, out=self._rise_parts)
        dx = torch.mul(self._rise, self._weight, out=self._dx)
        ratio = torch.div(dx, self.state.room, out=self._push)
        primal = 1 / (-ratio.amin(-1).amin(0)).clamp_min(1)
        dual = 1 / (1 + ratio.amax(-1).amax(0)).clamp_min(1)
        cost = (dot(dx, price[0]) + dot(dx, price[1])) / (2 * dx.shape[1])
        after = (1 - dual) * mu + ((1 - dual) * primal - dual) * cost
        after -= primal * dual * dot(dx, self._rise) / (2 * dx.shape[1])
        ratio.addcmul_(ratio, ratio).mul_(price)
        if not bool(predicting.all()):
            ratio.mul_(predicting[:, None])
        # Mehrotra's rule, and more centring where the boundary blocks the predictor.
        sigma = torch.maximum(
            (after / mu).clamp(0, 1) ** 3, (1 - torch.minimum(primal, dual)) ** 2
        )
        return torch.where(predicting, torch.maximum(sigma * mu, target), target)

    def _correct(
        self, laplacian: Laplacian, imbalance: Tensor, aim: Tensor, accuracy: Tensor
    ) -> Tensor:
        """Solve for the step to ``mu = aim``, second-order terms included.

        The change of potential is solved for, not the potential: where an edge has
        much room its weight is so large that the rounding of ``p`` would unbalance.
        """
        problem, push, dx = self.problem, self._push, self._dx
        push.addcdiv_(aim[:, None], self.state.room)
        problem.rise(self.state.p, at_source=-1.0, out=self._dx_parts)
        dx.add_(push[0]).add_(push[1]).mul_(self._weight)
        forced = problem.divergence(self._dx_parts)
        tolerance = accuracy * problem.value(self.state.room[0])
        change = laplacian.solve(-imbalance - forced, tolerance)
        problem.rise(change, at_source=0.0, out=self._rise_parts)
        dx.addcmul_(self._rise, self._weight)
        return change

    def _advance(self, change: Tensor) -> None:
        room, price, dx = self.state.room, self.state.price, self._dx
        ratio = torch.div(dx, room, out=self._ratio)
        self._fall = -ratio.amin(-1).amin(0)
        primal = _step_length(self._fall)
        goal = self._push.addcmul_(price, ratio, value=-1)
        torch.div(goal, price, out=ratio)
        fall = 1 - ratio.amin(-1).amin(0)
        dual = _step_length(fall)
        self._fall = torch.maximum(self._fall, fall)
        room.addcmul_(dx, primal)
        price.lerp_(goal, dual)
        self.state.p.addcmul_(change, dual[..., None])
        self.mu = self.state.product()


def _step_length(fall: Tensor) -> Tensor:
    """Shape ``(B, 1)``: the full step, or nearly to the nearest boundary."""
    return (_STEP_SHARE / fall.clamp_min(_STEP_SHARE))[:, None]
