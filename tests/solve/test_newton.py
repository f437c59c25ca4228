from __future__ import annotations

import pytest
import torch
from networks import attention_network

from captum_attnflow.solve._barrier.by_torch import passes as torch_passes
from captum_attnflow.solve._barrier.by_torch.passes import TorchPasses
from captum_attnflow.solve._barrier.newton import Newton
from captum_attnflow.solve._barrier.problem import Problem, State
from captum_attnflow.solve._barrier.start import start


def states_of_six_steps(batch, target, passes):
    problem = Problem.of(batch, batch.node_bound())
    state = State.empty(problem)
    start(problem, batch.node_bound(), state)
    newton = Newton(problem, state, passes)
    for _ in range(6):
        newton.step(target)
        products = (state.room * state.price).sum((0, 2)) / (2 * state.room.shape[2])
        torch.testing.assert_close(newton.mu, products)
        yield [state.room.clone(), state.price.clone(), state.p.clone()]


@pytest.mark.parametrize("edges_of_a_block", [2 * 3 * 12**2, 3 * 5 * 12, 1])
@pytest.mark.parametrize("n_centring", [0, 1, 3])
@pytest.mark.parametrize("read_out", [None, 0])
def test_steps_are_the_same_in_blocks_of_any_size(
    monkeypatch, edges_of_a_block, n_centring, read_out
):
    batch = attention_network(5, 12, n_networks=3, read_out=read_out).trim()
    target = torch.tensor([1e-9, 1e-9, 1e-9]).double()
    target[:n_centring] = 1e3
    whole = list(states_of_six_steps(batch, target, TorchPasses))
    monkeypatch.setattr(torch_passes, "_BLOCK_BYTES", 8 * edges_of_a_block)
    for expected, found in zip(
        whole, states_of_six_steps(batch, target, TorchPasses), strict=True
    ):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-12)
