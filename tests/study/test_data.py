from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from captum_attnflow.runs.data import Source, open_data
from captum_attnflow.study import DataSource, read_data

ROWS = [
    {"text": 'so "funny" , it hurts', "label": "positive"},
    {"text": "dull , dull\u2028, dull", "label": "0"},
    {"text": "caf\u00e9 noir", "label": "1"},
]


def write_tsv(path, rows):
    lines = ["\t".join(rows[0]), *("\t".join(map(str, r.values())) for r in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def written(tmp_path, ending, rows=ROWS, **options):
    path = tmp_path / f"texts.{ending}"
    WRITERS[ending](path, rows)
    return DataSource(str(path), **options)


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_texts_and_labels_as_written(tmp_path, ending):
    source = written(tmp_path, ending, label_column="label")
    data = read_data(source)
    assert data.texts == tuple(row["text"] for row in ROWS)
    assert data.labels == ("positive", "0", "1")
    content = (tmp_path / f"texts.{ending}").read_bytes()
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    assert data.class_indices(["negative", "positive"]) == [1, 0, 1]


@pytest.mark.parametrize("ending", WRITERS)
def test_missing_column_names_those_there(tmp_path, ending):
    source = written(tmp_path, ending, text_column="sentence")
    with pytest.raises(ValueError, match=r"no column 'sentence'.*'text', 'label'"):
        read_data(source)


@pytest.mark.parametrize("empty", ["", "  ", None])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_row_without_text_is_left_out_with_a_reason(tmp_path, ending, empty):
    rows = [ROWS[0], {"text": empty, "label": "1"}, ROWS[1]]
    data = read_data(written(tmp_path, ending, rows, label_column="label"))
    assert data.texts == (ROWS[0]["text"], ROWS[1]["text"])
    assert data.labels == ("positive", "0")
    assert data.rows == (0, 2)
    [(row, reason)] = data.left_out.items()
    assert row == 1
    assert reason in ("the text is blank", "there is no text")
    assert data.reasons == {reason: 1}


def test_rows_that_cannot_be_read_take_no_other_with_them(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_bytes(b'text,label\n"open,1\ngood,1\n\xff,0\nfew\na,b,0\nsad,0\n')
    data = read_data(DataSource(str(path)))
    assert data.texts == ("good", "sad")
    assert data.rows == (1, 5)
    reasons = [reason.split(":")[0] for reason in data.left_out.values()]
    assert reasons == [
        "the line cannot be read",
        "the text is no UTF-8, or holds half a character (a lone surrogate)",
        "the line has fewer cells than the header names",
        "the line has more cells than the header names",
    ]


def test_a_row_without_a_label_is_left_out_where_labels_are_read(tmp_path):
    rows = [{"text": "good", "label": None}, {"text": "bad", "label": 0}]
    source = written(tmp_path, "jsonl", rows)
    assert read_data(source).rows == (0, 1)
    data = read_data(dataclasses.replace(source, label_column="label"))
    assert (data.rows, data.labels) == ((1,), ("0",))
    assert data.left_out == {0: "there is no label"}


def test_a_file_without_any_text_is_refused_with_the_commonest_reason(tmp_path):
    rows = [{"text": " "}, {"text": ""}, {"text": ["so"]}]
    with pytest.raises(ValueError, match=r"of 3, 2 are left out since the text is bl"):
        read_data(written(tmp_path, "jsonl", rows))


def test_explain_counts_rows_alike(tmp_path):
    """One reader for both: numbers, texts and reasons are the same."""
    content = b'text,label\n"open,1\ngood,1\n , 0\n\nmany,3,4\nsad,0\n'
    (tmp_path / "texts.csv").write_bytes(content)
    data = read_data(DataSource(str(tmp_path / "texts.csv")))
    rows = list(open_data(Source(str(tmp_path / "texts.csv"), "text")).rows())
    assert {row.number: row.fault for row in rows if row.fault} == data.left_out
    assert [row.number for row in rows if not row.fault] == list(data.rows)


def test_limit_draws_a_sample_from_all_rows_in_their_order(tmp_path):
    rows = [{"text": f"text {number:02}"} for number in range(50)]
    drawn = [
        read_data(written(tmp_path, "tsv", rows, limit=20, seed=seed)).texts
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(drawn[0]) == sorted(set(drawn[0]))
    assert len(drawn[0]) == 20
    assert drawn[0][-1] > "text 30"


def test_limit_keeps_labels_with_their_texts(tmp_path):
    rows = [{"text": f"text {number}", "label": number} for number in range(9)]
    data = read_data(written(tmp_path, "csv", rows, limit=4, label_column="label"))
    assert data.texts == tuple(f"text {label}" for label in data.labels)
    assert data.rows == tuple(int(label) for label in data.labels)


def test_label_outside_the_classes_is_named_by_its_row(tmp_path):
    data = read_data(written(tmp_path, "csv", label_column="label"))
    with pytest.raises(ValueError, match=r"label 'positive' of row 0.*\['a', 'b'\]"):
        data.class_indices(["a", "b"])


def test_label_names_go_before_indices(tmp_path):
    data = read_data(written(tmp_path, "csv", ROWS[1:], label_column="label"))
    assert data.class_indices(["1", "0"]) == [1, 0]


def test_labels_are_optional(tmp_path):
    data = read_data(written(tmp_path, "csv"))
    assert data.labels is None
    assert data.class_indices(["a"]) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.xls", b"", "unknown format; give a file that ends in .csv"),
        ("texts.tsv", b"text\n", "holds no rows"),
        ("texts.tsv", b"", "texts.tsv: it is empty"),
        ("texts.csv", b"te\xffxt\n", "its header cannot be read"),
        ("texts.jsonl", b"[1]\n", "no JSON object in a line of its own"),
        ("texts.jsonl", b'{"text": ' + b"[" * 100_000, "no JSON object in a line"),
        ("texts.csv", b"text\n1\n2.5\n", "'text' of texts.csv holds numbers"),
        ("texts.parquet", b"PAR0", "is no Parquet file"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_data(DataSource(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", b"text,label,text\ngood,1,bad\n"),
        ("texts.tsv", b"text\tlabel\ttext\ngood\t1\tbad\n"),
    ],
)
def test_a_column_given_twice_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.* 'text' more than once"):
        read_data(DataSource(str(tmp_path / name)))


def test_a_parquet_column_given_twice_is_refused(tmp_path):
    path = tmp_path / "texts.parquet"
    table = pyarrow.table([["good"], ["bad"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match=r"texts\.parquet has the column 'text' more"):
        read_data(DataSource(str(path)))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_long_text_is_read(tmp_path, ending):
    """Longer than Python's csv takes by default, with a row behind it."""
    rows = [{"text": 'a, "b" ' * 20_000}, {"text": "good"}]
    read = read_data(written(tmp_path, ending, rows))
    assert read.texts == (rows[0]["text"], "good")
    assert csv.field_size_limit() == 131_072  # as other code may want it


def test_half_a_character_is_left_out(tmp_path):
    rows = [ROWS[0], {"text": "half \ud83d of it"}]
    [reason] = read_data(written(tmp_path, "jsonl", rows)).left_out.values()
    assert "half a character" in reason


@pytest.mark.parametrize("place", [10, 60, -200])
def test_a_corrupt_parquet_file_is_named(tmp_path, place):
    rows = [{"text": f"{row} some words that repeat"} for row in range(100)]
    source = written(tmp_path, "parquet", rows)
    content = bytearray((tmp_path / "texts.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    (tmp_path / "texts.parquet").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"texts\.parquet: it is (no Parquet file|damaged)"
    ):
        read_data(source)


@pytest.mark.parametrize(
    "name", ["missing.tsv", "missing.txt", "missing", "./a/b/c", "."]
)
def test_missing_file_is_refused_without_a_look_at_the_network(name):
    with pytest.raises(FileNotFoundError, match=r"is (not there|a folder)\. Give a"):
        read_data(DataSource(name))


def test_limit_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="limit=0"):
        read_data(written(tmp_path, "csv", limit=0))


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "texts.parquet"), ("datasets", "owner/name")]
)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, package, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"need {package}.*captum-attnflow\[tables\]"):
        read_data(DataSource(name))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": None}, "name=None is a NoneType; give a str"),
        ({"text_column": 3}, "text_column=3 is an int; give a str"),
        ({"label_column": 3}, "label_column=3 is an int; give a str, or None"),
        ({"limit": "9"}, "limit='9' must be an integer"),
        ({"input_format": "xlsx"}, "input_format='xlsx' is unknown; give one of 'csv'"),
    ],
)
def test_wrong_settings_are_refused_in_words(changed, message):
    with pytest.raises(ValueError, match=message):
        read_data(dataclasses.replace(DataSource("missing.csv"), **changed))


def test_standard_input_and_a_given_format_are_read(monkeypatch):
    piped = types.SimpleNamespace(buffer=io.BytesIO(b"a\ttext\n1\tso, so\n"))
    monkeypatch.setattr(sys, "stdin", piped)
    data = read_data(DataSource("-", input_format="tsv"))
    assert (data.texts, data.name) == (("so, so",), "standard input")
