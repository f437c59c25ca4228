from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tables.conftest import contents, write_texts

from captum_attnflow.runs.sharing import work_by_ray
from captum_attnflow.tables import TableJob, explain_table

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
# Workers do not see the folder of the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.usefixtures("cluster")
def test_two_workers_are_one_process_to_the_last_bit(job):
    job = replace(job, method="relevance-flow")
    explain_table(job)
    other = replace(job, output=job.output.with_name("ray"), engine="ray", workers=2)
    assert explain_table(replace(other, part=(1, 2))).n_rows == 22
    outcome = explain_table(other)  # and continues what is there
    assert (outcome.n_files, outcome.n_kept) == (5, 3)
    assert contents(other.output) == contents(job.output)


def own_workers() -> list[int]:
    """Processes of actors that this one has started, through Ray's own."""
    parents, titles = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":", 1) for line in status.read_text().splitlines()
            )
            titles[int(fields["Pid"])] = (status.parent / "cmdline").read_bytes()
        except (OSError, ValueError):  # one that has just ended
            continue
        parents[int(fields["Pid"])] = int(fields["PPid"])

    def is_ours(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == os.getpid():
                return True
        return False

    return [
        process
        for process, title in titles.items()
        if title.startswith(b"ray::_Worker") and is_ours(process)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(job):
    write_texts(job.output.with_name("texts.csv"), 400)
    job = replace(job, method="relevance-flow", rows_per_part=10)
    explain_table(job)
    other = replace(job, output=job.output.with_name("ray"), engine="ray", workers=2)
    killed = []

    def kill_a_worker():
        while len(contents(other.output)) < 3:
            time.sleep(0.02)
        killed.append(own_workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    with pytest.warns(UserWarning, match="a worker of Ray died.* is done anew") as said:
        outcome = explain_table(other)
    thread.join()
    assert len(said) == 1
    assert killed
    assert (outcome.n_rows, outcome.n_failed) == (400, 0)
    assert contents(other.output) == contents(job.output)


class Dying:
    """Work that ends its process."""

    def __call__(self, task):
        os._exit(1)


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore:a worker of Ray died")
def test_a_task_that_no_worker_survives_ends_the_run():
    with pytest.raises(ValueError, match="died more than 3 times at one task"):
        list(work_by_ray([Dying], [1], 0))


class Unreadable:
    """Is sent, and fails where it is read."""

    def __reduce__(self):
        return int, ("no number",)

    def __call__(self):
        """Never reached, as a maker of work."""


class Echo:
    def __call__(self, task):
        return task


class ReturningUnreadable:
    def __call__(self, task):
        return Unreadable()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("error:a worker of Ray died")
@pytest.mark.parametrize("maker", [ReturningUnreadable, Unreadable()])
def test_what_cannot_be_read_is_not_taken_for_a_death(maker):
    with pytest.raises(ValueError, match=r"Ray could not .*no number") as caught:
        list(work_by_ray([maker], [1], 0))
    for wrong in ("memory", "Traceback", "\x1b", "pid="):
        assert wrong not in str(caught.value)


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("error:a worker of Ray died")
@pytest.mark.parametrize("kind", ["ObjectStoreFullError", "OutOfDiskError"])
def test_a_full_store_ends_the_run_at_once_with_its_own_reason(kind, monkeypatch):
    asked = []

    def full(result):
        asked.append(result)
        raise getattr(ray.exceptions, kind)("no place is left")

    monkeypatch.setattr(ray, "get", full)
    with pytest.raises(ValueError, match=r"is left.*mend this and run again"):
        list(work_by_ray([Echo], [1], 0))
    assert len(asked) == 1


STOPPED = """
import time
from captum_attnflow.runs.sharing import work_by_ray

class Slow:
    def __call__(self, task):
        time.sleep(task)

for _ in work_by_ray([Slow, Slow], [0, 60, 60], 0):
    print("stopping")
    time.sleep(1)  # until the other one is at work
    raise OSError("the disk is full")
"""


def test_a_run_that_stops_says_nothing_of_retries():
    command = [sys.executable, "-c", STOPPED]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.stdout == "stopping\n"
    assert said.stderr.endswith("OSError: the disk is full\n")
    assert "raylet" not in said.stderr


@pytest.mark.usefixtures("cluster")
def test_gpus_that_are_not_there_are_refused(job):
    with pytest.raises(ValueError, match=r"workers=2 with gpus_per_worker=1 need 2 in"):
        explain_table(replace(job, engine="ray", workers=2, gpus_per_worker=1))


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_raises_is_what_the_process_would(job, tmp_path):
    explain_table(replace(job, limit=9))
    with pytest.raises(ValueError, match="another 'limit'"):
        explain_table(replace(job, engine="ray"))


RUN = """
import sys
from pathlib import Path
from captum_attnflow.tables import TableJob, explain_table
data, output = sys.argv[1:]
explain_table(TableJob(data, Path(output), rows_per_part=10, engine="ray", workers=2))
"""


def test_kill_9_of_the_whole_run_loses_nothing(tmp_path):
    """The process that writes is killed; its Ray goes with it."""
    data = tmp_path / "texts.csv"
    write_texts(data, 200)
    whole, output = tmp_path / "whole", tmp_path / "killed"
    explain_table(TableJob(str(data), whole, rows_per_part=10))
    command = [sys.executable, "-c", RUN, str(data), str(output)]
    process = subprocess.Popen(command)
    while len(contents(output)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 0 < len(before) < 20
    subprocess.run(command, check=True)
    assert contents(output) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before
