from __future__ import annotations

import pytest
from score_folders import explained, random_rows, write_folder
from typer.testing import CliRunner

from captum_attnflow.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["summarize", *map(str, arguments)])


def test_the_files_are_written_beside_the_scores(tmp_path):
    folder = write_folder(tmp_path / "scores", random_rows(40), method="mine")
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("mine  texts 40, explained 40")
    assert result.stdout.endswith(f"{folder / 'summary' / 'summary.html'}\n")
    assert {path.name for path in (folder / "summary").iterdir()} == {
        *("summary.html", "words.csv"),
        *("words.png", "words.svg", "positions.png", "positions.svg"),
    }
    again = run(folder)
    assert (again.exit_code, again.stdout) == (0, result.stdout)


def test_folders_are_compared_with_options(tmp_path):
    rows = [explained(n, ["so", "good"], [1, 2], gold="pos") for n in range(3)]
    folders = [
        write_folder(tmp_path / name, rows, method=name) for name in ("one", "other")
    ]
    options = ("--label-column", "gold", "--top", 1, "--min-texts", 3)
    result = run(*folders, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "for     good +66.7 % (3)\n" in result.stdout
    assert "0 of 3 texts predicted otherwise than gold says" in result.stdout
    assert "agreement on 3 texts" in result.stdout
    assert (tmp_path / "out" / "agreement.svg").exists()
    assert not (tmp_path / "one" / "summary").exists()


def test_too_few_texts_are_said_once_with_what_to_do(tmp_path):
    rows = [
        explained(0, ["so", "good"], [1, 2], target="pos"),
        explained(1, ["so", "dull"], [1, 2], target="neg"),
        explained(2, ["so", "dull"], [1, 2], target="neg"),
    ]
    folder = write_folder(tmp_path / "scores", rows)
    result = run(folder)
    assert result.stdout.count("no word") == 1
    said = "no word is in at least 5 texts of neg or pos: explain more texts, or count"
    assert said in result.stdout
    result = run(folder, "--min-texts", 2)
    assert (
        "no word is in at least 2 texts of pos: explain more texts\n" in result.stdout
    )
    assert "  against no word whose interval lies on this side of 0\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "'nowhere' is not there; give a folder that"),
        (("scores", "--label-column", "gold"), "--label-column='gold' is no column"),
        (("scores", "--top", 0), "top=0 must be an integer of at least 1"),
        (("scores", "scores"), "given more than once"),
    ],
)
def test_bad_input_is_told_in_a_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "scores", random_rows(10))
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr or message in result.stderr
    assert "Traceback" not in result.output
