from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from networks import (
    assert_same_scores,
    attention_network,
    everywhere,
    networks,
)
from reference.barrier import solve_with_cvxpy

from captum_attnflow import (
    BarrierSolver,
    FlowError,
    LayeredNetwork,
    solve_flow,
)
from captum_attnflow.flow import network as flow_network
from captum_attnflow.flow.solvers import solve_sources
from captum_attnflow.flow.solvers.barrier import solver as barrier_solver

pytestmark = pytest.mark.usefixtures("passes")
# The fixture is the same for all examples.
ANY_NETWORK = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def max_flow(network: LayeredNetwork, example: int = 0) -> float:
    graph = network.to_networkx(example)
    algorithm = nx.algorithms.flow.edmonds_karp
    return nx.maximum_flow_value(graph, "source", "sink", flow_func=algorithm)


@settings(ANY_NETWORK, max_examples=300)
@given(networks())
def test_solution_is_a_maximum_flow_on_any_network(network):
    expected = max_flow(network)
    solution = solve_flow(network)
    value = solution.value.item()
    assert value == pytest.approx(expected, rel=1e-6, abs=0)
    assert solution.imbalance.item() <= 1e-9 * value
    assert bool((solution.flow >= 0).all())
    assert bool((solution.flow <= network.capacity).all())
    assert solution.cut_capacity.item() == pytest.approx(expected, rel=1e-6, abs=0)
    # The imbalance that is reported is the one that anybody measures.
    conserved = network.divergence(
        solution.flow, solution.source_flow, solution.sink_flow
    )
    difference = conserved.abs().max().item() - solution.imbalance.item()
    assert abs(difference) <= 1e-13 * value


@settings(ANY_NETWORK, max_examples=200)
@given(networks())
def test_iterations_lead_to_a_maximum_flow_on_any_network(passes, network):
    expected = max_flow(network)
    with pytest.MonkeyPatch.context() as patch:
        solvers = passes.solvers(1000)
        patch.setattr(passes, "solvers", staticmethod(lambda _: solvers))
        solution = solve_flow(network)
    assert solution.value.item() == pytest.approx(expected, rel=1e-6, abs=0)
    assert solution.imbalance.item() <= 1e-9 * solution.value.item()


@pytest.mark.parametrize("rows", [[0], [1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("is_near", [False, True])
@pytest.mark.parametrize("dtypes", [2 * (torch.float64,), (torch.float64,)])
def test_networks_that_one_attempt_does_not_solve_are_solved_by_the_next(
    monkeypatch, passes, rows, is_near, dtypes
):
    monkeypatch.setattr(passes, "dtypes", dtypes)
    network = attention_network(4, 24, n_networks=4)
    expected = solve_flow(network)
    calls = []

    def fails_first(*arguments, made=barrier_solver._approach):
        end = made(*arguments)
        calls.append(len(end.near))
        if len(calls) == 1 and is_near:
            end.potential.high[rows] += 1.0
        elif len(calls) == 1:
            end.near[rows] = False
        return end

    monkeypatch.setattr(barrier_solver, "_approach", fails_first)
    solution = solve_flow(network)
    assert calls == [4, len(rows)]
    assert_same_scores(solution, expected)
    torch.testing.assert_close(solution.flow, expected.flow, rtol=1e-5, atol=1e-9)
    again = solution.iterations > expected.iterations + 3
    assert again.nonzero()[:, 0].tolist() == rows


def test_a_network_that_is_never_solved_is_told_and_no_other(monkeypatch):
    def fails(*arguments, made=barrier_solver._approach):
        end = made(*arguments)
        end.near[-1] = False
        return end

    monkeypatch.setattr(barrier_solver, "_approach", fails)
    with pytest.raises(FlowError, match=r"on 1 of 3 networks .*rows \[2\]"):
        solve_flow(attention_network(4, 8, n_networks=3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (8, 12), (3, 24)])
@pytest.mark.parametrize("epsilon", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("read_out", [None, 0])
def test_wide_gaps_may_be_asked_for(shape, epsilon, read_out):
    # The barrier weight then depends on the value as much as the value on it.
    network = attention_network(*shape, n_networks=3, read_out=read_out)
    solution = solve_flow(network, BarrierSolver(epsilon=epsilon))
    gap = solution.duality_gap / solution.value
    torch.testing.assert_close(gap, torch.full_like(gap, epsilon), rtol=2e-6, atol=0)
    assert (solution.imbalance <= 1e-9 * solution.value).all()
    assert solution.iterations.max() <= 15


def test_as_many_iterations_are_made_as_allowed():
    network = attention_network(4, 24)
    needed = solve_flow(network).iterations.item()
    exactly = solve_flow(network, BarrierSolver(max_iterations=needed))
    assert exactly.iterations.item() == needed
    for limit in range(1, needed):
        with pytest.raises(FlowError, match=f"in {limit} iteration"):
            solve_flow(network, BarrierSolver(max_iterations=limit))


@pytest.mark.parametrize("scale", [1e-311, 1e250])
def test_edges_that_never_bind_may_stand_beside_extreme_capacities(scale):
    network = attention_network(3, 6)
    expected = free_diagonal(network)
    scaled = free_diagonal(replace(network, capacity=network.capacity * scale))
    scores = solve_flow(scaled).source_flow / scale
    error = (scores - solve_flow(expected).source_flow).abs().max()
    # Below 1e-308 numbers lose places.
    assert error <= (1e-4 if scale < 1 else 1e-9)


def free_diagonal(network: LayeredNetwork) -> LayeredNetwork:
    capacity = network.capacity.clone()
    capacity[:, 0].diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return replace(network, capacity=capacity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_solver_itself_takes_capacities_of_any_dtype(dtype):
    network = attention_network(3, 6)
    network = replace(network, capacity=network.capacity.to(dtype))
    precise = replace(network, capacity=network.capacity.double())
    assert_same_scores(BarrierSolver().solve(network), BarrierSolver().solve(precise))


@pytest.mark.parametrize("epsilon", [0.5, 1e-9, 1e-12])
@pytest.mark.parametrize("read_out", [None, 0])
def test_any_share_may_be_asked_for(epsilon, read_out):
    network = attention_network(6, 24, n_networks=2, read_out=read_out)
    solution = solve_flow(network, BarrierSolver(epsilon=epsilon))
    gap = solution.duality_gap / solution.value
    torch.testing.assert_close(gap, torch.full_like(gap, epsilon), rtol=1e-5, atol=0)
    assert (solution.imbalance <= 1e-9 * solution.value).all()


def pattern_network(kind: str, n_layers: int, noise: float) -> LayeredNetwork:
    """Attention that does not mix: one token to one, but for weak noise."""
    n_tokens = 64
    place = torch.arange(n_tokens)
    capacity = noise * torch.rand(1, n_layers, n_tokens, n_tokens).double()
    for layer in capacity[0]:
        keys = torch.randperm(n_tokens) if kind == "permutation" else (place - 1) % 64
        layer[place, keys] += 1
    return everywhere(capacity.tril() if kind == "previous" else capacity)


@pytest.mark.parametrize("kind", ["permutation", "previous"])
@pytest.mark.parametrize("n_layers", [2, 6])
@pytest.mark.parametrize("noise", [1e-4, 1e-6])
def test_networks_that_do_not_mix_take_few_more_steps_than_exact_ones(
    monkeypatch, passes, kind, n_layers, noise
):
    made = [pattern_network(kind, n_layers, noise) for _ in range(6)]
    solutions = [solve_flow(network) for network in made]
    monkeypatch.setattr(passes, "solvers", staticmethod(lambda _: ()))
    direct = [solve_flow(network) for network in made]
    for solution, exact in zip(solutions, direct, strict=True):
        torch.testing.assert_close(solution.value, exact.value, rtol=1e-8, atol=0)
    # In all: one of thirty such networks takes three times the steps of most, by either
    # method, and not the same one.
    steps, exact_steps = (
        sum(solution.iterations.item() for solution in method)
        for method in (solutions, direct)
    )
    assert steps <= 1.3 * exact_steps + 10


@pytest.mark.parametrize("read_out", [None, -1])
@pytest.mark.parametrize(("sharpness", "most"), [(1, 30), (3, 45), (10, 55)])
def test_causal_attention_of_many_layers_takes_few_steps(read_out, sharpness, most):
    # A flow that starts in proportion to capacities gathers at the first tokens, and
    # leaves edges with room for all of it 30 orders of magnitude below that.
    future = torch.full((96, 96), -torch.inf).double().triu(1)
    scores = sharpness * torch.randn(1, 12, 96, 96).double() + future
    network = everywhere(scores.softmax(-1))
    if read_out is not None:
        network = replace(network, sink=torch.arange(96)[None] == 96 + read_out)
    solution = solve_flow(network)
    exact = solve_flow(network, "scipy").cut_capacity
    torch.testing.assert_close(solution.value, exact, rtol=2e-6, atol=0)
    assert solution.iterations.item() <= most


def test_where_the_last_method_starts_too_far_it_starts_again_from_nearer(
    monkeypatch, passes, attempts
):
    monkeypatch.setattr(barrier_solver, "_LAST_RATIOS", (1.0, 0.05, 1e-3))
    monkeypatch.setattr(passes, "dtypes", (torch.float64,))
    capacity = torch.full((1, 1, 8, 8), 1 / 8).double()
    capacity[..., 0, :] = 0.01
    network = everywhere(capacity)
    solution = solve_flow(network, BarrierSolver(epsilon=0.01))
    assert [attempt.last_ratio for attempt in attempts] == [1.0, 0.05]
    expected = solve_with_cvxpy(network, solution.mu.item())
    error = np.abs(solution.source_flow[0].numpy() - expected).max()
    assert error <= 1e-5 * solution.value.item()


def test_small_results_do_not_keep_all_edges_in_memory():
    solution = solve_flow(attention_network(6, 64))
    for nodes in (solution.source_flow, solution.sink_flow):
        assert nodes.untyped_storage().nbytes() == nodes.nbytes


@pytest.mark.parametrize("smallest", [1e-12, 1e-35, 1e-60, 1e-120])
def test_capacities_that_float32_cannot_hold_are_no_obstacle(smallest):
    network = attention_network(3, 48, read_out=0)
    network.capacity[:, 1, :, ::2] *= smallest
    solution = solve_flow(network)
    exact = solve_flow(network, "scipy").cut_capacity
    torch.testing.assert_close(solution.value, exact, rtol=1e-6, atol=0)
    assert bool((solution.flow <= network.capacity).all())


@pytest.mark.parametrize("read_out", [None, 0])
@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_scores_equal_those_of_a_generic_convex_solver(read_out, epsilon):
    network = attention_network(3, 5, read_out=read_out)
    solution = solve_flow(network, BarrierSolver(epsilon=epsilon))
    expected = solve_with_cvxpy(network.trim(), solution.mu.item())
    scores = solution.source_flow[0].numpy()
    assert np.abs(scores - expected).max() <= 1e-5 * solution.value.item()


@pytest.mark.parametrize("read_out", [None, 4])
def test_scores_of_causal_networks_equal_those_of_a_generic_convex_solver(read_out):
    network = attention_network(3, 5, read_out=read_out, causal=True)
    solution = solve_flow(network, BarrierSolver(epsilon=1e-3))
    expected = solve_with_cvxpy(network.trim(), solution.mu.item())
    scores = solution.source_flow[0].numpy()
    assert np.abs(scores - expected).max() <= 1e-5 * solution.value.item()


def test_scores_with_free_residuals_equal_those_of_a_generic_convex_solver():
    network = attention_network(3, 4, read_out=0)
    identity = torch.eye(4, dtype=torch.bool)
    network = LayeredNetwork(
        torch.where(identity, torch.inf, network.capacity),
        network.source & ~network.sink,
        network.sink,
    )
    solution = solve_flow(network, BarrierSolver(epsilon=1e-3))
    expected = solve_with_cvxpy(network.trim(), solution.mu.item())
    scores = solution.source_flow[0].numpy()
    assert np.abs(scores - expected).max() <= 1e-5 * solution.value.item()


def test_answer_is_centred_at_the_requested_mu():
    network = attention_network(2, 4)
    solution = solve_flow(network, BarrierSolver(mu=1e-3))
    assert solution.mu.item() == pytest.approx(1e-3)
    # Stationarity: mu / x - mu / (u - x) is the potential drop along each edge.
    flow, potential = solution.flow[0], solution.potential[0]
    drop = potential[:-1, None, :] - potential[1:, :, None]
    force = 1e-3 / flow - 1e-3 / (network.capacity[0] - flow)
    torch.testing.assert_close(force, drop, rtol=1e-4, atol=1e-6)


def test_duality_gap_is_the_requested_share_of_the_value():
    network = attention_network(4, 8, n_networks=3)
    solution = solve_flow(network, BarrierSolver(epsilon=1e-5))
    relative_gap = solution.duality_gap / solution.value
    assert relative_gap.tolist() == pytest.approx([1e-5] * 3, rel=1e-4)


@pytest.mark.parametrize("read_out", [None, 0])
@pytest.mark.parametrize("n_tokens", [16, 48])
def test_scores_do_not_depend_on_batch_company(read_out, n_tokens):
    network = attention_network(4, n_tokens, n_networks=5, read_out=read_out)
    network.capacity[2] *= 1e6
    together = solve_flow(network)
    in_parts = solve_flow(network, BarrierSolver(max_edges=1))
    for index in range(5):
        alone = solve_flow(network.select(slice(index, index + 1)))
        for other in (together.source_flow[index], in_parts.source_flow[index]):
            error = (alone.source_flow[0] - other).abs().max()
            assert error <= 1e-9 * alone.value.item()


@pytest.mark.parametrize("read_out", [None, 3])
@pytest.mark.parametrize("n_tokens", [32, 64])
def test_scores_follow_a_permutation_of_the_tokens(read_out, n_tokens):
    network = attention_network(6, n_tokens, read_out=read_out)
    order = torch.randperm(n_tokens)
    permuted = LayeredNetwork(
        network.capacity[..., order, :][..., order],
        network.source[:, order],
        network.sink[:, order],
    )
    scores = solve_flow(network).source_flow
    again = torch.empty_like(scores)
    again[:, order] = solve_flow(permuted).source_flow
    assert (scores - again).abs().max() <= 1e-9 * scores.sum()


@pytest.mark.parametrize("scale", [1e-60, 1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("n_tokens", [12, 48])
def test_scores_scale_with_the_capacities(scale, n_tokens):
    network = attention_network(4, n_tokens)
    scaled = LayeredNetwork(network.capacity * scale, network.source, network.sink)
    scores = solve_flow(network).source_flow
    error = solve_flow(scaled).source_flow / scale - scores
    assert error.abs().max() <= 1e-9 * scores.sum()


def test_networks_without_a_path_get_the_zero_flow_among_others():
    network = attention_network(2, 3, n_networks=3)
    network.capacity[1, 0] = 0
    solution = solve_flow(network)
    assert solution.value[1] == 0
    assert not solution.flow[1].any()
    assert solution.value[[0, 2]].tolist() == pytest.approx(
        [max_flow(network, 0), max_flow(network, 2)], rel=1e-6
    )


@pytest.mark.parametrize(
    "option",
    [{"epsilon": "1e-3"}, {"mu": True}, {"max_iterations": 9.5}, {"compiled": "yes"}],
)
def test_options_of_other_types_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}={option[name]!r} must be"):
        BarrierSolver(**option)


def test_unbounded_flow_is_refused():
    capacity = torch.full((1, 2, 2, 2), torch.inf)
    with pytest.raises(FlowError, match="unbounded"):
        solve_flow(everywhere(capacity))


def test_iteration_limit_is_an_error_and_never_a_silent_zero():
    with pytest.raises(FlowError, match="did not converge on 2 of 2 networks"):
        solve_flow(
            attention_network(3, 6, n_networks=2), BarrierSolver(max_iterations=2)
        )


def test_advice_on_capacities_too_far_apart_helps():
    exponent = 300 * (2 * torch.rand(1, 3, 8, 8).double() - 1)
    network = everywhere(10**exponent)
    with pytest.raises(FlowError, match=r"from .*e-300 to .*e\+298, too far apart"):
        solve_flow(network)
    value = solve_flow(network, "scipy").cut_capacity
    capacity = network.capacity.clamp_max(1e20 * value)
    capacity[capacity < 1e-20 * value] = 0
    solution = solve_flow(everywhere(capacity))
    torch.testing.assert_close(solution.value, value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mu", [1e-20, 1e305])
def test_advice_on_a_mu_far_from_the_value_helps(mu):
    network = attention_network(3, 6)
    with pytest.raises(FlowError, match=r"mu=.* asks for a duality gap.*give epsilon"):
        solve_flow(network, BarrierSolver(mu=mu))
    solution = solve_flow(network)
    again = solve_flow(network, BarrierSolver(mu=solution.mu.item()))
    assert_same_scores(again, solution)


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.0},
        {"epsilon": 1e-14},
        {"epsilon": 1.0},
        {"epsilon": float("nan")},
        {"mu": -1.0},
        {"mu": float("inf")},
        {"mu": float("nan")},
        {"tolerance": float("inf")},
        {"max_iterations": 0},
        {"max_edges": 0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BarrierSolver(**options)


@pytest.mark.parametrize("solver", ["simplex", BarrierSolver])
def test_unknown_solver_is_refused(solver):
    with pytest.raises(ValueError, match=r"is unknown.*barrier.*an instance such as"):
        solve_flow(attention_network(1, 2), solver)


def test_networks_of_any_length_share_a_batch_in_any_order():
    """Unused positions are left out while solving, and are back in the answer."""
    alone, padded = [], []
    for n_tokens, first in ((3, 2), (8, 0), (5, 1), (3, 4)):
        network = attention_network(2, n_tokens)
        alone.append(solve_flow(network))
        place = slice(first, first + n_tokens)
        capacity = torch.zeros(1, 2, 8, 8).double()
        capacity[..., place, place] = network.capacity
        used = torch.zeros(1, 8, dtype=torch.bool)
        used[:, place] = True
        padded.append((LayeredNetwork(capacity, used, used), place))
    batch = LayeredNetwork(
        *(
            torch.cat([getattr(network, name) for network, _ in padded])
            for name in ("capacity", "source", "sink")
        )
    )
    together = solve_flow(batch, BarrierSolver(max_edges=2 * 2 * 64))
    assert (together.imbalance <= 1e-9 * together.value).all()
    torch.testing.assert_close(
        batch.cut_capacity(together.cut), together.cut_capacity, rtol=1e-12, atol=0
    )
    for row, (expected, (_, place)) in enumerate(zip(alone, padded, strict=True)):
        for name in ("flow", "source_flow", "sink_flow"):
            mine, theirs = (getattr(part, name) for part in (together, expected))
            inside = (..., place, place) if name == "flow" else (..., place)
            torch.testing.assert_close(
                mine[row][inside], theirs[0], rtol=1e-6, atol=1e-7
            )
            assert mine[row].sum().item() == pytest.approx(theirs.sum().item())


def test_solves_are_kept_apart_by_threads_and_from_answers():
    networks = [attention_network(3, n_tokens) for n_tokens in (8, 48, 8, 48)]
    expected = [solve_flow(network).flow for network in networks]
    with ThreadPoolExecutor(4) as pool:
        solved = list(pool.map(solve_flow, networks * 8))
    for number, solution in enumerate(solved):
        torch.testing.assert_close(solution.flow, expected[number % 4])


def test_a_solve_under_inference_mode_leaves_nothing_behind_for_others():
    def solve_twice():
        network = attention_network(2, 8)
        with torch.inference_mode():
            first = solve_flow(network)
        return first.value.clone(), solve_flow(network).value

    # A thread of its own has not solved anything yet.
    with ThreadPoolExecutor(1) as pool:
        first, second = pool.submit(solve_twice).result()
    torch.testing.assert_close(first, second)


def test_answers_are_ordinary_tensors():
    for network in (attention_network(2, 8), attention_network(2, 8, n_networks=3)):
        for name, value in vars(solve_flow(network)).items():
            assert not value.is_inference(), name


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("of_capacity", [False, True])
def test_a_solve_may_stand_within_a_functional_transform(
    monkeypatch, of_capacity, large
):
    if large:
        monkeypatch.setattr(flow_network, "_LARGE_BYTES", 0)
    network = attention_network(2, 8, read_out=0)
    expected = solve_flow(network).source_flow

    def weighted(weight):
        scale = 1 + 0 * weight.sum() if of_capacity else 1.0
        scaled = replace(network, capacity=network.capacity * scale)
        return (weight * solve_flow(scaled).source_flow).sum()

    weight = torch.rand_like(expected)
    torch.testing.assert_close(torch.func.grad(weighted)(weight), expected)
    _, along = torch.func.jvp(weighted, (weight,), (torch.ones_like(weight),))
    torch.testing.assert_close(along, expected.sum())


@pytest.mark.parametrize("large", [False, True])
def test_a_solve_may_stand_within_a_compiled_function(monkeypatch, large):
    if large:
        monkeypatch.setattr(flow_network, "_LARGE_BYTES", 0)
    network = attention_network(2, 8, read_out=0)
    expected = solve_flow(network).value
    compiled = torch.compile(lambda x: x * solve_flow(network).value, backend="eager")
    torch.testing.assert_close(compiled(torch.tensor(2.0)), 2 * expected)


@pytest.mark.parametrize("solve", [solve_flow, solve_sources, BarrierSolver().solve])
def test_capacities_may_belong_to_a_graph(solve):
    network = attention_network(2, 8)
    expected = solve(network).value
    network = replace(network, capacity=network.capacity.requires_grad_())
    solution = solve(network)
    assert not any(value.requires_grad for value in vars(solution).values())
    torch.testing.assert_close(solution.value, expected)
