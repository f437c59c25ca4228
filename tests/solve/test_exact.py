from typing import get_args

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from networks import attention_network, networks

from captum_attnflow import (
    BarrierSolver,
    NetworkXSolver,
    SciPySolver,
    solve_flow,
)
from captum_attnflow.solve import solve_sources
from captum_attnflow.solve.networkx_solver import Algorithm

EXACT = [
    SciPySolver(),
    NetworkXSolver("preflow_push"),
    NetworkXSolver("shortest_augmenting_path"),
    NetworkXSolver("edmonds_karp"),
]


@pytest.mark.parametrize("solver", EXACT)
def test_exact_solver_certifies_its_flow_by_a_cut(solver):
    network = attention_network(2, 4, n_networks=2)
    solution = solve_flow(network, solver)
    torch.testing.assert_close(solution.value, solution.cut_capacity, rtol=1e-6, atol=0)
    assert (solution.imbalance <= 1e-9 * solution.value).all()
    assert (solution.flow <= network.capacity).all()
    assert (solution.duality_gap <= 1e-6 * solution.value).all()


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("seed", range(4))
def test_rounding_inside_networkx_does_not_hide_the_cut(algorithm, seed):
    torch.manual_seed(seed)
    network = attention_network(3, 10, read_out=0)
    flows = solve_sources(network, NetworkXSolver(algorithm))
    torch.testing.assert_close(
        flows.value, solve_sources(network, "scipy").value, rtol=1e-9, atol=0
    )
    assert (flows.duality_gap <= 1e-9 * flows.value).all()


@settings(max_examples=300, deadline=None)
@given(networks())
def test_scipy_solver_finds_a_maximum_flow_on_any_network(network):
    graph = network.to_networkx()
    algorithm = nx.algorithms.flow.edmonds_karp
    expected = nx.maximum_flow_value(graph, "source", "sink", flow_func=algorithm)
    solution = solve_flow(network, "scipy")
    value = solution.value.item()
    assert value == pytest.approx(expected, rel=1e-6, abs=0)
    # The cut is evaluated in float64: the rounding of the flow is not in it.
    assert solution.cut_capacity.item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert solution.imbalance.item() <= 1e-9 * value
    assert bool((solution.flow >= 0).all())
    assert bool((solution.flow <= network.capacity).all())
    assert solution.duality_gap.item() <= 1e-6 * value


def test_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"algorithm='dinitz'.*preflow_push"):
        NetworkXSolver("dinitz")


@pytest.mark.parametrize("other", [NetworkXSolver("edmonds_karp"), SciPySolver()])
def test_exact_solvers_agree_on_the_value_and_not_on_the_scores(other):
    network = attention_network(3, 8, read_out=0)
    one = solve_flow(network, NetworkXSolver("preflow_push"))
    another = solve_flow(network, other)
    torch.testing.assert_close(one.value, another.value, rtol=1e-6, atol=0)
    assert (one.source_flow - another.source_flow).abs().max() > 0.1 * one.value


def test_barrier_flow_reaches_the_exact_value():
    network = attention_network(3, 8, n_networks=4)
    exact = solve_flow(network, "networkx").value
    barrier = solve_flow(network, BarrierSolver()).value
    assert ((barrier - exact).abs() <= 1e-6 * exact).all()
