from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from contextlib import suppress

import pytest
from study.figures import names, results_without_seconds, table_without_seconds
from table_runs import ray_at, study_on
from warm_processes import warm_processes

N_KILLS = 10


def lines_in(folder) -> set[bytes]:
    """Whole lines of results, in the file of one process or those of workers."""
    found = set()
    for path in folder.glob("results*.jsonl"):
        with suppress(FileNotFoundError):  # merged meanwhile
            found.update(path.read_bytes().splitlines(keepends=True))
    return {line for line in found if line.endswith(b"\n")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_kill_9_at_random_moments_loses_nothing_and_changes_no_figure(
    study, tmp_path, engine, request
):
    """Every undisturbed line is there at the end, to the last bit, by each engine."""
    environment = {}
    if engine == "ray":
        pytest.importorskip("ray")
        # One that stays: it has to clean up behind every process that is killed.
        environment = ray_at(request.getfixturevalue("cluster"))
    path = tmp_path / "texts.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines * 4]) + "\n")
    study = dataclasses.replace(study, batch_size=1)

    def start(folder, **changed):
        other = dataclasses.replace(study, output=folder, **changed)
        process = warm_processes().Process(target=study_on, args=(environment, other))
        process.start()
        return process

    start(study.output).join()  # undisturbed, in one process
    results = results_without_seconds(study.output)
    table = table_without_seconds(study.output)
    by_engine = {} if engine == "local" else {"engine": "ray", "workers": 2}

    moments = random.Random(0)
    n_kills, n_inside, n_folders = 0, 0, 0
    while n_kills < N_KILLS:
        folder, done, exit_code = tmp_path / f"killed {n_folders}", set(), None
        while exit_code != 0:
            process = start(folder, **by_engine)
            if n_kills < N_KILLS:
                # A tenth of the work further on at most, so that ten kills hit it.
                n_lines = len(done) + moments.randrange(len(results) // 10)
                n_lines = min(n_lines, len(results) - 1)
                while process.is_alive() and len(lines_in(folder)) < n_lines:
                    time.sleep(0.002)
                process.join(moments.uniform(0, 0.05))
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    n_kills += 1
            process.join()
            exit_code = process.exitcode
            assert exit_code in (0, -signal.SIGKILL)
            written = lines_in(folder)
            assert done <= written  # whole lines stay, seconds included
            done = written
            n_inside += 0 < len(done) < len(results)
            print(f"{n_kills} killed; {len(done)} of {len(results)} lines")
        assert names(folder) == names(study.output)
        assert results_without_seconds(folder) == results
        assert table_without_seconds(folder) == table
        n_folders += 1
    print(f"{engine}: {n_kills} runs killed, {n_inside} of them in the middle")
    assert n_inside >= N_KILLS // 2  # kills did hit the middle of the work
