"""Tables as they come: each ends in words and with the right exit status."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from captum_attnflow.cli import app

TABLE = "text,label\na funny film,1\nso sad,0\n"
OF_COMMAND = {
    "explain": ("--method", "attention-rollout", "--format", "jsonl"),
    "study": ("--method", "random", "--metric", "comprehensiveness"),
}


@pytest.fixture(params=OF_COMMAND)
def run(request, tmp_path):
    """Give a file of bytes to explain --data, and to study."""

    def run(name, content):
        path = tmp_path / name
        if isinstance(content, pyarrow.Table):
            parquet.write_table(content, path)
        elif content is not None:
            path.write_bytes(content)
        given = [request.param, "--data", path, "--output", tmp_path / "out"]
        given += OF_COMMAND[request.param]
        return CliRunner().invoke(app, list(map(str, given)))

    return run


UTF_8 = 'is read as text in UTF-8; save it as such, which spreadsheets call "CSV UTF-8"'
SEPARATED = "names look separated by {!r}. Write it with commas as .csv, or with tabs"
REFUSED = {
    "utf-16.csv": (TABLE.encode("utf-16"), f"text in UTF-16, and {UTF_8}"),
    "no-mark.csv": (TABLE.encode("utf-16-be"), f"text in UTF-16, and {UTF_8}"),
    "utf-16.jsonl": ('{"text": "so"}'.encode("utf-16"), f"text in UTF-16, and {UTF_8}"),
    "utf-32.csv": (TABLE.encode("utf-32"), f"text in UTF-32, and {UTF_8}"),
    "latin-1.csv": ("text,é\na,b\n".encode("latin-1"), "UTF-8"),
    "zipped.csv": (gzip.compress(TABLE.encode()), f"a gzip archive, and {UTF_8}"),
    "sheet.csv": (b"PK\x03\x04\x14\x00\x06\x00", "and spreadsheets (.xlsx) write, and"),
    "semicolons.csv": (
        TABLE.replace(",", ";").encode(),
        "no column 'text': its header was read as the one column 'text;label', whose "
        + SEPARATED.format(";"),
    ),
    "tabs.csv": (TABLE.replace(",", "\t").encode(), SEPARATED.format("\t")),
    "commas.tsv": (TABLE.encode(), SEPARATED.format(",")),
    "spaces.csv": (
        b"label, text\n1, sad\n",
        "'label', ' text'; give --text-column=' text'",
    ),
    "capitals.csv": (b"Text,label\nsad,1\n", "'label'; give --text-column='Text'"),
    "twice.csv": (b"text,text\na,b\n", "column 'text' more than once; rename or"),
    "no-header.csv": (b"so sad,1\nfunny,0\n", "it has 'so sad', '1'"),
    "empty.csv": (b"", "give "),
    "blank.csv": (b"\n\n", "give "),
    "header.csv": (b"text,label\n", "holds no rows; give at least one text"),
    "header-only.csv": (b"text,label", "holds no rows; give at least one text"),
    "empty.jsonl": (b"", "holds no rows; give at least one text"),
    "array.jsonl": (b'[{"text": "so sad"}]', "JSON object"),
    "empty.parquet": (
        pyarrow.table({"text": pyarrow.array([], pyarrow.string())}),
        "holds no rows; give at least one text",
    ),
    "false.parquet": (b"PAR1 and nothing", "is no Parquet file, or damaged"),
    "lines.txt": (b"so sad\n", "of an unknown format; give a file that ends in .csv"),
    "missing.csv": (None, "missing.csv' is not there. Give a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_of_texts_is_refused_in_words(run, tmp_path, name):
    content, message = REFUSED[name]
    result = run(name, content)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert name in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["texts.CSV", "texts.tsv", "texts.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_table(run, tmp_path, name, mark):
    table = TABLE if name == "texts.CSV" else TABLE.replace(",", "\t")
    if name == "texts.jsonl":
        table = '{"text": "a funny film"}\n{"text": "so sad"}\n'
    result = run(name, mark + table.encode())
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr


def test_rows_of_one_id_are_all_explained(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("id,text\nx,so sad\nx,a funny film\n,dull\n")
    given = ["explain", "--data", path, "--id-column", "id", "--output"]
    given += [tmp_path / "out", *OF_COMMAND["explain"]]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "part-000000.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["row"], row["id"]) for row in rows] == [(0, "x"), (1, "x"), (2, "")]


def test_parquet_leaves_no_file_open(tmp_path):
    path = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.table({"text": [None, "so sad"]}), path)
    given = ["explain", "--data", path, "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, [*given, *OF_COMMAND["explain"]])))
    assert result.exit_code == 0, result.output
    assert "unclosed" not in result.stderr
    assert "1 row without an explanation, by reason:" in result.stderr


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfso sad\n")
    given = ["explain", "--file", str(path), "--json", "--method", "attention-rollout"]
    result = CliRunner().invoke(app, given)
    assert json.loads(result.stdout)["text"] == "so sad"
    path.write_bytes("so sad\n".encode("utf-16"))
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "texts.txt is not UTF-8" in result.stderr
    assert "; save it as UTF-8" in result.stderr
