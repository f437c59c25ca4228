from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from networks import attention_network

from captum_attnflow.flow.solvers.barrier.central_path import (
    BarrierProblem,
    Iterate,
    Newton,
    start,
)
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses


def states_of_six_steps(batch, target, passes, dtype=torch.float64):
    problem = BarrierProblem.of(batch, batch.node_bound(), dtype)
    iterate = Iterate.empty(problem)
    start(problem, batch.node_bound(), iterate)
    newton = Newton(problem, iterate, passes)
    for _ in range(6):
        newton.step(target)
        products = (iterate.slack * iterate.multiplier * problem.alive).sum((0, 2))
        products /= 2 * problem.alive.sum(1)
        torch.testing.assert_close(newton.mu, products)
        yield [
            iterate.slack * problem.alive,
            iterate.multiplier * problem.alive,
            iterate.p.clone(),
            newton._ratio,
        ]


def assert_same_steps(found, expected):
    for iterates in zip(found, expected, strict=True):
        for one, other in zip(*iterates, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def batch_and_target(n_centring, read_out, n_tokens=12):
    batch = attention_network(5, n_tokens, n_networks=3, read_out=read_out)
    target = torch.tensor([1e-9, 1e-9, 1e-9]).double()
    target[:n_centring] = 1e3
    return batch.trim(), target


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("n_centring", [0, 1, 3])
@pytest.mark.parametrize("read_out", [None, 0])
def test_compiled_steps_are_those_of_torch(
    monkeypatch, n_threads, n_centring, read_out
):
    numba_passes = pytest.importorskip(
        "captum_attnflow.flow.solvers.barrier.numba_passes", exc_type=ImportError
    )
    monkeypatch.setattr(numba_passes, "n_threads", lambda _: n_threads)
    monkeypatch.setattr(numba_passes, "threads", lambda _: nullcontext())
    # Systems are factored, since iterations leave different residuals.
    monkeypatch.setattr(numba_passes.NumbaPasses, "solvers", staticmethod(lambda _: ()))
    batch, target = batch_and_target(n_centring, read_out)
    expected = states_of_six_steps(batch, target, TorchPasses)
    found = states_of_six_steps(batch, target, numba_passes.NumbaPasses)
    assert_same_steps(found, expected)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("read_out", [None, 0])
def test_steps_in_float32_conserve_and_stay_dual_feasible(
    monkeypatch, n_threads, read_out
):
    numba_passes = pytest.importorskip(
        "captum_attnflow.flow.solvers.barrier.numba_passes", exc_type=ImportError
    )
    monkeypatch.setattr(numba_passes, "n_threads", lambda _: n_threads)
    batch, target = batch_and_target(0, read_out, n_tokens=24)
    problem = BarrierProblem.of(batch, batch.node_bound(), torch.float32)
    iterate = Iterate.empty(problem)
    start(problem, batch.node_bound(), iterate)
    shares = []

    class Recorded(numba_passes.NumbaPasses):
        def advance(self, primal, dual):
            shares.append((primal, dual))
            return super().advance(primal, dual)

    def excess():
        """By how much the two multipliers of an edge differ from what is asked for."""
        excess = iterate.multiplier.double().sum(0)
        inner, source, sink = problem.split(excess)
        inner += iterate.p[:, 1:, :, None] - iterate.p[:, :-1, None, :]
        source += iterate.p[:, 0] + 1
        sink -= iterate.p[:, -1]
        return excess

    def imbalance():
        flow = iterate.slack[0].double() * problem.alive
        inner, source, sink = problem.split(flow)
        into = torch.cat([source[:, None], inner.sum(3)], 1)
        return into - torch.cat([inner.sum(2), sink[:, None]], 1)

    newton = Newton(problem, iterate, Recorded)
    for _ in range(8):
        slack, multiplier = (
            iterate.slack.double(),
            iterate.multiplier.double().abs().amax(0),
        )
        before, unbalanced = excess(), imbalance()
        newton.step(target)
        primal, dual = (share[:, None] for share in shares[-1])
        growth = ((iterate.slack - slack) / slack).abs().amax(0) / primal
        error = (excess() - (1 - dual) * before).abs()
        assert (error <= 4e-6 * multiplier * (1 + growth))[problem.alive].all()
        left = imbalance() - (1 - primal[..., None]) * unbalanced
        assert (left.abs().amax((1, 2)) <= 2e-5 * newton.value).all()
