"""A study whose tasks actors of Ray do."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from study.figures import names, results_without_seconds, table_without_seconds
from tables.test_ray import own_workers

from captum_attnflow.study import run_study
from captum_attnflow.study.records import PartedFile, RecordFile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster", "one_thread")]


def test_two_workers_are_one_process_to_the_last_bit(study, tmp_path):
    study = dataclasses.replace(
        study,
        methods=study.methods[:3],
        metrics=("aopc", "naopc"),
        removals=("delete",),
    )
    table = run_study(study)
    by_ray = dataclasses.replace(
        study, output=tmp_path / "ray", engine="ray", workers=2
    )
    assert run_study(dataclasses.replace(by_ray, part=(1, 2))) is None
    whole = run_study(by_ray)  # and continues what is there
    assert [row.values for row in whole.rows] == [row.values for row in table.rows]
    assert results_without_seconds(by_ray.output) == results_without_seconds(
        study.output
    )
    assert table_without_seconds(by_ray.output) == table_without_seconds(study.output)
    assert names(by_ray.output) == names(study.output)


def test_a_run_that_fails_leaves_no_file_of_a_worker(study):
    with pytest.raises(ValueError, match="need 2 in all, and Ray has 0"):
        run_study(
            dataclasses.replace(study, engine="ray", workers=2, gpus_per_worker=1)
        )
    assert names(study.output) == {"manifest.json"}


def test_a_worker_on_a_machine_of_its_own_is_refused_in_words(study, monkeypatch):
    def elsewhere(file):
        return RecordFile(Path("/nowhere/results.jsonl"), file.kind, makes=False)

    monkeypatch.setattr(PartedFile, "of_new_worker", elsewhere)
    with pytest.raises(ValueError, match="does not see the folder /nowhere") as caught:
        run_study(dataclasses.replace(study, engine="ray"))
    assert "Traceback" not in str(caught.value)
    assert not list(study.output.glob("*.jsonl"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(study, tmp_path):
    path = tmp_path / "texts.tsv"
    lines = [f"so funny {'very ' * n}dull\t0" for n in range(60)]
    path.write_text("\n".join(["text\tlabel", *lines]))
    study = dataclasses.replace(
        study, methods=("feature-ablation", "random"), against=None
    )
    run_study(study)
    by_ray = dataclasses.replace(
        study, output=tmp_path / "ray", engine="ray", workers=2
    )
    written, killed = set(), []

    def kill_a_worker():
        while len(written) < 2 or not all(path.stat().st_size for path in written):
            time.sleep(0.02)
            written.update(by_ray.output.glob("results-1-of-1-worker-*.jsonl"))
        assert not (by_ray.output / "results.jsonl").exists()
        killed.append(own_workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_a_worker, daemon=True)
    thread.start()
    with pytest.warns(UserWarning, match="a worker of Ray died"):
        run_study(by_ray)
    thread.join()
    assert killed
    assert names(by_ray.output) == names(study.output)
    assert results_without_seconds(by_ray.output) == results_without_seconds(
        study.output
    )
