"""Whether Numba's kernels are compiled, and who compiles them: nobody waits for a flow.

To compile all takes up to a minute, once a machine: what Numba makes is kept on disk.
Until then torch solves flows, while a process of its own compiles in the background and
at its end leaves a file, the marker. So the first flow imports no Numba, either.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

from captum_attnflow._checks import described
from captum_attnflow._warnings import warn_caller
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.central_path import EdgePasses

_HERE = Path(__file__).parent
# What there is to compile: all of it again where the time or size of one changes.
_SOURCES = (
    Path(__file__),
    _HERE / "numba_compiled.py",
    _HERE / "numba_passes.py",
    _HERE / "numba_edges.py",
    _HERE / "numba_factors.py",
    _HERE / "numba_gradients.py",
    _HERE.parent / "dinic_kernels.py",
)
# Lines of /proc/cpuinfo that tell a processor and its instructions.
_OF_PROCESSOR = ("vendor_id", "cpu family", "model", "flags", "CPU ", "Features")
# Seconds after which it starts: a first flow, and what shows it, have taken fewer.
_DELAY = 0.5
_MOST_SECONDS_AT_EXIT = 5.0
# Of a process that nobody waits for.
_NICENESS = 10
# What a process that compiles runs. It imports what this one would, whose path it is
# given. One compiles, and others wait for it before they import torch, for seconds.
_CHILD = """
import os, sys
sys.path[:] = sys.argv[2:]
from filelock import FileLock
with FileLock(sys.argv[1] + ".lock"):
    if not os.path.exists(sys.argv[1]):
        from captum_attnflow.flow.solvers.barrier.compilation import compile_and_mark
        compile_and_mark(sys.argv[1])
"""

if sys.platform == "win32":
    _CREATION_FLAGS = (
        subprocess.DETACHED_PROCESS
        | subprocess.CREATE_NEW_PROCESS_GROUP
        | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    )
else:
    _CREATION_FLAGS = 0

# OpenMP kills a process that was forked after using it, and uses it again. Numba may be
# imported there for the first time, so this is noted when solvers are.
PROCESS = os.getpid()

# Set from when on solves of this process use Numba, even if they wait for it.
_settled = threading.Event()
# Held for good once this process has started to compile in the background; a process
# that is forked from it has it held, too.
_started = threading.Lock()


def compile_kernels(show_progress: bool = False) -> None:
    """Compile all that solves of flows use, unless that is done; wait for it.

    Flows of the barrier by torch and by Numba agree to about 1e-9 of their value, and
    not to the last bit. What has to give equal figures in every run calls this first:
    otherwise flows are solved by torch until those kernels are compiled in the
    background. Nothing is done without Numba, and where no folder is writable for what
    it compiles: there each flow compiles what it needs, and waits.

    Args:
        show_progress (bool): Say on standard error that it is done, if it is.
    """
    marker = None if _is_settled() else marker_path()
    if marker is None or numba_passes() is None:
        return
    if show_progress:
        print(
            "compiling flows by Numba, once a machine, for up to a minute",
            file=sys.stderr,
        )
    _run_child(marker, threading.Event())


def passes_for(compiled: bool | None) -> type[EdgePasses] | None:
    """The passes compiled by Numba, where they are asked for or need no waiting.

    Args:
        compiled (bool, optional): What is asked for, see :class:`BarrierSolver`.
    """
    if compiled is None and not _is_settled():
        _compile_in_background()
        return None
    return None if compiled is False else numba_passes()


def _is_settled() -> bool:
    """Whether the kernels are compiled, or else compile when they are needed."""
    if not _settled.is_set():
        marker = marker_path()
        if marker is None or marker.exists():
            _settled.set()
    return _settled.is_set()


@cache
def marker_path() -> Path | None:
    """The file that says that all is compiled, where Numba keeps it.

    Returns:
        Path, optional: None where Numba is missing, or switched off, where no folder
        is writable, or where this process cannot start another one.
    """
    starts = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    is_off = os.environ.get("NUMBA_DISABLE_JIT", "") not in ("", "0")
    if not starts or is_off or hasattr(sys, "frozen"):
        return None
    try:
        numba = version("numba")
        stats = [path.stat() for path in _SOURCES]
    except (PackageNotFoundError, OSError):
        return None
    folder = next(filter(_is_writable, _folders()), None)
    if folder is None:
        return None
    stamps = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
    sources, processor = (
        hashlib.sha256(repr(part).encode()).hexdigest()[:16]
        for part in ((_HERE, stamps), _processor())
    )
    made_by = f"{sys.implementation.cache_tag}-numba-{numba}-{platform.machine()}"
    return folder / f"captum_attnflow-{sources}-{made_by}-{processor}.compiled"


def _folders() -> Iterator[Path]:
    """Where Numba keeps what it compiles: in the first of these that is writable."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given).absolute()
    yield _HERE / "__pycache__"
    with suppress(RuntimeError):  # There is no home.
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
            yield Path(local) / "numba" / "Cache"
        elif sys.platform == "darwin":
            yield Path.home() / "Library/Caches/numba"
        else:
            kept = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            yield Path(kept).absolute() / "numba"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # As Numba does: permissions say too little on network drives and on Windows.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _processor() -> str:
    """What code is compiled for, as far as the system tells it at no cost."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(1 << 13).partition("\n\n")[0]
    except OSError:
        return os.environ.get("PROCESSOR_IDENTIFIER", "")
    lines = first.split("\n")
    return "\n".join(line for line in lines if line.startswith(_OF_PROCESSOR))


def _compile_in_background() -> None:
    """Start a process that compiles, once a process, and see to its end.

    Not at once: it would compete with the flow that is about to be solved. But this
    process does not end before.
    """
    marker = marker_path()
    if marker is None or not _started.acquire(blocking=False):
        return
    hurry, has_begun = threading.Event(), threading.Event()

    def run() -> None:
        hurry.wait(_DELAY)
        _run_child(marker, has_begun, _NICENESS)

    watch = threading.Thread(target=run, daemon=True)

    def begin() -> None:
        hurry.set()
        if watch.is_alive():  # It is not in a process that was forked.
            has_begun.wait(_MOST_SECONDS_AT_EXIT)

    try:
        watch.start()
    except RuntimeError:  # Python ends, or no more threads are allowed.
        _settled.set()
    else:
        atexit.register(begin)


def _run_child(marker: Path, has_begun: threading.Event, niceness: int = 0) -> None:
    """Compile in a process that outlives this one, and takes no Ctrl-C meant for it.

    Where that fails, the next solve compiles itself and says what is wrong with Numba.
    """
    variables = dict(os.environ)
    if given := variables.get("NUMBA_CACHE_DIR"):
        variables["NUMBA_CACHE_DIR"] = os.path.abspath(given)
    try:
        child = subprocess.Popen(
            _child_command(marker),
            cwd=marker.parent,  # It holds no folder of the user.
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            creationflags=_CREATION_FLAGS,
        )
        has_begun.set()
        if niceness and sys.platform != "win32":
            os.setpriority(os.PRIO_PROCESS, child.pid, niceness)
        child.wait()
    except OSError:
        pass
    finally:
        has_begun.set()
        _settled.set()


def _child_command(marker: Path) -> list[str]:
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return [sys.executable, "-c", _CHILD, str(marker), *path]


def compile_and_mark(marker: str | Path) -> None:
    """Compile all that solves use, and leave a file that says so.

    Args:
        marker (str or path): The file, see :func:`marker_path`.
    """
    marker = Path(marker)
    _forget_other_sources(marker)
    from captum_attnflow.flow.solvers.barrier.solver import BarrierSolver
    from captum_attnflow.flow.solvers.base import solve_flow, solve_sources
    from captum_attnflow.flow.solvers.dinic import DinicSolver

    # Causal and long enough to need factors at last, after what full networks need.
    generator = torch.Generator().manual_seed(0)
    shape = (1, 6, 64, 64)
    scores = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    capacity = (4 * scores).exp().tril()
    capacity /= capacity.sum(-1, keepdim=True)
    source = torch.ones(1, 64, dtype=torch.bool, device="cpu")
    sink = torch.arange(64, device="cpu")[None] == 63
    network = LayeredNetwork(capacity, source, sink)
    solve_flow(network, BarrierSolver(compiled=True))
    solve_flow(network, DinicSolver(compiled=True))
    solve_sources(network, DinicSolver(compiled=True))
    # Too large for float32.
    network.capacity[0, 1, 5, 3] = 1e60
    solve_flow(network, BarrierSolver(compiled=True))
    _compile_parallel()
    marker.touch()


def _forget_other_sources(marker: Path) -> None:
    """Compile kernels again that call what has changed in another file than theirs.

    Numba looks at their own alone. What other processors or versions have compiled from
    these sources is kept.
    """
    from captum_attnflow.flow.solvers import dinic_kernels
    from captum_attnflow.flow.solvers.barrier import numba_compiled

    package, sources, _ = marker.name.split("-", 2)
    if not any(marker.parent.glob(f"{package}-{sources}-*.compiled")):
        for kernel in (dinic_kernels.joint_flows, numba_compiled.sum_of):
            numba_compiled.forget_folder_of(kernel)


def _compile_parallel() -> None:
    """Compile kernels in threads for the types that their serial forms are for.

    Solves call them for large networks alone, and where there are processors.
    """
    from captum_attnflow.flow.solvers.barrier import numba_edges, numba_factors

    for module in (numba_edges, numba_factors):
        for name, kernel in vars(module).items():
            # What compiled functions call, and so have compiled, is private.
            if name.endswith("_parallel") and not name.startswith("_"):
                serial = getattr(module, name.removesuffix("_parallel"))
                for _part, *types in serial.signatures:
                    kernel.compile(tuple(types))


def check_compiled(compiled: object) -> None:
    """Refuse what says nothing of compiling, and True where Numba does not work.

    Raises:
        ImportError: If it is True and Numba is not installed.
        ValueError: If it is neither a bool nor None.
    """
    if not (compiled is None or isinstance(compiled, bool)):
        raise ValueError(f"compiled={described(compiled)} must be True, False or None")
    if compiled and numba_passes() is None:
        raise ImportError(
            "compiled=True needs Numba, which is not installed or does not work. "
            "Install it by pip install 'captum-attnflow[compiled]', or leave compiled "
            "at None"
        )


@cache
def numba_passes() -> type[EdgePasses] | None:
    """The passes compiled by Numba, where it is installed, works and compiles."""
    try:
        numba = undisturbed(_import_numba)
        _start_threads_of(numba)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            # What else is installed may break it, by an error of any type.
            warn_caller(
                "flows are solved without Numba, which is installed but cannot be "
                f"loaded ({type(error).__name__}: {error}). Mend what this names, or "
                "reinstall it by pip install 'captum-attnflow[compiled]', or uninstall "
                "it"
            )
        return None
    if numba.config.DISABLE_JIT:
        return None
    return undisturbed(_import_passes)


def _import_numba() -> ModuleType:
    import numba

    module: ModuleType = numba
    return module


def _import_passes() -> type[EdgePasses]:
    from captum_attnflow.flow.solvers.barrier.numba_passes import NumbaPasses

    return NumbaPasses


def _start_threads_of(numba: ModuleType) -> None:
    """Start Numba's threads now, before a kernel needs them.

    Numba's OpenMP may be torch's. Its start then sets torch's number of threads, once a
    process, which is undone here.
    """
    before = torch.get_num_threads()
    try:
        numba.get_num_threads()
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


P = ParamSpec("P")
T = TypeVar("T")


def undisturbed(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do some work that no signal interrupts, such as one by the user.

    An import of Numba that ends halfway cannot be had again in the same process, and
    LLVM calls Python back, where an exception is lost together with the code. But
    signals raise exceptions in the main thread alone, which therefore waits for another
    one, and raises when that is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(*arguments, **options)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments, **options).result()
