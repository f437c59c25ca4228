"""Flow networks of general transformers, edge by edge from their definitions.

Nodes are named (sequence, layer, position); a decoder's half layers lie between its
self-attention and its cross-attention. An edge without ``capacity`` never binds.
"""

import networkx as nx


def decoder_graph(attention, read_out, residual=None):
    """One sequence that attends to itself: (l, j) -> (l + 1, i)."""
    graph = nx.DiGraph()
    for layer, matrix in enumerate(attention):
        _attend(graph, matrix, ("decoder", layer), ("decoder", layer + 1), residual)
    _terminals(graph, [("decoder", 0)], ("decoder", len(attention)), read_out, residual)
    return graph


def encoder_decoder_graph(encoder, decoder, cross, read_out, residual=None):
    """An encoder, and decoder layers of two stages that attend to its last layer."""
    graph = nx.DiGraph()
    for layer, matrix in enumerate(encoder):
        _attend(graph, matrix, ("encoder", layer), ("encoder", layer + 1), residual)
    for layer, (own, other) in enumerate(zip(decoder, cross, strict=True)):
        below, half, above = (("decoder", layer + part) for part in (0, 0.5, 1))
        _attend(graph, own, below, half, residual)
        _attend(graph, other, ("encoder", len(encoder)), above, residual)
        for m in range(len(own)):
            if residual in (None, "free"):
                graph.add_edge((*half, m), (*above, m))
            else:
                graph.add_edge((*half, m), (*above, m), capacity=residual)
    first_layers = [("encoder", 0), ("decoder", 0)]
    _terminals(graph, first_layers, ("decoder", len(decoder)), read_out, residual)
    return graph


def _attend(graph, matrix, below, above, residual):
    """Edges of one attention map, with the residual of a sequence's own."""
    is_own = below[0] == above[0]
    share = 1 if residual in (None, "free") else 1 - residual
    for i, row in enumerate(matrix):
        for j, weight in enumerate(row):
            capacity = share * weight
            if is_own and i == j and residual == "free":
                graph.add_edge((*below, j), (*above, i))
                continue
            if is_own and i == j and residual is not None:
                capacity += residual
            if capacity > 0:
                graph.add_edge((*below, j), (*above, i), capacity=capacity)


def _terminals(graph, first_layers, last_layer, read_out, residual):
    for position in read_out:
        graph.add_edge((*last_layer, position), "sink")
    for layer in first_layers:
        for node in [n for n in graph if n[:2] == layer]:
            own_read_out = (*last_layer, node[2]) in graph.pred["sink"]
            if not (residual == "free" and own_read_out and node[0] == last_layer[0]):
                graph.add_edge("source", node)
