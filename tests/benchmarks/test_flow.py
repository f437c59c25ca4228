"""Our flows against networkx, on the same network, in one run."""

from __future__ import annotations

import networkx as nx
import pytest
from networks import attention_network

from captum_attnflow import solve_flow
from captum_attnflow.solve import solve_sources

# networkx' dinitz fails on capacities that are not integers; edmonds_karp and
# boykov_kolmogorov take minutes where every position is read out.
ALGORITHMS = {
    "every position": ["preflow_push"],
    "one position": ["preflow_push", "boykov_kolmogorov", "shortest_augmenting_path"],
}
READ_OUT = {"every position": None, "one position": 0}
CASES = [(name, (12, 128)) for name in ALGORITHMS]


def group(name: str, size: tuple[int, int]) -> str:
    return f"one flow at {size}, {name} read out"


@pytest.mark.parametrize(("read_out", "size"), CASES)
def test_ours(benchmark, read_out, size):
    network = attention_network(*size, read_out=READ_OUT[read_out])
    benchmark.group = group(read_out, size)
    benchmark.pedantic(
        solve_flow, args=(network,), rounds=15, warmup_rounds=3, iterations=1
    )


@pytest.mark.parametrize(("read_out", "size"), CASES)
def test_ours_in_a_batch_of_8(benchmark, read_out, size):
    network = attention_network(*size, read_out=READ_OUT[read_out], n_networks=8)
    benchmark.group = group(read_out, size)
    benchmark.extra_info["units"] = 8
    benchmark.pedantic(
        solve_flow, args=(network,), rounds=5, warmup_rounds=1, iterations=1
    )


@pytest.mark.parametrize(
    ("read_out", "size", "algorithm"),
    [(*case, algorithm) for case in CASES for algorithm in ALGORITHMS[case[0]]],
)
def test_networkx(benchmark, read_out, size, algorithm):
    graph = attention_network(*size, read_out=READ_OUT[read_out]).to_networkx()
    benchmark.group = group(read_out, size)
    benchmark.pedantic(
        nx.maximum_flow_value,
        args=(graph, "source", "sink"),
        kwargs={"flow_func": getattr(nx.algorithms.flow, algorithm)},
        rounds=3,
        iterations=1,
    )


TOKENS = "one flow per token at (6, 32), one position read out"


def test_ours_by_token(benchmark):
    network = attention_network(6, 32, read_out=0)
    benchmark.group = TOKENS
    benchmark.pedantic(
        solve_sources, args=(network,), rounds=9, warmup_rounds=1, iterations=1
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS["one position"])
def test_networkx_by_token(benchmark, algorithm):
    graph = attention_network(6, 32, read_out=0).to_networkx()
    flow_func = getattr(nx.algorithms.flow, algorithm)

    def flows():
        return [
            nx.maximum_flow_value(graph, f"0/{token}", "sink", flow_func=flow_func)
            for token in range(32)
        ]

    benchmark.group = TOKENS
    benchmark.pedantic(flows, rounds=3, iterations=1)
