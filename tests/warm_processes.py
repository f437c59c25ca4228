"""Processes that begin with what takes seconds to import: commands and kernels.

They are forked from one that has imported it. In a module of its own: such a process
can import this one by name, and no file of tests, whose names pytest makes up.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

# All that is forked comes from one process, which reads this once. Rooms import what
# they hold when it is read: these are the modules that run.
_IMPORTED = [
    "captum_attnflow.study.adapters",
    "captum_attnflow.study.run",
    "captum_attnflow.tables.run",
    "ipykernel.kernelapp",
    "pyarrow.parquet",
    "sklearn.linear_model",  # Captum imports it for KernelShap
    "storage_writer",
    "table_runs",
]


def warm_processes() -> ForkServerContext:
    """Return the context whose processes have imported the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def start_command(
    arguments: Iterable[object],
    stdout: int | None = None,
    stderr: int | None = None,
    most_bytes: int | None = None,
) -> BaseProcess:
    """Start ``captum-attnflow``.

    Args:
        arguments (iterable): Of the command.
        stdout (int, optional): Descriptor of its standard output.
        stderr (int, optional): Descriptor of its standard error.
        most_bytes (int, optional): What the system lets it write into a file.
    """
    streams = {
        number: Connection(os.dup(descriptor))  # these can be handed over
        for number, descriptor in ((1, stdout), (2, stderr))
        if descriptor is not None
    }
    given = ([*map(str, arguments)], streams, most_bytes)
    process = warm_processes().Process(target=_run_command, args=given)
    process.start()
    for stream in streams.values():
        stream.close()
    return process


def run_command(
    arguments: Iterable[object],
    stdout: int | None = None,
    most_bytes: int | None = None,
) -> tuple[int | None, str]:
    """Run ``captum-attnflow`` to its end, see :func:`start_command`.

    Returns:
        Its exit status and what it wrote to standard error.
    """
    ours, theirs = os.pipe()
    process = start_command(arguments, stdout, theirs, most_bytes)
    os.close(theirs)
    with open(ours) as written:
        said = written.read()
    process.join()
    return process.exitcode, said


def _run_command(
    arguments: list[str], streams: dict[int, Connection], most_bytes: int | None
) -> None:
    for number, stream in streams.items():
        os.dup2(stream.fileno(), number)
    # As Python opens them: what is open knows what it wrote into before.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if most_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    from captum_attnflow.cli import app

    app(arguments)


class WarmKernelManager(AsyncKernelManager):
    """Starts a kernel in a process that has imported the package."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.provisioner = _Forked(
            kernel_id="", kernel_spec=self.kernel_spec, parent=self
        )


class _Forked(LocalProvisioner):
    async def launch_kernel(
        self, cmd: list[str], **options: Any
    ) -> KernelConnectionInfo:
        process = warm_processes().Process(
            target=_run_kernel, args=(self.parent.connection_file, options["cwd"])
        )
        process.start()
        self.process = _AsPopen(process)
        self.pid, self.cwd = process.pid, options["cwd"]
        return self.connection_info


class _AsPopen:
    """What a provisioner asks of a process."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)


def _run_kernel(connection_file: str, folder: str) -> None:
    from ipykernel.kernelapp import launch_new_instance

    os.chdir(folder)
    # Shows figures at the end of a cell, also where pyplot is imported before.
    launch_new_instance(["-f", connection_file, "--matplotlib=inline"])
