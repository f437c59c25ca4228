"""How the solver chooses Numba, and gets on with what surrounds it."""

from __future__ import annotations

import builtins
import os
import signal
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from networks import assert_same_scores, attention_network, everywhere

from captum_attnflow import BarrierSolver, solve_flow
from captum_attnflow.flow.solvers.barrier import compilation, solver
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses

numba = pytest.importorskip("numba")
from numba.core.dispatcher import Dispatcher  # noqa: E402

from captum_attnflow.flow.solvers.barrier import (  # noqa: E402
    numba_compiled,
    numba_passes,
)

NumbaPasses = numba_passes.NumbaPasses


@pytest.fixture
def chosen(monkeypatch):
    """The implementations that solves have chosen."""
    chosen = set()
    for passes in (TorchPasses, NumbaPasses):
        init = passes.__init__

        def watch(self, *arguments, init=init):
            chosen.add(type(self))
            init(self, *arguments)

        monkeypatch.setattr(passes, "__init__", watch)
    return chosen


@pytest.fixture
def loading_fails(monkeypatch):
    """Let the import of what Numba compiles fail with an error."""
    compilation.numba_passes.cache_clear()

    def fail_with(error):
        load = builtins.__import__

        def fail(name, *arguments, **options):
            if name == "numba":
                raise error
            return load(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", fail)

    yield fail_with
    monkeypatch.undo()
    compilation.numba_passes.cache_clear()


@pytest.mark.parametrize("read_out", [None, 0])
def test_edges_in_float32_change_nothing_in_the_answer(monkeypatch, read_out):
    network = attention_network(4, 48, n_networks=2, read_out=read_out)
    solution = solve_flow(network)
    monkeypatch.setattr(NumbaPasses, "dtypes", (torch.float64,))
    expected = solve_flow(network)
    assert not torch.equal(solution.flow, expected.flow)
    assert_same_scores(solution, expected)
    torch.testing.assert_close(solution.flow, expected.flow, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("extreme", [1e28, 1e60])
def test_only_what_float32_cannot_hold_is_solved_in_float64(attempts, extreme):
    network = attention_network(3, 24, n_networks=3)
    network.capacity[1, 1, 3, 5] = extreme
    solution = solve_flow(network, BarrierSolver(epsilon=1e-3))
    assert [(attempt.dtype, attempt.solved) for attempt in attempts] == [
        (torch.float32, [True, False, True]),
        (torch.float64, [True]),
    ]
    expected = solve_flow(network, BarrierSolver(epsilon=1e-3, compiled=False))
    assert_same_scores(solution, expected)
    torch.testing.assert_close(solution.mu, expected.mu, rtol=2e-6, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_capacities_of_next_to_nothing_need_no_float64(attempts, causal):
    network = attention_network(4, 40, n_networks=2, read_out=39, causal=causal)
    few = torch.rand_like(network.capacity) < 0.003
    network.capacity[few] *= 10.0 ** (-30 - 20 * torch.rand(int(few.sum())).double())
    solution = solve_flow(network)
    assert [attempt.dtype for attempt in attempts] == [torch.float32]
    expected = solve_flow(network, BarrierSolver(compiled=False))
    assert_same_scores(solution, expected)
    torch.testing.assert_close(solution.mu, expected.mu, rtol=2e-6, atol=0)
    assert bool((solution.flow <= network.capacity).all())


def test_nothing_is_started_where_float32_holds_no_network(monkeypatch, attempts):
    started = []

    def watch(problem, *arguments, start=solver.start):
        started.append(problem.capacity.dtype)
        start(problem, *arguments)

    monkeypatch.setattr(solver, "start", watch)
    network = attention_network(3, 24, n_networks=2)
    network.capacity[:, 1, 3, 5] = 1e60
    solve_flow(network)
    assert [attempt.solved for attempt in attempts] == [[False, False], [True, True]]
    assert started == [torch.float64]


@pytest.mark.parametrize("n_tokens", [32, 96])
@pytest.mark.parametrize("is_causal", [False, True])
def test_float32_does_for_attention(attempts, n_tokens, is_causal):
    logits = torch.randn(2, 6, 4, n_tokens, n_tokens).double()
    if is_causal:
        logits += torch.full((n_tokens, n_tokens), -torch.inf).triu(1)
    network = everywhere(logits.softmax(-1).mean(2))
    solution = solve_flow(network)
    (attempt,) = attempts
    assert attempt.dtype == torch.float32
    assert attempt.solved == [True, True]
    expected = solve_flow(network, BarrierSolver(compiled=False))
    assert_same_scores(solution, expected)
    torch.testing.assert_close(solution.mu, expected.mu, rtol=2e-6, atol=0)


def test_weights_that_float32_cannot_hold_are_held_in_float64():
    # The last method would see some nodes without any weight.
    generator = torch.Generator().manual_seed(4)
    scores = 20 * torch.randn(1, 12, 24, 24, generator=generator).double()
    future = torch.full((24, 24), -torch.inf).double().triu(1)
    network = everywhere((scores + future).softmax(-1))
    solution = solve_flow(network, BarrierSolver(epsilon=0.01))
    expected = solve_flow(network, BarrierSolver(epsilon=0.01, compiled=False))
    assert_same_scores(solution, expected)


def test_a_step_goes_as_far_as_it_was_found_to_be_allowed():
    # Over 30 orders of magnitude a price may be the rest of a difference of far larger
    # numbers, and negative if that is rounded differently when it is taken.
    exponent = 30 * (torch.rand(30, 2, 48, 48).double() - 0.5)
    solution = solve_flow(everywhere(10**exponent))
    expected = solve_flow(everywhere(10**exponent), BarrierSolver(compiled=False))
    assert_same_scores(solution, expected)


@pytest.mark.parametrize(
    ("compiled", "passes"),
    [(None, NumbaPasses), (True, NumbaPasses), (False, TorchPasses)],
)
def test_the_option_decides_what_does_the_work(chosen, compiled, passes):
    solve_flow(attention_network(2, 8), BarrierSolver(compiled=compiled))
    assert chosen == {passes}


def test_without_numba_torch_does_the_work_unless_asked_otherwise(
    chosen, loading_fails
):
    loading_fails(ModuleNotFoundError("No module named 'numba'", name="numba"))
    solve_flow(attention_network(2, 8))
    assert chosen == {TorchPasses}
    with pytest.raises(ImportError, match=r"captum-attnflow\[compiled\]"):
        BarrierSolver(compiled=True)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Numba needs another NumPy"),
        ModuleNotFoundError("no llvmlite", name="llvmlite"),
        OSError("no shared object"),
        AttributeError("no such name in NumPy"),
    ],
)
def test_numba_that_cannot_be_loaded_is_told_and_done_without(
    chosen, loading_fails, error
):
    loading_fails(error)
    with pytest.warns(UserWarning, match=f"without Numba.*{error}"):
        solve_flow(attention_network(2, 8))
    assert chosen == {TorchPasses}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_answers_are_the_same_whatever_torch_makes_by_default(dtype):
    network = attention_network(4, 48)
    expected = solve_flow(network)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            solution = solve_flow(network)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(solution.iterations, expected.iterations)
    assert_same_scores(solution, expected)


def test_functions_are_compiled_where_no_folder_can_keep_them(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(numba_compiled, "njit", njit)
    assert numba_compiled.compiled()(lambda number: number + 1)(1) == 2


def test_compiling_waits_for_other_processes_that_do(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def add_one(number):
        return number + 1

    kernel = numba_compiled.compiled()(add_one)
    folder = Path(kernel.stats.cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder / "captum_attnflow.lock"):
            answer = pool.submit(kernel, 1)
            with pytest.raises(futures.TimeoutError):
                answer.result(timeout=1)
            assert not list(folder.glob("*.nbc"))
        assert answer.result() == 2
    assert list(folder.glob("*.nbc"))
    assert kernel(2) == 3


@pytest.fixture
def interruptible():
    """Interrupts raise, also in a process of the background, where they are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_a_function_is_compiled(monkeypatch):
    def interrupted(self, result, add=Dispatcher.add_overload):
        signal.raise_signal(signal.SIGINT)
        add(self, result)

    monkeypatch.setattr(Dispatcher, "add_overload", interrupted)
    kernel = numba_compiled.compiled()(lambda number: number + 1)
    with pytest.raises(KeyboardInterrupt):
        kernel(1)
    assert len(kernel.signatures) == 1
    assert kernel(1) == 2


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_numba_is_imported(monkeypatch):
    # Half of it, it could not be imported again.
    imported = []

    def interrupted(load=compilation._import_numba):
        signal.raise_signal(signal.SIGINT)
        imported.append(load())
        return imported[-1]

    compilation.numba_passes.cache_clear()
    monkeypatch.setattr(compilation, "_import_numba", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compilation.numba_passes()
    assert imported == [numba]
    monkeypatch.undo()
    assert compilation.numba_passes() is NumbaPasses


def test_without_just_in_time_compilation_torch_does_the_work(monkeypatch, chosen):
    compilation.numba_passes.cache_clear()
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    solve_flow(attention_network(2, 8))
    compilation.numba_passes.cache_clear()
    assert chosen == {TorchPasses}


def test_threads_that_cannot_start_are_told_and_done_without(monkeypatch, chosen):
    def fail():
        raise ValueError("No threading layer could be loaded.")

    compilation.numba_passes.cache_clear()
    monkeypatch.setattr(numba, "get_num_threads", fail)
    with pytest.warns(UserWarning, match="No threading layer.*Mend what this names"):
        solve_flow(attention_network(2, 8))
    compilation.numba_passes.cache_clear()
    assert chosen == {TorchPasses}


def test_a_solve_leaves_the_number_of_threads_as_it_was():
    numba.set_num_threads(1)
    try:
        solve_flow(attention_network(4, 96))
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_no_more_threads_are_used_than_torch_uses(monkeypatch, n_threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert numba_passes.n_threads(1 << 20) == min(
        n_threads, numba.config.NUMBA_NUM_THREADS
    )
    assert numba_passes.n_threads(1000) == 1


def test_one_thread_works_where_others_are_not_safe(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    assert numba_passes.n_threads(1 << 20) == 1


def test_one_thread_works_where_the_chosen_threads_are_missing(monkeypatch):
    def fail(_):
        raise ValueError("No threading layer could be loaded.")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(numba, "set_num_threads", fail)
    assert numba_passes.n_threads(1 << 20) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_one_thread_works_after_a_fork():
    solve_flow(attention_network(4, 96))
    child = os.fork()
    if child == 0:
        os._exit(numba_passes.n_threads(1 << 20))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_threads_may_solve_at_the_same_time():
    networks = [attention_network(4, 96) for _ in range(8)]
    expected = [solve_flow(network) for network in networks]
    with ThreadPoolExecutor(4) as pool:
        solutions = list(pool.map(solve_flow, networks))
    for solution, alone in zip(solutions, expected, strict=True):
        torch.testing.assert_close(solution.flow, alone.flow)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_rows_reach_as_far_as_their_last_edge(dtype):
    edges = (torch.rand(2, 5, 7) < 0.3).to(dtype)
    edges[0, 0], edges[1, 1] = 0, 1
    found = numba_passes.widths_of(edges.flatten(1), 5, 7)
    places = torch.arange(1, 8) * (edges != 0)
    assert torch.equal(found, places.amax(2))
