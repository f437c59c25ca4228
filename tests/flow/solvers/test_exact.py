from dataclasses import replace
from typing import get_args

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from networks import attention_network, everywhere, networks

from captum_attnflow import (
    BarrierSolver,
    DinicSolver,
    FlowError,
    NetworkXSolver,
    SciPySolver,
    solve_flow,
)
from captum_attnflow.flow.scores import score_tokens
from captum_attnflow.flow.solvers import SOLVERS, solve_sources
from captum_attnflow.flow.solvers.networkx_solver import Algorithm

SOLVED_BY = [*SOLVERS.values(), *map(NetworkXSolver, get_args(Algorithm)[1:])]
EXACT = [solver for solver in SOLVED_BY if not isinstance(solver, BarrierSolver)]


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


# Among cuts that differ by less than its unit, SciPy may find another than the least.
@pytest.mark.parametrize(("solver", "accuracy"), [("dinic", 1e-12), ("scipy", 1e-9)])
@settings(max_examples=200, deadline=None)
@given(network=networks())
def test_dinics_algorithm_finds_a_maximum_flow_on_any_network(
    solver, accuracy, network
):
    graph = network.to_networkx()
    algorithm = nx.algorithms.flow.edmonds_karp
    expected = nx.maximum_flow_value(graph, "source", "sink", flow_func=algorithm)
    solution = solve_flow(network, solver)
    value = solution.value.item()
    assert value == pytest.approx(expected, rel=1e-6, abs=0)
    # The cut is evaluated in float64: the rounding of the flow is not in it.
    assert solution.cut_capacity.item() == pytest.approx(expected, rel=accuracy, abs=0)
    assert solution.imbalance.item() <= 1e-9 * value
    assert bool((solution.flow >= 0).all())
    assert bool((solution.flow <= network.capacity).all())
    assert solution.duality_gap.item() <= 1e-6 * value


def test_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"algorithm='dinitz'.*preflow_push"):
        NetworkXSolver("dinitz")


@pytest.mark.parametrize(
    "other", [NetworkXSolver("edmonds_karp"), SciPySolver(), DinicSolver()]
)
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


@pytest.mark.parametrize("huge", [1e12, 1e20, 1e300])
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("solver", EXACT)
def test_a_flow_beside_one_huge_capacity_is_certified(solver, layer, huge):
    network = attention_network(4, 8)
    network.capacity[0, layer, 1, 2] = huge
    solution = solve_flow(network, solver)
    torch.testing.assert_close(solution.value, solution.cut_capacity, rtol=1e-6, atol=0)
    assert (solution.imbalance <= 1e-9 * solution.value).all()


@pytest.mark.parametrize("orders", [20, 100, 300])
@pytest.mark.parametrize("solver", EXACT)
def test_at_any_orders_of_magnitude_a_flow_is_certified_or_refused(solver, orders):
    exponent = orders * (2 * torch.rand(1, 3, 8, 8).double() - 1)
    network = everywhere(10**exponent)
    exact = solve_flow(network, "scipy").cut_capacity
    try:
        solution = solve_flow(network, solver)
    except FlowError as error:
        refusal = str(error)
    else:
        torch.testing.assert_close(solution.value, exact, rtol=1e-6, atol=0)
        assert (solution.imbalance <= 1e-9 * solution.value).all()
        return
    assert isinstance(solver, NetworkXSolver)
    assert 'Give solver="scipy"' in refusal


@pytest.mark.parametrize("solver", ["dinic", "scipy"])
@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e290])
def test_the_values_of_dinics_algorithm_have_any_scale(scale, solver):
    network = attention_network(3, 8)
    expected = solve_flow(network, solver)
    network = replace(network, capacity=network.capacity * scale)
    solution = solve_flow(network, solver)
    # Below 1e-308 numbers lose places.
    torch.testing.assert_close(
        solution.value / scale, expected.value, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        solution.cut_capacity / scale, expected.cut_capacity, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("solver", ["dinic", "scipy"])
def test_a_loose_bound_of_the_value_costs_no_accuracy(solver):
    # Little passes the layer in the middle, of which the others know nothing.
    capacity = torch.ones(1, 3, 40, 40).double()
    capacity[0, 1] = 0
    capacity[0, 1, range(40), range(40)] = 1e-12 * torch.rand(40).double()
    solution = solve_flow(everywhere(capacity), solver)
    torch.testing.assert_close(
        solution.value, capacity[:, 1].sum((1, 2)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("solver", SOLVED_BY)
def test_a_sum_of_capacities_beyond_float64_is_refused_as_such(solver):
    network = everywhere(torch.full((1, 2, 4, 4), 1e308, dtype=torch.float64))
    with pytest.raises(FlowError, match=r"more than float64.*scale all capacities"):
        solve_flow(network, solver)


@pytest.mark.parametrize("solver", SOLVED_BY)
def test_a_solvers_own_solve_refuses_a_network_without_a_path(solver):
    network = everywhere(torch.zeros(1, 2, 3, 3).double())
    with pytest.raises(FlowError, match=r"no path.*solve_flow\(network, solver\)"):
        solver.solve(network)


@pytest.mark.parametrize("solver", SOLVED_BY)
def test_an_empty_batch_has_an_empty_answer(solver):
    network = attention_network(2, 3, n_networks=0)
    for solution in (solver.solve(network), solve_flow(network, solver)):
        assert solution.flow.shape == (0, 2, 3, 3)
        assert solution.potential.shape == solution.cut.shape == (0, 3, 3)
        assert solution.value.shape == (0,)
    assert solve_sources(network, solver).value.shape == (0, 3)
    for game in ("joint", "independent"):
        assert score_tokens(network, game, solver).scores.shape == (0, 3)


@pytest.mark.parametrize("solver", SOLVED_BY)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_one_token_passes_what_its_narrowest_layer_does(solver, n_layers):
    capacity = torch.rand(2, n_layers, 1, 1).double() + 0.1
    expected = capacity.amin(1)[:, 0]
    network = everywhere(capacity)
    scores = solve_flow(network, solver).source_flow
    torch.testing.assert_close(scores, expected, rtol=2e-6, atol=0)
    alone = solve_sources(network, solver).value
    torch.testing.assert_close(alone, expected, rtol=1e-9, atol=0)
