"""Long sequences: what the iterative solver and its memory must keep up with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from networks import attention_network

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses

SOLVE = """
import re
import torch
from captum_attnflow import BarrierSolver, LayeredNetwork, solve_flow

torch.manual_seed(0)
for n_tokens in (64, 256):
    capacity = torch.randn(1, 12, n_tokens, n_tokens, dtype=torch.float64)
    capacity = capacity.mul_(2).softmax(-1)
    everywhere = torch.ones(1, n_tokens, dtype=torch.bool)
    solver = BarrierSolver(compiled={compiled})
    solution = solve_flow(LayeredNetwork(capacity, everywhere, everywhere), solver)
    assert solution.cut_capacity.item() <= solution.value.item() * (1 + 1e-6)
    assert solution.imbalance.item() <= 1e-9 * solution.value.item()
    # ru_maxrss would count the process, too, that started this one.
    print(re.search("VmHWM:(.*) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("read_out", [None, 0])
def test_conjugate_gradients_give_the_scores_of_block_cholesky_at_128_tokens(
    monkeypatch, passes, read_out
):
    network = attention_network(12, 128, read_out=read_out)
    scores = solve_flow(network).source_flow
    monkeypatch.setattr(passes, "solvers", staticmethod(lambda _: ()))
    direct = solve_flow(network)
    error = (scores - direct.source_flow).abs().max()
    assert 0 < error <= 1e-5 * direct.source_flow.max()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_few_hundred_bytes_an_edge(passes):
    """So 1024 tokens of 12 layers fit into four gibibytes."""
    # Compiling takes memory, too; what is compiled is kept on disk.
    solve_flow(attention_network(12, 64))
    compiled = passes is not TorchPasses
    answer = subprocess.run(
        [sys.executable, "-c", SOLVE.format(compiled=compiled)],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(line) * 1024 for line in answer.stdout.split()]
    assert 0 < (peaks[1] - peaks[0]) / (12 * (256**2 - 64**2)) < 300
