from __future__ import annotations

import pytest

from captum_attnflow.study.records import Record, RecordFile


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
