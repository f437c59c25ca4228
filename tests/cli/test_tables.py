from __future__ import annotations

import json
import os
import re
import struct
import time

import pytest
from pyarrow import parquet
from typer.testing import CliRunner
from warm_processes import run_command, start_command

from captum_attnflow.cli import app

ROLLOUT = ("--method", "attention-rollout")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("key,sentence,gold\na,dull,0\nb,,1\nc,a funny film,1\n")
    return path


@pytest.fixture
def run(texts, tmp_path):
    def run(*arguments, data=texts, output=tmp_path / "scores", **options):
        given = ["explain", "--data", data, "--text-column", "sentence", *ROLLOUT]
        if output is not None:
            given += ["--output", output]
        return CliRunner().invoke(app, list(map(str, [*given, *arguments])), **options)

    return run


def test_main_job_writes_a_table_and_says_what_failed(run, tmp_path):
    result = run("--id-column", "key", "--columns", "gold,key")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "3 rows in 1 part file: " in result.stderr
    assert "1 row without an explanation, by reason:" in result.stderr
    assert "1: the text is blank" in result.stderr
    [first, blank, last] = parquet.read_table(
        tmp_path / "scores" / "part-000000.parquet"
    ).to_pylist()
    assert (first["id"], first["gold"], first["key"]) == ("a", "0", "a")
    assert first["target"] == "negative"
    assert (blank["status"], blank["reason"]) == ("failed", "the text is blank")
    assert last["tokens"] == ["[CLS]", "a", "funny", "film", "[SEP]"]


def test_options_reach_the_run(run, tmp_path):
    result = run(
        *("--format", "jsonl", "--limit", 2, "--shuffle-seed", 4, "--target", 1),
        *("--rows-per-part", 1, "--batch-size", 2, "--part", "2/2"),
        *("--residual", "0.25"),
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "scores"
    assert [path.name for path in folder.glob("part-*")] == ["part-000001.jsonl"]
    manifest = json.loads((folder / "manifest.json").read_text())
    given = ("limit", "shuffle_seed", "target", "rows_per_part", "batch_size")
    assert [manifest[name] for name in given] == [2, 4, "1", 1, 2]
    assert manifest["options"] == {"residual": 0.25}


def test_auto_asks_the_launcher(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run("--part", "auto", "--rows-per-part", 1).exit_code == 0
    names = [path.name for path in (tmp_path / "scores").glob("part-*")]
    assert names == ["part-000001.parquet"]


def test_standard_input_is_a_table(tmp_path):
    output = tmp_path / "scores"
    finished = CliRunner().invoke(
        app,
        ["explain", "--data", "-", "--output", str(output), *ROLLOUT],
        input=b'{"text": "so sad"}\n{"text": "\xff"}\n',
    )
    assert finished.exit_code == 0
    assert "2 rows" in finished.stderr
    lines = parquet.read_table(output / "part-000000.parquet").to_pylist()
    assert [line["status"] for line in lines] == ["explained", "failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "a.txt"], "--file does not go with --data"),
        (["so sad"], "a text does not go with --data"),
        (["--json"], "--json does not go with --data"),
        (["--device", "nowhere"], "device='nowhere' is not to be had here"),
        (["--truncation", "middle"], "truncation='middle'"),
        (["--against", "bored"], "--against='bored' is unknown"),
        (["--html", "page.html"], "--html does not go with --data"),
        (
            ["--task", "image-classification"],
            "task='image-classification' is unknown; give one",
        ),
        (["--text-column", "missing"], "no column 'missing'; it has 'key', 'sentence'"),
        (["--text-column", "gold"], "'gold' of texts.csv holds numbers"),
        (["--columns", "status"], "'status' cannot be carried along"),
        (["--part", "3/2"], "part 3/2 is out of range"),
        (["--part", "auto"], "no launcher set RANK and WORLD_SIZE"),
        (["--workers", "2"], "give --engine ray"),
        (["--target", "neutral"], "target='neutral' is unknown"),
    ],
)
def test_bad_input_is_an_error_in_words(run, tmp_path, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "scores").exists()


def test_the_folder_has_to_be_given_and_be_one(run, texts):
    result = run(output=None)
    assert (result.exit_code, "--data needs --output" in result.stderr) == (2, True)
    result = run(output=texts)
    assert (result.exit_code, "for --data give a folder" in result.stderr) == (2, True)


def test_ray_that_is_not_installed_is_named(run, monkeypatch):
    from captum_attnflow.runs import sharing

    monkeypatch.setattr(sharing, "find_spec", lambda name: None)
    result = run("--engine", "ray", "--format", "csv")
    assert result.exit_code == 2
    assert 'pip install "captum-attnflow[ray]"' in result.stderr


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_not_read_as_lines(ending):
    given = ["explain", "--file", f"tickets.{ending}"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert f"give --data tickets.{ending} --text-column NAME" in result.stderr


def test_options_of_tables_need_a_table():
    result = CliRunner().invoke(app, ["explain", "so sad", "--text-column", "text"])
    assert result.exit_code == 2
    assert "--text-column is of tables; give one by --data" in result.stderr


def test_a_bar_shows_rows_a_second_and_the_time_left_on_a_terminal(texts, tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    size = struct.pack("4H", 24, 120, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    command = ["explain", "--data", texts, "--text-column", "sentence", *ROLLOUT]
    command += ["--output", tmp_path / "scores"]
    process = start_command(command, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 1 << 16):
            shown += block
    except OSError:  # what a terminal says at its end
        pass
    os.close(ours)
    process.join()
    assert process.exitcode == 0
    # A machine that takes more than a second for a row is shown as seconds a row.
    rate = rb"[0-9.]+(row/s|s/row)"
    assert re.search(rb"explaining: 100%%.* 3/3 \[\d\d:\d\d<00:00, +%b\]" % rate, shown)


def test_a_file_that_has_no_room_is_named_and_nothing_is_lost(run, texts, tmp_path):
    pytest.importorskip("resource")
    output = tmp_path / "scores"
    command = ["explain", "--data", texts, "--text-column", "sentence", *ROLLOUT]
    # Room for the manifest.
    status, said = run_command([*command, "--output", output], most_bytes=2000)
    assert status == 2
    assert re.search(r"part-000000\.parquet cannot be written: File too", said)
    assert not list(output.glob("part-*"))
    assert run().exit_code == 0
    assert len(parquet.read_table(output / "part-000000.parquet")) == 3


def test_two_runs_at_once_do_not_mix(texts, tmp_path):
    output = tmp_path / "scores"
    texts.write_text("sentence\n" + "a long and sad film\n" * 20_000)
    command = ["explain", "--data", texts, "--text-column", "sentence"]
    command += ["--output", output]
    first = start_command(command)
    try:
        for _ in range(600):
            if (output / "manifest.json").exists():
                break
            time.sleep(0.1)
        status, said = run_command(command)
        assert first.exitcode is None
    finally:
        first.kill()
        first.join()
    assert status == 2
    assert "another run writes part 1/1" in said
