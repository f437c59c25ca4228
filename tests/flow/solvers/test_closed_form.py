"""Flows from potentials, and Newton's method on these."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from networks import attention_network
from scipy.optimize import brentq

from captum_attnflow import BarrierSolver, LayeredNetwork, solve_flow
from captum_attnflow.flow.solvers.barrier.laplacian import DualNewton, Potential


def flow_by_bisection(capacity: float, fall: float, mu: float) -> float:
    """Solve ``mu / x - mu / (capacity - x) = fall`` for the flow ``x``."""
    if capacity == 0:
        return 0.0

    def off(x):
        return mu * (capacity - 2 * x) - fall * x * (capacity - x)

    return brentq(off, 0.0, capacity, xtol=1e-300, rtol=1e-15, maxiter=2000)


def some_layer(n_tokens=5):
    network = attention_network(2, n_tokens, n_networks=2)
    network.capacity[:, 1, 0, :2] = 0
    network.capacity[:, 0, 1] *= 1e-6
    potential = torch.rand(2, 3, n_tokens).double() - 0.5
    return network, Potential(potential, torch.zeros_like(potential))


@pytest.mark.parametrize("mu", [1e-1, 1e-4, 1e-7])
def test_flows_solve_the_condition_of_each_edge(passes, mu):
    network, potential = some_layer()
    scale = torch.tensor([1.0, 3.0]).double()
    edges = passes.closed_form(network, scale, passes.dtypes[0])
    flow = torch.empty_like(network.capacity)
    edges.fill(potential, torch.full_like(scale, mu), flow)
    high = potential.high
    fall = high[:, :-1, None, :] - high[:, 1:, :, None]
    for example in range(2):
        factor = scale[example].item()
        for index in torch.cartesian_prod(*map(torch.arange, flow.shape[1:])).tolist():
            place = (example, *index)
            capacity = network.capacity[place].item() / factor
            expected = flow_by_bisection(capacity, fall[place].item(), mu)
            assert flow[place].item() / factor == pytest.approx(expected, rel=1e-9)


def test_weights_are_how_flows_fall_with_the_potential(passes):
    network, potential = some_layer()
    scale, mu = torch.ones(2).double(), torch.tensor([1e-2, 1e-3]).double()
    edges = passes.closed_form(network, scale, passes.dtypes[0])
    flows, weights = edges.set_weights(potential, mu)
    flow = torch.empty_like(network.capacity)
    edges.fill(potential, mu, flow)
    for sums, found in ((flow, flows), (edges.weight.double(), weights)):
        torch.testing.assert_close(sums.sum(3), found[0], rtol=1e-12, atol=1e-300)
        torch.testing.assert_close(sums.sum(2), found[1], rtol=1e-12, atol=1e-300)
    raised = torch.empty_like(flow)
    rounding = torch.finfo(edges.weight.dtype).eps
    for layer in range(2):
        step = torch.zeros_like(potential.high)
        step[:, layer + 1] = 1e-6
        ends = []
        for sign in (1, -1):
            edges.fill(Potential(potential.high + sign * step, 0 * step), mu, raised)
            ends.append(raised[:, layer].clone())
        slope = (ends[0] - ends[1]) / 2e-6
        weight = edges.weight[:, layer].double()
        torch.testing.assert_close(slope, weight, rtol=max(rounding, 1e-4), atol=1e-9)


def test_potentials_keep_what_one_number_cannot_hold():
    potential = Potential(-torch.ones(1).double(), torch.zeros(1).double())
    changes = [1e-3, 3e-19, -7e-25, -1e-3, 5e-22]
    for change in changes:
        potential.add(torch.tensor([change], dtype=torch.float64))
    exact = sum(map(Fraction, changes), Fraction(-1))
    kept = Fraction(potential.high.item()) + Fraction(potential.low.item())
    assert abs(kept - exact) < Fraction(1, 10**32)


def dual_of(network, passes, potential):
    solution = solve_flow(network, BarrierSolver(epsilon=1e-3))
    scale = torch.ones_like(solution.mu)
    return solution, DualNewton(
        network,
        passes.closed_form(network, scale, passes.dtypes[0]),
        Potential(solution.potential + potential, torch.zeros_like(potential)),
        solution.mu,
        lambda _: solution.mu,
        (),
    )


def test_steps_lead_back_to_the_optimum_quadratically(passes):
    network = attention_network(3, 6, read_out=0).trim()
    shift = 1e-6 * torch.rand(1, 4, 6).double()
    solution, dual = dual_of(network, passes, shift)
    lost = [dual.relative_imbalance.item()]
    while not dual.conserves.all():
        dual.step(1e-6)
        lost.append(dual.relative_imbalance.item())
        assert lost[-1] <= max(10 * lost[-2] ** 1.5, 1e-11)
        assert len(lost) < 8
    assert lost[0] > 1e-6
    error = (dual.source_flow - solution.source_flow).abs().max()
    assert error <= 1e-9 * solution.value.item()


def test_potentials_that_stand_for_no_flow_are_told(passes):
    network = attention_network(3, 6)
    _, dual = dual_of(network, passes, torch.ones(1, 4, 6).double())
    assert dual.relative_imbalance.isinf().all()
    assert not dual.conserves.any()


def test_edges_that_never_bind_carry_what_the_others_let_through(passes):
    # Two edges in a row: the first never binds.
    capacity = torch.tensor([[[[torch.inf]], [[0.25]]]]).double()
    one = torch.ones(1, 1, dtype=torch.bool)
    solution = solve_flow(LayeredNetwork(capacity, one, one))
    assert solution.flow[0, 0].item() == pytest.approx(0.25, rel=1e-6)
    assert solution.flow[0, 0].item() == pytest.approx(solution.flow[0, 1].item())
