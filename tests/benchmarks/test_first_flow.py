"""What the first flow waits for where Numba has compiled nothing yet.

Run ``pytest tests/benchmarks/test_first_flow.py -s`` on a quiet machine. Each flow is
the first of its kind in a fresh interpreter, by torch and by default in turns, with an
empty folder for what Numba compiles.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from captum_attnflow.flow.solvers.barrier import compilation

pytest.importorskip("numba")

N_RUNS = 11
MOST = 1.5  # times the same flow by torch, once that is warm
MOST_SECONDS = 300.0  # until all is compiled

FIRST = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from networks import attention_network
from captum_attnflow import BarrierSolver, solve_flow

torch.set_num_threads(1)
torch.manual_seed(0)
network = attention_network(6, 64)

def seconds(compiled):
    start = time.perf_counter()
    solve_flow(network, BarrierSolver(compiled=compiled))
    return time.perf_counter() - start

n_warm, compiled = int(sys.argv[2]), {"torch": False, "default": None}[sys.argv[3]]
for _ in range(n_warm):
    seconds(False)
print(seconds(compiled), "numba" in sys.modules)
"""


def first_flow(n_warm: int, by: str, folder: Path) -> tuple[float, bool]:
    """Seconds of a flow after some by torch, and whether it has loaded Numba."""
    written = subprocess.run(
        [
            sys.executable,
            "-c",
            FIRST,
            *map(str, (Path(__file__).parents[1], n_warm, by)),
        ],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, loads = written.stdout.split()
    return float(seconds), loads == "True"


def test_the_first_flow_waits_for_no_compiler(tmp_path, monkeypatch):
    for n_warm, state in ((0, "nothing has warmed up"), (20, "torch is warm")):
        times: dict[str, list[float]] = {"torch": [], "default": []}
        for n_done in range(N_RUNS):
            for by, seconds in times.items():
                folder = tmp_path / f"{n_warm}-{n_done}-{by}"
                monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
                marker = compilation.marker_path.__wrapped__()
                with FileLock(f"{marker}.lock"):
                    taken, loads = first_flow(n_warm, by, folder)
                    # What was started ends, and does not disturb the runs to come.
                    marker.touch()
                seconds.append(taken)
                assert not loads
        by_torch, default = map(statistics.median, times.values())
        low, *_, high = sorted(b / a for a, b in zip(*times.values(), strict=True))
        print(
            f"\n{state}: torch {1e3 * by_torch:.1f} ms, default {1e3 * default:.1f}"
            f" ms, {default / by_torch:.2f} x (in a turn {low:.2f} to {high:.2f})"
        )
    assert default < MOST * by_torch


def test_the_kernels_are_ready_later(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    marker = compilation.marker_path.__wrapped__()
    first_flow(0, "default", tmp_path)
    start = time.perf_counter()
    while not marker.exists():
        time.sleep(0.1)
        assert time.perf_counter() - start < MOST_SECONDS
    compiling = time.perf_counter() - start
    loaded, loads = first_flow(0, "default", tmp_path)
    assert loads
    print(f"\ncompiled {compiling:.0f} s later; then the first flow {loaded:.2f} s")
