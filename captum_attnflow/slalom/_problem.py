"""The fit's problem: standardised answers, residuals and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.slalom.data import QueryData
from captum_attnflow.slalom.model import SlalomModel

# Answers that differ by less, relative to the largest, are equal up to the rounding of
# a float32 model.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries with answers of mean 0 and spread 1.

    A sink is one more column: a type that occurs once in every query. Tensors are
    float64.

    Attributes:
        counts (Tensor): Shape ``(B, Q, K)``.
        answers (Tensor): Shape ``(B, Q)``, standardised.
        weights (Tensor): Shape ``(B, Q)``, 0 where there is no query.
        columns (Tensor): Shape ``(B, K)``, bool, ``True`` for types and the sink.
        types (Tensor): Shape ``(B, K)``, bool, ``False`` for the sink.
        offset (Tensor): Shape ``(B,)``, mean of the answers.
        scale (Tensor): Shape ``(B,)``, spread of the answers, 1 if they are equal.
        longest (Tensor): Shape ``(B,)``, most tokens of a query.
    """

    counts: Tensor
    answers: Tensor
    weights: Tensor
    columns: Tensor
    types: Tensor
    offset: Tensor
    scale: Tensor
    longest: Tensor

    @staticmethod
    def of(data: QueryData, sink: bool) -> Problem:
        """Standardise the answers and add the sink's column, if asked for."""
        counts, types, weights = data.counts, data.types, data.weights
        longest = counts.sum(-1).amax(1)
        # Where there is no query, any sequence will do but the empty one.
        asked = (weights > 0)[..., None]
        counts = torch.where(asked, counts, types[:, None].to(counts))
        columns = types
        if sink:
            counts = torch.cat([counts, torch.ones_like(counts[..., :1])], -1)
            columns = torch.cat([types, torch.ones_like(types[:, :1])], -1)
            types = torch.cat([types, torch.zeros_like(types[:, :1])], -1)
        total = weights.sum(1)
        offset = (weights * data.outputs).sum(1) / total
        centred = data.outputs - offset[:, None]
        spread = ((weights * centred**2).sum(1) / total).sqrt()
        largest = (weights * data.outputs).abs().amax(1)
        scale = torch.where(spread > _ROUNDING * largest, spread, 1.0)
        return Problem(
            counts=counts,
            answers=centred / scale[:, None],
            weights=weights,
            columns=columns,
            types=types,
            offset=offset,
            scale=scale,
            longest=longest,
        )

    @property
    def n_queries(self) -> Tensor:
        """Number of queries of each text, ``(B,)``."""
        return (self.weights > 0).sum(1)

    def shares(self, importance: Tensor) -> Tensor:
        """Return the share of each column in each query's mass, ``(B, Q, K)``."""
        return SlalomModel(importance, importance, self.columns).shares(self.counts)[0]

    def mean_over_types(self, per_column: Tensor) -> Tensor:
        """Average over the types of each text, ``(B, 1)``."""
        total = (per_column * self.types).sum(1, keepdim=True)
        return total / self.types.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class State:
    """Where the fit is; shares and residuals go with the parameters.

    Attributes:
        value (Tensor): Shape ``(B, K)``, standardised; 0 where there is no column.
        importance (Tensor): Shape ``(B, K)``, with mean 0 over the types.
        share (Tensor): Shape ``(B, Q, K)``.
        residual (Tensor): Shape ``(B, Q)``, prediction minus answer.
    """

    value: Tensor
    importance: Tensor
    share: Tensor
    residual: Tensor

    @staticmethod
    def at(problem: Problem, value: Tensor, importance: Tensor) -> State:
        """Evaluate the parameters."""
        share = problem.shares(importance)
        residual = (share @ value[..., None])[..., 0] - problem.answers
        return State(value, importance, share, residual)

    def where(self, condition: Tensor, other: State) -> State:
        """Take this state's texts where the condition holds, the other's elsewhere."""
        return State(
            *(
                torch.where(condition.view(-1, *(1,) * (mine.dim() - 1)), mine, theirs)
                for mine, theirs in zip(
                    vars(self).values(), vars(other).values(), strict=True
                )
            )
        )

    def jacobian(self, problem: Problem) -> Tensor:
        r"""Derivative of the prediction by values, then importances, ``(B, Q, 2K)``.

        With :math:`\alpha` the shares it is :math:`[\alpha, \alpha (v - F)]`.
        """
        predicted = self.residual + problem.answers
        by_importance = self.share * (self.value[:, None] - predicted[..., None])
        return torch.cat([self.share, by_importance], -1)

    def squared_error(self, problem: Problem) -> Tensor:
        """Weighted sum of squared residuals, shape ``(B,)``."""
        return (problem.weights * self.residual**2).sum(1)
