from dataclasses import replace

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from networks import attention_network, networks

from captum_attnflow import LayeredNetwork, RelevanceFlow, solve_flow


def paths_edges(network: LayeredNetwork) -> set[tuple[str, str]]:
    """Edges on some path from source to sink, by networkx."""
    graph = network.to_networkx()
    useful = nx.descendants(graph, "source") | {"source"}
    useful &= nx.ancestors(graph, "sink") | {"sink"}
    return set(graph.subgraph(useful).edges) if {"source", "sink"} <= useful else set()


@settings(max_examples=100, deadline=None)
@given(networks())
def test_trim_keeps_exactly_the_edges_on_paths_from_source_to_sink(network):
    assert set(network.trim().to_networkx().edges) == paths_edges(network)


@settings(max_examples=100, deadline=None)
@given(networks())
def test_trimming_twice_changes_nothing(network):
    once = network.trim()
    twice = once.trim()
    assert torch.equal(once.capacity, twice.capacity)


@settings(max_examples=50, deadline=None)
@given(networks())
def test_node_bound_bounds_the_flow_through_every_node(network):
    flow = solve_flow(network, "networkx")
    through = torch.cat([flow.source_flow[:, None], flow.flow.sum(-1)], 1)
    # networkx' own, which grows with the largest capacity.
    largest = network.capacity.nan_to_num(posinf=0).max()
    rounding = 1e-9 * flow.value + 1e-12 * largest
    assert (through <= network.node_bound() + rounding).all()


def test_networkx_graph_has_readable_names_capacities_and_flows():
    network = LayeredNetwork(
        capacity=torch.tensor([[[[0.25, 0.5], [0.0, torch.inf]]]]),
        source=torch.tensor([[True, False]]),
        sink=torch.tensor([[True, True]]),
    )
    flow = torch.tensor([[[[0.25, 0.0], [0.0, 0.0]]]])
    graph = network.to_networkx(tokens=["so", "funny"], flow=flow)
    assert dict(graph.nodes["0/1 funny"]) == {
        "layer": 0,
        "position": 1,
        "token": "funny",
    }
    assert dict(graph.edges["0/0 so", "1/0 so"]) == {"capacity": 0.25, "flow": 0.25}
    assert dict(graph.edges["0/1 funny", "1/0 so"]) == {"capacity": 0.5, "flow": 0.0}
    # An edge that never binds has no capacity: networkx reads that as infinite.
    assert dict(graph.edges["0/1 funny", "1/1 funny"]) == {"flow": 0.0}
    assert dict(graph.edges["source", "0/0 so"]) == {"flow": 0.25}
    assert dict(graph.edges["1/0 so", "sink"]) == {"flow": 0.25}
    assert not graph.has_edge("source", "0/1 funny")
    assert not graph.has_edge("0/0 so", "1/1 funny")
    assert nx.maximum_flow_value(graph, "source", "sink") == 0.25


def test_graph_of_a_solution_conserves_flow_at_every_node():
    network = attention_network(2, 5, n_networks=2)
    graph = network.to_networkx(1, flow=solve_flow(network).flow)
    for node in set(graph) - {"source", "sink"}:
        arriving = sum(flow for *_, flow in graph.in_edges(node, data="flow"))
        leaving = sum(flow for *_, flow in graph.out_edges(node, data="flow"))
        assert arriving == pytest.approx(leaving, rel=1e-9)


def amounts(edges) -> float:
    return sum(flow for *_, flow in edges)


def test_graph_of_a_relevance_flow_conserves_signed_flow_from_scores_to_output(demo):
    encoded = demo.encode(["the plot is dull", "a gripping , funny film , never dull"])
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    method = RelevanceFlow(
        lambda ids, mask: demo.model(ids, attention_mask=mask).logits
    )
    explanation = method.explain(
        ids, demo.tokenizer.mask_token_id, 1, additional_forward_args=(mask,)
    )
    for example, output in enumerate(explanation.flow_value.tolist()):
        graph = explanation.to_networkx(example)
        for node in set(graph) - {"source", "sink"}:
            arriving = amounts(graph.in_edges(node, data="flow"))
            leaving = amounts(graph.out_edges(node, data="flow"))
            assert arriving == pytest.approx(leaving, abs=1e-9)
        assert amounts(graph.in_edges("sink", data="flow")) == pytest.approx(output)
        for position, score in enumerate(explanation.scores[example].tolist()):
            sent = graph.edges["source", f"0/{position}"]["flow"] if score else 0
            assert sent == pytest.approx(score)
        bounded = [edge for *_, edge in graph.edges(data=True) if "capacity" in edge]
        assert all(edge["capacity"] == abs(edge["flow"]) > 0 for edge in bounded)
        assert any(edge["flow"] < 0 for edge in bounded)


def test_direct_edges_lead_from_tokens_to_the_sink_beside_all_others():
    flow = torch.tensor([[[[0.5, -0.25], [0.0, 0.0]]]])
    read_out = torch.tensor([[True, False]])
    network = LayeredNetwork(flow.abs(), torch.ones_like(read_out), read_out)
    without = network.to_networkx(tokens=["so", "dull"], flow=flow)
    graph = network.to_networkx(
        tokens=["so", "dull"], flow=flow, direct=torch.tensor([[0.0, -0.75]])
    )
    assert set(graph.edges) - set(without.edges) == {("0/1 dull", "sink")}
    assert dict(graph.edges["0/1 dull", "sink"]) == {"capacity": 0.75, "flow": -0.75}
    assert dict(graph.edges["source", "0/1 dull"]) == {"flow": -1.0}
    assert dict(graph.edges["0/1 dull", "1/0 so"]) == {"capacity": 0.25, "flow": -0.25}


def test_a_maximum_flow_on_a_relevance_flows_network_has_no_direct_edges(demo):
    ids = demo.encode(["dull"])["input_ids"]
    method = RelevanceFlow(lambda ids: demo.model(ids).logits)
    explanation = method.explain(ids, demo.tokenizer.mask_token_id, target=1)
    solution = solve_flow(explanation.network)
    solved = replace(explanation, joint_flow=solution)
    assert explanation.to_networkx().has_edge("0/1", "sink")
    assert not solved.to_networkx().has_edge("0/1", "sink")


def test_direct_edges_without_a_flow_are_refused():
    with pytest.raises(ValueError, match="direct edges were given without a flow"):
        attention_network(1, 3).to_networkx(direct=torch.ones(1, 3))


def test_wrong_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="tokens holds 2 tokens for 3 positions"):
        attention_network(1, 3).to_networkx(tokens=["a", "b"])


@pytest.mark.parametrize("example", [-1, 2])
def test_graph_of_an_example_that_is_not_there_is_refused(example):
    with pytest.raises(ValueError, match=f"example={example} is not in a batch of 2"):
        attention_network(1, 3, n_networks=2).to_networkx(example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": torch.ones(1, 2, 3, 4)}, "needs .B, L, T, T."),
        ({"capacity": torch.ones(1, 0, 3, 3)}, "at least one"),
        ({"capacity": -torch.ones(1, 2, 3, 3)}, "negative or NaN"),
        ({"capacity": torch.full((1, 2, 3, 3), torch.nan)}, "negative or NaN"),
        ({"source": torch.ones(1, 4, dtype=torch.bool)}, "source has shape"),
        ({"sink": torch.ones(1, 3)}, "sink has shape"),
        ({"capacity": torch.ones(1, 2, 3, 3).numpy()}, "capacity is an ndarray"),
        ({"capacity": torch.ones(1, 2, 3, 3).int()}, "capacity is a Tensor .*int32"),
        ({"source": [[True] * 3]}, "source is a list"),
    ],
)
def test_malformed_networks_are_refused(change, message):
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    parts = {
        "capacity": torch.ones(1, 2, 3, 3),
        "source": everywhere,
        "sink": everywhere,
    }
    with pytest.raises(ValueError, match=message):
        LayeredNetwork(**{**parts, **change})


def test_positions_that_a_network_uses_make_the_same_network():
    network = attention_network(3, 8, read_out=5, n_networks=2)
    causal = LayeredNetwork(network.capacity.tril(), network.source, network.sink)
    trimmed = causal.trim()
    assert trimmed.used().tolist() == [[True] * 6 + [False] * 2] * 2
    small = trimmed.take(torch.arange(6))
    assert torch.equal(small.n_edges, trimmed.n_edges)
    assert torch.equal(small.capacity, trimmed.capacity[..., :6, :6])
    assert small.source.all()
    assert torch.equal(small.sink, trimmed.sink[:, :6])


@pytest.mark.parametrize("never_binding", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_capacity_of_a_cut_is_the_sum_over_its_edges(never_binding, autocast):
    network = attention_network(3, 7, n_networks=2)
    if never_binding:
        network.capacity[0, 1, 2, 3] = torch.inf
    cut = torch.rand(2, 4, 7) < 0.5
    cut[:, 0], cut[:, -1] = True, False
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = network.cut_capacity(cut)
    for example in range(2):
        expected = sum(
            network.capacity[example, layer, head, tail]
            for layer in range(3)
            for head in range(7)
            for tail in range(7)
            if cut[example, layer, tail] and not cut[example, layer + 1, head]
        )
        torch.testing.assert_close(found[example], expected)
