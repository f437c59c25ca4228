"""Who waits for the compiler: no flow does, unless it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from networks import attention_network

from captum_attnflow import BarrierSolver, DinicSolver, solve_flow
from captum_attnflow.flow import compile_kernels
from captum_attnflow.flow.solvers.barrier import compilation
from captum_attnflow.flow.solvers.barrier.torch_passes import TorchPasses
from captum_attnflow.flow.solvers.dinic import SciPySolver

pytest.importorskip("numba")
from numba.misc.appdirs import AppDirs

from captum_attnflow.flow.solvers import dinic_kernels
from captum_attnflow.flow.solvers.barrier import numba_compiled
from captum_attnflow.flow.solvers.barrier.numba_passes import (
    NumbaPasses,
)

FIRST_FLOW = """
import sys
sys.path.insert(0, sys.argv[1])
from networks import attention_network
from captum_attnflow import DinicSolver, solve_flow
from captum_attnflow.flow.solvers import solve_sources
solve_flow(attention_network(2, 8))
solve_sources(attention_network(2, 8), DinicSolver())
print("numba" in sys.modules)
"""
# After a part of a file, what solves of all kinds compile beside.
EVERY_FLOW = """
import torch
from captum_attnflow import BarrierSolver
from captum_attnflow.flow.solvers import dinic_kernels, solve_sources
from captum_attnflow.flow.solvers.barrier import (
    compilation,
    numba_edges,
    numba_factors,
    numba_gradients,
)

def signatures():
    return {
        (name, signature)
        for module in (dinic_kernels, numba_edges, numba_factors, numba_gradients)
        for name, kernel in vars(module).items()
        for signature in getattr(kernel, "signatures", ())
    }

compilation.compile_and_mark(sys.argv[2])
before = signatures()
for n_threads in (1, 2):
    torch.set_num_threads(n_threads)
    for causal in (False, True):
        for shape in ((1, 1), (3, 2), (4, 40), (12, 80)):
            network = attention_network(
                *shape, n_networks=2, read_out=shape[1] - 1, causal=causal
            )
            solve_flow(network)
            solve_flow(network, DinicSolver())
            solve_sources(network, DinicSolver())
            network.capacity[1, 0, -1, 0] = 1e60
            solve_flow(network, BarrierSolver(epsilon=1e-3))
print(sorted(signatures() - before))
"""


@pytest.fixture
def marker(monkeypatch, tmp_path):
    """The file that this process looks for; as yet, nothing is compiled."""
    path = tmp_path / "kernels.compiled"
    monkeypatch.setattr(compilation, "_settled", threading.Event())
    monkeypatch.setattr(compilation, "_started", threading.Lock())
    monkeypatch.setattr(compilation, "marker_path", lambda: path)
    return path


@pytest.fixture
def child(monkeypatch, marker):
    """Let another script be what compiles in the background."""

    def run(script):
        command = [sys.executable, "-c", f"import os, sys, time\n{script}", marker]
        monkeypatch.setattr(compilation, "_child_command", lambda _: command)

    return run


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def chosen(compiled=None):
    return compilation.passes_for(compiled) or TorchPasses


def test_torch_solves_until_the_kernels_are_compiled(marker, child, tmp_path):
    child(
        "open('begun', 'a').write(f'{os.getpid()} {os.getsid(0)}\\n')\n"
        "while not os.path.exists('end'): time.sleep(0.01)\n"
        "open(sys.argv[1], 'w')"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(3):
            assert chosen() is TorchPasses
        wait_for((tmp_path / "begun").exists)
        assert chosen() is TorchPasses
    (tmp_path / "end").touch()
    wait_for(compilation._settled.is_set)
    assert marker.exists()
    assert chosen() is NumbaPasses
    # One process, which no Ctrl-C of this session reaches.
    [line] = (tmp_path / "begun").read_text().splitlines()
    if hasattr(os, "getsid"):
        assert len(set(line.split())) == 1


def test_solves_at_once_start_one_process(marker, child, tmp_path):
    child(f"open({str(tmp_path / 'begun')!r}, 'a').write('x'); open(sys.argv[1], 'w')")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: chosen(), range(8))) <= {TorchPasses, NumbaPasses}
    wait_for(compilation._settled.is_set)
    assert (tmp_path / "begun").read_text() == "x"


def test_what_cannot_be_compiled_in_the_background_is_when_it_is_needed(child):
    child("sys.exit(1)")
    assert chosen() is TorchPasses
    wait_for(compilation._settled.is_set)
    assert chosen() is NumbaPasses


def test_a_process_that_cannot_be_started_is_done_without(monkeypatch, marker):
    monkeypatch.setattr(compilation, "_child_command", lambda _: ["/no/such/program"])
    assert chosen() is TorchPasses
    wait_for(compilation._settled.is_set)
    assert chosen() is NumbaPasses


@pytest.mark.parametrize(
    ("compiled", "passes"), [(True, NumbaPasses), (False, TorchPasses)]
)
def test_nothing_is_started_where_it_was_said_what_solves(child, compiled, passes):
    child("")
    assert chosen(compiled) is passes
    solve_flow(attention_network(2, 8), BarrierSolver(compiled=compiled))
    assert not compilation._started.locked()


def test_another_process_that_compiles_is_waited_for_even_if_it_is_killed(marker):
    holds = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", holds, f"{marker}.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert chosen() is TorchPasses
        time.sleep(1.5)
        assert chosen() is TorchPasses
        marker.write_text("compiled")
        other.kill()
        wait_for(compilation._settled.is_set)
    assert chosen() is NumbaPasses


def test_a_lock_that_is_not_writable_leaves_it_to_each_flow(marker):
    Path(f"{marker}.lock").mkdir()
    assert chosen() is TorchPasses
    wait_for(compilation._settled.is_set)
    compile_kernels()
    assert chosen() is NumbaPasses


def test_no_error_leaves_a_process_without_its_kernels(monkeypatch, marker):
    def fail(*_, **options):
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(subprocess, "Popen", fail)
    assert chosen() is TorchPasses
    wait_for(compilation._settled.is_set)
    assert chosen() is NumbaPasses


def test_runs_compile_before_their_first_flow(capsys, child, marker):
    child("open(sys.argv[1], 'a').write('x')")
    for _ in range(2):
        compile_kernels(show_progress=True)
        assert chosen() is NumbaPasses
    assert marker.read_text() == "x"
    assert capsys.readouterr().err.count("compiling flows by Numba, once") == 1


def test_runs_wait_for_what_is_compiled_in_the_background(marker):
    with ThreadPoolExecutor(1) as pool:
        with FileLock(f"{marker}.lock"):
            waits = pool.submit(compile_kernels)
            with pytest.raises(futures.TimeoutError):
                waits.result(timeout=0.5)
            marker.touch()
        waits.result()
    assert chosen() is NumbaPasses


def test_a_joint_flow_by_dinic_is_not_another_one_later(child):
    child("")
    network = attention_network(3, 12)
    first = solve_flow(network, DinicSolver()).flow
    compilation._settled.set()
    assert torch.equal(first, solve_flow(network, DinicSolver()).flow)
    assert not torch.allclose(first, solve_flow(network, SciPySolver()).flow)
    assert not compilation._started.locked()


@pytest.mark.parametrize("is_of_these_sources", [True, False])
def test_what_was_compiled_from_other_sources_is_compiled_again(
    monkeypatch, tmp_path, is_of_these_sources
):
    """Numba looks at the file of a kernel, and not at those of what it calls."""
    marker = tmp_path / compilation.marker_path.__wrapped__().name
    before, sources, made_by = marker.name.split("-", 2)
    other = f"{sources}-other.compiled" if is_of_these_sources else f"0-{made_by}"
    (tmp_path / f"{before}-{other}").touch()
    index = tmp_path / "kernels.dot-1.py311.nbi"
    index.touch()
    kernel = SimpleNamespace(stats=SimpleNamespace(cache_path=str(tmp_path)))
    monkeypatch.setattr(numba_compiled, "sum_of", kernel)
    monkeypatch.setattr(dinic_kernels, "joint_flows", kernel)
    compilation._forget_other_sources(marker)
    assert index.exists() == is_of_these_sources


def test_what_compiles_finds_what_this_process_does(monkeypatch, marker, tmp_path):
    for name in ("package", "kept"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["package", *sys.path])
    monkeypatch.setenv("NUMBA_CACHE_DIR", "kept")
    shows = (
        "import os, sys; open(sys.argv[1], 'w').write(os.environ['NUMBA_CACHE_DIR']"
        " + os.linesep + sys.path[0] + os.linesep + os.getcwd())"
    )
    monkeypatch.setattr(
        compilation, "_CHILD", f"import sys; sys.path = sys.argv[2:]; {shows}"
    )
    compile_kernels()
    found = marker.read_text().splitlines()
    assert found == [str(tmp_path / "kept"), str(tmp_path / "package"), str(tmp_path)]


def test_without_numba_nothing_is_compiled(monkeypatch, marker):
    monkeypatch.setattr(compilation, "numba_passes", lambda: None)
    compile_kernels()
    assert not marker.exists()


def test_the_marker_lies_where_numba_keeps_what_it_compiles(monkeypatch, tmp_path):
    find = compilation.marker_path.__wrapped__
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    beside = find()
    assert beside.parent == Path(compilation.__file__).parent / "__pycache__"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new"))
    assert find() == tmp_path / "new" / beside.name
    source = tmp_path / "kernels.py"
    source.touch()
    monkeypatch.setattr(compilation, "_SOURCES", (source,))
    before = find()
    source.write_text("changed = True")
    assert find() != before


def test_the_marker_lies_in_the_first_folder_that_is_writable(monkeypatch, tmp_path):
    find = compilation.marker_path.__wrapped__
    package = tmp_path / "package"
    package.touch()  # Nobody, root included, can write into it.
    monkeypatch.setattr(compilation, "_HERE", package)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(package))
    for name in ("HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = find().parent
    assert folder == Path(AppDirs("numba", False).user_cache_dir)
    assert folder.is_relative_to(tmp_path / "home")
    monkeypatch.setattr(compilation, "_is_writable", lambda _: False)
    assert find() is None


@pytest.mark.parametrize("reason", ["jit", "no python", "frozen", "no numba"])
def test_there_is_no_marker_where_nothing_is_compiled_in_the_background(
    monkeypatch, reason
):
    if reason == "jit":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    elif reason == "no python":
        monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    elif reason == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:

        def fail(name):
            raise compilation.PackageNotFoundError(name)

        monkeypatch.setattr(compilation, "version", fail)
    assert compilation.marker_path.__wrapped__() is None


def test_as_ever_a_flow_waits_where_nothing_can_be_compiled_in_the_background(
    monkeypatch, marker
):
    monkeypatch.setattr(compilation, "marker_path", lambda: None)
    assert chosen() is NumbaPasses
    compile_kernels()


def run_flows(script, folder, *arguments):
    process = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c"),
            *(script, str(Path(__file__).parents[2]), *arguments),
        ],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "subprocess" not in process.stderr
    return process.stdout.splitlines()[-1]


def test_the_first_flow_loads_no_numba(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    marker = compilation.marker_path.__wrapped__()
    with FileLock(f"{marker}.lock"):
        assert run_flows(FIRST_FLOW, tmp_path) == "False"
        marker.touch()  # Nothing is compiled for this test alone.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_was_forked_uses_one_thread_of_numba(tmp_path):
    """What it was forked from may have used OpenMP, by torch."""
    script = """
import os
import torch
from captum_attnflow import solve_flow
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    from captum_attnflow.flow.solvers.barrier import numba_passes
    torch.set_num_threads(2)
    os._exit(numba_passes.n_threads(1 << 20))
"""
    assert run_flows(script, tmp_path) == "1"


def test_a_process_that_ends_at_once_has_begun_to_compile(tmp_path):
    begun = tmp_path / "begun"
    command = [sys.executable, "-c", f"open({str(begun)!r}, 'w')"]
    script = (
        "from captum_attnflow.flow.solvers.barrier import compilation\n"
        f"compilation._child_command = lambda _: {command}\n"
        "compilation._DELAY = 60.0\n"
    )
    assert run_flows(script + FIRST_FLOW, tmp_path) == "False"
    wait_for(begun.exists)


@pytest.mark.slow
def test_what_one_process_has_compiled_the_next_one_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    marker = compilation.marker_path.__wrapped__()
    # Of low priority it would take ten minutes beside other tests.
    script = (
        "from captum_attnflow.flow.solvers.barrier import compilation\n"
        "compilation._NICENESS = 0\n"
    )
    assert run_flows(script + FIRST_FLOW, tmp_path) == "False"
    # The process that compiles outlives the one that has started it.
    wait_for(marker.exists, seconds=600)
    assert run_flows(FIRST_FLOW, tmp_path) == "True"
    assert run_flows(FIRST_FLOW + EVERY_FLOW, tmp_path, str(marker)) == "[]"
