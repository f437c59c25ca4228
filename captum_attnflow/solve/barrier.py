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
from captum_attnflow.solve._laplacian import Laplacian
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
# Imbalance at a node, in shares of the value: in the answer, left by a predictor, left
# by the last correctors and by early ones.
_IMBALANCE = 1e-10
_PREDICTOR_ACCURACY = 1e-4
_CORRECTOR_ACCURACY = 1e-11
_EARLY_ACCURACY = 1e-5
# From this many tokens on, iterating is cheaper than factoring.
_ITERATIVE_FROM_TOKENS = 48


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
        problem = _Problem.of(network)
        newton = _Newton(problem, _start(problem))
        answer = _State(**vars(newton.state))
        running = torch.arange(network.n_networks, device=network.capacity.device)
        mu = torch.zeros_like(problem.scale)
        iterations = torch.zeros_like(running)
        for iteration in range(self.max_iterations + 1):
            target = self._target(newton)
            done = newton.converged(target, self.tolerance)
            if bool(done.any()):
                finished = running[done]
                answer.put(finished, newton.state.select(done))
                mu[finished], iterations[finished] = target[done], iteration
                running, target = running[~done], target[~done]
                if len(running) == 0:
                    return _solution(network, problem, answer, mu, iterations)
                newton = newton.select(~done)
            newton.step(target)
        raise FlowError(
            f"the barrier solver did not converge on {len(running)} of "
            f"{network.n_networks} networks within {self.max_iterations} iterations "
            f"(batch rows {running.tolist()[:8]}). Raise max_iterations, or epsilon "
            f"(now {self.epsilon}), or check the capacities for extreme ratios"
        )

    def _target(self, newton: _Newton) -> Tensor:
        problem = newton.problem
        if self.mu is not None:
            return self.mu / problem.scale
        return self.epsilon * problem.value(newton.state.x) / problem.n_terms


@dataclass(frozen=True)
class _Problem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink."""

    capacity: Tensor  # (B, E), in units of scale; 1 where not bounded
    alive: Tensor  # (B, E), 1 where there is an edge
    bounded: Tensor  # (B, E), 1 where its capacity is finite
    dead: Tensor  # (B, E), 1 - alive
    unbounded: Tensor  # (B, E), 1 - bounded
    scale: Tensor  # (B,), upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    start_flow: Tensor  # (B, E), a conserving flow of value 1
    n_layers: int
    n_tokens: int

    @staticmethod
    def of(network: LayeredNetwork) -> _Problem:
        inner = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1)
        edge = inner > 0
        alive = torch.cat([edge, terminals], 1)
        bounded = torch.cat([edge & inner.isfinite(), torch.zeros_like(terminals)], 1)
        bound = network.node_bound()
        scale = bound.sum(-1).amin(-1)
        capacity = torch.cat([inner, torch.ones_like(terminals, dtype=inner.dtype)], 1)
        return _Problem(
            capacity=torch.where(bounded, capacity / scale[:, None], 1.0),
            alive=alive.double(),
            bounded=bounded.double(),
            dead=(~alive).double(),
            unbounded=(~bounded).double(),
            scale=scale,
            n_terms=(alive.sum(1) + bounded.sum(1)).double(),
            start_flow=_proportional_flow(network, bound),
            n_layers=network.n_layers,
            n_tokens=network.n_tokens,
        )

    def select(self, index: Tensor) -> _Problem:
        return replace(
            self,
            capacity=self.capacity[index],
            alive=self.alive[index],
            bounded=self.bounded[index],
            dead=self.dead[index],
            unbounded=self.unbounded[index],
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
        sink = slice(-self.n_tokens, None)
        value: Tensor = (flow[:, sink] * self.alive[:, sink]).sum(1)
        return value

    def divergence(self, flow: Tensor) -> Tensor:
        inner, source, sink = self.split(flow)
        return torch.cat([source[:, None], inner.sum(-1)], 1) - torch.cat(
            [inner.sum(-2), sink[:, None]], 1
        )

    def rise(self, potential: Tensor, at_source: float, out: Tensor) -> Tensor:
        """Potential at the head minus potential at the tail of every edge."""
        inner, source, sink = self.split(out)
        torch.sub(potential[:, 1:, :, None], potential[:, :-1, None, :], out=inner)
        torch.sub(potential[:, 0], at_source, out=source)
        torch.neg(potential[:, -1], out=sink)
        return out


@dataclass
class _State:
    x: Tensor  # (B, E) flow; 1 on dead edges
    y: Tensor  # (B, E) room left; kept apart from x, since u - x cancels
    z: Tensor  # (B, E) multiplier of x >= 0
    s: Tensor  # (B, E) multiplier of y >= 0
    p: Tensor  # (B, L + 1, T) potential

    def select(self, index: Tensor) -> _State:
        return _State(**{name: tensor[index] for name, tensor in vars(self).items()})

    def gap(self) -> Tensor:
        return _dot(self.x, self.z) + _dot(self.y, self.s)

    def put(self, index: Tensor, part: _State) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.index_copy(0, index, getattr(part, name)))


def _proportional_flow(network: LayeredNetwork, bound: Tensor) -> Tensor:
    """A flow of value 1 that conserves, positive on every edge of a trimmed network.

    Every node passes its flow on in proportion to the capacity of the paths ahead.
    """
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


class _Newton:
    """One predictor-corrector step after the other, in place.

    With ``r = dx / x`` and ``t = dx / y`` the Newton equations reduce to
    ``dx = weight * (push + rise(p + dp))``; the predictor has ``push = 0``.

    The edge arrays are memory-bound, hence the buffers: fresh ones would cost more
    time in page faults than the arithmetic that fills them.
    """

    def __init__(self, problem: _Problem, state: _State) -> None:
        self.problem = problem
        self.state = state
        self._iterative = problem.n_tokens >= _ITERATIVE_FROM_TOKENS
        buffers = [torch.empty_like(state.x) for _ in range(7)]
        self._inv_x, self._inv_y, self._weight, self._dx, self._spare = buffers[:5]
        self._bend_x, self._bend_y = buffers[5:]

    def select(self, index: Tensor) -> _Newton:
        return _Newton(self.problem.select(index), self.state.select(index))

    def imbalance(self) -> Tensor:
        torch.mul(self.state.x, self.problem.alive, out=self._spare)
        return self.problem.divergence(self._spare)

    def converged(self, target: Tensor, tolerance: float) -> Tensor:
        """Whether each network is centred at its target and conserves flow."""
        near = self.state.gap() <= (1 + tolerance) * target * self.problem.n_terms
        if not bool(near.any()):
            return near
        for flow, multiplier, kept in (
            (self.state.x, self.state.z, self.problem.alive),
            (self.state.y, self.state.s, self.problem.bounded),
        ):
            off = torch.mul(flow, multiplier, out=self._spare)
            off.addcmul_(kept, target[:, None], value=-1).abs_()
            near &= off.amax(1) <= tolerance * target
        lost = self.imbalance().abs().amax((1, 2))
        return near & (lost <= _IMBALANCE * self.problem.value(self.state.x))

    def step(self, target: Tensor) -> None:
        """Move towards the target by a predictor-corrector or a centring step."""
        mu = self.state.gap() / self.problem.n_terms
        predicting = mu > 1.01 * target
        laplacian = self._laplacian()
        imbalance = self.imbalance()
        if bool(predicting.any()):
            aim = self._predict(laplacian, imbalance, mu, target, predicting)
        else:
            aim = target
            self._bend_x.zero_()
            self._bend_y.zero_()
        # The farther from the target, the more imbalance may be left for later.
        accuracy = _CORRECTOR_ACCURACY * (mu / target).clamp_min(1) ** 2
        change = self._correct(
            laplacian, imbalance, aim, accuracy.clamp_max(_EARLY_ACCURACY)
        )
        self._advance(change, aim)
        self._iterative = laplacian.iterative

    def _laplacian(self) -> Laplacian:
        problem, state, weight = self.problem, self.state, self._weight
        torch.div(problem.alive, state.x, out=self._inv_x)
        torch.div(problem.bounded, state.y, out=self._inv_y)
        torch.mul(state.s, self._inv_y, out=weight)
        weight.addcmul_(state.z, self._inv_x).add_(problem.dead)
        torch.div(problem.alive, weight, out=weight)
        return Laplacian(*problem.split(weight), iterative=self._iterative)

    def _predict(
        self,
        laplacian: Laplacian,
        imbalance: Tensor,
        mu: Tensor,
        target: Tensor,
        predicting: Tensor,
    ) -> Tensor:
        """Aim straight at the optimum; choose ``mu`` and the second-order terms."""
        state = self.state
        tolerance = _PREDICTOR_ACCURACY * self.problem.value(state.x)
        potential = laplacian.solve(-imbalance, tolerance, at_source=-1.0)
        dx = self.problem.rise(potential, at_source=-1.0, out=self._dx)
        dx.mul_(self._weight)
        r = torch.mul(dx, self._inv_x, out=self._bend_x)
        t = torch.mul(dx, self._inv_y, out=self._bend_y)
        r_least, r_most, t_least, t_most = r.amin(1), r.amax(1), t.amin(1), t.amax(1)
        primal = 1 / torch.maximum(-r_least, t_most).clamp_min(1)
        dual = 1 / torch.maximum(1 + r_most, 1 - t_least).clamp_min(1)
        zr = torch.mul(state.z, r, out=self._spare)
        after = (1 - dual) * _dot(state.x, state.z)
        after += ((1 - dual) * primal - dual) * _dot(state.x, zr)
        after -= primal * dual * _dot(dx, zr)
        torch.addcmul(zr, zr, r, out=r)  # z r (1 + r)
        st = torch.mul(state.s, t, out=self._spare)
        after += (1 - dual) * _dot(state.y, state.s)
        after += (dual - (1 - dual) * primal) * _dot(state.y, st)
        after -= primal * dual * _dot(dx, st)
        torch.addcmul(st, st, t, value=-1, out=t)  # s t (1 - t)
        self._bend_x.mul_(predicting[:, None])
        self._bend_y.mul_(predicting[:, None])
        # Mehrotra's rule, and more centring where the boundary blocks the predictor.
        sigma = torch.maximum(
            (after / self.problem.n_terms / mu).clamp(0, 1) ** 3,
            (1 - torch.minimum(primal, dual)) ** 2,
        )
        return torch.where(predicting, torch.maximum(sigma * mu, target), target)

    def _correct(
        self, laplacian: Laplacian, imbalance: Tensor, aim: Tensor, accuracy: Tensor
    ) -> Tensor:
        """Solve for the step to ``mu = aim``, second-order terms included.

        The change of potential is solved for, not the potential: where an edge has
        much room its weight is so large that the rounding of ``p`` would unbalance.
        """
        force = self.problem.rise(self.state.p, at_source=-1.0, out=self._spare)
        force.add_(self._bend_x).add_(self._bend_y)
        force.addcmul_(self._inv_x, aim[:, None])
        force.addcmul_(self._inv_y, aim[:, None], value=-1)
        forced = self.problem.divergence(torch.mul(force, self._weight, out=self._dx))
        tolerance = accuracy * self.problem.value(self.state.x)
        change = laplacian.solve(-imbalance - forced, tolerance)
        dx = self.problem.rise(change, at_source=0.0, out=self._dx)
        dx.add_(force).mul_(self._weight)
        return change

    def _advance(self, change: Tensor, aim: Tensor) -> None:
        problem, state, dx = self.problem, self.state, self._dx
        dz, ds, ratio = self._bend_x, self._bend_y, self._spare
        r = torch.mul(dx, self._inv_x, out=self._weight)
        dz.addcmul_(state.z, r, value=-1).sub_(state.z)
        dz.addcmul_(self._inv_x, aim[:, None])
        fall = -r.amin(1)
        t = torch.mul(dx, self._inv_y, out=self._weight)
        ds.add_(torch.addcmul(state.s, state.s, t, value=-1, out=ratio)).neg_()
        ds.addcmul_(self._inv_y, aim[:, None])
        primal = _step_length(torch.maximum(fall, t.amax(1)))
        torch.add(state.z, problem.dead, out=ratio)
        fall = -torch.div(dz, ratio, out=ratio).amin(1)
        torch.add(state.s, problem.unbounded, out=ratio)
        fall = torch.maximum(fall, -torch.div(ds, ratio, out=ratio).amin(1))
        dual = _step_length(fall)
        state.x.addcmul_(dx, primal)
        state.y.addcmul_(dx.mul_(problem.bounded), primal, value=-1)
        state.z.addcmul_(dz, dual)
        state.s.addcmul_(ds, dual)
        state.p.addcmul_(change, dual[..., None])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product per network, without a product array in memory."""
    return torch.bmm(left[:, None], right[..., None])[:, 0, 0]


def _step_length(fall: Tensor) -> Tensor:
    """Shape ``(B, 1)``: the full step, or nearly to the nearest boundary."""
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
