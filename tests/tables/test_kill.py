from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace

import pytest
from table_runs import explain_on, ray_at
from tables.conftest import contents, write_texts
from warm_processes import warm_processes

from captum_attnflow.tables import TableJob


def kill_again_and_again(
    job: TableJob, n_kills: int, environment: dict[str, str] | None = None
) -> tuple[int, int]:
    """Kill runs of a job, each finished in the end.

    Only what was not whole may be computed again. Returns how many were killed, and how
    many left some of the files but not all.
    """
    moments = random.Random(0)

    def start(folder):
        process = warm_processes().Process(
            target=explain_on, args=(environment or {}, replace(job, output=folder))
        )
        process.start()
        return process

    start(job.output.with_name("warm")).join()
    began = time.monotonic()
    start(job.output).join()
    duration = time.monotonic() - began
    expected = contents(job.output)
    n_killed = n_folders = n_inside = 0
    while n_killed < n_kills:
        folder, before, exit_code = job.output.with_name(f"{n_folders}"), {}, None
        while exit_code != 0:
            process = start(folder)
            if n_killed < n_kills:
                process.join(moments.uniform(0, duration))
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    n_killed += 1
            process.join()
            exit_code = process.exitcode
            assert exit_code in (0, -signal.SIGKILL)
            times = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
            assert {path: times[path] for path in before} == before
            assert contents(folder).items() <= expected.items()
            before = times
            print(
                f"{n_killed} killed; {len(times)} of {len(expected)} files", flush=True
            )
            n_inside += 0 < len(times) < len(expected)
        assert contents(folder) == expected
        n_folders += 1
    return n_killed, n_inside


def test_kill_9_loses_nothing_and_changes_no_bit(job):
    kill_again_and_again(replace(job, rows_per_part=4), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "n_texts"),
    [
        ("local", 60),
        ("ray", 300),  # its start takes longer than fewer texts do
    ],
)
def test_kill_9_at_twenty_random_moments(job, engine, n_texts, request):
    environment = {}
    if engine == "ray":
        pytest.importorskip("ray")
        # One that stays: it has to clean up behind every process that is killed.
        environment = ray_at(request.getfixturevalue("cluster"))
    write_texts(job.output.with_name("texts.csv"), n_texts)
    job = replace(job, method="relevance-flow", rows_per_part=n_texts // 30)
    if engine == "ray":
        job = replace(job, engine="ray", workers=2)
    n_killed, n_inside = kill_again_and_again(job, 20, environment)
    print(f"\n{engine}: {n_killed} runs killed, {n_inside} of them in the middle")
    assert n_killed == 20
    assert n_inside >= 5  # kills did hit the middle of the work
