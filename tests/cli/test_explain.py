from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from models import bert_for
from typer.testing import CliRunner
from warm_processes import run_command

from captum_attnflow import (
    ImageClassifier,
    ImageTextGenerator,
    TextClassifier,
    TextGenerator,
    TokenClassifier,
    flow,
)
from captum_attnflow.cli import app
from captum_attnflow.cli._streams import errors_as_sentences, printing, read_lines
from captum_attnflow.cli.explain import _OF_TASKS, TASKS
from captum_attnflow.pipelines.methods import METHODS

TEXT = "a gripping , funny film"
GAF = ("--method", "generalized-attention-flow")


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments, **options: runner.invoke(
        app, ["explain", *map(str, arguments)], **options
    )


def test_main_job_prints_prediction_and_tokens(run):
    result = run(TEXT)
    assert result.exit_code == 0
    assert result.output.startswith("positive 0.")
    assert " gripping " in result.output
    assert 'for: "funny" ' in result.output


@pytest.mark.parametrize("method", METHODS)
def test_json_gives_one_object_per_text(run, method):
    result = run(TEXT, "dull", "--json", "--method", method)
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["text"] == TEXT
    assert first["tokens"][3] == ","
    assert len(first["scores"]) == len(first["tokens"])
    assert second["predicted"] == "negative"


def test_words_of_one_text_are_labelled_and_explained(run, demo, tmp_path):
    labels = {0: "B-FILM", 1: "I-FILM"}
    made = bert_for(
        "AutoModelForTokenClassification", len(demo.tokenizer), id2label=labels
    )
    for part in (made, demo.tokenizer):
        part.save_pretrained(tmp_path)
    task = ("--task", "token-classification", "--model", tmp_path)
    printed = run("so funny", *task, "--html", tmp_path / "page.html").stdout
    assert re.match(r"so \[[BI]-FILM 0\.\d+\] funny \[", printed)
    assert "so: " in (tmp_path / "page.html").read_text()
    found = json.loads(run("so funny", *task, "--json").stdout)
    assert [word["text"] for word in found["words"]] == ["so", "funny"]
    [_, second] = found["attributions"]
    assert second["word"] == found["words"][1]
    assert "index" not in second
    assert "value" not in second


def test_rules_reach_relevance_flow_which_is_the_default(run):
    plain = json.loads(run(TEXT, "--json").stdout)
    named = json.loads(run(TEXT, "--json", "--method", "relevance-flow").stdout)
    others = json.loads(run(TEXT, "--json", "--rules", "cp-lrp").stdout)
    assert plain["scores"] == named["scores"] != others["scores"]
    assert sum(plain["scores"]) == pytest.approx(plain["flow_value"])


def test_options_reach_the_method(run):
    method = ("--method", "generalized-attention-flow", "--json")
    plain = json.loads(run(TEXT, *method).stdout)
    options = ("--residual", "free", "--game", "independent")
    faithful = json.loads(run(TEXT, *method, *options).stdout)
    assert faithful["scores"] != plain["scores"]
    assert faithful["scores"][0] == 0  # the read-out position is no source
    fraction = json.loads(run(TEXT, *method, "--residual", "0.5").stdout)
    none = json.loads(run(TEXT, *method, "--residual", "none").stdout)
    assert fraction["scores"] != none["scores"] == plain["scores"]


def test_slalom_prints_value_and_importance_side_by_side(run):
    lines = run(TEXT, "--method", "slalom").output.splitlines()
    head = next(n for n, line in enumerate(lines) if "importance" in line)
    assert lines[head].split() == ["value", "importance"]
    table = [line.split() for line in lines[head + 1 : head + 6]]
    assert [row[0] for row in table] == TEXT.split()
    found = json.loads(run(TEXT, "--method", "slalom", "--json").stdout)["slalom"]
    assert found["values"][0] is None  # [CLS] stays in every query
    for row, value, importance in zip(
        table, found["values"][1:-1], found["importances"][1:-1], strict=True
    ):
        assert float(row[1]) == pytest.approx(value, abs=0.01)
        assert float(row[4]) == pytest.approx(importance, abs=0.01)
    assert lines[-1].startswith("held-out R2: ")


def test_slaloms_options_reach_it(run):
    given = ("--method", "slalom", "--json", "--strategy", "fidel", "--score", "value")
    found = json.loads(run(TEXT, *given).stdout)
    assert found["scores"][1:-1] == found["slalom"]["values"][1:-1]
    assert run(TEXT, "--score", "value").exit_code == 2


def test_texts_come_from_a_file_or_standard_input(run, tmp_path):
    lines = f"{TEXT}\ndull\n"
    file = tmp_path / "texts.txt"
    file.write_text(lines)
    expected = run(TEXT, "dull", "--json").stdout
    assert run("--file", file, "--json").stdout == expected
    assert run("--json", input=lines).stdout == expected
    assert run("--file", "-", "--json", input=lines).stdout == expected


def test_flows_of_several_texts_are_compiled_before_the_first(run, monkeypatch):
    happened = []
    monkeypatch.setattr(flow, "compile_kernels", happened.append)
    by_flows = ("--method", "attention-flow")
    assert run(TEXT, *by_flows).exit_code == 0
    assert happened == []
    assert run(TEXT, "dull", *by_flows).exit_code == 0
    assert happened == [True]


def test_html_is_written(run, tmp_path):
    page = tmp_path / "page.html"
    assert run(TEXT, "--html", page).exit_code == 0
    assert "gripping" in page.read_text()
    assert "Model: the small sentiment classifier" in page.read_text()


def test_words_are_as_the_user_wrote_them_and_pieces_are_the_models(run):
    text = "Überaus gripping \N{CLAPPER BOARD}"
    words = run(text).output.splitlines()
    assert "unknown to the model: “\N{CLAPPER BOARD}”" in words
    assert "Überaus" in words[3]
    assert "##" not in words[3]
    assert words[1] == f"relevance-flow: scores for “{words[0].split()[0]}”"
    assert " ##aus " in run(text, "--pieces").output


def test_an_image_among_texts_names_the_task_that_reads_it(run, tmp_path):
    photo = tmp_path / "photo.JPG"
    photo.write_bytes(b"\xff\xd8\xff\xe0")
    for arguments in ([photo], ["--file", photo]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "--task image-classification" in result.output
    assert run("a photo.jpg").exit_code == 0  # no file, a text
    long = "a gripping film " * 27 + "photo.png"  # too long for the name of a file
    assert run(long).exit_code == 0


def test_a_terminal_sees_what_is_going_on_and_a_pipe_does_not(run):
    pty = pytest.importorskip("pty")
    words = [sys.executable, "-m", "captum_attnflow.cli", "explain", "dull"]
    primary, secondary = pty.openpty()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=secondary)
    os.close(secondary)
    shown = b""
    with contextlib.suppress(OSError):  # so Linux ends what a closed terminal says
        while part := os.read(primary, 65536):
            shown += part
    os.close(primary)
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert printed.startswith(b"negative 0.")
    for said in (b"loading PyTorch", b"loading the model", b"explaining 1 to 1 of 1"):
        assert said in shown
    piped = run("dull")
    assert piped.stdout == printed.decode()
    assert "loading" not in piped.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the text is empty"),
        ([TEXT, "--target", "neutral"], "target='neutral' is unknown"),
        ([TEXT, "--method", "lime"], "method='lime' is unknown"),
        ([TEXT, "--model", "/no/such/folder"], "there is no model folder"),
        ([TEXT, *GAF, "--residual", "much"], "residual='much' is unknown"),
        ([TEXT, *GAF, "--game", "poker"], "game='poker' is unknown"),
        (
            [TEXT, *GAF, "--normalization", "receptive-field"],
            "attend to later positions",
        ),
        (
            [TEXT, "--residual", "free"],
            "relevance-flow has no option 'residual'",
        ),
        ([TEXT, "--rules", "lrp"], "rules='lrp' is unknown"),
        ([TEXT, "--html", "/no/such/folder/page.html"], "there is no folder"),
        ([TEXT, "--file", "texts.txt"], "give one"),
        (["--file", "/no/such/texts.txt"], "cannot be read: No such file"),
        ([TEXT, "--method", "attention-rollout", "--game", "joint"], "no option"),
        ([TEXT, "--html", "."], "--html . is a folder; give a file in it"),
        ([TEXT, "--target", "caf\udce9"], "is unknown"),
        (
            ["caf\udce9"],
            "the text, 'caf\\udce9', holds '\\udce9', which is no",
        ),
        ([*["dull"] * 16, "caf\udce9"], "text 17 of 17, 'caf\\udce9', holds"),
        ([TEXT, "--model", ""], "model='' names no model"),
        ([TEXT, "--chat"], "--chat was given with --task text-classification"),
        ([TEXT, "--span", "film"], "--span was given with"),
        ([TEXT, "--explained", "logit"], "and is of text-generation and image-text-"),
        (
            ["a.png", "--task", "image-classification", "--against", "1"],
            "leave it out, or give --task text-classification",
        ),
    ],
)
def test_bad_input_is_an_error_that_names_it(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_closed_streams_are_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed, and no text was"):
        read_lines(None)
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        with pytest.raises(ValueError, match="standard output is closed"), printing():
            pass
        closed.setattr(sys, "stderr", None)
        with errors_as_sentences():
            print("nobody reads it", file=sys.stderr)


def test_a_terminal_of_few_letters_gets_escapes(monkeypatch):
    written = io.BytesIO()
    with monkeypatch.context() as narrow:
        narrow.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        with errors_as_sentences(), printing():
            print("\N{LEFT DOUBLE QUOTATION MARK}caf\xe9")
        assert written.getvalue() == b"\\u201ccaf\\xe9\n"


def test_lines_of_a_terminal_break_between_words_and_those_of_a_pipe_do_not(
    run, monkeypatch
):
    words = "an unconvincing plot , repetitive jokes and unforgettable farewells"
    piped = run(words).stdout
    whole = " ".join(piped.replace("\N{MINUS SIGN}", "").splitlines()[2].split())
    assert whole == f"[CLS] {words} [SEP]"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    lines = re.sub("\x1b.*?m", "", run(words).stdout).splitlines()
    assert len(lines) > len(piped.splitlines())
    assert max(map(len, lines)) <= 40
    printed = " ".join(lines).replace("\N{MINUS SIGN}", "").split()
    assert set(words.split()) <= set(printed)


def test_the_name_of_a_file_is_explained_with_a_warning(run, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("dull\n")
    result = run(file)
    assert result.exit_code == 0
    assert f"--file {file} explains each of its lines" in result.stderr
    assert "is the name of a file" not in run("no such file.txt").stderr


def test_the_options_of_tasks_are_those_that_their_explain_takes():
    kinds = {
        "text-classification": TextClassifier,
        "token-classification": TokenClassifier,
        "text-generation": TextGenerator,
        "image-text-generation": ImageTextGenerator,
        "image-classification": ImageClassifier,
    }
    assert list(kinds) == list(TASKS)
    for task, kind in kinds.items():
        taken = set(inspect.signature(kind.explain).parameters)
        taken |= {"prompt"} if "prompts" in taken and "images" in taken else set()
        stated = {name for name, tasks in _OF_TASKS.items() if task in tasks}
        others = set(_OF_TASKS) - stated
        assert stated <= taken
        assert not others & taken


def test_a_word_that_occurs_again_is_told_from_the_others(run):
    lines = run("not dull , so not bad , not so not").stdout.splitlines()
    named = " ".join(lines[3:])
    assert '"not" (so not bad)' in named
    assert '"so" (, so not)' in named
    assert '"dull" (' not in named  # it is the only one
    long = "x" * 300
    assert f"“{long[:39]}\N{HORIZONTAL ELLIPSIS}”" in run(long).stdout


def test_blank_line_is_an_error_that_names_it(run):
    result = run(input="dull\n\nfine\n")
    assert result.exit_code == 2
    assert "text 2 of 3 is empty" in result.stderr
    assert "the text is empty" in run(input="").stderr


def test_truncation_is_told_on_standard_error(run):
    result = run("very " * 200, "--json")
    assert result.exit_code == 0
    assert "warning: the text 'very very" in result.stderr
    assert "202 tokens" in result.stderr
    json.loads(result.stdout)


def test_lines_are_cut_at_line_feeds_only(run):
    result = run("--json", input="one\x0ctwo\u2028three\r\nfour")
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
    assert texts == ["one\x0ctwo\u2028three", "four"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_device_is_told_by_its_name(form):
    command = ["explain", "dull", *form, "--method", "attention-rollout"]
    with open("/dev/full", "w") as full:
        status, said = run_command(command, stdout=full.fileno())
    assert status == 2
    message = "error: standard output cannot be written: No space left on device"
    assert said.startswith(message)
    assert len(said.splitlines()) == 1


def test_a_page_on_a_full_device_is_told_by_its_name(run):
    result = run("dull", "--html", "/dev/full")
    assert result.exit_code == 2
    assert "/dev/full cannot be written: No space left on device" in result.stderr


def test_bytes_of_the_shell_that_are_no_utf8_are_told(run):
    as_argument = run(os.fsdecode(b"caf\xe9"))
    piped = run(input=b"caf\xe9\n")
    # A locale is chosen where a process starts.
    in_c_locale = subprocess.run(
        [sys.executable, "-m", "captum_attnflow.cli", "explain"],
        input=b"caf\xe9\n",
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "1"},
    )
    assert as_argument.exit_code == piped.exit_code == in_c_locale.returncode == 2
    for told in (as_argument.stderr, piped.stderr, in_c_locale.stderr.decode()):
        assert "UTF-8" in told
        assert "Traceback" not in told


def a_model(tmp_path, demo, problem, n_labels):
    model = copy.deepcopy(demo.model)
    model.classifier = torch.nn.Linear(model.config.hidden_size, n_labels)
    model.config.id2label = dict(enumerate("abcdef"[:n_labels]))
    model.config.problem_type = problem
    model.save_pretrained(tmp_path / "model")
    demo.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_label_above_the_threshold_is_a_line(run, tmp_path, demo):
    folder = a_model(tmp_path, demo, "multi_label_classification", 6)
    found = [
        json.loads(line)
        for line in run(TEXT, "--json", "--model", folder).stdout.splitlines()
    ]
    assert len(found) > 1
    assert all(result["probability"] > 0.5 for result in found)
    assert len({result["target"] for result in found}) == len(found)
    asked = run(TEXT, "--json", "--model", folder, "--target", "b").stdout
    assert json.loads(asked)["target"] == "b"


def test_regression_prints_a_value_and_no_probability(run, tmp_path, demo):
    folder = a_model(tmp_path, demo, None, 1)
    found = json.loads(run(TEXT, "--json", "--model", folder).stdout)
    assert "probability" not in found
    assert sum(found["scores"]) == pytest.approx(found["value"], rel=1e-4)
    assert run(TEXT, "--model", folder).stdout.startswith(f"a {found['value']:.3f}\n")


def test_file_that_is_not_utf8_is_an_error_that_names_it(run, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("déjà vu".encode("latin-1"))
    result = run("--file", file)
    assert result.exit_code == 2
    assert "latin.txt is not UTF-8" in result.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("dull\n" * 200)
    command = f"{sys.executable} -m captum_attnflow.cli explain --json --file {file}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --method attention-rollout | head -1"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["predicted"] == "negative"
    assert done.stderr == ""
