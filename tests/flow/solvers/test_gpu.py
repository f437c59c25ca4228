"""The same answers where the network lives on a GPU."""

from __future__ import annotations

import pytest
import torch
from networks import attention_network, on_gpu

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers import solve_sources

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("n_tokens", [16, 64])
@pytest.mark.parametrize("read_out", [None, 0])
def test_the_barrier_gives_the_scores_of_the_cpu(n_tokens, read_out):
    network = attention_network(4, n_tokens, n_networks=3, read_out=read_out)
    expected = solve_flow(network)
    solution = solve_flow(on_gpu(network))
    assert solution.flow.is_cuda
    error = (solution.source_flow.cpu() - expected.source_flow).abs().amax(1)
    assert (error <= 1e-9 * expected.value).all()
    assert (solution.imbalance <= 1e-9 * solution.value).all()


def test_tokens_alone_have_the_values_of_the_cpu():
    network = attention_network(4, 40, n_networks=2, read_out=0)
    flows = solve_sources(on_gpu(network))
    assert flows.value.is_cuda
    expected = solve_sources(network).value
    torch.testing.assert_close(flows.value.cpu(), expected, rtol=1e-12, atol=0)
