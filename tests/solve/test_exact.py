import pytest
import torch
from networks import attention_network

from captum_attnflow import BarrierSolver, NetworkXSolver, solve_flow


@pytest.mark.parametrize(
    "algorithm", ["preflow_push", "shortest_augmenting_path", "edmonds_karp"]
)
def test_exact_solver_certifies_its_flow_by_a_cut(algorithm):
    network = attention_network(2, 4, n_networks=2)
    solution = solve_flow(network, NetworkXSolver(algorithm))
    torch.testing.assert_close(solution.value, solution.cut_capacity)
    assert (solution.imbalance <= 1e-9 * solution.value).all()
    assert (solution.flow <= network.capacity).all()
    assert (solution.duality_gap <= 1e-9).all()


def test_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"algorithm='dinitz'.*preflow_push"):
        NetworkXSolver("dinitz")


def test_exact_solvers_agree_on_the_value_and_not_on_the_scores():
    network = attention_network(3, 8, read_out=0)
    one = solve_flow(network, NetworkXSolver("preflow_push"))
    other = solve_flow(network, NetworkXSolver("edmonds_karp"))
    torch.testing.assert_close(one.value, other.value)
    assert (one.source_flow - other.source_flow).abs().max() > 0.1 * one.value


def test_barrier_flow_reaches_the_exact_value():
    network = attention_network(3, 8, n_networks=4)
    exact = solve_flow(network, "networkx").value
    barrier = solve_flow(network, BarrierSolver()).value
    assert ((barrier - exact).abs() <= 1e-6 * exact).all()
