"""Ctrl-C and SIGTERM: said in words, with a shell's exit status, and nothing lost."""

from __future__ import annotations

import signal
from dataclasses import replace
from importlib import import_module

import pytest
from pyarrow import parquet
from score_folders import random_rows, write_folder
from typer.testing import CliRunner

from captum_attnflow import summary
from captum_attnflow.cli import app, explain
from captum_attnflow.cli._streams import errors_as_sentences
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.study.methods import METHODS
from captum_attnflow.tables.chunks import ChunkFiles

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
ROLLOUT = ("--method", "attention-rollout")
TEXTS = ["dull", "a funny film", "so sad", "a great plot", "never bad"]


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell lets what it runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text", *TEXTS]))
    return path


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def interrupt_at(monkeypatch):
    """Let the process get a signal when it explains the n-th batch."""

    def interrupt_at(n_th, number=signal.SIGINT):
        explain, calls = TextClassifier.explain, []

        def interrupted(*arguments, **options):
            calls.append(arguments)
            if len(calls) == n_th:
                signal.raise_signal(number)
            return explain(*arguments, **options)

        monkeypatch.setattr(TextClassifier, "explain", interrupted)

    return interrupt_at


@pytest.mark.parametrize("number", SIGNALS)
def test_a_table_says_how_far_it_got_and_continues(
    table, tmp_path, monkeypatch, number
):
    write = ChunkFiles.write

    def interrupted(files, chunk, lines):
        write(files, chunk, lines)
        if chunk == 1:
            signal.raise_signal(number)

    command = ("explain", "--data", table, "--output", tmp_path / "out", *ROLLOUT)
    command += ("--rows-per-part", 2, "--batch-size", 2)
    with monkeypatch.context() as patch:
        patch.setattr(ChunkFiles, "write", interrupted)
        stopped = run(*command)
    assert stopped.exit_code == SIGNALS[number]
    assert stopped.stderr.splitlines()[-1] == (
        f"stopped with 2 rows of 5 in 1 part file: {tmp_path / 'out'}; the same "
        "command, or call, continues there"
    )
    continued = run(*command)
    assert continued.exit_code == 0
    assert "5 rows in 3 part files, 2 of them from before" in continued.stderr
    files = sorted((tmp_path / "out").glob("part-*"))
    found = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert [row["text"] for row in found] == TEXTS


@pytest.mark.parametrize("number", SIGNALS)
def test_texts_say_how_many_were_printed(monkeypatch, interrupt_at, number):
    monkeypatch.setattr(import_module(explain.__module__), "_BATCH_SIZE", 2)
    interrupt_at(2, number)
    stopped = run("explain", *ROLLOUT, *TEXTS)
    assert stopped.exit_code == SIGNALS[number]
    assert stopped.stdout.count("attention-rollout") == 2
    assert stopped.stderr.splitlines()[-1] == (
        "stopped with 2 results printed, of 5 texts; the same command begins anew"
    )


def test_one_text_is_stopped_in_words_too(interrupt_at):
    interrupt_at(1)
    stopped = run("explain", *ROLLOUT, TEXTS[0])
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "stopped with 0 results printed, of 1 text; the" in stopped.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_study_says_how_far_it_got_and_continues(
    table, tmp_path, monkeypatch, number
):
    command = ("study", "--data", table, "--output", tmp_path / "out", *ROLLOUT)
    command += ("--batch-size", 2, "--metric", "comprehensiveness")
    method, calls = METHODS["attention-rollout"], []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:  # the first warms up
            signal.raise_signal(number)
        return method.scores(*arguments, **options)

    with monkeypatch.context() as patch:
        other = replace(method, scores=interrupted)
        patch.setitem(METHODS, "attention-rollout", other)
        stopped = run(*command)
    assert stopped.exit_code == SIGNALS[number], stopped.output
    assert stopped.stderr.splitlines()[-1] == (
        f"stopped with 2 attributions in {tmp_path / 'out'}; the same command "
        "continues there"
    )
    assert run(*command).exit_code == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_summary_says_that_it_was_stopped(tmp_path, monkeypatch, number):
    folder = write_folder(tmp_path / "scores", random_rows(10), method="mine")
    summarize = summary.summarize

    def interrupted(*arguments):
        signal.raise_signal(number)
        return summarize(*arguments)

    monkeypatch.setattr(summary, "summarize", interrupted)
    stopped = run("summarize", folder)
    assert (stopped.exit_code, stopped.stdout) == (SIGNALS[number], "")
    assert stopped.stderr.splitlines()[-1] == "stopped; give the same command again"
    assert not (folder / "summary").exists()


def test_handlers_of_others_stay():
    handlers = []
    with errors_as_sentences():
        handlers.append(signal.getsignal(signal.SIGTERM))
    assert handlers != [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with errors_as_sentences():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
