from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow
import pytest
import torch
from filelock import FileLock
from pyarrow import parquet
from tables.conftest import N_TEXTS, contents, lines_of, write_texts

from captum_attnflow import FlowError, flow
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.pipelines import encoding
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.runs import sharing
from captum_attnflow.summary import summarize
from captum_attnflow.tables import TableJob, explain_table, settings
from captum_attnflow.tables.chunks import RowWarnings
from captum_attnflow.tables.run import ChunkExplainer
from captum_attnflow.tables.settings import OWN_COLUMNS


def test_every_row_is_explained_as_the_classifier_does_it(job, texts, demo):
    outcome = explain_table(replace(job, id_column="name", columns=("gold",)))
    assert (outcome.n_rows, outcome.n_failed, outcome.n_files) == (N_TEXTS, 0, 5)
    lines = lines_of(job.output)
    assert [line["row"] for line in lines] == list(range(N_TEXTS))
    assert [line["id"] for line in lines] == [f"t{row}" for row in range(N_TEXTS)]
    assert [line["gold"] for line in lines] == [str(row % 2) for row in range(N_TEXTS)]
    for line, text in zip(lines, texts, strict=True):
        [alone] = demo.explain([text], job.method)
        assert line["text"] == text
        assert line["status"] == "explained"
        assert line["target"] == line["predicted"] == alone.predicted
        assert line["probability"] == pytest.approx(alone.probability, abs=1e-6)
        assert tuple(line["tokens"]) == alone.tokens
        assert line["scores"] == pytest.approx(alone.scores, abs=1e-6)
        assert line["n_truncated"] == 0
        assert line["reason"] is line["value"] is line["text_pair"] is None


def test_each_kind_of_warning_is_said_once_with_its_rows(job, texts, demo):
    """A reader has to find the text whose scores are not to be read."""
    options = {"n_samples": 60}
    outcome = explain_table(replace(job, method="slalom", options=options))
    alone = {}
    for row, text in enumerate(texts):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            demo.explain([text], "slalom", **options)
        for warning in caught:
            kind = str(warning.message).partition(" the examples")[0]
            alone.setdefault(kind, set()).add(row)
    said = {kind: [] for kind in alone}
    for sentence in outcome.warnings:
        rows, _, message = sentence.partition(": ")
        said[message.partition(" the text")[0]].append(rows)
    assert set(map(len, alone.values())) - {0}
    for kind, rows in alone.items():
        named, n_more = set(), 0
        for part in said[kind]:
            first, _, more = part.removeprefix("rows ").partition(" and ")
            named |= set(map(int, first.removeprefix("row ").split(", ")))
            n_more += int(more.removesuffix(" more") or 0)
        assert named <= rows
        assert len(named) + n_more == len(rows)


def test_warnings_take_no_more_memory_the_more_texts_they_quote():
    warned = RowWarnings()
    for row in range(1000):
        warned.note(f"no label of 'text {row}' and {row} others", [row], True)
        warned.note(f"of its own kind: {'x' * row}", [row], True)
    first, *others, last = warned.sentences()
    assert first == "rows 0, 1, 2, 3, 4 and 995 more: no label of 'text 0' and 0 others"
    assert len(others) == 9
    assert last == "warnings of further kinds came up with 991 rows"


def test_paths_are_given_as_such_or_as_text(job):
    names = ("data", "output", "model")
    as_text = replace(job, **{name: str(getattr(job, name)) for name in names})
    assert explain_table(as_text).n_kept == 0
    as_paths = replace(job, **{name: Path(getattr(job, name)) for name in names})
    outcome = explain_table(as_paths)
    assert outcome.n_kept == outcome.n_files == 5


def test_the_schema_is_fixed(job):
    explain_table(replace(job, columns=("gold",)))
    schema = parquet.read_schema(job.output / "part-000000.parquet")
    row, name, *others = OWN_COLUMNS
    assert schema.names == [row, name, "gold", *others]
    types = {field.name: str(field.type) for field in schema}
    strings = [
        *("id", "gold", "text", "text_pair", "status", "reason", "target", "predicted")
    ]
    assert {types.pop(column) for column in strings} == {"string"}
    assert types == {
        "row": "int64",
        "probability": "double",
        "value": "double",
        "n_truncated": "int64",
        "n_windows": "int64",
        "tokens": "list<element: string>",
        "scores": "list<element: double>",
    }


def test_formats_hold_the_same(job):
    explain_table(job)
    for kind in ("csv", "jsonl"):
        explain_table(replace(job, format=kind, output=job.output.with_name(kind)))
    lines = lines_of(job.output)
    jsonl = [
        json.loads(line)
        for path in sorted((job.output.with_name("jsonl")).glob("part-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert jsonl == lines
    of_csv = []
    for path in sorted((job.output.with_name("csv")).glob("part-*.csv")):
        with path.open(newline="") as file:
            of_csv += list(csv.DictReader(file))
    for line, row in zip(lines, of_csv, strict=True):
        for name in ("tokens", "scores"):
            assert json.loads(row[name]) == line[name]
        assert float(row["probability"]) == line["probability"]
        assert row["value"] == ""


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_parts_are_one_run_to_the_last_bit(job, shuffle_seed):
    job = replace(job, shuffle_seed=shuffle_seed)
    explain_table(job)
    whole = contents(job.output)
    assert len(whole) == 5
    for n_parts in (2, 4):
        folder = job.output.with_name(f"{n_parts} parts")
        for index in range(n_parts, 0, -1):
            explain_table(replace(job, output=folder, part=(index, n_parts)))
        assert contents(folder) == whole


def test_a_part_is_run_again_alone(job):
    explain_table(job)
    whole = contents(job.output)
    (job.output / "part-000001.parquet").unlink()
    (job.output / "part-000002.parquet").unlink()
    outcome = explain_table(replace(job, part=(2, 2)))
    assert (outcome.n_files, outcome.n_kept) == (2, 1)
    assert contents(job.output).keys() == whole.keys() - {"part-000002.parquet"}
    explain_table(job)
    assert contents(job.output) == whole


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_what_is_there_and_whole_is_kept(job, kind):
    job = replace(job, format=kind)
    explain_table(job)
    whole = contents(job.output)
    times = {path: path.stat().st_mtime_ns for path in job.output.glob("part-*")}
    cut = job.output / f"part-000001.{kind}"
    cut.write_bytes(cut.read_bytes()[:-30])
    other = job.output / f"part-000003.{kind}"
    shutil.copy(job.output / f"part-000002.{kind}", other)
    with pytest.warns(
        UserWarning, match=r"part-00000\d.* was changed or cut off"
    ) as said:
        assert explain_table(job).n_kept == 3
    assert len(said) == 2
    assert contents(job.output) == whole
    kept = {path for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert kept == times.keys() - {cut, other}


def test_checksums_are_those_of_the_files(job):
    for index in (2, 1):
        explain_table(replace(job, part=(index, 2)))
    lines = (job.output / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.split("  ")[::-1] for line in lines) == [
        [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(job.output.glob("part-*"))
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_changed_byte_is_found_and_the_file_written_anew(job, kind):
    job = replace(job, format=kind)
    explain_table(job)
    whole, sums = contents(job.output), (job.output / "SHA256SUMS").read_bytes()
    changed = job.output / f"part-000002.{kind}"
    content = bytearray(changed.read_bytes())
    place = content.rindex(b"0.") + 2 if kind != "parquet" else len(content) // 2
    content[place] = content[place] ^ 1  # of numbers another digit, which can be read
    changed.write_bytes(content)
    with pytest.raises(ValueError, match=rf"part-000002.{kind} was changed .*again"):
        summarize(job.output)
    with pytest.warns(UserWarning, match=rf"part-000002.{kind} was changed or cut off"):
        assert explain_table(job).n_kept == 4
    assert contents(job.output) == whole
    assert (job.output / "SHA256SUMS").read_bytes() == sums


def test_files_of_earlier_versions_are_kept_and_get_checksums(job):
    explain_table(job)
    sums, files = (job.output / "SHA256SUMS").read_text(), contents(job.output)
    (job.output / "SHA256SUMS").unlink()
    (job.output / "part-000004.parquet").unlink()
    assert explain_table(job).n_kept == 4
    assert (job.output / "SHA256SUMS").read_text() == sums
    assert contents(job.output) == files


def test_parts_of_two_machines_copied_into_one_folder_are_one_run(job):
    """The list of one machine lies over that of the other, and lacks its files."""
    machines = [job.output.with_name(name) for name in ("one", "two")]
    for index, machine in enumerate(machines, 1):
        explain_table(replace(job, output=machine, part=(index, 2)))
        shutil.copytree(machine, job.output, dirs_exist_ok=True)
    assert len((job.output / "SHA256SUMS").read_text().splitlines()) == 2
    outcome = explain_table(job)
    assert outcome.n_kept == outcome.n_files == 5
    lines = (job.output / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == contents(job.output).keys()
    (job.output / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="part-000000.parquet was changed or cut off"):
        assert explain_table(job).n_kept == 4


def test_a_checksum_that_is_there_already_is_replaced(job):
    """Of a run that was killed between checksum and file, on another machine."""
    explain_table(job)
    sums = (job.output / "SHA256SUMS").read_text().splitlines()
    (job.output / "part-000001.parquet").unlink()
    sums[1] = "0" * 64 + sums[1][64:]
    (job.output / "SHA256SUMS").write_text("\n".join(sums) + "\n012345")  # torn
    explain_table(job)
    whole = contents(job.output)
    assert (job.output / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(whole.items())
    )


def test_shuffled_rows_are_the_rows(job, texts):
    explain_table(replace(job, shuffle_seed=1, limit=15))
    lines = lines_of(job.output)
    rows = [line["row"] for line in lines]
    assert len(set(rows)) == 15
    assert rows != sorted(rows)
    assert [line["text"] for line in lines] == [texts[row] for row in rows]
    explain_table(replace(job, shuffle_seed=2, output=job.output.with_name("other")))
    others = [line["row"] for line in lines_of(job.output.with_name("other"))]
    assert sorted(others) == list(range(N_TEXTS))
    assert others[:15] != rows
    left = [path.name for path in job.output.iterdir() if "shuffled" in path.name]
    assert left == []


def test_a_limit_takes_the_first_rows(job):
    assert explain_table(replace(job, limit=11)).n_rows == 11
    assert [line["row"] for line in lines_of(job.output)] == list(range(11))
    manifest = json.loads((job.output / "manifest.json").read_text())
    assert manifest["n_rows"] == 11
    assert manifest["files"] == ["part-000000.parquet", "part-000001.parquet"]


def broken_rows() -> list[bytes]:
    """1,000 lines of JSONL, of which 50 are broken in ten ways."""
    faults = [
        b"",
        b'{"text": "  "}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\udc80"}',
        b'{"text": 12}',
        b'{"text": null}',
        b'{"text": ["so", "sad"]}',
        b'{"name": "no text"}',
        b'{"text": "cut',
        b'["no object"]',
    ]
    lines = [json.dumps({"text": f"a film of {n} acts"}).encode() for n in range(1000)]
    for number in range(50):
        lines[number * 20 + 7] = faults[number % len(faults)]
    return lines


def test_of_a_thousand_rows_five_percent_are_broken_and_all_accounted_for(
    job, tmp_path
):
    lines = broken_rows()
    lines[100] = json.dumps({"text": "so sad " * 15_000}).encode()  # 100 KB
    lines[200] = json.dumps({"text": "a \0 film"}).encode()
    data = tmp_path / "broken.jsonl"
    data.write_bytes(b"\n".join(lines) + b"\n")
    outcome = explain_table(
        replace(job, data=str(data), rows_per_part=300, batch_size=32)
    )
    assert (outcome.n_rows, outcome.n_failed) == (1000, 50)
    assert outcome.reasons == Counter(
        {
            "the line is blank": 5,
            "the text is blank": 5,
            "the text is no UTF-8, or holds half a character (a lone surrogate)": 10,
            "the text is of type int": 5,
            "the text is of type list": 5,
            "there is no text": 10,
            "the line is no JSON": 5,
            "the line is no JSON object": 5,
        }
    )
    found = lines_of(job.output)
    assert [line["row"] for line in found] == list(range(1000))
    failed = {line["row"] for line in found if line["status"] == "failed"}
    assert failed == {number * 20 + 7 for number in range(50)}
    assert all((line["reason"] is None) != (line["row"] in failed) for line in found)
    assert all((line["scores"] is None) == (line["row"] in failed) for line in found)
    long = found[100]
    assert long["n_truncated"] > 25_000
    assert long["n_truncated"] + len(long["tokens"]) == 30_002
    assert outcome.warnings == []  # truncation is counted, text by text
    assert explain_table(
        replace(job, data=str(data), rows_per_part=300, batch_size=32)
    ) == replace(outcome, n_kept=4)


def test_a_resumed_run_says_what_it_has_by_default(job):
    explain_table(job)
    with pytest.raises(
        ValueError, match=r": 4 there, 16 now, which is the default whe"
    ):
        explain_table(replace(job, batch_size=TableJob.batch_size))
    with pytest.raises(ValueError, match=r": 4 there, 5 now\. They"):
        explain_table(replace(job, batch_size=5))
    with pytest.raises(ValueError, match=r"'parquet' there, 'csv' now\. They"):
        explain_table(replace(job, format="csv"))
    other = replace(job, output=job.output / "csv", format="csv")
    explain_table(other)
    with pytest.raises(ValueError, match=r"'csv' there, 'parquet' now, which is the d"):
        explain_table(replace(other, format=TableJob.format))


def test_texts_on_which_a_solver_fails_alike_are_counted_together(
    job, texts, monkeypatch
):
    failures = (
        FlowError(
            f"off by 1e-{n}, in {n} of 1,000. From {n}, set those below 1e-20 to 0"
        )
        for n in range(99)
    )

    def fail_on_some(self, given, *arguments, **options):
        if "film" in " ".join(given):
            raise next(failures)
        return explain(self, given, *arguments, **options)

    explain = TextClassifier.explain
    monkeypatch.setattr(TextClassifier, "explain", fail_on_some)
    outcome = explain_table(job)
    n_failed = sum("film" in text for text in texts)
    [(reason, count)] = outcome.reasons.items()
    assert re.fullmatch(
        r"off by ..., in ... of .... From \d+, set those below 1e-20 to 0", reason
    )
    assert count == n_failed


def test_a_text_that_fails_takes_no_other_with_it(job, texts, monkeypatch):
    explain = TextClassifier.explain

    def explain_all_but_one(self, given, *arguments, **options):
        if texts[5] in given:
            raise RuntimeError("no kernel for this text")
        return explain(self, given, *arguments, **options)

    monkeypatch.setattr(TextClassifier, "explain", explain_all_but_one)
    outcome = explain_table(job)
    same = sum(text == texts[5] for text in texts)
    assert outcome.reasons == {"no kernel for this text": same}
    lines = lines_of(job.output)
    assert lines[5]["reason"] == "no kernel for this text"
    assert lines[5]["text"] == texts[5]


def test_scores_that_are_not_finite_are_no_explanation(job, texts, monkeypatch):
    explain = TextClassifier.explain

    def explain_badly(self, *arguments, **options):
        results = explain(self, *arguments, **options)
        nan = (float("nan"),) * len(results[0].scores)
        return [replace(results[0], scores=nan), *results[1:]]

    monkeypatch.setattr(TextClassifier, "explain", explain_badly)
    outcome = explain_table(job)
    assert set(outcome.reasons) == {"its scores are not all finite"}


def test_pairs_reach_the_classifier_as_tuples(job, monkeypatch):
    explain = TextClassifier.explain
    given = []

    def explain_first(self, pairs, *arguments, **options):
        given.extend(pairs)
        return explain(self, [text for text, _ in pairs], *arguments, **options)

    monkeypatch.setattr(TextClassifier, "explain", explain_first)
    explain_table(replace(job, pair_column="name", limit=3))
    lines = lines_of(job.output)
    assert [line["text_pair"] for line in lines] == ["t0", "t1", "t2"]
    assert {(line["text"], line["text_pair"]) for line in lines} == set(given)


def test_what_fails_for_every_text_writes_nothing(job, monkeypatch):
    def explain(*arguments, **options):
        raise ValueError("this model has no attention")

    with monkeypatch.context() as patched:
        patched.setattr(TextClassifier, "explain", explain)
        with pytest.raises(ValueError, match=r"none of the first 9 .*no attention"):
            explain_table(job)
    assert not (job.output / "manifest.json").exists()
    assert explain_table(replace(job, limit=20)).n_rows == 20  # another setting


def of_problem(tmp_path, problem, n_labels):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        DEMO_MODEL_PATH,
        num_labels=n_labels,
        problem_type=problem,
        ignore_mismatched_sizes=True,
    )
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_MODEL_PATH).save_pretrained(folder)
    return str(folder)


def test_a_text_of_several_labels_has_several_lines(job, tmp_path, texts):
    model = of_problem(tmp_path, "multi_label_classification", 5)
    outcome = explain_table(replace(job, model=model))
    assert outcome.n_rows == N_TEXTS
    classifier = TextClassifier.load(model)
    expected = []
    for row, text in enumerate(texts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = classifier.explain([text], job.method)
        expected += [(row, result.target) for result in results]
    assert len(expected) > N_TEXTS
    assert [(line["row"], line["target"]) for line in lines_of(job.output)] == expected


def test_regression_has_values(job, tmp_path):
    model = of_problem(tmp_path, "regression", 1)
    explain_table(replace(job, model=model, limit=4))
    for line in lines_of(job.output):
        assert line["probability"] is None
        assert isinstance(line["value"], float)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"method": "chefer-relevance"}, "method"),
        ({"target": 0}, "target"),
        ({"rows_per_part": 8}, "rows_per_part"),
        ({"limit": 20}, "limit"),
        ({"shuffle_seed": 0}, "shuffle_seed"),
        ({"id_column": "name"}, "id_column"),
        ({"format": "csv"}, "file_format"),
        ({"batch_size": 5}, "batch_size"),
    ],
)
def test_other_settings_are_refused_by_what_differs(job, changed, name):
    explain_table(replace(job, limit=None))
    before = contents(job.output)
    with pytest.raises(ValueError, match=f"another .*{name}.* give the same settings"):
        explain_table(replace(job, **changed))
    assert contents(job.output) == before


def test_a_changed_model_is_refused_and_a_moved_one_is_not(job, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, folder)
    explain_table(replace(job, model=str(folder), part=(1, 2)))
    moved = tmp_path / "moved"
    folder.rename(moved)
    explain_table(replace(job, model=str(moved), part=(2, 2)))
    classifier = TextClassifier.load(str(moved))
    with torch.no_grad():
        classifier.model.classifier.bias.add_(1)
    classifier.model.save_pretrained(moved)
    with pytest.raises(ValueError, match="another 'model_hash'"):
        explain_table(replace(job, model=str(moved)))
    shutil.rmtree(moved)
    shutil.copytree(DEMO_MODEL_PATH, moved)
    vocabulary = json.loads((moved / "tokenizer_config.json").read_text())
    changed = {**vocabulary, "model_max_length": 7}
    (moved / "tokenizer_config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="another 'tokenizer_hash'"):
        explain_table(replace(job, model=str(moved)))


def test_changed_data_are_refused(job):
    explain_table(job)
    write_texts(job.output.with_name("texts.csv"), N_TEXTS, seed=1)
    with pytest.raises(ValueError, match="another 'data_hash'"):
        explain_table(job)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("part-000000.parquet", "x", "has no manifest.json beside it"),
        ("manifest.json", "{}", "is no manifest of a table"),
        ("manifest.json", "[", "is no manifest of a table"),
        ("manifest.json", '{"rows_per_part": 1, "format": 2}', "of format 2, and this"),
    ],
)
def test_a_folder_of_something_else_is_refused(job, name, content, message):
    job.output.mkdir()
    (job.output / name).write_text(content)
    with pytest.raises(ValueError, match=f"{message}.*give another --output"):
        explain_table(job)
    assert (job.output / name).read_text() == content


def test_a_second_run_in_the_folder_is_refused(job):
    explain_table(replace(job, part=(1, 2)))
    with FileLock(job.output / ".part-1-of-2.lock"):
        with pytest.raises(ValueError, match=r"another run writes part 1/2 .* wait"):
            explain_table(replace(job, part=(1, 2)))
        with pytest.raises(ValueError, match="part 1/1 may share files"):
            explain_table(job)
        explain_table(replace(job, part=(2, 2)))
    assert explain_table(job).n_kept == 5


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_and_loses_nothing(job, monkeypatch, call):
    explain_table(job)
    whole = contents(job.output)
    for number in (1, 3):
        (job.output / f"part-{number:06d}.parquet").unlink()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match=r"part-000001\.parquet cannot be written"):
            explain_table(job)
    left = {path.name for path in job.output.iterdir() if path.suffix == ".tmp"}
    assert left == set()
    assert explain_table(job).n_kept == 3
    assert contents(job.output) == whole


def test_a_full_disk_is_named_where_rows_are_shuffled(job, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyarrow.ipc, "new_file", full)
    with pytest.raises(OSError, match=r"shuffled-.* cannot be written: No space left"):
        explain_table(replace(job, shuffle_seed=0))
    assert not [path for path in job.output.iterdir() if "shuffled" in path.name]


def test_what_a_killed_run_left_is_removed_when_it_is_old(job):
    job.output.mkdir()
    old, new = job.output / f".{'a' * 16}.tmp", job.output / f".{'b' * 16}.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    explain_table(job)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "lime"}, "method='lime' is unknown; give one of"),
        ({"options": {"residual": "much"}}, "residual='much' is unknown"),
        ({"options": {"game": "joint"}}, "attention-rollout has no option 'game'"),
        ({"options": {"residual": object()}}, "cannot stand in the manifest"),
        ({"target": "neutral"}, "target='neutral' is unknown"),
        ({"format": "xlsx"}, "format='xlsx' is unknown; give one of 'parquet'"),
        ({"input_format": "xlsx"}, "input_format='xlsx' is unknown"),
        ({"engine": "dask"}, "engine='dask' is unknown; give one of 'local', 'ray'"),
        ({"part": (3, 2)}, "part 3/2 is out of range"),
        ({"part": 3}, r"part=3; give two integers"),
        ({"limit": 0}, "limit=0 must be an integer of at least 1"),
        ({"rows_per_part": 0}, "rows_per_part=0 must be an integer of at least 1"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be an integer"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1 must be an integer"),
        ({"shuffle_seed": 2**32}, "must be less than"),
        ({"columns": ("target",)}, "'target' cannot be carried along.*rename it"),
        ({"columns": ("gold", "gold")}, "columns names 'gold' twice"),
        ({"columns": "gold"}, "columns='gold' is a str; give a tuple"),
        ({"workers": 2}, "workers=2 .* are of Ray; give --engine ray"),
        ({"gpus_per_worker": -1}, "gpus_per_worker=-1 must be a number"),
        ({"text_column": None}, "text_column=None is a NoneType; give a str"),
        ({"model": "/no/such/model"}, "there is no model folder"),
    ],
)
def test_wrong_settings_are_refused_and_write_nothing(job, changed, message):
    with pytest.raises((ValueError, OSError), match=message):
        explain_table(replace(job, **changed))
    assert not job.output.exists()


def test_an_extra_that_is_not_installed_is_named(job, monkeypatch):
    for module in (settings, sharing):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "captum-attnflow\[tables\]"'):
        explain_table(job)
    with pytest.raises(ValueError, match=r'pip install "captum-attnflow\[ray\]"'):
        explain_table(replace(job, engine="ray", format="csv"))


def test_a_job_is_a_value():
    assert TableJob("a", "b") == TableJob("a", "b")


def test_settings_name_what_the_pipelines_take():
    assert get_args(settings.Truncation) == get_args(encoding.Truncation)


def test_long_texts_follow_the_policy_and_a_contrast_its_labels(tmp_path):
    data = tmp_path / "texts.csv"
    data.write_text("text\nso funny\n" + "so very dull " * 100 + "\n")
    job = TableJob(str(data), tmp_path / "windows", truncation="window", against=1)
    explain_table(replace(job, target=0))
    short, long = lines_of(tmp_path / "windows")
    assert (short["n_truncated"], long["n_truncated"]) == (0, 0)
    assert (short["n_windows"], long["n_windows"]) == (1, 3)
    assert len(long["tokens"]) == 302
    strict = replace(job, output=tmp_path / "r", target=0, truncation="refuse")
    refused = explain_table(strict)
    assert refused.n_failed == 1
    reason = "the text has more tokens than the model's limit of 128"
    assert refused.reasons == {reason: 1}
    # Each against what it is itself: one row fails, and says why.
    explain_table(replace(job, output=tmp_path / "own"))
    own, other = lines_of(tmp_path / "own")
    assert "is the label that is explained itself; give another" in own["reason"]
    assert (other["status"], other["target"]) == ("explained", "negative")


@pytest.mark.parametrize(
    ("method", "options", "compiles"),
    [
        ("attention-flow", {}, True),
        ("attention-flow", {"solver": "scipy"}, False),
        ("attention-rollout", {}, False),
    ],
)
def test_flows_are_compiled_before_the_first_text(
    monkeypatch, job, method, options, compiles
):
    """Those by torch have other last digits: a table would depend on when."""
    happened = []
    monkeypatch.setattr(flow, "compile_kernels", lambda show: happened.append(show))

    def explain(self, *arguments, explain=ChunkExplainer._explain):
        happened.append("text")
        return explain(self, *arguments)

    monkeypatch.setattr(ChunkExplainer, "_explain", explain)
    chosen = replace(job, method=method, options=options, limit=2)
    explain_table(chosen, show_progress=True)
    # Said once; a worker of Ray says nothing.
    assert happened[:-1] == ([True, False] if compiles else [])
    assert happened[-1] == "text"
