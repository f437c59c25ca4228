from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import attention_network, networks

from captum_attnflow import (
    BarrierSolver,
    DinicSolver,
    FlowError,
    LayeredNetwork,
    SciPySolver,
    solve_flow,
)
from captum_attnflow.flow import add_residual
from captum_attnflow.flow.solvers import (
    SOLVERS,
    FlowSolver,
    dinic,
    solve_sources,
)


def value_alone(network: LayeredNetwork, token: int) -> float:
    """networkx' maximum flow from one node, less an own read-out that is unbounded."""
    graph = network.to_networkx()
    own_path = network.capacity[0, :, token, token]
    last = f"{network.n_layers}/{token}"
    if own_path.isinf().all() and graph.has_edge(last, "sink"):
        graph.remove_edge(last, "sink")
    return nx.maximum_flow_value(
        graph, f"0/{token}", "sink", flow_func=nx.algorithms.flow.edmonds_karp
    )


# Capacities are whole units to SciPy, of which a cut may lack one an edge.
@pytest.mark.parametrize(("solver", "tolerance"), [("dinic", 1e-12), ("scipy", 1e-6)])
@settings(max_examples=200, deadline=None)
@given(network=networks())
def test_every_value_is_a_maximum_flow_of_the_token_alone(solver, tolerance, network):
    expected = [value_alone(network, token) for token in range(network.n_tokens)]
    flows = solve_sources(network, solver)
    assert flows.value[0].tolist() == pytest.approx(expected, rel=tolerance, abs=0)
    assert bool((flows.duality_gap <= 1e-6 * flows.value).all())


@settings(max_examples=200, deadline=None)
@given(networks())
def test_values_over_few_edges_are_maximum_flows_of_the_whole_network(network):
    expected = [value_alone(network, token) for token in range(network.n_tokens)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dinic, "_WIDTHS", (1, 2))
        patch.setattr(dinic, "_LARGEST_SHARE", 2)
        flows = solve_sources(network, "scipy")
    assert flows.value[0].tolist() == pytest.approx(expected, rel=1e-6, abs=0)
    assert bool((flows.duality_gap <= 1e-6 * flows.value).all())


def only_over_few_edges(monkeypatch, width):
    monkeypatch.setattr(
        dinic,
        "_stages",
        lambda tokens: [dinic._widest(tokens, width) & (tokens.middle > 0)],
    )


@pytest.mark.parametrize("residual", [None, 0.5])
def test_the_widest_edges_of_attention_carry_the_flows_of_its_tokens(
    monkeypatch, residual
):
    network = attention_network(6, 40, read_out=0)
    network = replace(network, capacity=add_residual(network.capacity, residual))
    expected = solve_sources(network, "scipy").value
    only_over_few_edges(monkeypatch, 16)
    flows = solve_sources(network, "scipy")
    torch.testing.assert_close(flows.value, expected, rtol=1e-12, atol=0)
    assert bool((flows.duality_gap <= 1e-6 * expected).all())


def test_a_flow_that_needs_more_edges_is_not_taken_for_a_maximum(monkeypatch):
    # Each flow fills the layer in the middle.
    capacity = torch.ones(1, 3, 24, 24, dtype=torch.float64)
    capacity[0, 1] = torch.rand(24, 24).double() + 0.5
    capacity[0, [0, 2]] = 30.0
    terminal = torch.ones(1, 24, dtype=torch.bool)
    network = LayeredNetwork(capacity, terminal, terminal)
    flows = solve_sources(network, "scipy")
    whole = capacity[0, 1].sum()
    torch.testing.assert_close(flows.value, whole.expand(1, 24), rtol=1e-12, atol=0)
    monkeypatch.setattr(dinic, "_WIDTHS", (2, 5))
    monkeypatch.setattr(dinic, "_LARGEST_SHARE", 2)
    assert torch.equal(solve_sources(network, "scipy").value, flows.value)
    only_over_few_edges(monkeypatch, 5)
    assert bool((solve_sources(network, "scipy").duality_gap > 0.1 * whole).all())


def test_without_numba_scipy_finds_the_same_values():
    network = attention_network(3, 12, n_networks=2, read_out=1)
    expected = solve_sources(network)
    flows = solve_sources(network, DinicSolver(compiled=False))
    torch.testing.assert_close(flows.value, expected.value, rtol=1e-9, atol=0)
    # SciPy counts in units of a 2^30th, the compiled solver in float64.
    gap = {"dinic": expected.duality_gap, "scipy": flows.duality_gap}
    assert bool((gap["dinic"] <= 1e-14 * expected.value).all())
    assert bool((gap["scipy"] > 1e-14 * expected.value).any())


@st.composite
def larger_networks(draw):
    """Networks of more tokens than a word of bits has, or just as many."""
    n_layers, n_tokens = draw(st.integers(1, 4)), draw(st.sampled_from([63, 64, 65]))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    capacity = torch.rand(2, n_layers, n_tokens, n_tokens, dtype=torch.float64)
    if draw(st.booleans()):
        capacity = (3 * capacity).ceil()  # many ties
    else:
        capacity = 10 ** (12 * capacity - 6)
    capacity *= torch.rand_like(capacity) < draw(st.sampled_from([0.03, 0.2, 1.0]))
    sink = torch.rand(2, n_tokens) < draw(st.sampled_from([0.02, 0.5]))
    if draw(st.booleans()):
        capacity.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return LayeredNetwork(capacity, torch.ones_like(sink), sink)


@settings(max_examples=15, deadline=None)
@given(larger_networks())
def test_values_of_many_tokens_are_maximum_flows(network):
    flows = solve_sources(network)
    assert bool((flows.duality_gap <= 1e-12 * flows.value).all())
    for example in range(2):
        one = network.select(slice(example, example + 1))
        for token in (0, network.n_tokens - 1):
            expected = value_alone(one, token)
            value = flows.value[example, token].item()
            assert value == pytest.approx(expected, rel=1e-9, abs=0)


def test_threads_share_the_tokens_of_a_batch(monkeypatch):
    network = attention_network(4, 10, n_networks=3, read_out=2)
    expected = solve_sources(network).value
    monkeypatch.setattr(dinic, "_EDGES_A_THREAD", 1)
    for n_threads in (2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        assert torch.equal(solve_sources(network).value, expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("residual", [False, True])
def test_solvers_agree_on_the_values(solver, residual):
    network = attention_network(3, 6, n_networks=2, read_out=1)
    if residual:
        identity = torch.eye(6, dtype=torch.bool)
        network.capacity[:] = torch.where(identity, torch.inf, network.capacity)
    expected = solve_sources(network).value
    flows = solve_sources(network, solver)
    torch.testing.assert_close(flows.value, expected, rtol=1e-9, atol=0)
    assert bool((flows.duality_gap <= 1e-5 * expected).all())


@pytest.mark.parametrize("solver", ["dinic", "scipy"])
def test_tokens_that_the_same_edges_confine_tie_exactly(solver):
    network = attention_network(4, 16, read_out=0)
    network.capacity[0, 2] *= 1e-3
    values = solve_sources(network, solver).value[0]
    assert values.unique().numel() == 1


def test_values_do_not_depend_on_how_many_are_solved_at_once(monkeypatch):
    network = attention_network(3, 5, n_networks=2)
    whole = solve_sources(network, BarrierSolver()).value
    monkeypatch.setattr("captum_attnflow.flow.solvers.base._MAX_EDGES_AT_ONCE", 1)
    torch.testing.assert_close(solve_sources(network, BarrierSolver()).value, whole)


def test_a_token_without_a_path_has_the_value_zero():
    capacity = torch.tensor([[[[0.5, 0.0], [0.0, 0.5]]]])
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert solve_sources(LayeredNetwork(capacity, both, first)).value.tolist() == [
        [0.5, 0.0]
    ]


@pytest.mark.parametrize("solver", ["dinic", "scipy"])
def test_a_token_alone_may_be_far_below_the_bound_of_its_value(solver):
    # All must pass one node that little reaches, between two wide layers.
    capacity = torch.full((1, 3, 40, 40), 1.0, dtype=torch.float64)
    capacity[0, 1] = 0
    capacity[0, 1, 0, :] = 1e-9
    capacity[0, 2, :, 0] = 1.0
    terminal = torch.ones(1, 40, dtype=torch.bool)
    flows = solve_sources(LayeredNetwork(capacity, terminal, terminal), solver)
    torch.testing.assert_close(flows.value, torch.full_like(flows.value, 4e-8))
    assert bool((flows.duality_gap <= 1e-6 * flows.value).all())


@pytest.mark.parametrize("solver", ["dinic", "scipy"])
def test_an_unbounded_value_is_refused(solver):
    capacity = torch.full((1, 2, 2, 2), torch.inf)
    terminal = torch.tensor([[True, True]])
    with pytest.raises(FlowError, match=r"1 of 1 network is unbounded.*finite"):
        solve_sources(LayeredNetwork(capacity, terminal, terminal), solver)


class NewSolver(FlowSolver):
    """A solver that says no more than how it solves a batch of networks."""

    def solve(self, network):
        return SciPySolver().solve(network)


def test_a_new_solver_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(SOLVERS, "new", NewSolver())
    network = attention_network(3, 6, n_networks=2, read_out=1)
    expected = solve_sources(network, "scipy").value
    torch.testing.assert_close(solve_sources(network, "new").value, expected)
    expected = solve_flow(network, "scipy").value
    assert torch.equal(solve_flow(network, "new").value, expected)


def test_what_does_not_derive_from_a_solver_is_refused_with_the_way():
    class Partial:
        solve = NewSolver.solve

    network = attention_network(2, 3)
    with pytest.raises(ValueError, match="derives from FlowSolver"):
        solve_flow(network, Partial())
