"""Factors of Laplacians in float32, and what they precondition."""

from __future__ import annotations

from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import assert_same_scores, attention_network, everywhere

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers.barrier.laplacian import Laplacian, node_sums

pytest.importorskip("numba")

from captum_attnflow.flow.solvers.barrier import (
    numba_factors,
    numba_passes,
)

NumbaPasses = numba_passes.NumbaPasses


@pytest.fixture
def factored(monkeypatch):
    """Whether factors solved each of the systems that they were tried on."""
    made = []

    class Watched(numba_passes.NumbaFactoredGradients):
        def solve(self, *arguments):
            solution, small = super().solve(*arguments)
            made.append(small)
            return solution, small

    monkeypatch.setattr(numba_passes, "NumbaFactoredGradients", Watched)
    return made


def without_mixing(n_tokens, *, causal=False, n_networks=1):
    """One sharp softmax a layer, which conjugate gradients alone do not solve."""
    scores = 5 * torch.randn(n_networks, 4, n_tokens, n_tokens).double()
    future = torch.full((n_tokens, n_tokens), -torch.inf if causal else 0.0).triu(1)
    return everywhere((scores + future).softmax(-1))


def random_laplacians(n_networks, n_layers, n_tokens, orders, causal):
    """Weights over as many orders of magnitude, and their sums by node."""
    shape = (n_networks, n_layers, n_tokens, n_tokens)
    weight = 10 ** (orders * (torch.rand(shape).double() - 0.5))
    if causal:
        weight = weight.tril()
    source, sink = torch.rand(2, n_networks, n_tokens).double()
    return weight.float(), node_sums(weight.float().double(), source, sink)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_layers", "n_tokens"), [(1, 1), (2, 3), (5, 17), (3, 70)])
def test_factors_precondition_any_laplacians(
    monkeypatch, n_threads, causal, n_layers, n_tokens
):
    monkeypatch.setattr(numba_passes, "n_threads", lambda _: n_threads)
    monkeypatch.setattr(numba_passes, "_TOKENS_OF_ROWS_SHARED", 1)
    monkeypatch.setattr(numba_passes, "threads", lambda _: nullcontext())
    weight, sums = random_laplacians(2, n_layers, n_tokens, 4, causal)
    right_side = torch.randn(2, n_layers + 1, n_tokens).double()
    tolerance = torch.full((2,), 1e-9).double() * right_side.abs().amax((1, 2))
    solver = numba_passes.NumbaFactoredGradients(weight, sums, sums.sum(2))
    solution, small = solver.solve(right_side, tolerance, 4)
    assert small
    expected = Laplacian(weight, sums, ()).solve(right_side, tolerance)
    torch.testing.assert_close(solution, expected, rtol=1e-6, atol=1e-9)


def exact_pivots(weight, ground):
    """What is left of each node's diagonal when it is eliminated, in fractions."""
    n_layers, n_tokens, _ = weight.shape
    nodes = [
        (node, j) for node in reversed(range(n_layers + 1)) for j in range(n_tokens)
    ]
    place = {node: index for index, node in enumerate(nodes)}
    matrix = [[Fraction(0)] * len(nodes) for _ in nodes]
    for node, index in place.items():
        matrix[index][index] += Fraction(ground[node].item())
    for layer, head, tail in np.ndindex(weight.shape):
        edge = Fraction(weight[layer, head, tail].item())
        low, high = place[layer, tail], place[layer + 1, head]
        for one, other in ((low, high), (high, low)):
            matrix[one][one] += edge
            matrix[one][other] -= edge
    for index, pivot in enumerate(matrix):
        for row in matrix[index + 1 :]:
            share = row[index] / pivot[index]
            row[:] = [a - share * b for a, b in zip(row, pivot, strict=True)]
    values = np.empty(ground.shape)
    for node, index in place.items():
        values[node] = float(matrix[index][index])
    return values


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_layers", "n_tokens"), [(3, 4), (1, 35)])
@pytest.mark.parametrize("orders", [4, 40])
def test_factors_are_right_whatever_the_orders_between_weights(
    causal, n_layers, n_tokens, orders
):
    weight, _ = random_laplacians(1, n_layers, n_tokens, orders, causal)
    ground = 10 ** (orders * (torch.rand(1, n_layers + 1, n_tokens).double() - 1))
    ground[:, 1:-1] = 0
    diagonal = node_sums(weight.double(), ground[:, 0], ground[:, -1]).sum(2)
    factors = numba_passes._factors(1, n_layers + 1, n_tokens)
    edges = weight.flatten(1)
    widths = numba_passes.widths_of(edges, n_layers * n_tokens, n_tokens)
    given = numba_passes.arrays(edges, widths, diagonal, ground)
    numba_factors.factor(0, 1, 1, *given, factors)
    expected = exact_pivots(weight[0].numpy(), ground[0].numpy())
    scale = 1e30 / diagonal.max().item()
    found = 1 / (scale * factors.pivots[0, :, :n_tokens].astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-36, 1e-38, 1e-60])
def test_nodes_of_next_to_no_weight_spoil_no_others(factor):
    weight, _ = random_laplacians(1, 3, 20, 2, causal=False)
    weight[:, :, 7] *= factor
    weight[..., 7] *= factor
    source, sink = torch.rand(2, 1, 20).double()
    source[:, 7] *= factor
    sink[:, 7] *= factor
    sums = node_sums(weight.double(), source, sink)
    diagonal = sums.sum(2)
    diagonal[diagonal == 0] = 1
    right_side = torch.randn(1, 4, 20).double()
    right_side[..., 7] = 0
    solver = numba_passes.NumbaFactoredGradients(weight, sums, diagonal)
    assert np.isfinite(solver._system.factors.pivots).all()
    tolerance = torch.full((1,), 1e-9).double()
    solution, small = solver.solve(right_side, tolerance, 5)
    assert small
    others = torch.arange(20) != 7
    alone = weight[..., others, :][..., others].contiguous()
    sums = node_sums(alone.double(), source[:, others], sink[:, others])
    solver = numba_passes.NumbaFactoredGradients(alone, sums, sums.sum(2))
    expected, _ = solver.solve(right_side[..., others].contiguous(), tolerance, 5)
    torch.testing.assert_close(solution[..., others], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_are_no_numbers_are_left_to_others(value):
    weight, sums = random_laplacians(1, 3, 20, 2, causal=False)
    weight[0, 1, 3, 4] = value
    sums = node_sums(weight.double(), sums[:, 0, 0], sums[:, -1, 1])
    solver = numba_passes.NumbaFactoredGradients(weight, sums, sums.sum(2))
    tolerance = torch.full((1,), 1e-9).double()
    assert not solver.solve(torch.randn(1, 4, 20).double(), tolerance, 10)[1]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_tokens", [64, 90])
def test_factors_solve_what_does_not_mix(monkeypatch, factored, causal, n_tokens):
    network = without_mixing(n_tokens, causal=causal, n_networks=2)
    solution = solve_flow(network)
    assert factored
    assert all(factored)
    monkeypatch.setattr(NumbaPasses, "solvers", staticmethod(lambda _: ()))
    assert_same_scores(solution, solve_flow(network))


@pytest.mark.parametrize("n_networks", [1, 2])
def test_layers_are_factored_in_float64_where_float32_does_not_serve(
    monkeypatch, n_networks
):
    network = without_mixing(64, n_networks=n_networks)
    expected = solve_flow(network)
    asked = []

    class Failing(numba_passes.NumbaFactoredGradients):
        def solve(self, right_side, tolerance, max_iterations):
            asked.append(max_iterations)
            return right_side, False

    monkeypatch.setattr(numba_passes, "NumbaFactoredGradients", Failing)
    assert_same_scores(solve_flow(network), expected)
    assert asked
    assert set(asked) == {Failing.most_iterations}


def test_attention_that_mixes_needs_no_factors(factored):
    solve_flow(attention_network(6, 96))
    assert not factored
