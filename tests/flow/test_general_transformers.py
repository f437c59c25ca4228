"""Networks of decoders and encoder-decoders, edge by edge."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from reference.general_transformers import decoder_graph, encoder_decoder_graph

from captum_attnflow.capture import AttentionRecord, DenseLayer, Route, TokenSequence
from captum_attnflow.flow import build_network
from captum_attnflow.flow.network import SINK, SOURCE
from captum_attnflow.flow.solvers import solve_flow

N_ENCODER, N_DECODER, N_LAYERS = 3, 3, 2


def maps(n_queries, n_keys, causal=False):
    scores = torch.randn(N_LAYERS, 1, 1, n_queries, n_keys).double()
    if causal:
        scores = scores.masked_fill(
            torch.ones(n_queries, n_keys).triu(1).bool(), -torch.inf
        )
    return scores.softmax(-1)


def gradients_at(weights, read_out):
    """Gradients that are zero in the last layer but at the read-out positions."""
    gradients = [torch.rand_like(layer) for layer in weights]
    unread = [i for i in range(weights[-1].shape[-2]) if i not in read_out]
    gradients[-1][..., unread, :] = 0
    return tuple(gradients)


def merged(network, name):
    """The network's graph with the copies of carried nodes put together."""
    graph = network.to_networkx()
    names = {
        node: name(data["layer"], data["position"])
        for node, data in graph.nodes(data=True)
        if node not in (SOURCE, SINK)
    }
    result = nx.DiGraph()
    for tail, head, data in graph.edges(data=True):
        tail, head = names.get(tail, tail), names.get(head, head)
        if tail != head:
            assert (tail, head) not in result.edges
            result.add_edge(tail, head, **data)
    return result


def assert_same_edges(mine, expected):
    assert set(mine.edges) == set(expected.edges)
    for edge, data in expected.edges.items():
        assert mine.edges[edge].get("capacity") == pytest.approx(data.get("capacity"))


def assert_same_value(network, graph):
    # networkx' preflow_push fails on some real-valued capacities.
    value = nx.maximum_flow_value(
        graph, "source", "sink", flow_func=nx.algorithms.flow.edmonds_karp
    )
    assert solve_flow(network).value.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("residual", [None, 0.3, "free"])
@pytest.mark.parametrize("read_out", [[2], [1], [1, 2]])
def test_a_decoder_is_a_causal_network_read_at_the_attributed_position(
    residual, read_out
):
    weights = maps(N_DECODER, N_DECODER, causal=True)
    layers = map(DenseLayer, weights, gradients_at(weights, read_out))
    record = AttentionRecord(tuple(layers), torch.zeros(1))
    network = build_network(record, "AF", residual)
    expected = decoder_graph(weights[:, 0, 0].tolist(), read_out, residual)
    assert_same_edges(
        merged(network, lambda layer, position: ("decoder", layer, position)), expected
    )
    assert_same_value(network, expected)


def encoder_decoder_record(read_out):
    own = maps(N_ENCODER, N_ENCODER)
    decoder = maps(N_DECODER, N_DECODER, causal=True)
    cross = maps(N_DECODER, N_ENCODER)
    stages = [stage for pair in zip(decoder, cross, strict=True) for stage in pair]
    gradients = [torch.rand_like(layer) for layer in (*own, *stages[:-1])]
    record = AttentionRecord(
        layers=tuple(
            map(
                DenseLayer,
                (*own, *stages),
                (*gradients, *gradients_at(cross[-1:], read_out)),
            )
        ),
        output=torch.zeros(1),
        sequences=(TokenSequence(N_ENCODER), TokenSequence(N_DECODER)),
        routes=(*[Route(0, 0)] * 2, *[Route(1, 1), Route(1, 0)] * 2),
    )
    return record, [part[:, 0, 0].tolist() for part in (own, decoder, cross)]


def name_of_encoder_decoder(layer, position):
    if position < N_ENCODER:
        return ("encoder", min(layer, N_LAYERS), position)
    return ("decoder", max(layer - N_LAYERS, 0) / 2, position - N_ENCODER)


@pytest.mark.parametrize("residual", [None, 0.3, "free"])
@pytest.mark.parametrize("read_out", [[2], [1], [0, 2]])
def test_a_decoder_layer_is_two_stages_over_a_copy_of_the_encoder(residual, read_out):
    record, matrices = encoder_decoder_record(read_out)
    network = build_network(record, "AF", residual)
    expected = encoder_decoder_graph(*matrices, read_out, residual)
    assert_same_edges(merged(network, name_of_encoder_decoder), expected)
    assert_same_value(network, expected)


def test_capacities_of_gradients_stand_on_the_same_edges():
    record, _ = encoder_decoder_record([2])
    products = [
        (weights * gradients)[0, 0].tolist()
        for weights, gradients in zip(record.weights, record.gradients, strict=True)
    ]
    expected = encoder_decoder_graph(products[:2], products[2::2], products[3::2], [2])
    network = build_network(record, "AGF", None)
    assert_same_edges(merged(network, name_of_encoder_decoder), expected)
    assert_same_value(network, expected)
