from __future__ import annotations

import json
import re

import pytest
import torch
from models import VOCABULARY, causal_language_model, numbers_tokenizer
from typer.testing import CliRunner

from captum_attnflow.cli import app
from captum_attnflow.demo import load_demo_model


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
    assert lines[1].startswith("relevance-flow, logit of each generated token; the ")
    for step, (line, token) in enumerate(
        zip(lines[2:8:2], found["generated_tokens"], strict=True)
    ):
        seen = found["tokens"][: 3 + step]
        seen.insert(3, "|")
        assert line.split() == [f"{token}:", *(seen if step else seen[:3])]
    assert lines[8].startswith("whole answer: ")


@pytest.fixture(scope="module")
def run_with_pieces(tmp_path_factory):
    """Of a tokenizer that has pieces of words."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pieces")
    _, tokenizer = load_demo_model()
    causal_language_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = ("explain", "--task", "text-generation", "--model", str(folder))
    return lambda *arguments: CliRunner().invoke(app, [*given, *arguments])


def test_columns_are_words_unless_pieces_are_asked_for(run_with_pieces):
    given = ["an unfathomable film", "--target", "film"]
    # Signs are those of random weights.
    words, pieces, units = (
        run_with_pieces(*given, *more).stdout.replace("\N{MINUS SIGN}", "")
        for more in ([], ["--pieces"], ["--pieces", "--units", "line"])
    )
    assert " unfathomable " in words.splitlines()[2]
    assert " unfathomable " not in pieces.splitlines()[2]
    assert " an unfathomable film " in units.splitlines()[2]


def test_what_rows_and_columns_are_is_said_where_they_differ(run_with_pieces):
    def caption(*options):
        given = ("an unfathomable film", "--target", "film", *options)
        return run_with_pieces(*given).stdout.splitlines()[1]

    assert caption().endswith("; rows are tokens, columns words")
    assert caption("--units", "line").endswith("; rows are tokens, columns lines")
    assert "rows are" not in caption("--pieces")


def test_a_row_names_of_a_word_the_pieces_before_what_it_explains(run_with_pieces):
    result = run_with_pieces("an film", "--target", "unfathomable")
    lines = result.stdout.replace("\N{MINUS SIGN}", "").splitlines()
    shown = [line.split() for line in lines[2::2]]
    prompt = ["[CLS]", "an", "film", "[SEP]"]
    assert shown == [
        ["unf:", *prompt],
        ["ath:", *prompt, "|", "unf"],
        ["om:", *prompt, "|", "unfath"],
        ["able:", *prompt, "|", "unfathom"],
        ["whole", "answer:", *prompt, "|", "unfathom"],
    ]
    assert '"unfathomable"' not in result.stdout


def test_a_contrast_with_itself_is_refused(run):
    result = run("7 8", "--target", "11 12", "--against", "11 12")
    assert result.exit_code == 2
    assert "is what is explained, and their difference is 0" in result.stderr
    assert "has no tokens" in run("7 8", "--target", "").stderr


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


def test_the_page_holds_every_prompt_and_is_shown_as_chosen(run, tmp_path):
    page = tmp_path / "page.html"
    shown = ("--units", "word", "--left-out", "first", "--scale", "matrix")
    result = run("7 8", "9", "--target", "11 12", "--html", str(page), *shown)
    assert result.exit_code == 0, result.output
    content = page.read_text("utf-8")
    data = json.loads(re.search('id="data">(.*?)</script>', content)[1])
    pieces = [text["pieces"] for text in data["texts"]]
    assert pieces == [["7", " 8", " 11", " 12"], ["9", " 11", " 12"]]
    assert (data["units"], data["leftOut"], data["scale"]) == (
        *("word", ["first"]),
        "matrix",
    )


def test_a_span_is_explained_as_a_whole_and_against_another_text(run):
    given = ("7 8 9", "--target", "11 12 13", "--against", "14 15 16", "--json")
    rows = json.loads(run(*given).stdout)
    assert rows["against"] == ["14", "15", "16"]
    [span] = json.loads(run(*given, "--span", "12 13").stdout)["scores"]
    [same] = json.loads(run(*given, "--span", "1:3").stdout)["scores"]
    assert span == same
    summed = [sum(pair) for pair in zip(*rows["scores"][1:], strict=True)]
    assert span == pytest.approx(summed, rel=1e-5, abs=1e-8)


def test_what_is_shown_can_be_chosen(run):
    given = ("7 8 10 9", "--target", "11 12", "--left-out", "first", "--units", "line")
    result = run(*given, "--scale", "matrix", "--explained", "probability")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].startswith("relevance-flow, probability of each generated token; ")
    assert "left out: first (" in lines[1]
    assert lines[2].split(":  ")[1].split() == ["8", "10", "9"]
    units = json.loads(run(*given, "--json").stdout)
    assert units["units"] == ["7 8 10 9", " 11 12"]


def test_weights_are_read_into_half_precision(run):
    given = ("7 8 9", "--target", "11 12", "--json")
    full, half = (
        torch.tensor(json.loads(run(*given, *more).stdout)["scores"])
        for more in ((), ("--dtype", "bfloat16"))
    )
    assert 0 < (half - full).norm() < 0.05 * full.norm()


def test_a_chat_has_its_template_left_out(folder, tmp_path):
    torch.manual_seed(0)
    causal_language_model(VOCABULARY).save_pretrained(tmp_path)
    tokenizer = numbers_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}1 {{ m.content }} 2 {% endfor %}"
        "{% if add_generation_prompt %}3{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    given = ("explain", "--task", "text-generation", "--model", str(tmp_path))
    given = (*given, "8 9", "--chat", "--system", "7", "--target", "11")
    run = CliRunner().invoke
    found = json.loads(run(app, [*given, "--json"]).stdout)
    assert found["tokens"] == ["1", "7", "2", "1", "8", "9", "2", "3", "11"]
    assert found["parts"] == [
        *("template", "system", "template", "template"),
        *("prompt", "prompt", "template", "template", "generated"),
    ]
    shown = run(app, [*given, "--left-out", "template", "--left-out", "system"]).stdout
    # Signs are those of random weights, which differ between versions of transformers.
    of_token = [word.lstrip("\N{MINUS SIGN}") for word in shown.splitlines()[2].split()]
    assert of_token == ["11:", "8", "9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7", "--method", "slalom"), "--method='slalom' does not serve this task"),
        (("7", "--max-new-tokens", "2000"), "longer than the 1024 positions"),
        ((" ",), "the prompt is empty"),
        (("7", "--output", "x.png"), "no picture for --output"),
        (("7", "--chat"), "the tokenizer has no chat template"),
        (("7", "--target", "8 9", "--span", "10"), "the span '10' does not occur"),
        (("7", "--target", "8 9", "--span", "1:3"), "of 2 generated tokens; give"),
        (("7", "--target", "8 9", "--against", "10"), "--against='10' is 1 token,"),
        (("7", "--explained", "energy"), "--explained='energy'"),
        (("7", "--units", "page"), "--units='page'"),
        (("7", "--left-out", "last"), "--left-out='last'"),
        (("7", "--device", "nowhere"), "--device='nowhere' is not to be had here"),
        (("7", "--device", "cpu", "--device-map", "auto"), "give one"),
        (("7", "--dtype", "int4"), "--dtype='int4'"),
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
