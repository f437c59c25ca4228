"""Networks for the tests: random, and hypothesis strategies."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from captum_attnflow import FlowSolution
from captum_attnflow.flow.network import LayeredNetwork


def attention_network(
    n_layers: int,
    n_tokens: int,
    *,
    n_networks: int = 1,
    read_out: int | None = None,
    causal: bool = False,
) -> LayeredNetwork:
    """Head means of softmaxed Gaussian scores, read out at one position or at all."""
    future = torch.full((n_tokens, n_tokens), -torch.inf if causal else 0.0).triu(1)
    shape = (n_networks, n_layers, n_tokens, n_tokens)
    capacity = torch.empty(shape, dtype=torch.float64)
    for layer in capacity.flatten(0, 1):
        scores = torch.randn(12, n_tokens, n_tokens)
        layer.copy_((2 * scores.double() + future).softmax(-1).mean(0))
    sink = torch.ones(n_networks, n_tokens, dtype=torch.bool)
    if read_out is not None:
        sink[:] = torch.arange(n_tokens) == read_out
    source = torch.ones(n_networks, n_tokens, dtype=torch.bool)
    return LayeredNetwork(capacity, source, sink)


def everywhere(capacity: torch.Tensor) -> LayeredNetwork:
    """Networks that start and are read out at every position."""
    ends = torch.ones(capacity[:, 0, 0].shape, dtype=torch.bool)
    return LayeredNetwork(capacity, ends, ends)


def on_gpu(network: LayeredNetwork) -> LayeredNetwork:
    return LayeredNetwork(
        network.capacity.cuda(), network.source.cuda(), network.sink.cuda()
    )


@st.composite
def networks(draw: st.DrawFn) -> LayeredNetwork:
    """Small networks of any sparsity, of scales from 1e-12 to 1e12, some with free
    residual edges, some with extreme ratios between capacities."""
    n_layers = draw(st.integers(1, 4))
    n_tokens = draw(st.integers(1, 6))
    density = draw(st.floats(0, 1))
    spread = draw(st.sampled_from([0.0, 1.0, 6.0]))
    scale = 10.0 ** draw(st.integers(-12, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (1, n_layers, n_tokens, n_tokens)
    capacity = scale * uniform(*shape) * 10 ** (spread * (2 * uniform(*shape) - 1))
    capacity = capacity * (uniform(*shape) < density)
    source = uniform(1, n_tokens) < 0.7
    sink = uniform(1, n_tokens) < 0.5
    if draw(st.booleans()):
        identity = torch.eye(n_tokens, dtype=torch.bool)
        capacity = torch.where(identity, torch.inf, capacity)
        source &= ~sink
    return LayeredNetwork(capacity, source, sink)


def assert_same_scores(solution: FlowSolution, expected: FlowSolution) -> None:
    """Whether scores agree to 1e-9 of the value."""
    difference = (solution.source_flow - expected.source_flow).abs().amax(1)
    assert (difference <= 1e-9 * expected.value).all()
