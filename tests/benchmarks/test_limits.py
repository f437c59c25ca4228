"""How near the parts of a flow are to what the machine gives, and launches on a GPU.

The limits are measured in the same run: a copy of arrays of the same size, and a
product of matrices, on one thread.
"""

from __future__ import annotations

import time
from collections import Counter
from statistics import median

import pytest
import torch
from networks import attention_network, everywhere
from torch.utils._python_dispatch import TorchDispatchMode

from captum_attnflow import BarrierSolver, solve_flow
from captum_attnflow.flow import compile_kernels
from captum_attnflow.flow.solvers.barrier import laplacian, torch_passes
from captum_attnflow.flow.solvers.barrier.laplacian import node_sums

# Bytes of an edge in float32: both slacks, their multipliers and the weight are read;
# advance writes all five, and reads whether there is an edge.
BYTES = {"predict": 20, "ratio_test": 20, "advance": 41}
ROUNDS = 9


def seconds(run) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", [(12, 128), (12, 512)])
def test_edges_against_a_copy(monkeypatch, capsys, size):
    pytest.importorskip("numba")
    from captum_attnflow.flow.solvers.barrier import numba_edges

    compile_kernels()
    network = attention_network(*size)
    n_edges = network.capacity.numel()
    times: dict[str, list[float]] = {name: [] for name in BYTES}
    for name in BYTES:
        kernel = getattr(numba_edges, name)

        def timed(*arguments, name=name, kernel=kernel):
            start = time.perf_counter()
            kernel(*arguments)
            times[name].append(time.perf_counter() - start)

        monkeypatch.setattr(numba_edges, name, timed)
    for _ in range(3):
        solve_flow(network, BarrierSolver(compiled=True))
    source = torch.rand(5 * n_edges)
    target = torch.empty_like(source)
    limit = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    with capsys.disabled():
        print(f"\n{size}: a copy of five numbers an edge moves {limit / 1e9:.1f} GB/s")
        for name, taken in times.items():
            rate = BYTES[name] * n_edges / median(taken)
            share = rate / limit
            print(f"  {name:12s} {rate / 1e9:5.1f} GB/s, {share:.2f} of the copy")
            assert share > 0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", [(12, 128), (12, 512), (4, 1024)])
@pytest.mark.parametrize("causal", [False, True])
def test_linear_systems_against_a_copy_and_a_product(capsys, size, causal):
    numba_passes = pytest.importorskip(
        "captum_attnflow.flow.solvers.barrier.numba_passes", exc_type=ImportError
    )
    compile_kernels()
    n_layers, n_tokens = size
    weight = torch.rand(1, *size, n_tokens)
    if causal:
        weight = weight.tril()
    sums = node_sums(weight.double(), *torch.rand(2, 1, n_tokens).double())
    diagonal = sums.sum(2)
    right_side = torch.randn(1, n_layers + 1, n_tokens).double()
    never = torch.zeros(1).double()
    solver = numba_passes.NumbaConjugateGradients(weight, sums, diagonal)
    many, few = (
        seconds(lambda most=most: solver.solve(right_side, never, most))
        for most in (21, 1)
    )
    # Each edge is read twice, by the two products of an iteration.
    n_edges = weight.count_nonzero().item()
    moved = 2 * 4 * n_edges / ((many - few) / 20)
    source = torch.rand(n_edges)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    # Eliminating a node joins all it was joined to: see cost_model.md.
    operations = 2 * n_layers * n_tokens**3 * (1 / 2 if causal else 7 / 6)
    factored = operations / seconds(
        lambda: numba_passes.NumbaFactoredGradients(weight, sums, diagonal)
    )
    square = torch.rand(n_tokens, n_tokens)
    product = 2 * n_tokens**3 / seconds(lambda: square @ square)
    with capsys.disabled():
        kind = "causal" if causal else "full"
        print(
            f"\n{size}, {kind}: an iteration of conjugate gradients reads "
            f"{moved / 1e9:.1f} GB/s, {moved / copied:.2f} of a copy; factors make "
            f"{factored / 1e9:.1f} GFlop/s, {factored / product:.2f} of a product"
        )
    assert moved > 0
    assert factored > 0


class Launches(TorchDispatchMode):
    """Counts operations of torch that would start a kernel, and what waits for them."""

    WAITS = frozenset({"_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero"})
    MADE_WITHOUT = frozenset(
        {"detach", "empty", "empty_like", "new_empty", "empty_strided"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS:
            self.counted["waits"] += 1
        elif not (func.is_view or name in self.MADE_WITHOUT):
            self.counted["launches"] += 1
        return func(*args, **(kwargs or {}))


def counted(run) -> Counter[str]:
    with Launches() as launches:
        run()
    return launches.counted


def test_launches_of_torch(monkeypatch, capsys):
    """What a GPU would start, counted on the CPU; no time of a GPU is known."""
    on_gpu = laplacian._ELSEWHERE
    monkeypatch.setitem(laplacian._ITERATIONS_A_CHECK, "cpu", on_gpu)
    found = {}
    for size in ((6, 64), (12, 128)):
        network = attention_network(*size)
        solution = solve_flow(network, BarrierSolver(compiled=False))
        whole = counted(
            lambda network=network: solve_flow(network, BarrierSolver(compiled=False))
        )
        found[size] = (whole, solution.iterations.item())
    network = everywhere(torch.rand(1, 12, 128, 128).double())
    sums = node_sums(network.capacity, *torch.rand(2, 1, 128).double())
    solver = torch_passes.TorchConjugateGradients(network.capacity, sums, sums.sum(2))
    right_side, never = torch.randn(1, 13, 128).double(), torch.zeros(1).double()
    per_iteration = counted(lambda: solver.solve(right_side, never, 12))
    per_iteration.subtract(counted(lambda: solver.solve(right_side, never, 4)))
    with capsys.disabled():
        for size, (whole, steps) in found.items():
            print(
                f"\n{size}: {whole['launches']} launches and {whole['waits']} waits in "
                f"{steps} steps: {whole['launches'] / steps:.0f} and "
                f"{whole['waits'] / steps:.1f} a step"
            )
        print(
            f"an iteration of conjugate gradients: {per_iteration['launches'] / 8:.1f} "
            "launches"
        )
    assert per_iteration["launches"] / 8 <= 25
