from __future__ import annotations

import networkx as nx
import pytest
import torch
from networks import attention_network

from captum_attnflow import BarrierSolver, LayeredNetwork
from captum_attnflow.flow.scores import score_tokens
from captum_attnflow.flow.solvers import SOLVERS


def value_of(network: LayeredNetwork, sources: list[int], example: int = 0) -> float:
    graph = network.to_networkx(example)
    for node in list(graph.successors("source")):
        if graph.nodes[node]["position"] not in sources:
            graph.remove_edge("source", node)
    return nx.maximum_flow_value(
        graph, "source", "sink", flow_func=nx.algorithms.flow.edmonds_karp
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_independent_scores_are_the_flows_of_single_tokens(solver):
    network = attention_network(3, 5, n_networks=2, read_out=1)
    network.capacity[1, 0, :, 3] = 0  # a token that nothing attends to
    scored = score_tokens(network, "independent", solver)
    for example in range(2):
        expected = [value_of(network, [token], example) for token in range(5)]
        scores = scored.scores[example].tolist()
        assert scores == pytest.approx(expected, rel=1e-6)
    assert scored.scores[1, 3] == 0


def test_joint_scores_are_shapley_values_of_the_game_on_the_flow():
    """By brute force over all orders: a coalition is worth what its tokens send."""
    from itertools import permutations

    network = attention_network(2, 4)
    scored = score_tokens(network, "joint", BarrierSolver())

    def worth(coalition):
        return sum(scored.joint_flow.flow[0, 0, :, token].sum() for token in coalition)

    orders = list(permutations(range(4)))
    for player in range(4):
        gains = [
            worth(order[: order.index(player) + 1])
            - worth(order[: order.index(player)])
            for order in orders
        ]
        assert scored.scores[0, player].item() == pytest.approx(
            float(sum(gains)) / len(orders)
        )


def test_joint_scores_are_not_shapley_values_of_the_game_that_solves_anew():
    from itertools import permutations

    network = attention_network(2, 3, read_out=0)
    scores = score_tokens(network, "joint", BarrierSolver()).scores[0]
    orders = list(permutations(range(3)))
    shapley = [
        sum(
            value_of(network, list(order[: order.index(player) + 1]))
            - value_of(network, list(order[: order.index(player)]))
            for order in orders
        )
        / len(orders)
        for player in range(3)
    ]
    assert sum(shapley) == pytest.approx(float(scores.sum()), rel=1e-6)
    assert max(abs(scores - torch.tensor(shapley))) > 1e-3


def free(network: LayeredNetwork) -> LayeredNetwork:
    identity = torch.eye(network.n_tokens, dtype=torch.bool)
    return LayeredNetwork(
        torch.where(identity, torch.inf, network.capacity),
        network.source & ~network.sink,
        network.sink,
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_token_with_a_free_path_is_scored_by_what_it_sends_to_others(solver):
    network = free(attention_network(2, 3))
    scored = score_tokens(network, "independent", solver)
    for token in range(3):
        others = network.sink.clone()
        others[0, token] = False
        alone = LayeredNetwork(network.capacity, torch.eye(3).bool()[[token]], others)
        expected = value_of(alone, [token])
        assert scored.scores[0, token].item() == pytest.approx(expected, rel=1e-6)


def test_diagnostics_are_the_worst_of_the_flows_behind_an_example():
    network = attention_network(3, 5, n_networks=2)
    scored = score_tokens(network, "independent", BarrierSolver(epsilon=1e-5))
    diagnostics = scored.diagnostics
    largest = scored.scores.amax(1)
    assert diagnostics.duality_gap.tolist() == pytest.approx(
        (1e-5 * largest).tolist(), rel=1e-3
    )
    assert (diagnostics.imbalance <= 1e-9 * largest).all()
    assert (diagnostics.iterations > 0).all()
