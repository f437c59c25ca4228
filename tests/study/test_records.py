from __future__ import annotations

import dataclasses
import json
import math

import pytest

from captum_attnflow.runs import folder
from captum_attnflow.runs.folder import lock_of_part
from captum_attnflow.study.records import (
    Bounds,
    PartedFile,
    Record,
    RecordFile,
    Results,
)


def record(row: int, value: float = 0.1) -> Record:
    return Record("model", "method", row, 1, {"replace": {"aopc": value}})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    RecordFile(path, Record).append([record(1, 1 / 3), record(2), record(3)])
    return path


def test_records_come_back_with_all_digits(path):
    expected = [record(1, 1 / 3), record(2), record(3)]
    assert list(RecordFile(path, Record).read()) == expected


def test_a_torn_end_is_cut_off_at_any_byte(path):
    content = path.read_bytes()
    ends = [0] + [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    near_ends = [end + shift for end in ends for shift in (-1, 0, 1)]
    for cut in sorted({*near_ends, *range(0, len(content), 20)} - {-1}):
        path.write_bytes(content[:cut])
        file = RecordFile(path, Record)
        whole = [1, 2, 3][: sum(end <= cut for end in ends) - 1]
        assert [each.row for each in file.read()] == whole
        file.append([record(9)])
        file.append([record(8)])
        assert [each.row for each in file.read()] == [*whole, 9, 8]


def test_the_end_of_whole_lines_is_found_across_blocks(path, monkeypatch):
    content = path.read_bytes()
    monkeypatch.setattr(folder, "_BLOCK", 7)
    path.write_bytes(content + b"x" * 20)
    RecordFile(path, Record).append([])
    assert path.read_bytes() == content


def test_of_two_records_of_a_text_the_first_counts(study):
    study = dataclasses.replace(study, removals=("replace",), metrics=("aopc",))
    results = Results(study, ["model"], rows=[1, 2, 5])
    first = dataclasses.replace(record(2), method="random")
    assert results.add(first)
    assert not results.add(dataclasses.replace(first, predicted=0))
    assert not results.add(record(1))  # of a method that is not asked for
    column = results.columns["model", "random"]
    assert column.predicted.tolist() == [-1, 1, -1]
    assert column.values[1].tolist() == [[0.1]]
    with pytest.raises(ValueError, match="it is of row 4, which is none of the 3 rows"):
        results.add(dataclasses.replace(first, row=4))


def test_files_of_parts_are_merged_but_of_those_that_are_written(tmp_path):
    parts = [PartedFile(tmp_path, "results", Record, (i, 3)) for i in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        part.own.append([record(number)])
    with parts[2].own.path.open("ab") as file:
        file.write(b'{"torn')
    with lock_of_part(tmp_path, (2, 3)), lock_of_part(tmp_path, (1, 3)):
        parts[0].merge()  # the first holds a lock itself
        assert {path.name for path in tmp_path.glob("*.jsonl")} == {
            "results.jsonl",
            "results-2-of-3.jsonl",
        }
    read = [each.row for _, each in parts[0].read()]
    assert read == [1, 3, 2]
    PartedFile(tmp_path, "results", Record, (1, 1)).merge()
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["results.jsonl"]
    assert [each.row for _, each in parts[0].read()] == read


def test_a_worker_whose_file_was_merged_writes_nothing_more(tmp_path):
    """One that outlives its run writes to no file of the next one."""
    part = PartedFile(tmp_path, "results", Record, (1, 1))
    worker, idle = part.of_new_worker(), part.of_new_worker()
    assert worker.path != idle.path
    worker.append([record(1)])
    part.gather()
    with pytest.raises(OSError, match="cannot be written: No such file"):
        worker.append([record(2)])
    assert [path.name for path in tmp_path.glob("*")] == ["results.jsonl"]
    assert list(part.own.read()) == [record(1)]


def test_idle_workers_leave_no_file(tmp_path):
    part = PartedFile(tmp_path, "bounds", Bounds, (2, 3))
    part.of_new_worker()
    part.gather()
    assert not list(tmp_path.glob("*"))


def test_files_of_workers_are_merged_but_of_parts_that_are_written(tmp_path):
    parts = [PartedFile(tmp_path, "results", Record, (i, 2)) for i in (1, 2)]
    for part in parts:
        part.of_new_worker().append([record(1), record(2)])
    with lock_of_part(tmp_path, (2, 2)):
        parts[0].merge()
    assert len(list(tmp_path.glob("*worker*"))) == 1
    parts[0].merge()
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["results.jsonl"]
    assert [each.row for _, each in parts[0].read()] == [1, 2]


@pytest.mark.parametrize("line", ["{}", "[]", "not json", '{"model": "a", "b": 1}'])
def test_damage_before_the_end_is_refused(path, line):
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .*delete the line"):
        list(RecordFile(path, Record).read())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999", '"0.1"', "null", "[]"])
def test_a_value_that_is_no_finite_number_is_refused(path, number):
    path.write_text(path.read_text().replace("0.1", number, 1))
    with pytest.raises(ValueError, match=r"line 2 of .*aopc.*delete the line"):
        list(RecordFile(path, Record).read())


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["forward_rows", "backward_rows", "seconds"])
def test_a_cost_that_is_no_finite_number_is_refused(field, number):
    with pytest.raises(ValueError, match=f"{field} is {number}"):
        dataclasses.replace(record(1), **{field: number})


@pytest.mark.parametrize("field", ["lower", "upper"])
def test_bounds_that_are_no_finite_numbers_are_refused(tmp_path, field):
    bounds = {"model": "m", "removal": "delete", "row": 1, "lower": 0, "upper": 1}
    file = tmp_path / "bounds.jsonl"
    file.write_text(json.dumps({**bounds, field: math.nan}) + "\n")
    with pytest.raises(ValueError, match=rf"line 1 of .*{field} is nan"):
        list(RecordFile(file, Bounds).read())


@pytest.mark.parametrize(
    "change",
    [
        {"values": []},
        {"values": {"replace": 1}},
        {"values": {}},
        {"failure": "ValueError: no"},
        {"row": "1"},
        {"row": -1},
        {"model": None},
        {"predicted": -1},
    ],
)
def test_a_record_of_another_kind_is_refused(path, change):
    first, *others = path.read_text().splitlines(keepends=True)
    changed = json.dumps({**json.loads(first), **change}) + "\n"
    path.write_text("".join([changed, *others]))
    with pytest.raises(ValueError, match=r"line 1 of .*delete the line"):
        list(RecordFile(path, Record).read())


@pytest.mark.parametrize("line", ["[" * 100_000, '{"model": "a", "model": "b"}'])
def test_json_without_end_or_with_a_key_twice_is_refused(path, line):
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*(nested|more than once)"):
        list(RecordFile(path, Record).read())


def test_a_full_disk_is_told_with_the_file(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    file = RecordFile(path, Record)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"results\.jsonl cannot be written: No space"):
        file.append([record(4)])


def test_a_merge_on_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    part = PartedFile(tmp_path, "results", Record, (1, 2))
    part.own.append([record(1), record(2)])

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(
            OSError, match=r"results\.jsonl cannot be written: No space"
        ):
            part.merge()
    part.merge()
    assert {each.row for _, each in part.read()} == {1, 2}
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["results.jsonl"]
