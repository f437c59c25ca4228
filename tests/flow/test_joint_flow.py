"""The joint flow behind scores that do not need it."""

from __future__ import annotations

import pytest
import torch
from models import bert, token_ids
from networks import attention_network

from captum_attnflow import AttentionFlow, BarrierSolver, LayerAttentionFlow, solve_flow
from captum_attnflow.flow.solvers import SOLVERS, DeferredFlow, FlowSolver


class CountingSolver(FlowSolver):
    """The barrier solver, with the number of networks of each solve."""

    def __init__(self):
        self.solved = []

    def solve(self, network):
        self.solved.append(network.n_networks)
        return BarrierSolver().solve(network)


@pytest.fixture
def solved(monkeypatch):
    """Networks of each joint flow that was solved."""
    solver = CountingSolver()
    monkeypatch.setitem(SOLVERS, "barrier", solver)
    return solver.solved


def attention_flow(**options):
    model = bert()
    return AttentionFlow(lambda ids: model(ids).logits, **options)


def test_attribution_solves_no_joint_flow(solved):
    attention_flow().attribute(token_ids(), target=1)
    model = bert()
    layer = model.bert.embeddings
    flow = LayerAttentionFlow(lambda ids: model(ids).logits, layer)
    flow.attribute(token_ids(), target=1)
    assert solved == []


def test_a_convergence_delta_takes_one_joint_flow_of_the_batch(solved):
    attention_flow().attribute(token_ids(3), target=1, return_convergence_delta=True)
    assert solved == [3]


def test_the_joint_flow_is_solved_once_however_often_it_is_read(solved):
    explanation = attention_flow().explain(token_ids(3), target=1)
    assert solved == []
    _ = explanation.flow, explanation.delta, explanation.cut, explanation.flow_value
    assert solved == [3]
    _ = explanation.select(slice(1, 2)).flow
    assert solved == [3]


def test_the_joint_flow_that_is_read_is_that_of_the_network():
    explanation = attention_flow().explain(token_ids(3), target=1)
    expected = solve_flow(explanation.network)
    assert torch.equal(explanation.flow_value, expected.value)
    assert torch.equal(explanation.flow, expected.flow)
    assert torch.equal(explanation.cut, expected.cut)
    assert torch.equal(explanation.delta, explanation.scores.sum(1) - expected.value)


def test_rows_of_an_unsolved_flow_solve_for_themselves_alone(solved):
    explanation = attention_flow().explain(token_ids(3), target=1)
    rows = explanation.select(slice(1, 3))
    assert solved == []
    delta = rows.delta
    assert solved == [2]
    torch.testing.assert_close(delta, explanation.delta[1:3])
    assert solved == [2, 3]


def test_targets_that_are_explained_together_solve_no_joint_flow(solved):
    explanations = list(attention_flow().explain_targets(token_ids(2), [0, 1]))
    assert len(explanations) == 2
    assert solved == []


def test_a_given_solver_solves_the_deferred_flow():
    network = attention_network(2, 4, n_networks=2)
    solver = CountingSolver()
    deferred = DeferredFlow(network, solver)
    assert torch.equal(deferred.value, solve_flow(network).value)
    assert solver.solved == [2]
