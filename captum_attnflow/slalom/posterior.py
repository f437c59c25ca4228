r"""The regression problem of the fit, its priors, posterior and evidence.

The outputs are standardised to mean 0 and standard deviation 1. Noise, values and
importances are Gaussian: :math:`r_q \sim N(0, 1/\beta)`,
:math:`v_j \sim N(\mu, 1/\lambda_v)`, :math:`s_j \sim N(0, 1/\lambda_s)`.

The precisions maximise the evidence under Laplace's approximation. MacKay's fixed point
finds them (Neural Computation 4, 1992, Eq. 4.7 and 4.8): a precision becomes the number
of parameters that the data determine, :math:`\gamma`, over their sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow.slalom.model import SlalomModel
from captum_attnflow.slalom.queries import QueryData

# Outputs whose spread is smaller, relative to the largest, differ by the rounding of a
# float32 model only.
_ROUNDING = 1e-6
# Bounds of the noise precision, for standardised outputs. A larger one would take the
# solver's own rounding for data.
_NOISE_PRECISION = (1e-2, 1e15)
# Strength of the prior that values and importances have unit spread, in parameters.
_UNIT_SPREAD = 10.0
# A priori the sink has the mass of the longest query, within a factor of e**2.
_SINK_PRECISION = 0.25


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries with standardised outputs: mean 0 and standard deviation 1.

    A sink is one more column: a type that occurs once in every query. Tensors are
    float64.

    Attributes:
        counts (Tensor): Shape ``(B, Q, K)``.
        outputs (Tensor): Shape ``(B, Q)``, standardised.
        weights (Tensor): Shape ``(B, Q)``, 0 where there is no query.
        columns (Tensor): Shape ``(B, K)``, bool, ``True`` for types and the sink.
        types (Tensor): Shape ``(B, K)``, bool, ``False`` for the sink.
        offset (Tensor): Shape ``(B,)``, mean of the given outputs.
        scale (Tensor): Shape ``(B,)``, their standard deviation; 1 if
            they are equal up to rounding.
        longest (Tensor): Shape ``(B,)``, most tokens of a query.
    """

    counts: Tensor
    outputs: Tensor
    weights: Tensor
    columns: Tensor
    types: Tensor
    offset: Tensor
    scale: Tensor
    longest: Tensor

    @staticmethod
    def of(data: QueryData, sink: bool) -> Problem:
        """Standardise the outputs and add the sink's column, if there is a sink."""
        counts, types, weights = data.counts, data.types, data.weights
        longest = counts.sum(-1).amax(1)
        # Padded queries hold each type once: an empty sequence would divide by 0.
        is_query = (weights > 0)[..., None]
        counts = torch.where(is_query, counts, types[:, None].to(counts))
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
            outputs=centred / scale[:, None],
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
    """Parameters of the fit, with the shares and residuals that follow from them.

    Attributes:
        value (Tensor): Shape ``(B, K)``, standardised; 0 where there is no column.
        importance (Tensor): Shape ``(B, K)``, with mean 0 over the types.
        share (Tensor): Shape ``(B, Q, K)``.
        residual (Tensor): Shape ``(B, Q)``, prediction minus output.
    """

    value: Tensor
    importance: Tensor
    share: Tensor
    residual: Tensor

    @staticmethod
    def at(problem: Problem, value: Tensor, importance: Tensor) -> State:
        """Evaluate the parameters."""
        share = problem.shares(importance)
        residual = (share @ value[..., None])[..., 0] - problem.outputs
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
        predicted = self.residual + problem.outputs
        by_importance = self.share * (self.value[:, None] - predicted[..., None])
        return torch.cat([self.share, by_importance], -1)

    def squared_error(self, problem: Problem) -> Tensor:
        """Weighted sum of squared residuals, shape ``(B,)``."""
        return (problem.weights * self.residual**2).sum(1)


@dataclass(frozen=True, eq=False)
class Precisions:
    """Hyper-parameters of each text, tensors of shape ``(B,)``.

    Attributes:
        noise (Tensor): Precision of the outputs.
        value (Tensor): Precision of the values.
        importance (Tensor): Precision of the importances.
        value_mean (Tensor): Mean of the values.
    """

    noise: Tensor
    value: Tensor
    importance: Tensor
    value_mean: Tensor

    @staticmethod
    def initial(problem: Problem, start: State) -> Precisions:
        """Return unit precisions, and the noise precision that the start leaves."""
        error = start.squared_error(problem).clamp_min(1e-300)
        one = torch.ones_like(error)
        noise = (problem.n_queries / error).clamp(*_NOISE_PRECISION)
        return Precisions(noise, one, one, torch.zeros_like(one))

    def change(self, other: Precisions) -> Tensor:
        """Largest absolute change of a logarithm, shape ``(B,)``."""
        names = ("noise", "value", "importance")
        changes = [
            (getattr(self, name) / getattr(other, name)).log().abs() for name in names
        ]
        return torch.stack(changes).amax(0)

    def where(self, condition: Tensor, other: Precisions) -> Precisions:
        """Take these where the condition holds, the others elsewhere."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Precisions(*(torch.where(condition, *pair) for pair in pairs))


@dataclass(frozen=True, eq=False)
class Posterior:
    """The negative logarithm of the posterior, up to a constant.

    Attributes:
        problem (Problem): The queries and outputs.
        precisions (Precisions): The hyper-parameters.
    """

    problem: Problem
    precisions: Precisions

    def energy(self, state: State) -> Tensor:
        """Return the objective, shape ``(B,)``."""
        penalty = (self._prior() * self._deviation(state) ** 2).sum(1)
        error = state.squared_error(self.problem)
        return (self.precisions.noise * error + penalty) / 2

    def system(self, state: State) -> tuple[Tensor, Tensor]:
        """Return gradient ``(B, 2K)`` and Gauss-Newton Hessian ``(B, 2K, 2K)``.

        A constant added to all importances changes no prediction; the Hessian is
        stiff in that direction, so that their mean stays where it is.
        """
        problem, noise = self.problem, self.precisions.noise[:, None]
        jacobian = state.jacobian(problem)
        weighted = jacobian * problem.weights[..., None]
        misfit = noise * (weighted.mT @ state.residual[..., None])[..., 0]
        curvature = noise[..., None] * (weighted.mT @ jacobian)
        prior = self._prior()
        none = (~problem.columns).to(prior).repeat(1, 2)
        hessian = curvature + torch.diag_embed(prior + none)
        _, by_importance = hessian.diagonal(dim1=1, dim2=2).chunk(2, 1)
        stiffness = problem.mean_over_types(by_importance)[:, 0] / problem.types.sum(1)
        shift = self._shift()
        hessian = hessian + stiffness[:, None, None] * shift[..., None] * shift[:, None]
        return misfit + prior * self._deviation(state), hessian

    def variances(self, state: State) -> tuple[Tensor, Tensor]:
        """Return the variances of values and importances, each ``(B, K)``.

        Given that the importances of the types have mean 0.
        """
        _, hessian = self.system(state)
        covariance = torch.cholesky_inverse(_factor(hessian))
        shift = self._shift()
        along = (covariance @ shift[..., None])[..., 0]
        taken = along**2 / (along * shift).sum(1, keepdim=True)
        variance = (covariance.diagonal(dim1=1, dim2=2) - taken).clamp_min(0)
        value, importance = variance.chunk(2, 1)
        return value * self.problem.columns, importance * self.problem.columns

    def determined(self, state: State) -> tuple[Tensor, Tensor]:
        """Count the values and importances that the data determine, each ``(B,)``.

        Of the importances at most all but one: only their differences matter.
        """
        value, importance = self.variances(state)
        n_values = self.problem.columns.sum(1) - self.precisions.value * value.sum(1)
        left = (importance * self.problem.types).sum(1)
        n_types = self.problem.types.sum(1)
        n_importances = n_types - 1 - self.precisions.importance * left
        return n_values.clamp_min(0), n_importances.clamp_min(0)

    def improved(self, state: State) -> Precisions:
        """Return the precisions that MacKay's fixed point gives at a mode."""
        problem = self.problem
        n_values, n_importances = self.determined(state)
        n_sinks = (problem.columns & ~problem.types).sum(1)
        spare = problem.n_queries - n_values - n_importances - n_sinks
        error = state.squared_error(problem).clamp_min(1e-300)
        mean = state.value.sum(1) / problem.columns.sum(1)
        spread = ((state.value - mean[:, None]) ** 2 * problem.columns).sum(1)
        importances = (state.importance**2 * problem.types).sum(1)
        return Precisions(
            noise=(spare.clamp_min(1) / error).clamp(*_NOISE_PRECISION),
            value=(n_values + _UNIT_SPREAD) / (spread + _UNIT_SPREAD),
            importance=(n_importances + _UNIT_SPREAD) / (importances + _UNIT_SPREAD),
            value_mean=mean,
        )

    def _shift(self) -> Tensor:
        """Direction in which all importances of types change alike, ``(B, 2K)``."""
        types = self.problem.types.to(self.problem.counts)
        return torch.cat([torch.zeros_like(types), types], 1)

    def _prior(self) -> Tensor:
        """Precision of every parameter, ``(B, 2K)``."""
        problem = self.problem
        value = self.precisions.value[:, None] * problem.columns
        sinks = problem.columns & ~problem.types
        importance = self.precisions.importance[:, None] * problem.types
        return torch.cat([value, importance + _SINK_PRECISION * sinks], 1)

    def _deviation(self, state: State) -> Tensor:
        """Distance of every parameter from its prior mean, ``(B, 2K)``."""
        problem = self.problem
        sinks = problem.columns & ~problem.types
        value = (state.value - self.precisions.value_mean[:, None]) * problem.columns
        importance = state.importance - sinks * problem.longest.log()[:, None]
        return torch.cat([value, importance], 1)


def _factor(hessian: Tensor) -> Tensor:
    """Factor Hessians, ``(B, N, N)``, by Cholesky.

    Where fewer queries than parameters are fitted without an error, their noise is so
    small that the prior of the others is lost in rounding. These get the least share
    of their diagonal that makes them positive definite again.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(hessian)
    share = torch.finfo(hessian.dtype).eps
    while bool(failed.any()) and share < 1:
        share *= 10
        ridge = torch.diag_embed(share * hessian.diagonal(dim1=1, dim2=2))
        again, still = torch.linalg.cholesky_ex(hessian + ridge)
        factor = torch.where((failed > 0)[:, None, None], again, factor)
        failed = torch.where(failed > 0, still, failed)
    return factor
