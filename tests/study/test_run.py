from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import random
import re
import shutil
import time
from importlib.metadata import version

import numpy as np
import pytest
import torch
from study.figures import results_without_seconds, table_without_seconds

from captum_attnflow import metrics
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.study import (
    METHODS,
    DataSource,
    Method,
    evaluate,
    read_data,
    run,
    run_study,
)

TABLES = ["table.md", "table.csv", "table.tex"]


def test_values_are_the_metrics_of_each_text_alone(study, demo):
    table = run_study(study)
    results = results_without_seconds(study.output)
    mask = demo.tokenizer.mask_token_id
    texts = read_data(study.data).texts
    for row, text in enumerate(texts):
        [explained] = demo.explain([text], "attention-rollout")
        ids = demo.tokenizer(text, return_tensors="pt").input_ids
        for removal in study.removals:
            value = metrics.aopc(
                lambda ids: demo.model(ids).logits,
                ids,
                torch.tensor([explained.scores]),
                mask,
                target=demo.labels.index(explained.predicted),
                removal=removal,
                keep=torch.isin(ids, torch.tensor([2, 3])),
            )
            [result] = [
                r
                for r in results
                if (r["method"], r["row"]) == ("attention-rollout", row)
            ]
            assert result["values"][removal]["aopc"] == pytest.approx(
                value.item(), abs=1e-5
            )
    [row] = [
        row
        for row in table.rows
        if (row.method, row.removal) == ("attention-rollout", "delete")
    ]
    mine = [
        r["values"]["delete"]["aopc"]
        for r in results
        if r["method"] == "attention-rollout"
    ]
    theirs = [
        r["values"]["delete"]["aopc"]
        for r in results
        if r["method"] == "input-x-gradient"
    ]
    assert row.values["aopc"].mean == pytest.approx(sum(mine) / 7)
    difference = (sum(mine) - sum(theirs)) / 7
    assert row.differences["aopc"].mean == pytest.approx(difference)
    assert row.n == 7


@pytest.mark.usefixtures("finished")
def test_a_second_run_changes_no_byte(study):
    first = {file.name: file.read_bytes() for file in study.output.iterdir()}
    run_study(study)
    assert {f.name: f.read_bytes() for f in study.output.iterdir()} == first
    written = {name for name in first if not name.startswith(".")}
    assert {*TABLES, "plot.png", "manifest.json", "results.jsonl"} == written


@pytest.mark.usefixtures("finished")
def test_results_cut_at_any_byte_are_completed_to_the_same_figures(study, tmp_path):
    content = (study.output / "results.jsonl").read_bytes()
    cuts = random.Random(0).sample(range(len(content)), 2)
    for cut in [*cuts, 0, len(content) - 1]:
        torn = dataclasses.replace(study, output=tmp_path / f"cut {cut}")
        shutil.copytree(study.output, torn.output)
        (torn.output / "results.jsonl").write_bytes(content[:cut])
        run_study(torn)
        whole = content[: content.rfind(b"\n", 0, cut) + 1]
        assert (torn.output / "results.jsonl").read_bytes().startswith(whole)
        assert results_without_seconds(torn.output) == results_without_seconds(
            study.output
        )
        assert table_without_seconds(torn.output) == table_without_seconds(study.output)


@pytest.mark.usefixtures("finished")
def test_figures_do_not_depend_on_the_other_methods(study, changed, tmp_path):
    together = results_without_seconds(study.output)
    for method in study.methods:
        alone = changed(methods=(method,), output=tmp_path / method, against=None)
        run_study(alone)
        mine = [result for result in together if result["method"] == method]
        assert results_without_seconds(alone.output) == mine


def test_methods_can_be_added_and_their_earlier_results_stay(study, changed, manifest):
    run_study(changed(methods=study.methods[:3]))
    before = (study.output / "results.jsonl").read_bytes()
    table = run_study(study)
    assert (study.output / "results.jsonl").read_bytes().startswith(before)
    assert [row.method for row in table.rows] == list(study.methods) * 2
    run_study(changed(methods=study.methods[3:], against=None))
    assert set(manifest()["methods"]) == set(study.methods)


def test_random_scores_follow_the_seed(study, changed, tmp_path):
    values = []
    for seed in (0, 1):
        other = changed(methods=("random",), against=None, seed=seed)
        other = dataclasses.replace(other, output=tmp_path / str(seed))
        run_study(other)
        values.append(results_without_seconds(other.output))
    assert values[0] != values[1]


@pytest.mark.usefixtures("finished")
def test_manifest_tells_what_the_study_was_made_of(study, manifest):
    written = manifest()
    digest = hashlib.sha256((DEMO_MODEL_PATH / "model.safetensors").read_bytes())
    assert written["models"]["sentiment"]["model.safetensors"] == digest.hexdigest()
    assert written["data"] == {
        "name": "texts.tsv",
        "subset": None,
        "split": None,
        "sha256": read_data(study.data).sha256,
        "text_column": "text",
        "label_column": "label",
        "n_texts": 7,
        "rows": "all",
    }
    assert written["versions"]["torch"] == version("torch")
    assert written["methods"]["attention-rollout"]["settings"] == {"residual": 0.5}
    assert written["settings"]["seed"] == 0
    assert written["against"] == "input-x-gradient"
    assert written["results"]["failures"] == []


@pytest.mark.usefixtures("finished")
def test_accuracy_is_that_of_the_labels(study, manifest, demo):
    texts = read_data(study.data)
    right = [
        demo.labels.index(result.predicted) == int(label)
        for result, label in zip(
            demo.explain(texts.texts, "attention-rollout"), texts.labels, strict=True
        )
    ]
    accuracy = manifest()["results"]["accuracy"]["sentiment"]
    assert accuracy == pytest.approx(sum(right) / 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another 'seed'.*: 0 there, 1 now"),
        ({"metrics": ("aopc",)}, "another 'metrics'"),
        ({"removals": ("delete",)}, "another 'removals'"),
        ({"reference_token": "pad"}, "another 'reference_token'"),
        ({"batch_size": 3}, "another 'batch_size'"),
        ({"batch_size": 16}, "'batch_size'.*, 16 now, which is the default where it"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_other_settings_in_the_same_folder_are_refused(study, changed, change, message):
    before = {file.name: file.read_bytes() for file in study.output.iterdir()}
    with pytest.raises(ValueError, match=rf"{message}.*another --output"):
        run_study(changed(**change))
    assert {f.name: f.read_bytes() for f in study.output.iterdir()} == before


@pytest.mark.filterwarnings("ignore:1 row of texts.tsv left out")
def test_another_label_column_is_refused_and_none_may_be_added(study, tmp_path):
    """Rows that lack the one label may have the other, and their number be the same."""
    path = tmp_path / "texts.tsv"
    path.write_text("text\tgold\tsilver\nfunny\t1\t\ndull\t\t0\nsad\t0\t0\n")
    study = dataclasses.replace(study, methods=("random",), against=None)

    def by(column):
        data = dataclasses.replace(study.data, label_column=column)
        return dataclasses.replace(study, data=data)

    run_study(by("gold"))
    with pytest.raises(ValueError, match=r"'label_column' .*'gold' there, 'silv"):
        run_study(by("silver"))
    with pytest.raises(ValueError, match=r"'n_texts' .*: 2 there, 3 now"):
        run_study(by(None))
    path.write_text("text\tgold\nfunny\t1\ndull\t0\nsad\t0\n")
    study = dataclasses.replace(study, output=tmp_path / "whole")
    run_study(by(None))
    assert run_study(by("gold")).rows == run_study(by(None)).rows


def test_changed_data_model_and_method_are_refused(
    study, changed, tmp_path, monkeypatch
):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, model)
    study = changed(models=(str(model),))
    run_study(study)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'config.json' \(models model\)"):
        run_study(study)
    shutil.copy(DEMO_MODEL_PATH / "config.json", model)
    rollout = dataclasses.replace(
        METHODS["attention-rollout"], settings={"residual": 0.1}
    )
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "attention-rollout", rollout)
        with pytest.raises(ValueError, match=r"'settings' \(methods attention-rollout"):
            run_study(study)
    path = tmp_path / "texts.tsv"
    path.write_text(path.read_text().replace("dull", "drab"))
    with pytest.raises(ValueError, match="'sha256'"):
        run_study(study)


def test_files_that_were_not_hashed_before_agree_and_are_noted(
    changed, tmp_path, manifest
):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, model)
    (model / "vocab.bpe").write_text("one")
    study = changed(models=(str(model),), methods=("random",), against=None)
    run_study(study)
    path, written = study.output / "manifest.json", manifest()
    hashes = written["models"]["model"]

    def forget(file):
        fewer = {name: of for name, of in hashes.items() if name != file}
        path.write_text(json.dumps(written | {"models": {"model": fewer}}))

    forget("vocab.bpe")
    run_study(study)
    assert manifest() == written
    forget("config.json")  # which was always hashed
    with pytest.raises(ValueError, match=r"'config.json' \(models model\): None"):
        run_study(study)
    path.write_text(json.dumps(written))
    (model / "vocab.bpe").write_text("two")
    with pytest.raises(ValueError, match=r"'vocab.bpe' \(models model\)"):
        run_study(study)
    (model / "vocab.bpe").unlink()
    with pytest.raises(ValueError, match=r"'vocab.bpe' \(models model\).*None now"):
        run_study(study)


@pytest.mark.usefixtures("finished")
def test_a_study_of_an_earlier_version_is_refused(study, manifest):
    earlier = {k: v for k, v in manifest().items() if k != "format"}
    (study.output / "manifest.json").write_text(json.dumps(earlier))
    with pytest.raises(ValueError, match="is of format 1, and this version writes 2"):
        run_study(study)


@pytest.mark.usefixtures("finished")
def test_results_without_a_manifest_are_refused(study):
    (study.output / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json beside it"):
        run_study(study)


DICTS = '"data": {}, "settings": {}, "versions": {}, "models": {}, "methods"'


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "{",
        "[" * 100_000,
        f"{{{DICTS}: []}}",
        f'{{{DICTS}: {{"random": 1}}}}',
    ],
)
def test_folder_with_another_manifest_is_refused(study, content):
    study.output.mkdir()
    (study.output / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="is no manifest of a study"):
        run_study(study)


@pytest.fixture
def fragile(monkeypatch):
    """A method that fails on texts with "holes", and gives NaN where "sad" stands."""

    def scores(batch):
        words = [batch.model.config.words[i] for i in batch.ids.flatten().tolist()]
        if "holes" in words:
            raise ZeroDivisionError("holes")
        found = METHODS["attention-rollout"].scores(batch, residual=0.5)
        return found / ("sad" not in words) if "sad" in words else found

    monkeypatch.setitem(METHODS, "fragile", Method(scores, "fails at times"))


def test_failures_on_single_texts_are_recorded_and_the_rest_goes_on(
    study, changed, fragile, manifest, demo, monkeypatch
):
    words = demo.tokenizer.convert_ids_to_tokens(range(len(demo.tokenizer)))
    from transformers import BertConfig

    monkeypatch.setattr(BertConfig, "words", words, raising=False)
    study = changed(methods=(*study.methods, "fragile"))
    table = run_study(study)
    failures = manifest()["results"]["failures"]
    assert [(f["method"], f["row"]) for f in failures] == [
        ("fragile", 2),
        ("fragile", 4),
    ]
    assert "NaN or infinite" in failures[0]["error"]
    assert failures[1]["error"] == "ZeroDivisionError: holes"
    rows = {(row.method, row.removal): row for row in table.rows}
    fragile, sound = rows["fragile", "delete"], rows["attention-rollout", "delete"]
    assert (fragile.n, fragile.failures) == (5, 2)
    assert (sound.n, sound.failures) == (7, 0)
    results = results_without_seconds(study.output)
    values = {(r["method"], r["row"]): r["values"] for r in results}
    for row in (0, 1, 3, 5, 6):
        assert values["fragile", row]["delete"]["aopc"] == pytest.approx(
            values["attention-rollout", row]["delete"]["aopc"], abs=1e-5
        )
    before = (study.output / "table.csv").read_bytes()
    run_study(study)  # a failure is a result: it is not tried again
    assert (study.output / "table.csv").read_bytes() == before


def test_lack_of_memory_is_no_result(study, changed, monkeypatch):
    def scores(batch):
        raise MemoryError("for now")

    whole = run_study(changed(methods=("random",), against=None))
    sound = METHODS["random"]
    monkeypatch.setitem(METHODS, "random", Method(scores, sound.description))
    again = changed(methods=("random",), against=None, output=study.output / "again")
    with pytest.raises(MemoryError):
        run_study(again)
    monkeypatch.setitem(METHODS, "random", sound)
    assert [row.values for row in run_study(again).rows] == [
        row.values for row in whole.rows
    ]


def test_method_that_always_fails_is_shown_as_failed(
    study, changed, monkeypatch, tmp_path
):
    def scores(batch):
        raise ZeroDivisionError

    monkeypatch.setitem(METHODS, "broken", Method(scores, "always fails"))
    study = changed(methods=("broken", "random"), against="broken")
    table = run_study(study)
    broken, chance = table.rows[:2]
    assert (broken.n, broken.failures) == (0, 7)
    assert broken.values == chance.differences == {}
    assert math.isnan(broken.seconds)
    assert "| failed |" in (study.output / "table.md").read_text()


def test_equal_scores_are_counted_as_undecided(study, changed, manifest, monkeypatch):
    zeros = Method(lambda batch: torch.zeros(batch.ids.shape), "zeros")
    monkeypatch.setitem(METHODS, "zeros", zeros)
    run_study(changed(methods=("zeros", "input-x-gradient")))
    undecided = manifest()["results"]["texts_of_one_score"]
    # A text of one token has no order either.
    assert undecided == {"sentiment": {"zeros": 7, "input-x-gradient": 2}}


def test_several_models_share_one_table(study, changed, tmp_path):
    shutil.copytree(DEMO_MODEL_PATH, tmp_path / "twin")
    models = (str(DEMO_MODEL_PATH), str(tmp_path / "twin"))
    table = run_study(changed(models=models, methods=study.methods[1:3]))
    values = [
        (row.removal, row.method, row.values, row.differences) for row in table.rows
    ]
    assert [row.model for row in table.rows] == ["sentiment"] * 4 + ["twin"] * 4
    assert values[:4] == values[4:]


def test_the_first_call_warms_up_and_is_the_time_of_no_text(
    study, changed, monkeypatch
):
    """Flows compile for seconds at their first call; its rows do not count either."""
    sound, calls = METHODS["attention-rollout"], []

    def scores(batch, **settings):
        calls.append(len(batch))
        if len(calls) == 1:
            time.sleep(0.5)
        return sound.scores(batch, **settings)

    monkeypatch.setitem(METHODS, "slow", Method(scores, "warms up", sound.settings))
    table = run_study(changed(methods=("slow", "attention-rollout"), against=None))
    assert sorted(calls) == [1, 2, 2, 2, 2]  # the first batch twice
    lines = (study.output / "results.jsonl").read_text().splitlines()
    assert max(json.loads(line)["seconds"] for line in lines) < 0.2
    slow, plain = table.rows[:2]
    assert slow.values == plain.values
    assert slow.forward_rows == plain.forward_rows == 1


def test_rows_without_a_text_are_left_out_and_named(study, tmp_path):
    path = tmp_path / "texts.tsv"
    whole = run_study(study)
    lines = path.read_text().splitlines()
    lines[2:2] = ["\t1", "one cell"]
    path.write_text("\n".join(lines) + "\n")
    broken = dataclasses.replace(study, output=tmp_path / "broken")
    with pytest.warns(
        UserWarning, match=r"2 rows of texts.tsv left out, by reason: 1:"
    ):
        table = run_study(broken)
    written = json.loads((broken.output / "manifest.json").read_text())
    assert written["results"]["n_left_out"] == 2
    assert written["results"]["left_out"] == [
        {"row": 1, "reason": "the text is blank"},
        {"row": 2, "reason": "the line has fewer cells than the header names"},
    ]
    rows = {result["row"] for result in results_without_seconds(broken.output)}
    assert rows == {0, 3, 4, 5, 6, 7, 8}
    sound = [row.values for row in whole.rows if row.method != "random"]
    assert [row.values for row in table.rows if row.method != "random"] == sound


def test_progress_tells_the_time_left(study, capsys):
    run_study(study, show_progress=True)
    shown = capsys.readouterr().err
    assert "35/35" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", shown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("lie",)}, "method='lie' is unknown; give one of 'relevance"),
        ({"metrics": ("auc",)}, "metric='auc' is unknown"),
        ({"removals": ("zero",)}, "removal='zero' is unknown"),
        (
            {"against": "lime"},
            "against='lime' is not among the methods that are compared",
        ),
        ({"methods": ()}, "at least one"),
        ({"methods": "random"}, "methods='random' is a str; give a tuple of names"),
        ({"methods": np.array(["random"])}, "is an ndarray; give a tuple of names"),
        ({"methods": (np.array(["random", "lime"]),)}, "method=.* is unknown"),
        ({"models": str(DEMO_MODEL_PATH)}, "models=.* is a str; give a tuple"),
        ({"models": (DEMO_MODEL_PATH,)}, "models holds .*; give a tuple"),
        ({"methods": ("random", "random"), "against": None}, "none twice"),
        ({"batch_size": 0}, "at least 1"),
        ({"reference_token": "maks"}, "no reference token"),
        ({"models": (str(DEMO_MODEL_PATH), f"{DEMO_MODEL_PATH}/.")}, "Rename a folder"),
    ],
)
def test_bad_settings_are_refused_before_any_work(study, changed, change, message):
    with pytest.raises(ValueError, match=message):
        run_study(changed(**change))
    assert not (study.output / "manifest.json").exists()


def test_labels_outside_the_models_classes_are_refused_before_any_work(study, tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text(path.read_text().replace("dull\t0", "dull\t2"))
    with pytest.raises(ValueError, match=r"label '2' of row 1.*\['negative', 'posit"):
        run_study(study)
    assert not (study.output / "manifest.json").exists()


def test_unwritable_output_is_said_before_anything_is_read(changed, tmp_path):
    (tmp_path / "file").touch()
    study = changed(output=tmp_path / "file" / "out", data=DataSource("missing.tsv"))
    with pytest.raises(OSError, match="cannot be written to the folder"):
        run_study(study)


def test_missing_scikit_learn_is_said_before_any_work(changed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ValueError, match=r"lime needs scikit-learn.*\[study\]"):
        run_study(changed(methods=("lime",), against=None))


def test_nothing_is_written_through_a_link_planted_in_the_folder(study, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    study.output.mkdir()
    names = [*TABLES, "plot.png", "manifest.tmp"]
    for name in names:
        (study.output / name).symlink_to(victim)
    run_study(study)
    assert victim.read_text() == "mine"
    assert json.loads((study.output / "manifest.json").read_text())["results"]
    assert not any((study.output / name).is_symlink() for name in names[:-1])


@pytest.mark.parametrize("name", [*TABLES, "plot.png", "manifest.json"])
@pytest.mark.usefixtures("finished")
def test_a_failed_write_leaves_every_file_whole(study, monkeypatch, name):
    before = {file.name: file.read_bytes() for file in study.output.iterdir()}
    replace = os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=f"{name} cannot be written: No space left"):
        run_study(study)
    after = {file.name: file.read_bytes() for file in study.output.iterdir()}
    assert json.loads(after.pop("manifest.json"))["settings"]
    assert after.items() <= before.items()
    assert len(after) == len(before) - 1


@pytest.mark.usefixtures("finished")
def test_a_record_with_nan_never_reaches_the_table(study):
    results = study.output / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    damaged = json.loads(lines[4])
    damaged["values"]["delete"]["aopc"] = math.nan
    results.write_text("".join([*lines[:4], json.dumps(damaged) + "\n", *lines[5:]]))
    with pytest.raises(ValueError, match=r"line 5 of .*aopc.*nan.*delete the line"):
        run_study(study)


@pytest.mark.usefixtures("finished")
def test_a_record_without_a_value_is_refused_before_any_work(study):
    results = study.output / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    damaged = json.loads(lines[4])
    del damaged["values"]["delete"]["aopc"]
    results.write_text("".join([*lines[:4], json.dumps(damaged) + "\n", *lines[5:]]))
    with pytest.raises(ValueError, match=r"results\.jsonl.*no aopc.*delete its line"):
        run_study(study)


def test_a_metric_that_is_no_number_is_a_failure_of_the_text(
    study, changed, manifest, monkeypatch
):
    def measured(*_, **__):
        return {"aopc": torch.tensor([math.nan] * 2)}

    monkeypatch.setattr("captum_attnflow.study.evaluate.faithfulness", measured)
    table = run_study(changed(methods=("random",), against=None, metrics=("aopc",)))
    assert [row.failures for row in table.rows] == [7, 7]
    assert "aopc is nan" in manifest()["results"]["failures"][0]["error"]


@pytest.mark.parametrize(
    ("problem", "n_outputs"),
    [("multi_label_classification", 2), ("regression", 2), (None, 1)],
)
def test_models_without_one_class_per_text_are_refused(
    study, changed, tmp_path, demo, problem, n_outputs
):
    model = copy.deepcopy(demo.model)
    model.config.problem_type = problem
    model.num_labels = model.config.num_labels = n_outputs
    if n_outputs == 1:
        model.classifier = torch.nn.Linear(model.config.hidden_size, 1)
    model.save_pretrained(tmp_path / "other")
    demo.tokenizer.save_pretrained(tmp_path / "other")
    data = dataclasses.replace(study.data, label_column=None)
    with pytest.raises(ValueError, match=r"'other' .*no one class per text"):
        run_study(changed(models=(str(tmp_path / "other"),), data=data))
    assert not (study.output / "manifest.json").exists()


def test_a_model_of_an_unknown_problem_is_refused_by_its_name(
    study, changed, tmp_path, demo
):
    demo.model.save_pretrained(tmp_path / "other")
    demo.tokenizer.save_pretrained(tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "problem_type": "weird"})
    )
    with pytest.raises(ValueError, match=r"other.*problem_type.*'regression'"):
        run_study(changed(models=(str(tmp_path / "other"),)))
    assert not (study.output / "manifest.json").exists()


def test_flows_are_compiled_before_the_first_text(monkeypatch, study):
    """Those by torch have other last digits: a study would depend on when."""
    happened = []
    monkeypatch.setattr(run, "compile_kernels", lambda show: happened.append(show))
    monkeypatch.setattr(evaluate, "compile_kernels", lambda: happened.append("worker"))

    def scores(batch):
        happened.append("text")
        return torch.rand(batch.ids.shape)

    monkeypatch.setitem(METHODS, "flows", Method(scores, "", solves_flows=True))
    of_flows = dataclasses.replace(study, methods=("flows",), against=None)
    for _ in range(2):  # the second time all is done
        run_study(of_flows, show_progress=True)
    assert happened[:3] == [True, "worker", "text"]
    assert happened.count(True) == 1


def test_methods_of_a_study_know_whether_they_solve_flows():
    solve = {name for name, method in METHODS.items() if method.solves_flows}
    assert {"attention-flow", "layer-relevance-flow-maximum"} < solve
    assert not solve & {"relevance-flow", "attention-rollout", "attnlrp", "random"}
