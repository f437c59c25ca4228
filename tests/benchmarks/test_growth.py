"""How the time of one flow grows with tokens and with layers."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
import torch
from networks import attention_network, everywhere
from peers import by_networkx, by_scipy, prepare_or_tools, solve_or_tools
from race import Contestant

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers.barrier.central_path import Newton

TOKENS = [(12, n_tokens) for n_tokens in (16, 32, 64, 128, 256)]
LAYERS = [(n_layers, 64) for n_layers in (3, 6, 12, 24)]


@pytest.fixture(scope="module")
def medians(request):
    """Medians per size and contestant, drawn at the end where a file is named."""
    results: dict[tuple[int, int], dict[str, float]] = {}
    yield results
    if (path := request.config.getoption("--plot")) and results:
        draw(results, path)


@pytest.mark.parametrize("size", sorted({*TOKENS, *LAYERS}))
def test_growth(race, medians, size):
    network = attention_network(*size)
    result = race(
        f"one maximum flow at {size}, every position read out",
        {"barrier": Contestant(lambda: solve_flow(network))},
        {
            "SciPy": Contestant(by_scipy(network)),
            "OR-Tools": Contestant(solve_or_tools, prepare=prepare_or_tools(network)),
            "networkx, preflow_push": Contestant(
                by_networkx(network, "preflow_push"), rounds=1
            ),
        },
        rounds=5,
    )
    medians[size] = {name: median(times) for name, times in result.seconds.items()}


@pytest.mark.parametrize("n_tokens", [128, 256])
def test_causal_attention(race, n_tokens):
    future = torch.full((n_tokens, n_tokens), -torch.inf).triu(1)
    attention = (torch.randn(1, 12, n_tokens, n_tokens) + future).double().softmax(-1)
    capacity = (attention + torch.eye(n_tokens)) / 2
    last = torch.arange(n_tokens)[None] == n_tokens - 1
    network = replace(everywhere(capacity), sink=last)
    race(
        f"one maximum flow of causal attention at {(12, n_tokens)}, the last read out",
        {"barrier": Contestant(lambda: solve_flow(network))},
        {
            "SciPy": Contestant(by_scipy(network)),
            "networkx, preflow_push": Contestant(
                by_networkx(network, "preflow_push"), rounds=1
            ),
        },
        rounds=3,
    )


def test_growth_of_a_step(race, monkeypatch):
    """Steps towards the central path; the one to three onto it take less each."""
    seconds = []
    step = Newton.step

    def timed(newton, target):
        start = time.perf_counter()
        step(newton, target)
        seconds.append(time.perf_counter() - start)

    monkeypatch.setattr(Newton, "step", timed)

    def a_step(n_tokens):
        network = attention_network(12, n_tokens)

        def run():
            seconds.clear()
            solve_flow(network)
            return median(seconds)

        return Contestant(run, tells_seconds=True)

    race(
        "a step of one flow, 12 layers, every position read out",
        {f"{n_tokens} tokens": a_step(n_tokens) for n_tokens in (512, 1024)},
        {"2048 tokens": a_step(2048)},
        rounds=9,
    )


def test_long_sequences(race):
    race(
        "one maximum flow of 12 layers, every position read out",
        {
            f"{n_tokens} tokens": Contestant(
                partial(solve_flow, attention_network(12, n_tokens)), rounds=2
            )
            for n_tokens in (512, 1024, 2048)
        },
        {},
        rounds=2,
    )


def draw(medians, path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="tight")
    for panel, sizes, axis, label in (
        (panels[0], TOKENS, 1, "tokens (12 layers)"),
        (panels[1], LAYERS, 0, "layers (64 tokens)"),
    ):
        done = [size for size in sizes if size in medians]
        for name in medians[done[0]]:
            times = [medians[size][name] for size in done]
            panel.loglog([size[axis] for size in done], times, "o-", label=name)
        panel.set_xticks([size[axis] for size in done])
        panel.set_xticklabels([str(size[axis]) for size in done])
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds for one flow")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
