"""Exact maximum flows by other packages, and the barrier problem by a convex solver.

Every function takes a network of one and returns what solves it: building the package's
own graph is never timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from captum_attnflow import LayeredNetwork

# networkx' dinitz is left out: it raises KeyError on capacities that are not integers.
NETWORKX = [
    "preflow_push",
    "shortest_augmenting_path",
    "boykov_kolmogorov",
    "edmonds_karp",
]
# Packages that count in integers get capacities in this unit.
UNIT = 2.0**-24
UNLIMITED = (1 << 30) * UNIT

Solve = Callable[..., object]


def edges(
    network: LayeredNetwork, token: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Tails, heads and capacities; nodes are source, sink, then layer by layer."""
    capacity = network.capacity[0].numpy()
    n_tokens = network.n_tokens
    layer, head, tail = capacity.nonzero()
    sources = np.arange(n_tokens) if token is None else np.array([token])
    sinks = network.sink[0].numpy().nonzero()[0]
    below, last = 2 + layer * n_tokens, 2 + network.n_layers * n_tokens
    tails = np.concatenate([below + tail, last + sinks, 0 * sources])
    heads = np.concatenate([below + n_tokens + head, 0 * sinks + 1, 2 + sources])
    free = np.full(len(sources) + len(sinks), UNLIMITED)
    given = np.concatenate([capacity[layer, head, tail], free]).clip(max=UNLIMITED)
    return tails, heads, given, last + n_tokens


def by_networkx(
    network: LayeredNetwork, algorithm: str, token: int | None = None
) -> Solve:
    graph = network.to_networkx()
    source = "source" if token is None else f"0/{token}"
    flow_func = getattr(nx.algorithms.flow, algorithm)
    return lambda: nx.maximum_flow_value(graph, source, "sink", flow_func=flow_func)


def by_igraph(network: LayeredNetwork, token: int | None = None) -> Solve:
    igraph = pytest.importorskip("igraph", reason='needs the extra "bench"')
    tails, heads, capacity, n_nodes = edges(network, token)
    graph = igraph.Graph(
        n_nodes, list(zip(tails.tolist(), heads.tolist(), strict=True)), directed=True
    )
    amounts = capacity.tolist()
    return lambda: graph.maxflow_value(0, 1, capacity=amounts)


def by_scipy(network: LayeredNetwork, token: int | None = None) -> Solve:
    tails, heads, capacity, n_nodes = edges(network, token)
    units = (capacity / UNIT).astype(np.int32)
    graph = csr_array((units, (tails, heads)), shape=(n_nodes, n_nodes))
    return lambda: maximum_flow(graph, 0, 1)


def prepare_or_tools(network: LayeredNetwork, token: int | None = None) -> Solve:
    """Its solver keeps what it has found, and is made anew for each solution."""
    max_flow = pytest.importorskip(
        "ortools.graph.python.max_flow", reason='needs the extra "bench"'
    )
    tails, heads, capacity, _ = edges(network, token)

    def prepare() -> object:
        solver = max_flow.SimpleMaxFlow()
        units = (capacity / UNIT).astype(np.int64)
        solver.add_arcs_with_capacity(tails, heads, units)
        return solver

    return prepare


def solve_or_tools(solver: Any) -> None:
    solver.solve(0, 1)


def prepare_pymaxflow(network: LayeredNetwork, token: int | None = None) -> Solve:
    """Its graph is used up by a solution, and made anew for each."""
    maxflow = pytest.importorskip("maxflow", reason='needs the extra "bench"')
    tails, heads, capacity, n_nodes = edges(network, token)

    def prepare() -> object:
        graph = maxflow.Graph[float](n_nodes, len(tails))
        graph.add_nodes(n_nodes)
        graph.add_edges(tails, heads, capacity, 0 * capacity)
        graph.add_tedge(0, n_nodes * UNLIMITED, 0)
        graph.add_tedge(1, 0, n_nodes * UNLIMITED)
        return graph

    return prepare


def by_clarabel(network: LayeredNetwork, mu: float) -> Solve:
    """The barrier problem of GAF's Eq. 12 in CVXPY's vectors.

    Returns the seconds that Clarabel took, without CVXPY's own.
    """
    cp = pytest.importorskip("cvxpy", reason='needs the extra "bench"')
    tails, heads, capacity, n_nodes = edges(network, None)
    n_edges = len(tails)
    ones, every = np.ones(n_edges), np.arange(n_edges)
    incidence = csr_array((ones, (heads, every)), shape=(n_nodes, n_edges))
    incidence -= csr_array((ones, (tails, every)), shape=(n_nodes, n_edges))
    flow = cp.Variable(n_edges)
    bounded = np.flatnonzero(capacity < UNLIMITED)
    value = cp.sum(flow[np.flatnonzero(heads == 1)])
    barrier = cp.sum(cp.log(flow)) + cp.sum(cp.log(capacity[bounded] - flow[bounded]))
    problem = cp.Problem(cp.Maximize(value / mu + barrier), [incidence[2:] @ flow == 0])

    def solve() -> float:
        problem.solve(solver=cp.CLARABEL)
        return float(problem.solver_stats.solve_time)

    return solve
