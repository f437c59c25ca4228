"""Scores against replicas written from the papers, on the demo model."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from reference.attention_flow import attention_flow
from reference.barrier import solve_with_cvxpy

from captum_attnflow import (
    AttentionFlow,
    AttentionRollout,
    BarrierSolver,
    GeneralizedAttentionFlow,
    LayeredNetwork,
    solve_flow,
)

TEXTS = [
    "a gripping , funny film",
    "dull",
    "the plot is thin , but the actors are a joy to watch from start to finish",
]


@pytest.fixture(params=TEXTS)
def ids(request, demo):
    return demo.tokenizer(request.param, return_tensors="pt").input_ids


@pytest.fixture
def forward(demo):
    return lambda ids: demo.model(ids).logits


@pytest.fixture
def attentions(demo, ids):
    """By the library's own eager model, one (H, T, T) map per layer."""
    model = demo.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return [maps[0] for maps in model(ids, output_attentions=True).attentions]
    finally:
        model.set_attn_implementation(before)


def test_attention_flow_equals_one_networkx_flow_per_token(forward, ids, attentions):
    scores = AttentionFlow(forward).explain(ids, target=1).scores[0]
    expected = attention_flow(attentions, read_out=0)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_attention_rollout_equals_the_product_of_matrices(forward, ids, attentions):
    identity = torch.eye(ids.shape[1], dtype=torch.float64)
    product = identity
    for heads in attentions:
        product = (0.5 * heads.double().mean(0) + 0.5 * identity) @ product
    explanation = AttentionRollout(forward).explain(ids, target=1)
    torch.testing.assert_close(explanation.scores[0], product[0], rtol=1e-5, atol=1e-8)
    flow = explanation.flow
    imbalance = explanation.network.divergence(
        flow, explanation.scores, flow[:, -1].sum(-1)
    )
    assert imbalance.abs().max() < 1e-12
    assert (flow <= explanation.network.capacity + 1e-12).all()


@pytest.mark.parametrize("residual", [None, 0.5, "free"])
@pytest.mark.parametrize("information", ["AF", "GF", "AGF"])
def test_flow_value_on_real_networks_is_networkx_maximum(
    forward, ids, information, residual
):
    gaf = GeneralizedAttentionFlow(forward, information=information, residual=residual)
    explanation = gaf.explain(ids, target=1)
    graph = explanation.network.to_networkx()
    expected = nx.maximum_flow_value(
        graph, "source", "sink", flow_func=nx.algorithms.flow.edmonds_karp
    )
    assert explanation.flow_value.item() == pytest.approx(expected, rel=1e-6)
    assert explanation.diagnostics.imbalance.item() <= 1e-9 * expected
    cut = explanation.network.cut_capacity(explanation.cut)
    assert cut.item() == pytest.approx(expected, rel=1e-6)


def test_scores_on_a_real_network_equal_those_of_a_generic_convex_solver(forward, demo):
    # On longer texts, and at some barrier weights of a smaller gap, Clarabel itself
    # stops at about 1e-5; see the next test for those.
    ids = demo.tokenizer("dull", return_tensors="pt").input_ids
    network = GeneralizedAttentionFlow(forward).explain(ids, target=1).network
    solution = solve_flow(network, BarrierSolver(epsilon=1e-2))
    value = solution.value.item()
    scaled = LayeredNetwork(network.capacity / value, network.source, network.sink)
    expected = value * solve_with_cvxpy(scaled.trim(), solution.mu.item() / value)
    error = np.abs(solution.source_flow[0].numpy() - expected)
    assert error.max() <= 1e-6 * value


@pytest.mark.parametrize("residual", [None, 0.5])
def test_flow_on_a_real_network_is_the_optimum_of_the_barrier_problem(
    forward, ids, residual
):
    """By its optimality conditions, which the strictly convex problem has once."""
    gaf = GeneralizedAttentionFlow(forward, residual=residual)
    network = gaf.explain(ids, target=1).network.trim()
    solution = solve_flow(network, BarrierSolver(epsilon=1e-2))
    mu, potential = solution.mu.item(), solution.potential[0]
    rise = potential[1:, :, None] - potential[:-1, None, :]
    alive = network.capacity[0] > 0
    room = network.capacity[0] - solution.flow[0]
    force = mu / solution.flow[0] - mu / room
    torch.testing.assert_close(force[alive], -rise[alive], rtol=1e-5, atol=1e-9)
    sent, received = solution.source_flow[0], solution.sink_flow[0]
    source, sink = network.source[0], network.sink[0]
    torch.testing.assert_close(mu / sent[source], -1 - potential[0][source])
    torch.testing.assert_close(mu / received[sink], potential[-1][sink])
    assert solution.imbalance.item() <= 1e-9 * solution.value.item()


def test_explanation_gives_the_network_with_tokens_and_flow(forward, demo):
    ids = demo.tokenizer(TEXTS[0], return_tensors="pt").input_ids
    tokens = demo.tokenizer.convert_ids_to_tokens(ids[0])
    explanation = GeneralizedAttentionFlow(forward).explain(ids, target=1)
    graph = explanation.to_networkx(tokens=tokens)
    sent = graph.edges["source", "0/4 funny"]["flow"]
    assert sent == pytest.approx(explanation.scores[0, 4].item())
