from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from captum_attnflow.cli import app

METHODS = ("--method", "random", "--method", "attention-rollout")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("sentence,label\ndull,0\na funny film,positive\n")
    return path


@pytest.fixture
def run(texts, tmp_path):
    def run(*arguments, data=texts, output=tmp_path / "out"):
        given = ["study", "--data", data, "--output", output, *arguments]
        return CliRunner().invoke(app, list(map(str, given)))

    return run


def test_main_job_prints_the_table_and_writes_the_files(run, tmp_path):
    result = run("--text-column", "sentence", *METHODS, "--against", "random")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("| model | removal | method | aopc ↑ |")
    assert "| sentiment | delete | attention-rollout |" in result.stdout
    assert "4/4" in result.stderr
    written = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert written == {
        *("manifest.json", "plot.png", "results.jsonl"),
        *("table.csv", "table.md", "table.tex"),
    }
    assert (tmp_path / "out" / "table.md").read_text().strip() == result.stdout.strip()


def test_it_says_where_the_results_are_and_what_was_there(run, tmp_path):
    given = ("--text-column", "sentence", "--limit", 1, *METHODS)
    where = tmp_path / "out"
    assert f"2 attributions: {where}" in run(*given).stderr
    assert f"2 attributions, 2 of them from before: {where}" in run(*given).stderr


def test_options_reach_the_study(run, tmp_path):
    result = run(
        *("--text-column", "sentence", "--label-column", "label", "--limit", 1),
        *("--metric", "deletion_area", "--removal", "delete", "--seed", 3),
        *("--reference-token", "pad", "--batch-size", 2, *METHODS),
    )
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["data"]["n_texts"] == 1
    assert manifest["settings"] == {
        "metrics": ["deletion_area"],
        "removals": ["delete"],
        "reference_token": "pad",
        "seed": 3,
        "batch_size": 2,
    }
    assert list(manifest["methods"]) == ["random", "attention-rollout"]
    assert manifest["results"]["accuracy"] == {"sentiment": 1.0}


def test_default_methods_run(run):
    result = run("--text-column", "sentence", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "layer-integrated-gradients" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--label-column", "k", "--text-column", "text"),
            "no column 'text'; it has 'sentence', 'label'; give one by --text-column=",
        ),
        (("--method", "lie"), "method='lie' is unknown; give one of"),
        (("--text-column", "sentence", "--model", "/no/such"), "there is no model"),
        (("--text-column", "sentence", "--label-column", "sentence"), "label 'dull'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", "")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "lie"), "--method='lie' is unknown; give one of"),
        (("--method", "random", "--method", "random"), "--method=('random', 'random')"),
        (("--against", "lime"), "--against='lime' is not among the methods"),
        (("--batch-size", 0), "--batch-size=0 must be"),
        (("--limit", 0), "--limit=0 must be"),
        (("--workers", 2), "--workers=2 and --gpus-per-worker=0.0 are of Ray"),
        (("--part", "x"), "--part='x' is no part"),
        (("--input-format", "xlsx"), "--input-format='xlsx' is unknown"),
    ],
)
def test_options_are_named_as_they_were_given(run, tmp_path, arguments, message):
    result = run("--text-column", "sentence", *arguments)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_broken_rows_are_left_out_and_counted(run, texts, tmp_path):
    texts.write_text(texts.read_text() + " ,0\nfew\nso sad,1\n")
    result = run("--text-column", "sentence", "--label-column", "label", *METHODS)
    assert result.exit_code == 0, result.output
    assert (
        "warning: 2 rows of texts.csv left out, by reason: 1: the text is blank; 1: "
        "the line has fewer cells than the header names; manifest.json names the rows"
    ) in result.stderr.replace("\n", " ")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [row["row"] for row in manifest["results"]["left_out"]] == [2, 3]
    assert manifest["data"]["n_texts"] == 3


def test_unwritable_output_is_told(run, texts):
    result = run(output=texts / "out")
    assert result.exit_code == 2
    assert "error: results cannot be written to the folder" in result.stderr


def test_a_folder_for_data_and_a_page_on_a_full_disk_are_told(
    run, tmp_path, monkeypatch
):
    assert "is a folder" in run(data=tmp_path).stderr.replace("\n", "")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run("--text-column", "sentence", *METHODS)
    assert result.exit_code == 2
    assert "manifest.json cannot be written: No space left" in result.stderr


def test_failures_are_told_at_the_end(run, monkeypatch):
    from captum_attnflow.study import METHODS as TABLE
    from captum_attnflow.study import Method

    def fail(batch):
        raise RuntimeError("on purpose")

    monkeypatch.setitem(TABLE, "broken", Method(fail, "always fails"))
    result = run("--text-column", "sentence", "--method", "broken")
    assert result.exit_code == 0
    assert "warning: 2 attributions failed" in result.stderr


def test_parts_say_what_is_missing_and_the_last_shows_the_table(run, tmp_path):
    arguments = ("--text-column", "sentence", "--batch-size", 1, *METHODS)
    first = run(*arguments, "--part", "1/2")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "part 1/2 is done" in first.stderr.replace("\n", " ")
    assert not (tmp_path / "out" / "table.md").exists()
    last = run(*arguments, "--part", "2/2", "--dtype", "float32", "--device", "cpu")
    assert last.exit_code == 0, last.output
    assert "| sentiment | delete | attention-rollout |" in last.stdout
    refused = run(*arguments, "--part", "3/2")
    assert refused.exit_code == 2
    assert "part 3/2 is out of range" in refused.stderr
