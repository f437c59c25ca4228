from __future__ import annotations

import datetime
import io
import json
import socket
import sys
import types
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from captum_attnflow.runs.data import Source, open_data
from captum_attnflow.runs.readers import LONGEST_LINE
from captum_attnflow.tables import TableJob

NO_UTF_8 = "the text is no UTF-8, or holds half a character (a lone surrogate)"


@pytest.fixture
def read(tmp_path):
    """Write a file and read its rows."""

    def read(name, content, **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        job = TableJob(str(path), tmp_path / "out", **settings)
        return list(open_data(job.source).rows())

    return read


def test_every_format_holds_the_same_rows(tmp_path, read):
    settings = {"id_column": "k", "columns": ("gold",), "pair_column": "b"}
    content = [("1", "so funny", "it is", "x"), ("2", 'a "b", ü', "no", "y")]
    names = ("k", "text", "b", "gold")
    as_dicts = [dict(zip(names, row, strict=True)) for row in content]
    table = pyarrow.Table.from_pylist(as_dicts)
    parquet.write_table(table, tmp_path / "made")
    csv = 'k,text,b,gold\n1,so funny,it is,x\r\n2,"a ""b"", ü",no,y\n'
    written = {
        "a.csv": csv,
        "a.tsv": "\n".join("\t".join(row) for row in [names, *content]),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in as_dicts),
        "a.parquet": (tmp_path / "made").read_bytes(),
    }
    found = [read(name, text, **settings) for name, text in written.items()]
    assert found[0] == found[1] == found[2] == found[3]
    assert [(r.number, r.id, r.text, r.text_pair, *r.carried) for r in found[0]] == [
        (number, *row) for number, row in enumerate(content)
    ]
    assert all(row.fault is None for row in found[0])


def test_broken_lines_of_csv_take_no_other_with_them(read):
    rows = read(
        "a.csv",
        b'text,n\n"not closed,1\ngood,2\nfew\n\nmany,3,4\n\xff,5\n'
        b'"two\nlines",6\n"closed"twice,7\nlast,8\n"open,9\n',
    )
    assert [(row.text, row.fault and row.fault.split(":")[0]) for row in rows] == [
        (None, "the line cannot be read"),
        ("good", None),
        (None, "the line has fewer cells than the header names"),
        (None, "the line is blank"),
        (None, "the line has more cells than the header names"),
        (
            "\ufffd",
            "the text is no UTF-8, or holds half a character (a lone surrogate)",
        ),
        ("two\nlines", None),
        (None, "the line cannot be read"),
        ("last", None),
        (None, "the line cannot be read"),
    ]


@pytest.mark.parametrize(
    ("header", "lines", "ids"),
    [
        ("k,text", ["7,a,b", "8", '9,"open', '"open,10'], ["7", "8", "9", "row 3"]),
        ("text,k", ["a,b,7", "8", '"open",9', "", "a,"], ["7", "row 1", "9", *"3", ""]),
        ("text,k,n", ["a,b,7,1", '"open,8,1'], ["7", "row 1"]),
        ("n,k,text", ["1,7,a,b", '1,8,"open'], ["7", "8"]),
        ("text,k,b", ["a,7,b,c"], ["row 0"]),
    ],
)
def test_a_broken_line_of_csv_keeps_its_id_or_gets_its_number(read, header, lines, ids):
    """A stray separator within a text moves what is right of it."""
    rows = read(
        "a.csv",
        "\n".join([header, *lines]) + "\n",
        id_column="k",
        pair_column="b" if header.endswith("b") else None,
    )
    found = [row.id for row in rows]
    assert found == [name if name != "3" else "row 3" for name in ids]
    assert [row.number for row in rows] == list(range(len(lines)))


def test_a_broken_line_of_jsonl_gets_its_number(read):
    rows = read("a.jsonl", '{"text": "a", "k": 5}\n{"te\n', id_column="k")
    assert [row.id for row in rows] == ["5", "row 1"]
    assert [row.id for row in read("a.jsonl", '{"text": "a"}\n{"te\n')] == [None] * 2


def test_blank_lines_of_one_column_are_blank_texts(read):
    assert [row.fault for row in read("a.csv", "text\ngood\n\ngood\n")] == [
        None,
        "the text is blank",
        None,
    ]


def test_broken_lines_of_jsonl_take_no_other_with_them(read):
    rows = read(
        "a.jsonl",
        b'{"text": "good"}\n\n{"text": 5}\n{"text": null}\n{"other": "x"}\n[1]\n{"te\n'
        b'{"text": "\\ud800"}\n{"text": "\xff"}\n{"text": " "}\n{"text": "end"}',
    )
    assert [row.fault for row in rows] == [
        None,
        "the line is blank",
        "the text is of type int",
        "there is no text",
        "there is no text",
        "the line is no JSON object",
        "the line is no JSON",
        *[NO_UTF_8] * 2,
        "the text is blank",
        None,
    ]
    assert rows[2].text == "5"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"text": "a", "text": "b"}', "'text'"),
        ('{"text": "a", "more": {"b": 1, "b": 1}}', "'b'"),
        (r'{"text": "a", "\ud800": 1, "\ud800": 1}', r"'\ud800'"),
    ],
)
def test_a_key_that_stands_twice_is_named(read, line, key):
    rows = read("a.jsonl", f'{line}\n{{"text": "good"}}\n')
    assert [row.fault for row in rows] == [f"the line names the key {key} twice", None]


def test_a_line_without_end_is_passed_over(read):
    long = json.dumps({"text": "x" * LONGEST_LINE})
    rows = read("a.jsonl", f'{long}\n{{"text": "good"}}\n')
    assert [row.fault for row in rows] == [
        f"the line is longer than {LONGEST_LINE:,} characters",
        None,
    ]


def test_a_long_cell_of_csv_is_told_from_a_quote_that_is_not_closed(read):
    long, lines = "a " * 70_000, "b\n" * 70_000
    rows = read("a.csv", f'n,text\n1,{long}\n2,"{long}\n3,c\n4,"{lines}"\n5,d\n')
    assert [row.text for row in rows[:1]] == [long]
    found = {row.number: row.fault for row in rows if row.fault is not None}
    # The quote takes no row with it, nor do lines that are rows of their own.
    assert [row.text for row in rows if row.fault is None] == [long, "c", "d"]
    assert "longer than 131,072 characters, or its quote is not closed" in found[1]
    assert "longer than 131,072 characters, or its quote is not closed" in found[3]
    [row] = read("b.csv", "n,text\n1," + "a" * LONGEST_LINE)
    assert row.fault == f"the line is longer than {LONGEST_LINE:,} characters"


def test_bytes_of_parquet_that_are_no_utf_8_break_their_row_alone(tmp_path):
    bad = pyarrow.array([b"good", b"\xff", None], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(3, *bad.buffers()[1:], bad.buffers()[0])
    for kind in ("plain", "numbered"):
        made = column.dictionary_encode() if kind == "numbered" else column
        path = tmp_path / f"{kind}.parquet"
        parquet.write_table(pyarrow.table({"text": made}), path)
        job = TableJob(str(path), tmp_path / "out")
        found = [(row.text, row.fault is None) for row in open_data(job.source).rows()]
        assert found == [("good", True), ("\ufffd", False), (None, False)]


def test_carried_columns_have_one_kind(read, tmp_path):
    lines = [
        {"text": "a", "i": 1, "f": 1, "s": "x", "b": True, "m": 1, "big": 2**70},
        {"text": "b", "i": None, "f": 0.5, "s": None, "b": False, "m": ["x"]},
    ]
    content = "\n".join(map(json.dumps, lines))
    names = ("i", "f", "s", "b", "m", "big")
    first, second = read("a.jsonl", content, columns=names)
    assert first.carried == (1, 1.0, "x", True, "1", str(2**70))
    assert second.carried == (None, 0.5, None, False, '["x"]', None)
    job = TableJob(str(tmp_path / "a.jsonl"), tmp_path / "out", columns=names)
    assert open_data(job.source).kinds == {
        "i": "int64",
        "f": "double",
        "s": "string",
        "b": "bool",
        "m": "json",
        "big": "json",
    }


def test_types_of_parquet_are_carried_as_they_are(tmp_path):
    day = datetime.date(2020, 5, 1)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"], "day": [day]}), path)
    job = TableJob(str(path), tmp_path / "out", columns=("day",))
    data = open_data(job.source)
    assert data.kinds == {"day": pyarrow.date32()}
    assert next(data.rows()).carried == (day,)


def test_standard_input_is_read_as_what_it_begins_with(monkeypatch, tmp_path):
    job = TableJob("-", tmp_path / "out")
    for content, kind in ((b'{"text": "a"}\n', "jsonl"), (b"text\na\n", "csv")):
        piped = types.SimpleNamespace(buffer=io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", piped)
        data = open_data(job.source)
        assert (data.format, data.n_rows) == (kind, 1)
        assert [row.text for row in data.rows()] == ["a"]
        assert [row.text for row in data.rows()] == ["a"]  # and again
    monkeypatch.setattr(
        sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a\ttext\n1\tso, so\n"))
    )
    given = replace(job, input_format="tsv")
    assert [row.text for row in open_data(given.source).rows()] == ["so, so"]


def test_a_data_set_of_the_hub_is_streamed_at_one_commit(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    class Stream(list):
        info = types.SimpleNamespace(splits=None)
        features = None

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return Stream([{"text": "a", "gold": 1}, {"text": 3, "gold": None}])

    online = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    library = types.SimpleNamespace(load_dataset=load_dataset, config=online)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr(
        huggingface_hub, "dataset_info", lambda name: types.SimpleNamespace(sha="c0")
    )
    job = TableJob("owner/name", tmp_path / "out", columns=("gold",), subset="en")
    data = open_data(job.source)
    assert (data.hash, data.n_rows, data.kinds) == ("c0", 2, {"gold": "int64"})
    rows = list(data.rows())
    assert [(row.text, row.fault) for row in rows] == [
        ("a", None),
        ("3", "the text is of type int"),
    ]
    options = {"split": "test", "revision": "c0", "streaming": True}
    assert asked[0] == (("owner/name", "en"), options)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE=1, a cache with the data set owner/name, and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def connect(*arguments):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    folder = tmp_path / "owner___name" / "en" / "0.0.0" / "c0ffee"
    folder.mkdir(parents=True)
    table = pyarrow.table({"text": ["so funny", "dull", None]})
    with pyarrow.ipc.new_stream(folder / "name-test.arrow", table.schema) as writer:
        writer.write_table(table)
    split = {"name": "test", "num_examples": 3, "num_bytes": 9, "dataset_name": "name"}
    info = {
        "config_name": "en",
        "dataset_name": "name",
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": {"test": split},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("subset", ["en", None])
def test_a_cached_data_set_is_read_offline(subset):
    data = open_data(Source("owner/name", "text", subset=subset))
    assert (data.hash, data.format, data.n_rows) == ("c0ffee", "hub", 3)
    found = [(row.text, row.fault) for row in data.rows()]
    faults = [None, None, "there is no text"]
    assert found == list(zip(["so funny", "dull", None], faults, strict=True))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["owner/other", "owner/name"])
def test_what_is_not_cached_is_refused_offline(name):
    source = Source(name, "text", split="train")
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE=1 asks for .* give a file"):
        open_data(source)


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        (
            "a.csv",
            "words,n\nx,1\n",
            {},
            "no column 'text'; it has 'words', 'n'",
        ),
        ("a.jsonl", '{"a": 1}\n', {}, "a.jsonl has no column 'text'; it has 'a'"),
        ("a.csv", "text,n\nx,1\n", {"id_column": "k"}, "no column 'k'"),
        ("a.csv", "text,n\nx,1\n", {"columns": ("k",)}, "no column 'k'"),
        ("a.csv", "text,text\nx,1\n", {}, "more than once"),
        (
            "a.csv",
            "text,n\nx,1\ny,2\n",
            {"text_column": "n"},
            "'n' of a.csv holds numbers .*give a column of texts: there are 'text'",
        ),
        ("a.jsonl", '{"text": 1}\n{"text": 2.5}\n', {}, "holds numbers"),
        ("a.csv", "", {}, "a.csv: it is empty"),
        ("a.csv", "text\n", {}, "holds no rows"),
        ("a.csv", b"te\xffxt\n", {}, "header cannot be read"),
        ("a.jsonl", "", {}, "holds no rows"),
        ("a.parquet", "PAR1", {}, "is no Parquet file"),
        ("a.txt", "text\n", {}, "unknown format; give a file that ends in .csv"),
    ],
)
def test_wrong_tables_are_refused_in_words(read, name, content, settings, message):
    with pytest.raises(ValueError, match=message):
        read(name, content, **settings)


def test_a_column_of_numbers_in_parquet_is_refused_by_its_type(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"], "n": [1]}), path)
    with pytest.raises(ValueError, match=r"'n' of a.parquet holds int64.*give one of"):
        open_data(TableJob(str(path), tmp_path, text_column="n").source)


@pytest.mark.parametrize("name", ["missing.csv", "missing", "a/b/c"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"is not there\. Give a file"):
        open_data(TableJob(name, tmp_path).source)
