"""Long sequences: what the iterative solver and its memory must keep up with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from networks import attention_network

from captum_attnflow import solve_flow

SOLVE = """
import resource
import torch
from captum_attnflow import BarrierSolver, LayeredNetwork, solve_flow

torch.manual_seed(0)
capacity = torch.empty(1, 12, {n_tokens}, {n_tokens}, dtype=torch.float64)
for layer in capacity[0]:
    layer.copy_((2 * torch.randn(layer.shape)).softmax(-1))
everywhere = torch.ones(1, {n_tokens}, dtype=torch.bool)
solver = BarrierSolver(compiled={compiled})
solution = solve_flow(LayeredNetwork(capacity, everywhere, everywhere), solver)
assert solution.cut_capacity.item() <= solution.value.item() * (1 + 1e-6)
assert solution.imbalance.item() <= 1e-9 * solution.value.item()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# ru_maxrss counts kilobytes, but bytes on a Mac.
GIBIBYTE = 1 << (30 if sys.platform == "darwin" else 20)


def peak_of_a_solution(n_tokens: int, compiled: bool) -> float:
    script = SOLVE.format(n_tokens=n_tokens, compiled=compiled)
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return int(answer.stdout) / GIBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("read_out", [None, 0])
def test_conjugate_gradients_give_the_scores_of_block_cholesky_at_512_tokens(
    monkeypatch, passes, read_out
):
    network = attention_network(12, 512, read_out=read_out)
    scores = solve_flow(network).source_flow
    monkeypatch.setattr(passes, "iterative_from_tokens", 1000)
    direct = solve_flow(network)
    error = (scores - direct.source_flow).abs().max()
    assert 0 < error <= 1e-5 * direct.source_flow.max()


@pytest.fixture(params=[False, True], ids=["torch", "numba"])
def compiled(request):
    if request.param:
        pytest.importorskip("numba")
        # Compiling takes memory, too; what is compiled is kept on disk.
        peak_of_a_solution(128, compiled=True)
    return request.param


@pytest.mark.slow
def test_1024_tokens_are_solved_within_four_gibibytes(compiled):
    assert peak_of_a_solution(1024, compiled) < 4


def test_memory_is_a_few_hundred_bytes_an_edge(compiled):
    n_edges = 12 * (256**2 - 64**2)
    peaks = [peak_of_a_solution(n_tokens, compiled) for n_tokens in (64, 256)]
    assert (peaks[1] - peaks[0]) * 2**30 / n_edges < 400
