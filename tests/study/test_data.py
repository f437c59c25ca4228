from __future__ import annotations

import builtins
import csv
import hashlib
import json
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

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
def test_empty_text_is_named_by_its_row(tmp_path, ending, empty):
    rows = [ROWS[0], {"text": empty, "label": "1"}]
    with pytest.raises(ValueError, match=r"row 2 of .* has no text in 'text'"):
        read_data(written(tmp_path, ending, rows))


def test_short_line_of_a_table_is_a_row_without_text(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("label\ttext\n1\tgood\n1\n")
    with pytest.raises(ValueError, match="row 2 of"):
        read_data(DataSource(str(path)))


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
    assert data.rows == tuple(int(label) + 1 for label in data.labels)


def test_label_outside_the_classes_is_named_by_its_row(tmp_path):
    data = read_data(written(tmp_path, "csv", label_column="label"))
    with pytest.raises(ValueError, match=r"label 'positive' of row 1.*\['a', 'b'\]"):
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
        ("texts.tsv", b"", "holds no rows"),
        ("texts.tsv", b"text\n\xff\xfe\n", "is no UTF-8 tsv file"),
        ("texts.csv", b'text\n"open\n', "line 2 of .* is no csv: unexpected end"),
        ("texts.csv", b"text\na , b\n", "line 2 of .* has more cells than .*'text'"),
        ("texts.tsv", b"text\tlabel\na\tb\t1\n", "line 2 of .* has more cells"),
        ("texts.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 of .* is no JSON"),
        ("texts.jsonl", b"[1]\n", "line 1 of .* is no JSON object"),
        ("texts.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 .*nested too deeply"),
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
        ("texts.jsonl", b'{"text": "good", "label": 1, "text": "bad"}\n'),
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


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_cell_over_the_limit_is_named_as_such(tmp_path, ending):
    rows = [ROWS[0], {"text": "a" * 131_073, "label": "1"}]
    with pytest.raises(ValueError, match=r"line 3 of .*131,?072.*\.jsonl") as raised:
        read_data(written(tmp_path, ending, rows))
    assert "UTF-8" not in str(raised.value)


def test_a_long_text_is_read_from_jsonl(tmp_path):
    rows = [{"text": "a" * 131_073}]
    assert read_data(written(tmp_path, "jsonl", rows)).texts == (rows[0]["text"],)


def test_half_a_character_is_named_by_its_row(tmp_path):
    rows = [ROWS[0], {"text": "half \ud83d of it"}]
    with pytest.raises(ValueError, match=r"row 2 of .*'half \\ud83d of it'.*no UTF-8"):
        read_data(written(tmp_path, "jsonl", rows))


@pytest.mark.parametrize("place", [10, 60, -200])
def test_a_corrupt_parquet_file_is_named(tmp_path, place):
    rows = [{"text": f"{row} some words that repeat"} for row in range(100)]
    source = written(tmp_path, "parquet", rows)
    content = bytearray((tmp_path / "texts.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    (tmp_path / "texts.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"texts\.parquet is no Parquet file"):
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


def test_data_set_of_the_hub_is_asked_for_by_name_subset_and_split(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return ROWS[len(asked) - 1 :]

    stand_in = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    source = DataSource("nyu-mll/glue", split="validation", subset="sst2")
    data = read_data(source)
    assert asked == [(("nyu-mll/glue", "sst2"), {"split": "validation"})]
    assert data.texts == tuple(row["text"] for row in ROWS)
    changed = read_data(DataSource("nyu-mll/glue"))
    assert data.sha256 != changed.sha256


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "texts.parquet"), ("datasets", "owner/name")]
)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, package, name):
    original = builtins.__import__

    def without(module, *rest):
        if module.split(".")[0] == package:
            raise ImportError(f"no {module}")
        return original(module, *rest)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.parquet").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"need {package}.*captum-attnflow\[study\]"):
        read_data(DataSource(name))
