from __future__ import annotations

import pytest
import torch
from networks import assert_same_scores, attention_network

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers.barrier import laplacian as module
from captum_attnflow.flow.solvers.barrier.laplacian import (
    Laplacian,
    TorchConjugateGradients,
    node_sums,
)


def solver_of(passes, weight, source, sink, iterative=True):
    """A batch of Laplacians, with conjugate gradients as they are or without."""
    sums = node_sums(weight, source, sink)
    return Laplacian(weight, sums, passes.solvers(1000)[:1] if iterative else ())


def dense_laplacian(weight, source, sink):
    """One network's Laplacian, edge by edge."""
    n_layers, n_tokens, _ = weight.shape
    n_nodes = (n_layers + 1) * n_tokens
    dense = torch.zeros(n_nodes, n_nodes).double()
    dense[:n_tokens, :n_tokens] += torch.diag(source)
    dense[-n_tokens:, -n_tokens:] += torch.diag(sink)
    for layer in range(n_layers):
        for head in range(n_tokens):
            for tail in range(n_tokens):
                incidence = torch.zeros(n_nodes).double()
                incidence[(layer + 1) * n_tokens + head] = 1
                incidence[layer * n_tokens + tail] = -1
                edge = weight[layer, head, tail]
                dense += edge * torch.outer(incidence, incidence)
    return dense


@pytest.mark.parametrize("iterative", [False, True])
@pytest.mark.parametrize("mixing", [0.0, 1.0])
@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5])
def test_solution_is_that_of_the_dense_laplacian(passes, iterative, mixing, n_layers):
    n_tokens = 4
    shape = (2, n_layers, n_tokens, n_tokens)
    weight = mixing * torch.rand(shape).double() + torch.eye(n_tokens)
    source, sink = torch.rand(2, 2, n_tokens).double()
    right_side = torch.randn(2, n_layers + 1, n_tokens).double()
    laplacian = solver_of(passes, weight, source, sink, iterative)
    tolerance = torch.full((2,), 1e-13).double()
    solution = laplacian.solve(right_side, tolerance, at_source=-2.0)
    for example in range(2):
        dense = dense_laplacian(weight[example], source[example], sink[example])
        expected = right_side[example].flatten()
        expected[:n_tokens] -= 2.0 * source[example]
        torch.testing.assert_close(
            solution[example].flatten(), torch.linalg.solve(dense, expected)
        )


def test_direct_solver_takes_over_where_iterations_do_not_converge(monkeypatch, passes):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    weight = torch.rand(1, 3, 4, 4).double() ** 8 + torch.eye(4)
    source, sink = torch.ones(2, 1, 4).double()
    right_side = torch.randn(1, 4, 4).double()
    tolerance = torch.full((1,), 1e-13).double()
    laplacian = solver_of(passes, weight, source, sink)
    solution = laplacian.solve(right_side, tolerance)
    assert not laplacian.solvers
    direct = solver_of(passes, weight, source, sink, iterative=False)
    torch.testing.assert_close(solution, direct.solve(right_side, tolerance))


def test_the_more_tokens_the_longer_the_iterative_solver_goes_on(monkeypatch, passes):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    weight = torch.rand(1, 3, 24, 24).double()
    source, sink = torch.ones(2, 1, 24).double()
    right_side, tolerance = torch.randn(1, 4, 24).double(), torch.tensor([1e-9])
    for tokens_per_iteration, goes_on in ((24, False), (1, True)):
        monkeypatch.setattr(module, "_TOKENS_PER_ITERATION", tokens_per_iteration)
        laplacian = solver_of(passes, weight, source, sink)
        laplacian.solve(right_side, tolerance)
        assert bool(laplacian.solvers) == goes_on


def test_each_solver_has_its_own_limit_of_iterations():
    asked = []

    class Failing(TorchConjugateGradients):
        def solve(self, right_side, tolerance, max_iterations):
            asked.append(max_iterations)
            return right_side, False

    class Factored(Failing):
        most_iterations = 7

    weight = torch.rand(1, 1, 200, 200).double()
    sums = node_sums(weight, *torch.ones(2, 1, 200).double())
    right_side, tolerance = torch.randn(1, 2, 200).double(), torch.ones(1).double()
    laplacian = Laplacian(weight, sums, (Failing, Factored, Failing))
    for _ in range(2):
        laplacian.solve(right_side, tolerance)
        assert asked == [50, 7, 100]
        assert not laplacian.solvers


@pytest.mark.parametrize("read_out", [None, 0])
def test_iterative_and_direct_solver_give_the_same_flow(monkeypatch, passes, read_out):
    network = attention_network(4, 24, n_networks=2, read_out=read_out)
    solvers = passes.solvers(1000)
    monkeypatch.setattr(passes, "solvers", staticmethod(lambda _: solvers))
    iterative = solve_flow(network)
    monkeypatch.setattr(passes, "solvers", staticmethod(lambda _: ()))
    direct = solve_flow(network)
    assert not torch.equal(iterative.flow, direct.flow)
    assert_same_scores(iterative, direct)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5])
def test_one_iteration_solves_weights_of_rank_one(monkeypatch, passes, n_layers):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    n_networks, n_tokens = 3, 4
    heads = torch.rand(n_networks, n_layers, n_tokens, 1).double()
    tails = torch.rand(n_networks, n_layers, 1, n_tokens).double()
    source, sink = torch.rand(2, n_networks, n_tokens).double()
    laplacian = solver_of(passes, heads * tails, source, sink)
    right_side = torch.randn(n_networks, n_layers + 1, n_tokens).double()
    laplacian.solve(right_side, torch.full((n_networks,), 1e-10).double())
    assert laplacian.solvers


@pytest.mark.parametrize("max_iterations", [2, 5, 30])
def test_residuals_may_be_asked_for_after_some_iterations(monkeypatch, max_iterations):
    weight = torch.rand(3, 4, 24, 24).double() ** torch.tensor([1.0, 2.0, 8.0]).view(
        3, 1, 1, 1
    )
    sums = node_sums(weight, *torch.ones(2, 3, 24).double())
    right_side, tolerance = torch.randn(3, 5, 24).double(), torch.full((3,), 1e-9)
    answers = []
    for at_once in (1, 4):
        monkeypatch.setitem(module._ITERATIONS_A_CHECK, "cpu", at_once)
        solver = TorchConjugateGradients(weight, sums, sums.sum(2))
        answers.append(solver.solve(right_side, tolerance, max_iterations))
    (expected, is_small), (solution, is_small_later) = answers
    assert is_small == is_small_later
    torch.testing.assert_close(solution, expected, rtol=0, atol=1e-8)


def test_each_network_stops_by_itself_at_its_tolerance(passes):
    weight = torch.rand(4, 5, 32, 32).double()
    weight[1] **= 20
    weight[3] = torch.eye(32) + 1e-2 * weight[3]
    source, sink = torch.ones(2, 4, 32).double()
    right_side = torch.rand(4, 6, 32).double()
    right_side[2] = 0
    tolerance = torch.tensor([1e-1, 1e-9, 1e-9, 1e-4]).double()
    sums = node_sums(weight, source, sink)

    def solve(chosen):
        part = sums[chosen]
        solver = passes.solvers(1000)[0](weight[chosen], part, part.sum(2))
        return solver.solve(right_side[chosen], tolerance[chosen], 60)

    solution, is_small = solve(slice(None))
    assert is_small
    for example in range(4):
        dense = dense_laplacian(weight[example], source[example], sink[example])
        residual = right_side[example].flatten() - dense @ solution[example].flatten()
        assert residual.abs().max() <= 1.01 * tolerance[example]
        alone, _ = solve(slice(example, example + 1))
        error = (solution[example] - alone[0]).abs().max()
        assert error <= 10 * tolerance[example]
    assert (solution[2] == 0).all()


def test_a_solution_that_is_no_number_is_not_taken_for_one(passes):
    weight = torch.rand(1, 3, 8, 8).double()
    sums = node_sums(weight, *torch.ones(2, 1, 8).double())
    right_side = torch.full((1, 4, 8), torch.nan).double()
    solver = passes.solvers(1000)[0](weight, sums, sums.sum(2))
    assert not solver.solve(right_side, torch.ones(1).double(), 20)[1]
