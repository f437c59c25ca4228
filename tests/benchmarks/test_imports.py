"""What an import and a help text cost beside the libraries that they cannot do without.

Run ``pytest tests/benchmarks/test_imports.py -s`` on a quiet machine. Both sides are
measured in turn in one run, each in a fresh interpreter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

N_RUNS = 5
MOST_SECONDS = 0.3  # behind the libraries

COMMAND = "import sys; sys.argv[1:] = {}; from captum_attnflow.cli import app; app()"
PAIRS = {
    "import captum_attnflow": ("import captum_attnflow", "import captum.attr"),
    **{
        " ".join(arguments): (COMMAND.format(arguments), "import typer, rich")
        for arguments in (
            ["--version"],
            ["--help"],
            ["explain", "--help"],
            ["study", "--help"],
            ["explain", "--mehtod"],
        )
    },
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return time.perf_counter() - start


@pytest.mark.parametrize("name", PAIRS)
def test_little_is_loaded_beside_the_libraries(name):
    ours, theirs = PAIRS[name]
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(N_RUNS)]
    mine, beside = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"\n{name}: {mine:.2f} s, {theirs}: {beside:.2f} s, {mine / beside:.2f} x")
    assert mine - beside < MOST_SECONDS
