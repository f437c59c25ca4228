"""One predictor-corrector step of the barrier problem after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attnflow.flow.solvers._barrier.laplacian import Laplacian
from captum_attnflow.flow.solvers._barrier.passes import EdgePasses
from captum_attnflow.flow.solvers._barrier.problem import Problem, State

_STEP_SHARE = 0.999
# Imbalance at a node, in shares of the value: left by a predictor, left by the last
# correctors and by early ones.
_PREDICTOR_ACCURACY = 1e-5
_CORRECTOR_ACCURACY = 1e-11
_EARLY_ACCURACY = 1e-5
# The same once a step has gained little, leaving more than this share: where weights
# differ by many orders, small residuals leave large errors. After so many such steps on
# end, or steps that only centre beyond enough, the layers are factored; the more
# tokens, the dearer that is.
_CAREFUL_ACCURACY = 1e-8
_LITTLE = 0.7
_LEAST_PATIENCE, MOST_PATIENCE = 4, 16
_TOKENS_PER_STALLED = 24
_ENOUGH_CENTRING = 4
# From a mu of this many targets on, steps only centre.
_NEAR = 2.0
# How much the mean product may exceed the target after the last step.
_LAST_EXCESS = 0.01
# Relative change of a flow or multiplier in a step from which on accuracy counts.
_SMALL_FALL = 0.5


class Newton:
    """One predictor-corrector step after the other, in place.

    Args:
        problem (Problem): The problem.
        state (State): Where to start; overwritten by each step.
        passes (type): What does the work on the edges.
        memory (Tensor, optional): Flat memory to work in; by default, or if it is not
            enough, the workspace's.

    Attributes:
        mu (Tensor): Shape ``(B,)``, mean complementarity product.
        value (Tensor): Shape ``(B,)``, flow into the sink.
        stalled (Tensor): Shape ``(B,)``, steps since the last that gained much.
        centring (Tensor): Shape ``(B,)``, steps that only centred.
        iterative (bool): Whether linear systems are still solved by iterating.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        passes: type[EdgePasses],
        memory: Tensor | None = None,
    ) -> None:
        self.problem = problem
        self.state = state
        self.stalled = torch.zeros_like(problem.n_terms)
        self.iterative = problem.n_tokens >= passes.iterative_from_tokens
        self._early_accuracy = _EARLY_ACCURACY
        self.centring = torch.zeros_like(self.stalled)
        self._fall = torch.ones_like(self.stalled)  # largest share of a variable used
        self._passes = passes(problem, state, memory)
        self._note(*self._passes.measure())
        self._gained = self._progress()

    def select(self, index: Tensor) -> Newton:
        part = Newton(
            self.problem.select(index),
            self.state.select(index),
            type(self._passes),
            memory=self._passes.memory,
        )
        part.stalled, part._fall = self.stalled[index], self._fall[index]
        part.centring, part._gained = self.centring[index], self._gained[:, index]
        part.iterative, part._early_accuracy = self.iterative, self._early_accuracy
        return part

    def is_near(self, target: Tensor, last_fall: float) -> Tensor:
        """Whether each network is near its optimum.

        Args:
            target (Tensor): Shape ``(B,)``, barrier weight.
            last_fall (float): Relative change of a flow or multiplier in the last step,
                at most.
        """
        reached = self.mu <= (1 + _LAST_EXCESS) * target
        return reached & (self._fall <= last_fall)

    def step(self, target: Tensor) -> None:
        """Move towards the target by a predictor-corrector or a centring step."""
        mu, value = self.mu, self.value
        predicting = mu > _NEAR * target
        sums = self._passes.weigh()
        laplacian = Laplacian(
            self._passes.weight,
            sums,
            self._passes.iterative_solver if self.iterative else None,
        )
        if bool(predicting.any()):
            tolerance = _PREDICTOR_ACCURACY * value
            potential = laplacian.solve(-self._imbalance, tolerance, at_source=-1.0)
            aim = self._predict(potential, target, predicting)
        else:
            aim = target
            self._passes.centre()
        # The farther from the target, the more imbalance may be left for later. Close
        # to it steps shrink fast, so that the last one tells how far this is.
        far = torch.maximum(mu / target, self._fall**4 / _SMALL_FALL**4).clamp_min(1)
        accuracy = (_CORRECTOR_ACCURACY * far**2).clamp_max(self._early_accuracy)
        # The change of potential is solved for, not the potential: where an edge has
        # much room its weight is so large that the rounding of it would unbalance.
        lost = self._passes.force(aim).add_(self._imbalance)
        change = laplacian.solve(-lost, accuracy * value)
        fall = self._fall
        self._advance(change)
        progress = self._progress()
        gains = (progress <= _LITTLE * self._gained).any(0)
        gains = torch.where(predicting, gains, self._fall <= _LITTLE * fall)
        self._gained = torch.where(gains, progress, self._gained)
        self.stalled = (self.stalled + 1) * ~gains
        self.centring += ~predicting
        if bool(self.stalled.any()):
            self._early_accuracy = _CAREFUL_ACCURACY
        longest = torch.maximum(self.stalled, self.centring - _ENOUGH_CENTRING).max()
        patience = self.problem.n_tokens // _TOKENS_PER_STALLED
        patience = max(_LEAST_PATIENCE, min(patience, MOST_PATIENCE))
        self.iterative = laplacian.iterative and int(longest) < patience

    def _predict(self, potential: Tensor, target: Tensor, predicting: Tensor) -> Tensor:
        """Choose ``mu`` by the step straight at the optimum."""
        mu = self.mu
        least, most, cost, gain = self._passes.predict(potential, predicting)
        primal = 1 / (-least).clamp_min(1)
        dual = 1 / (1 + most).clamp_min(1)
        n_products = 2 * self.problem.capacity.shape[1]
        after = (1 - dual) * mu
        after += ((1 - dual) * primal - dual) * cost / n_products
        after -= primal * dual * gain / n_products
        # Mehrotra's rule, and more centring where the boundary blocks the predictor.
        sigma = torch.maximum(
            (after / mu).clamp(0, 1) ** 3, (1 - torch.minimum(primal, dual)) ** 2
        )
        return torch.where(predicting, torch.maximum(sigma * mu, target), target)

    def _advance(self, change: Tensor) -> None:
        of_room, of_price = self._passes.turn(change)
        primal, dual = _step_length(of_room), _step_length(of_price)
        self._fall = torch.maximum(of_room, of_price)
        measured = self._passes.move(primal, dual)
        self.state.p.addcmul_(change, dual[:, None, None])
        self._note(*measured)

    def _progress(self) -> Tensor:
        """What is to fall: ``mu``, and the largest imbalance at a node, ``(2, B)``."""
        return torch.stack([self.mu, self._imbalance.abs().amax((1, 2))])

    def _note(self, imbalance: Tensor, total: Tensor) -> None:
        self._imbalance = imbalance
        self.mu = total / (2 * self.problem.capacity.shape[1])
        self.value = self.problem.value(self.state.room[0])


def _step_length(fall: Tensor) -> Tensor:
    """The full step, or nearly to the nearest boundary."""
    return _STEP_SHARE / fall.clamp_min(_STEP_SHARE)
