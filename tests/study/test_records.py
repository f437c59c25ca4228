from __future__ import annotations

import dataclasses
import json
import math

import pytest

from captum_attnflow.study.records import Bounds, Record, RecordFile


def record(example: int, value: float = 0.1) -> Record:
    return Record("model", "method", example, 1, {"replace": {"aopc": value}})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    RecordFile(path, Record).append([record(1, 1 / 3), record(2), record(3)])
    return path


def test_records_come_back_with_all_digits(path):
    assert list(RecordFile(path, Record).records.values()) == [
        record(1, 1 / 3),
        record(2),
        record(3),
    ]


def test_a_torn_end_is_cut_off_at_any_byte(path):
    content = path.read_bytes()
    ends = [0] + [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    near_ends = [end + shift for end in ends for shift in (-1, 0, 1)]
    for cut in sorted({*near_ends, *range(0, len(content), 20)} - {-1}):
        path.write_bytes(content[:cut])
        file = RecordFile(path, Record)
        n_whole = sum(end <= cut for end in ends) - 1
        assert [key[2] for key in file.records] == [1, 2, 3][:n_whole]
        file.append([record(9)])
        assert [key[2] for key in RecordFile(path, Record).records][-1] == 9


def test_a_record_is_never_overwritten(path):
    before = path.read_bytes()
    file = RecordFile(path, Record)
    file.append([record(2, 0.7), record(4)])
    after = path.read_bytes()
    assert after.startswith(before)
    assert RecordFile(path, Record).records[record(2).key] == record(2)
    assert len(after.splitlines()) == 4


@pytest.mark.parametrize("line", ["{}", "[]", "not json", '{"model": "a", "b": 1}'])
def test_damage_before_the_end_is_refused(path, line):
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .*delete the line"):
        RecordFile(path, Record)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999", '"0.1"', "null", "[]"])
def test_a_value_that_is_no_finite_number_is_refused(path, number):
    path.write_text(path.read_text().replace("0.1", number, 1))
    with pytest.raises(ValueError, match=r"line 2 of .*aopc.*delete the line"):
        RecordFile(path, Record)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["forward_rows", "backward_rows", "seconds"])
def test_a_cost_that_is_no_finite_number_is_refused(field, number):
    with pytest.raises(ValueError, match=f"{field} is {number}"):
        dataclasses.replace(record(1), **{field: number})


@pytest.mark.parametrize("field", ["lower", "upper"])
def test_bounds_that_are_no_finite_numbers_are_refused(tmp_path, field):
    bounds = {"model": "m", "removal": "delete", "example": 1, "lower": 0, "upper": 1}
    file = tmp_path / "bounds.jsonl"
    file.write_text(json.dumps({**bounds, field: math.nan}) + "\n")
    with pytest.raises(ValueError, match=rf"line 1 of .*{field} is nan"):
        RecordFile(file, Bounds)


@pytest.mark.parametrize(
    "change",
    [
        {"values": []},
        {"values": {"replace": 1}},
        {"values": {}},
        {"failure": "ValueError: no"},
        {"example": "1"},
        {"example": 0},
        {"model": None},
    ],
)
def test_a_record_of_another_kind_is_refused(path, change):
    first, *others = path.read_text().splitlines(keepends=True)
    changed = json.dumps({**json.loads(first), **change}) + "\n"
    path.write_text("".join([changed, *others]))
    with pytest.raises(ValueError, match=r"line 1 of .*delete the line"):
        RecordFile(path, Record)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"model": "a", "model": "b"}'])
def test_json_without_end_or_with_a_key_twice_is_refused(path, line):
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*(nested|more than once)"):
        RecordFile(path, Record)


def test_a_full_disk_is_told_with_the_file(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    file = RecordFile(path, Record)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"results\.jsonl cannot be written: No space"):
        file.append([record(4)])
