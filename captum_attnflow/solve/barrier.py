r"""The barrier problem, solved in batch by a primal-dual predictor-corrector.

Generalized Attention Flow (Azarkhalili & Libbrecht 2025, Eq. 12) regularises the
maximum flow, seen as a minimum-cost circulation, by a logarithmic barrier:

.. math::
    \min_{B^\top f = 0} c^\top f
        - \mu \sum_e \left[\log f_e + \log(u_e - f_e)\right].

With ``x`` the flow, ``y = u - x`` the room left, ``z`` and ``s`` their multipliers, and
a potential ``p`` per node that is -1 at the source and 0 at the sink, the optimum has

.. math::
    z - s = p_{tail} - p_{head}, \qquad x z = \mu, \qquad y s = \mu.

Here the terminals' edges and edges that never bind have ``u = inf``: their upper
barrier is constant and drops out. The paper's back edge only rescales ``mu`` by
``1 / (1 + mu / value)`` and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_attnflow.network import LayeredNetwork
from captum_attnflow.solve._laplacian import LaplacianFactor
from captum_attnflow.solve.solution import FlowError, FlowSolution, certified

# Start: the capacity-proportional flow at this share of the bound of the value, at
# most this share of each capacity; multipliers for this relative gap, but at least of
# the size of potential drops. Chosen for the fewest iterations on random networks
# with and without free residual edges: smaller multipliers block the steps.
_START_VALUE = 0.9
_START_LOAD = 0.7
_START_GAP = 0.2
_START_MULTIPLIER = 0.5
_STEP_SHARE = 0.995


@dataclass(frozen=True)
class BarrierSolver:
    r"""The unique flow of the barrier problem, all networks of a batch together.

    The barrier weight is relative by default: ``mu = epsilon * value / m`` for the
    ``m`` barrier terms, so that the duality gap at the optimum is ``epsilon`` times
    the flow value. This is the paper's rule :math:`\mu \le \epsilon / (2m)` made
    independent of the scale of the capacities: scaling them by ``g`` scales flow and
    ``mu`` by ``g`` and changes nothing else.

    Args:
        epsilon (float): Relative duality gap, in (0, 1).
        mu (float, optional): Absolute barrier weight in units of capacity, the same
            for all networks. Overrides ``epsilon``.
        tolerance (float): Largest relative deviation of a complementarity product
            from ``mu`` in the answer.
        max_iterations (int): Newton systems to solve before giving up.
        max_edges (int): Edges solved at once; larger batches are solved in parts, to
            bound memory at about 250 bytes an edge.

    Raises:
        ValueError: If an option is out of its range.
    """

    epsilon: float = 1e-6
    mu: float | None = None
    tolerance: float = 1e-6
    max_iterations: int = 100
    max_edges: int = 1 << 21

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon} must lie in (0, 1)")
        if self.mu is not None and not self.mu > 0:
            raise ValueError(f"mu={self.mu} must be positive, or None for epsilon's")
        if self.max_iterations < 1 or self.max_edges < 1 or not self.tolerance > 0:
            raise ValueError(
                f"max_iterations={self.max_iterations}, max_edges={self.max_edges} and "
                f"tolerance={self.tolerance} must be positive"
            )

    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of trimmed networks, each with a path to the sink."""
        at_once = max(1, self.max_edges // network.capacity[0].numel())
        parts = [
            self._solve_part(network.select(slice(start, start + at_once)))
            for start in range(0, network.n_networks, at_once)
        ]
        return FlowSolution.concatenate(parts)

    def _solve_part(self, network: LayeredNetwork) -> FlowSolution:
        whole = problem = _Problem.of(network)
        state = _start(problem)
        answer = replace(state)
        running = torch.arange(network.n_networks, device=network.capacity.device)
        mu = torch.zeros_like(problem.scale)
        iterations = torch.zeros_like(running)
        for iteration in range(self.max_iterations + 1):
            target = self._target(problem, state)
            done = _converged(problem, state, target, self.tolerance)
            if bool(done.any()):
                finished = running[done]
                answer.put(finished, state.select(done))
                mu[finished], iterations[finished] = target[done], iteration
                running = running[~done]
                problem, state = problem.select(~done), state.select(~done)
                target = target[~done]
            if len(running) == 0:
                return _solution(network, whole, answer, mu, iterations)
            state = _step(problem, state, target)
        raise FlowError(
            f"the barrier solver did not converge on {len(running)} of "
            f"{network.n_networks} networks within {self.max_iterations} iterations "
            f"(batch rows {running.tolist()[:8]}). Raise max_iterations, or epsilon "
            f"(now {self.epsilon}), or check the capacities for extreme ratios"
        )

    def _target(self, problem: _Problem, state: _State) -> Tensor:
        if self.mu is not None:
            return self.mu / problem.scale
        return self.epsilon * problem.value(state.x) / problem.n_terms


@dataclass(frozen=True)
class _Problem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink."""

    capacity: Tensor  # (B, E), in units of scale; arbitrary where not bounded
    alive: Tensor  # (B, E), 1 where there is an edge
    bounded: Tensor  # (B, E), 1 where its capacity is finite
    scale: Tensor  # (B,), upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    start_flow: Tensor  # (B, E), a conserving flow of value 1
    n_layers: int
    n_tokens: int

    @staticmethod
    def of(network: LayeredNetwork) -> _Problem:
        capacity = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1)
        alive = torch.cat([capacity > 0, terminals], 1)
        bounded = torch.cat(
            [(capacity > 0) & capacity.isfinite(), torch.zeros_like(terminals)], 1
        )
        scale = network.node_bound().sum(-1).amin(-1)
        padded = torch.cat([capacity, torch.ones_like(terminals.double())], 1)
        return _Problem(
            capacity=torch.where(bounded, padded / scale[:, None], 1.0),
            alive=alive.double(),
            bounded=bounded.double(),
            scale=scale,
            n_terms=(alive.sum(1) + bounded.sum(1)).double(),
            start_flow=_proportional_flow(network),
            n_layers=network.n_layers,
            n_tokens=network.n_tokens,
        )

    def select(self, index: Tensor) -> _Problem:
        return replace(
            self,
            capacity=self.capacity[index],
            alive=self.alive[index],
            bounded=self.bounded[index],
            scale=self.scale[index],
            n_terms=self.n_terms[index],
            start_flow=self.start_flow[index],
        )

    def split(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, source, sink = edges.split(
            [edges.shape[1] - 2 * self.n_tokens, self.n_tokens, self.n_tokens], 1
        )
        shape = (self.n_layers, self.n_tokens, self.n_tokens)
        return inner.unflatten(1, shape), source, sink

    def value(self, flow: Tensor) -> Tensor:
        return self.split(flow * self.alive)[2].sum(1)

    def divergence(self, flow: Tensor) -> Tensor:
        inner, source, sink = self.split(flow)
        return torch.cat([source[:, None], inner.sum(-1)], 1) - torch.cat(
            [inner.sum(-2), sink[:, None]], 1
        )

    def drop(self, potential: Tensor, at_source: float) -> Tensor:
        """Potential at the tail minus potential at the head, per edge."""
        inner = potential[:, :-1, None, :] - potential[:, 1:, :, None]
        return torch.cat(
            [inner.flatten(1), at_source - potential[:, 0], potential[:, -1]], 1
        )


@dataclass
class _State:
    x: Tensor  # (B, E) flow
    y: Tensor  # (B, E) room left; kept apart from x, since u - x cancels
    z: Tensor  # (B, E) multiplier of x >= 0
    s: Tensor  # (B, E) multiplier of y >= 0
    p: Tensor  # (B, L + 1, T) potential

    def select(self, index: Tensor) -> _State:
        return _State(**{name: tensor[index] for name, tensor in vars(self).items()})

    def gap(self) -> Tensor:
        gap: Tensor = (self.x * self.z).sum(1) + (self.y * self.s).sum(1)
        return gap

    def put(self, index: Tensor, part: _State) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.index_copy(0, index, getattr(part, name)))


def _proportional_flow(network: LayeredNetwork) -> Tensor:
    """A flow of value 1 that conserves, positive on every edge of a trimmed network.

    Every node passes its flow on in proportion to the capacity of the paths ahead.
    """
    bound = network.node_bound()
    ahead = [network.sink.to(bound.dtype)]
    weights = []
    for layer in reversed(range(network.n_layers)):
        weight = torch.minimum(network.capacity[:, layer], bound[:, layer + 1, :, None])
        weights.append(weight * ahead[-1][..., None])
        total = weights[-1].sum(-2)
        ahead.append(total / total.amax(-1, keepdim=True))
    throughput = torch.where(network.source, ahead[-1], 0.0)
    throughput = throughput / throughput.sum(-1, keepdim=True)
    source, inner = throughput, []
    for weight in reversed(weights):
        total = weight.sum(-2)
        passed_on = throughput / (total + (total == 0))
        inner.append(weight * passed_on[:, None])
        throughput = inner[-1].sum(-1)
    return torch.cat([torch.stack(inner, 1).flatten(1), source, throughput], 1)


def _start(problem: _Problem) -> _State:
    alive, bounded = problem.alive, problem.bounded
    load = torch.where(bounded > 0, _START_LOAD * problem.capacity, torch.inf)
    x = torch.minimum(_START_VALUE * problem.start_flow, load)
    # Underflow would put the start on the boundary; dead edges hold a 1 throughout.
    x = torch.where(alive > 0, x.clamp_min(torch.finfo(x.dtype).tiny ** 0.5), 1.0)
    y = torch.where(bounded > 0, problem.capacity - x, 1.0)
    mu = _START_GAP / problem.n_terms[:, None]
    z = (mu / x).clamp_min(_START_MULTIPLIER) * alive
    s = (mu / y).clamp_min(_START_MULTIPLIER) * bounded
    levels = torch.arange(problem.n_layers + 1, dtype=x.dtype, device=x.device)
    level = (levels + 0.5) / (problem.n_layers + 1) - 1
    p = level[:, None].expand(len(x), -1, problem.n_tokens).clone()
    return _State(x=x, y=y, z=z, s=s, p=p)


def _converged(
    problem: _Problem, state: _State, target: Tensor, tolerance: float
) -> Tensor:
    mu = target[:, None]
    off_x = (state.x * state.z - mu * problem.alive).abs().amax(1)
    off_y = (state.y * state.s - mu * problem.bounded).abs().amax(1)
    imbalance = problem.divergence(state.x * problem.alive).abs().amax((1, 2))
    central = torch.maximum(off_x, off_y) <= tolerance * target
    return central & (imbalance <= 1e-10 * problem.value(state.x))


def _step(problem: _Problem, state: _State, target: Tensor) -> _State:
    """One predictor-corrector step; near the target, one plain centring step.

    With ``r = dx / x`` and ``t = dx / y``, the Newton equations reduce to
    ``dx = weight * (h - drop(p + dp))``, and the predictor has ``h = 0``.
    """
    x, y, z, s, p = state.x, state.y, state.z, state.s, state.p
    inv_x, inv_y = problem.alive / x, problem.bounded / y
    weight = problem.alive / torch.addcmul(s * inv_y, z, inv_x).add_(1 - problem.alive)
    inner, source, sink = problem.split(weight)
    ground = torch.zeros_like(p)
    ground[:, 0] += source
    ground[:, -1] += sink
    factor = LaplacianFactor(inner, ground)
    imbalance = problem.divergence(x * problem.alive)

    def newton(push: Tensor) -> tuple[Tensor, Tensor]:
        force = push - problem.drop(p, -1.0)
        dp = factor.solve(-imbalance - problem.divergence(weight * force))
        return dp, weight * force.sub_(problem.drop(dp, 0.0))

    mu = state.gap() / problem.n_terms
    predict = (mu > 1.01 * target).to(x.dtype)[:, None]
    _, dx = newton(torch.zeros_like(x))
    r, t = dx * inv_x, dx * inv_y
    primal, dual = _predicted_steps(r, t)
    mu_predicted = _predicted_gap(state, dx, r, t, primal, dual) / problem.n_terms
    # Mehrotra's rule, and more centring where the boundary blocks the predictor.
    sigma = torch.maximum(
        (mu_predicted / mu).clamp(0, 1) ** 3,
        (1 - torch.minimum(primal, dual)[:, 0]) ** 2,
    )
    mu_next = torch.where(predict[:, 0] > 0, torch.maximum(sigma * mu, target), target)
    mu_next = mu_next[:, None]
    # Second-order terms of the complementarity products, from the predictor.
    bend_x = predict * r * z * (1 + r)
    bend_y = predict * t * s * (1 - t)
    push = mu_next * (inv_x - inv_y) + bend_x + bend_y
    dp, dx = newton(push)
    dz = mu_next * inv_x - z * (1 + dx * inv_x) + bend_x
    ds = mu_next * inv_y - s * (1 - dx * inv_y) - bend_y
    return _advance(problem, state, dx, dz, ds, dp)


def _predicted_steps(r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Longest predictor steps that keep flows and multipliers non-negative."""
    primal = torch.maximum((-r).amax(1), t.amax(1)).clamp_min(1)
    dual = torch.maximum((1 + r).amax(1), (1 - t).amax(1)).clamp_min(1)
    return 1 / primal[:, None], 1 / dual[:, None]


def _predicted_gap(
    state: _State, dx: Tensor, r: Tensor, t: Tensor, primal: Tensor, dual: Tensor
) -> Tensor:
    after_x = (state.x + primal * dx) * state.z * (1 - dual * (1 + r))
    after_y = (state.y - primal * dx) * state.s * (1 - dual * (1 - t))
    return after_x.sum(1) + after_y.sum(1)


def _advance(
    problem: _Problem, state: _State, dx: Tensor, dz: Tensor, ds: Tensor, dp: Tensor
) -> _State:
    x, y, z, s = state.x, state.y, state.z, state.s
    dy = -dx * problem.bounded
    primal = _step_length([-dx / x, -dy / y])
    dual = _step_length(
        [-dz / (z + (1 - problem.alive)), -ds / (s + (1 - problem.bounded))]
    )
    return _State(
        x=torch.addcmul(x, primal, dx),
        y=torch.addcmul(y, primal, dy),
        z=torch.addcmul(z, dual, dz),
        s=torch.addcmul(s, dual, ds),
        p=torch.addcmul(state.p, dual[..., None], dp),
    )


def _step_length(relative_falls: list[Tensor]) -> Tensor:
    """Shape ``(B, 1)``: the full step, or nearly to the nearest boundary."""
    fall = torch.stack([falls.amax(1) for falls in relative_falls]).amax(0)
    return (_STEP_SHARE / fall.clamp_min(_STEP_SHARE))[:, None]


def _solution(
    network: LayeredNetwork,
    problem: _Problem,
    state: _State,
    mu: Tensor,
    iterations: Tensor,
) -> FlowSolution:
    edges = state.x * problem.alive * problem.scale[:, None]
    flow, source_flow, sink_flow = problem.split(edges)
    return certified(
        network,
        # Scaling back may round a saturated edge past its capacity.
        flow=torch.minimum(flow, network.capacity),
        source_flow=source_flow,
        sink_flow=sink_flow,
        potential=state.p,
        mu=mu * problem.scale,
        duality_gap=state.gap() * problem.scale,
        iterations=iterations,
    )
