r"""Fits SLALOM functions to the outputs of a model, with error bars.

**Posterior.** The outputs are standardised to mean 0 and standard deviation 1. Noise,
values and importances are Gaussian: :math:`r_q \sim N(0, 1/\beta)`,
:math:`v_j \sim N(\mu, 1/\lambda_v)`, :math:`s_j \sim N(0, 1/\lambda_s)`.

**Precisions** maximise the evidence under Laplace's approximation. MacKay's fixed point
finds them (Neural Computation 4, 1992, Eq. 4.7 and 4.8): a precision becomes the number
of parameters that the data determine, :math:`\gamma`, over their sum of squares.

**Fit.** Levenberg-Marquardt steps in float64 lower the negative log posterior. Between
rounds of steps the precisions are set to those of the largest evidence.

**Start.** It comes from a linear problem. Multiplied by its denominator, the SLALOM
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
from captum_attnflow.slalom.model import SlalomFit, SlalomModel
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
