from __future__ import annotations

import json

import pytest
import torch
from models import VOCABULARY, causal_language_model, numbers_tokenizer
from typer.testing import CliRunner

from captum_attnflow.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("generator")
    causal_language_model(VOCABULARY).save_pretrained(folder)
    numbers_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(folder):
    given = ("explain", "--task", "text-generation", "--model", folder)
    return lambda *arguments: CliRunner().invoke(app, [*given, *arguments])


def test_a_prompt_is_continued_and_every_step_is_a_row(run):
    found = json.loads(run("7 8 9", "--max-new-tokens", "3", "--json").stdout)
    assert found["prompt"] == "7 8 9"
    assert found["tokens"] == ["7", "8", "9", *found["generated_tokens"]]
    assert found["generated"].split() == found["generated_tokens"]
    assert [len(row) for row in found["scores"]] == [6, 6, 6]
    lines = run("7 8 9", "--max-new-tokens", "3").stdout.splitlines()
    assert lines[0] == f"7 8 9 | {found['generated']}"
    for step, (line, token) in enumerate(
        zip(lines[1::2], found["generated_tokens"], strict=True)
    ):
        assert line.split() == [f"{token}:", *found["tokens"][: 3 + step]]


def test_a_target_and_the_methods_options_are_taken(run):
    method = ("--method", "generalized-attention-flow", "--json")
    plain = json.loads(run("7 8", "--target", "11 12", *method).stdout)
    assert plain["generated_tokens"] == ["11", "12"]
    options = ("--residual", "free", "--game", "independent")
    free = json.loads(run("7 8", "--target", "11 12", *options, *method).stdout)
    assert free["scores"] != plain["scores"]
    shared = ("--normalization", "receptive-field", *method)
    normalised = json.loads(run("7 8", "--target", "11 12", *shared).stdout)
    assert normalised["scores"][1][0] == pytest.approx(plain["scores"][1][0] / 4)


def test_the_page_holds_the_matrix_of_every_prompt(run, tmp_path):
    page = tmp_path / "page.html"
    result = run("7 8", "9", "--target", "11 12", "--html", str(page))
    assert result.exit_code == 0, result.output
    content = page.read_text("utf-8")
    assert content.count('<table class="token-matrix">') == 2
    assert content.count("<th>11</th>") == 4  # a row and a column each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7", "--method", "slalom"), "method='slalom' does not serve this task"),
        (("7", "--max-new-tokens", "2000"), "longer than the 1024 positions"),
        ((" ",), "prompt 1 of 1 is empty"),
        (("7", "--output", "x.png"), "no picture for --output"),
    ],
)
def test_bad_input_is_told_in_a_sentence(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_model_must_be_given():
    result = CliRunner().invoke(app, ["explain", "7", "--task", "text-generation"])
    assert result.exit_code == 2
    assert "give --model" in " ".join(result.stderr.split())
