"""Our flows against other packages', on the same networks, in turns."""

from __future__ import annotations

import pytest
from networks import attention_network
from peers import (
    NETWORKX,
    by_clarabel,
    by_igraph,
    by_networkx,
    by_scipy,
    prepare_or_tools,
    prepare_pymaxflow,
    solve_or_tools,
)
from race import Contestant

from captum_attnflow import BarrierSolver, solve_flow
from captum_attnflow.flow import add_residual
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers import solve_sources

READ_OUT = {"every position": None, "one position": 0}
# edmonds_karp takes minutes at this size, boykov_kolmogorov where all is read out.
FAST = {"every position": NETWORKX[:2], "one position": NETWORKX[:3]}


def exact_peers(network: LayeredNetwork) -> dict[str, Contestant]:
    return {
        "igraph": Contestant(by_igraph(network), rounds=3),
        "SciPy": Contestant(by_scipy(network)),
        "OR-Tools": Contestant(solve_or_tools, prepare=prepare_or_tools(network)),
        "PyMaxflow": Contestant(
            lambda graph: graph.maxflow(), prepare=prepare_pymaxflow(network), rounds=3
        ),
    }


@pytest.mark.parametrize("read_out", READ_OUT)
def test_one_flow(race, read_out):
    network = attention_network(12, 128, read_out=READ_OUT[read_out])
    batch = attention_network(12, 128, read_out=READ_OUT[read_out], n_networks=8)
    race(
        f"one maximum flow at (12, 128), {read_out} read out",
        {
            "barrier": Contestant(lambda: solve_flow(network)),
            "barrier, each of 8": Contestant(lambda: solve_flow(batch), share=8),
        },
        {
            **exact_peers(network),
            **{
                f"networkx, {name}": Contestant(by_networkx(network, name), rounds=3)
                for name in FAST[read_out]
            },
        },
    )


@pytest.mark.parametrize("read_out", READ_OUT)
def test_one_flow_of_256_tokens(race, read_out):
    network = attention_network(12, 256, read_out=READ_OUT[read_out])
    race(
        f"one maximum flow at (12, 256), {read_out} read out",
        {"barrier": Contestant(lambda: solve_flow(network))},
        {
            f"networkx, {name}": Contestant(by_networkx(network, name), rounds=1)
            for name in ("preflow_push", "shortest_augmenting_path")
        },
        rounds=3,
    )


@pytest.mark.parametrize("read_out", READ_OUT)
def test_one_flow_of_32_tokens(race, read_out):
    network = attention_network(6, 32, read_out=READ_OUT[read_out])
    race(
        f"one maximum flow at (6, 32), {read_out} read out",
        {"barrier": Contestant(lambda: solve_flow(network))},
        {
            **exact_peers(network),
            **{
                f"networkx, {name}": Contestant(by_networkx(network, name), rounds=3)
                for name in NETWORKX
            },
        },
    )


@pytest.mark.parametrize("n_tokens", [128, 512])
def test_one_causal_flow(race, n_tokens):
    """As far as the last position, beside full attention read out at one."""
    last = n_tokens - 1
    network = attention_network(12, n_tokens, read_out=last, causal=True)
    full = attention_network(12, n_tokens, read_out=last)
    race(
        f"one maximum flow at (12, {n_tokens}), causal, the last position read out",
        {
            "barrier": Contestant(lambda: solve_flow(network)),
            "barrier, full attention": Contestant(lambda: solve_flow(full)),
        },
        {"SciPy": Contestant(by_scipy(network))},
        rounds=7 if n_tokens == 128 else 3,
    )


def test_barrier_problem(race):
    """At a gap of 1e-3, as Clarabel fails at our 1e-6."""
    network = attention_network(6, 32)
    solver = BarrierSolver(epsilon=1e-3)
    mu = solve_flow(network, solver).mu.item()
    clarabel = Contestant(by_clarabel(network, mu), rounds=3, tells_seconds=True)
    race(
        "the barrier problem at (6, 32), every position read out",
        {"barrier": Contestant(lambda: solve_flow(network, solver))},
        {"CVXPY with Clarabel (Clarabel's own time)": clarabel},
    )


@pytest.mark.parametrize(
    ("shape", "residual"), [((12, 128), 0.5), ((12, 128), "free"), ((6, 512), "free")]
)
def test_one_flow_per_token(race, shape, residual):
    """Peers solve a sample of the tokens, and their times are scaled up."""
    n_tokens = shape[1]
    network = attention_network(*shape, read_out=0)
    capacity = add_residual(network.capacity, residual)
    source = network.source & ~network.sink if residual == "free" else network.source
    network = LayeredNetwork(capacity, source, network.sink)

    def sample(peer, number, *arguments):
        solves = [
            peer(network, *arguments, token=1 + index * (n_tokens - 1) // number)
            for index in range(number)
        ]
        share = number / n_tokens
        return Contestant(
            lambda: [solve() for solve in solves] and None, None, 1, share
        )

    race(
        f"a flow for each token at {shape}, residual {residual}, one position read "
        "out (peers: a sample of 8 tokens, networkx 1 or 2, scaled up)",
        {"solve_sources": Contestant(lambda: solve_sources(network))},
        {
            "SciPy": sample(by_scipy, 8),
            "OR-Tools": Contestant(
                lambda solvers: [solve_or_tools(solver) for solver in solvers],
                prepare=lambda: [
                    prepare_or_tools(network, token)()
                    for token in range(1, n_tokens, n_tokens // 8)
                ],
                rounds=1,
                share=8 / n_tokens,
            ),
            "igraph": sample(by_igraph, 8),
            # A graph of networkx with 512 tokens a layer takes gigabytes.
            **{
                f"networkx, {name}": sample(by_networkx, 256 // n_tokens or 1, name)
                for name in ("preflow_push", "shortest_augmenting_path")
            },
        },
        rounds=3,
    )
