"""Parts of a study, other engines, and other runs in its folder."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings

import pytest
import torch
from filelock import FileLock
from study.figures import names, results_without_seconds, table_without_seconds

from captum_attnflow.study import METHODS, Method, evaluate, run_study
from captum_attnflow.study.adapters import TextBatch
from captum_attnflow.study.records import PartedFile, Record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(changed):
    return changed(methods=("attention-rollout", "random"), against="random")


def test_parts_in_any_order_are_one_run_to_the_last_bit(small, tmp_path):
    small = dataclasses.replace(
        small, metrics=("aopc", "naopc"), removals=("delete",), batch_size=1
    )
    table = run_study(small)
    parted = dataclasses.replace(small, output=tmp_path / "parted")
    for index in (2, 3):
        part = dataclasses.replace(parted, part=(index, 3))
        assert run_study(part) is None
        assert run_study(part) is None  # alone, again
    waiting = names(parted.output)
    assert {"results-2-of-3.jsonl", "bounds-3-of-3.jsonl"} < waiting
    assert "table.md" not in waiting
    merged = run_study(dataclasses.replace(parted, part=(1, 3)))
    assert [row.values for row in merged.rows] == [row.values for row in table.rows]
    assert names(parted.output) == names(small.output)
    assert results_without_seconds(parted.output) == results_without_seconds(
        small.output
    )
    assert table_without_seconds(parted.output) == table_without_seconds(small.output)
    whole = (parted.output / "results.jsonl").read_bytes()
    assert run_study(dataclasses.replace(parted, part=(2, 3))) is not None
    assert (parted.output / "results.jsonl").read_bytes() == whole


def test_what_parts_left_is_taken_over_by_a_run_without_parts(small, tmp_path):
    run_study(small)
    parted = dataclasses.replace(small, output=tmp_path / "parted")
    run_study(dataclasses.replace(parted, part=(1, 2)))
    before = (parted.output / "results-1-of-2.jsonl").read_bytes()
    run_study(parted)
    assert (parted.output / "results.jsonl").read_bytes().startswith(before)
    assert names(parted.output) == names(small.output)
    assert table_without_seconds(parted.output) == table_without_seconds(small.output)


@pytest.mark.parametrize("part", [(1, 1), (2, 2)])
def test_what_killed_workers_of_ray_left_is_taken_over(small, tmp_path, part):
    """Also what two of them wrote, as one was killed before it could say so."""
    run_study(small)
    killed = dataclasses.replace(small, output=tmp_path / "killed")
    run_study(dataclasses.replace(killed, part=part))
    own = PartedFile(killed.output, "results", Record, part)
    first, *lines = own.own.path.read_bytes().splitlines(keepends=True)
    own.own.path.write_bytes(first)
    for some in (lines[:3], lines[2:4]):
        own.of_new_worker().path.write_bytes(b"".join(some) + lines[4][:9])
    run_study(dataclasses.replace(killed, part=part))
    n_lines = 14 if part == (1, 1) else len(lines) + 1
    written = own.own.path.read_bytes().splitlines(keepends=True)
    assert written[0] == first
    assert set(written[1:5]) == set(lines[:4])  # seconds included: not done again
    assert len(written) == n_lines
    assert not list(killed.output.glob("*worker*"))
    run_study(killed)
    assert names(killed.output) == names(small.output)
    assert results_without_seconds(killed.output) == results_without_seconds(
        small.output
    )


def test_a_part_that_others_merge_meanwhile_keeps_its_lines(small):
    """The lock of a part says that its file is written."""
    first, second = (dataclasses.replace(small, part=(i, 2)) for i in (1, 2))
    run_study(first)
    lines = (small.output / "results-1-of-2.jsonl").read_bytes()
    with FileLock(small.output / ".part-1-of-2.lock"):
        assert run_study(second) is not None
        assert (small.output / "results-1-of-2.jsonl").read_bytes() == lines
    run_study(small)
    assert "results-1-of-2.jsonl" not in names(small.output)
    assert len(results_without_seconds(small.output)) == 14


def test_a_second_run_in_the_folder_is_refused(small):
    small.output.mkdir()
    with FileLock(small.output / ".part-1-of-1.lock"):
        with pytest.raises(ValueError, match=r"another run writes part 1/1 .* wait"):
            run_study(small)
        with pytest.raises(ValueError, match="merges all parts, and part 1/2 may sh"):
            run_study(dataclasses.replace(small, part=(1, 2)))


def test_texts_are_encoded_a_batch_at_a_time(small, monkeypatch):
    encoded, encode = [], TextBatch.encode

    def watching(classifier, texts, reference_token):
        encoded.append(tuple(texts))
        return encode(classifier, texts, reference_token)

    monkeypatch.setattr(evaluate.TextBatch, "encode", watching)
    run_study(small)
    # Once for the methods that follow each other.
    assert len(encoded) == len(set(encoded)) == 4
    assert max(map(len, encoded)) == 2


def test_truncated_texts_are_counted_in_one_warning(small, tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text(
        "text\n" + "so very dull " * 60 + "\n" + "so sad " * 90 + "\ngood\n"
    )
    data = dataclasses.replace(small.data, label_column=None)
    small = dataclasses.replace(small, data=data, methods=("random",), against=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_study(small)
    said = [str(w.message) for w in caught if "truncated" in str(w.message)]
    assert said == [
        "2 of 3 texts are longer than the model's limit of 128 tokens, and are "
        "truncated to it"
    ]


def test_a_dtype_is_kept_to_and_recorded(small, manifest, tmp_path):
    run_study(dataclasses.replace(small, dtype="float64"))
    assert manifest()["settings"]["dtype"] == "float64"
    with pytest.raises(ValueError, match=r"'float64' there, 'float32' now, which"):
        run_study(small)
    single = dataclasses.replace(small, output=tmp_path / "single")
    run_study(single)
    assert "dtype" not in json.loads((single.output / "manifest.json").read_text())
    values = [
        [result["values"]["delete"]["aopc"] for result in results_without_seconds(of)]
        for of in (small.output, single.output)
    ]
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_a_model_that_is_split_over_devices_gives_the_same_results(small, tmp_path):
    pytest.importorskip("accelerate", reason='needs the extra "devices"')
    split = dataclasses.replace(small, output=tmp_path / "split", device_map="auto")
    for study in (small, split):
        run_study(study)
    found, expected = (
        results_without_seconds(study.output) for study in (split, small)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": (3, 2)}, "part 3/2 is out of range"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; give one of 'float32'"),
        ({"device": "toaster"}, "toaster"),
        ({"device": 0}, "device=0 is an int; give a str"),
        ({"device_map": 0}, "device_map=0 is an int; give a str"),
        ({"device": "cpu", "device_map": "auto"}, "device_map='auto' were given; give"),
        ({"engine": "dask"}, "engine='dask' is unknown; give one of 'local', 'ray'"),
        ({"workers": 2}, "workers=2 .* are of Ray; give --engine ray"),
    ],
)
def test_wrong_settings_of_the_machine_are_refused(small, change, message):
    with pytest.raises(ValueError, match=message):
        run_study(dataclasses.replace(small, **change))
    assert not (small.output / "manifest.json").exists()


@pytest.mark.parametrize(("limit", "n_failing"), [(None, 7), (None, 1), (1, 0)])
def test_no_table_holds_nan(small, limit, n_failing, monkeypatch, manifest):
    """Neither of scores that are NaN, nor the spread of a single text."""

    def scores(batch):
        is_nan = n_failing == 7 or batch.ids.shape[1] == 18  # the longest text
        return torch.full(batch.ids.shape, math.nan if is_nan else 1.0)

    monkeypatch.setitem(METHODS, "fragile", Method(scores, "is NaN at times"))
    data = dataclasses.replace(small.data, limit=limit)
    study = dataclasses.replace(small, data=data, methods=("fragile", "random"))
    table = run_study(study)
    outcome = manifest()["results"]
    assert outcome["n_failures"] == len(outcome["failures"]) == n_failing
    assert table.rows[0].failures == n_failing
    assert all("NaN" in failure["error"] for failure in outcome["failures"])
    for name in ("table.csv", "table.md", "table.tex"):
        written = (small.output / name).read_text("utf-8").lower()
        assert not re.search(r"\bnan\b", written)
