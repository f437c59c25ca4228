"""NAOPC in a study: bounds searched for once, kept on disk, safe against a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from study.figures import results_without_seconds, table_without_seconds

from captum_attnflow import metrics
from captum_attnflow.study import DataSource, run_study
from captum_attnflow.study import evaluate as module

METHODS = ("attention-rollout", "input-x-gradient", "random")


TEXTS = ["a gripping , funny film", "dull", "great great great", "a sad film"]


@pytest.fixture
def short(study, tmp_path):
    """A study of short texts, whose orders are few."""
    data = tmp_path / "short.tsv"
    data.write_text("\n".join(["text", *TEXTS]) + "\n")
    return dataclasses.replace(
        study,
        data=DataSource(str(data)),
        methods=METHODS,
        metrics=("naopc", "aopc"),
    )


@pytest.fixture
def searches(monkeypatch):
    """The texts whose bounds were searched for, by their ids."""
    seen, search = [], module._search

    def watching(text, removal):
        seen.append((removal, tuple(text.ids[0].tolist())))
        return search(text, removal)

    monkeypatch.setattr(module, "_search", watching)
    return seen


def lines_of(folder):
    return [json.loads(x) for x in (folder / "bounds.jsonl").read_text().splitlines()]


def test_values_are_those_of_each_text_alone(short, demo):
    run_study(short)
    results = results_without_seconds(short.output)
    bounds = {(b["removal"], b["row"]): b for b in lines_of(short.output)}
    for row, text in enumerate(TEXTS):
        [explained] = demo.explain([text], "attention-rollout")
        ids = demo.tokenizer(text, return_tensors="pt").input_ids
        arguments = {
            "forward_func": lambda ids: demo.model(ids).logits,
            "inputs": ids,
            "baselines": demo.tokenizer.mask_token_id,
            "target": demo.labels.index(explained.predicted),
            "keep": torch.isin(ids, torch.tensor([2, 3])),
        }
        [result] = [
            r for r in results if (r["method"], r["row"]) == ("attention-rollout", row)
        ]
        for removal in short.removals:
            lower, upper = metrics.aopc_bounds(**arguments, removal=removal)
            found = bounds[removal, row]
            assert found["lower"] == pytest.approx(lower.item(), abs=1e-5)
            assert found["upper"] == pytest.approx(upper.item(), abs=1e-5)
            value = metrics.naopc(
                **arguments,
                attributions=torch.tensor([explained.scores]),
                removal=removal,
            ).item()
            given = result["values"][removal]["naopc"]
            assert given == pytest.approx(value, abs=1e-4)


def test_each_text_is_searched_once_for_all_methods(short, searches):
    run_study(short)
    assert len(searches) == len(set(searches)) == 4 * 2
    assert len(lines_of(short.output)) == 4 * 2
    searches.clear()
    run_study(dataclasses.replace(short, methods=(*METHODS, "chefer-relevance")))
    assert not searches


def test_figures_are_the_same_from_the_cache_and_without_it(short, searches, tmp_path):
    run_study(short)
    results = (short.output / "results.jsonl").read_bytes()
    bounds = (short.output / "bounds.jsonl").read_bytes()
    lines = results.splitlines(keepends=True)
    for number, cut in enumerate((0, len(bounds) // 2, None)):
        torn = dataclasses.replace(short, output=tmp_path / f"cut {number}")
        shutil.copytree(short.output, torn.output)
        (torn.output / "results.jsonl").write_bytes(b"".join(lines[:5]))
        (torn.output / "bounds.jsonl").write_bytes(bounds[:cut])
        searches.clear()
        run_study(torn)
        assert bool(searches) == (cut is not None)
        assert results_without_seconds(torn.output) == results_without_seconds(
            short.output
        )
        assert table_without_seconds(torn.output) == table_without_seconds(short.output)
        order = ("removal", "row")
        assert sorted(
            lines_of(torn.output), key=lambda line: [line[name] for name in order]
        ) == sorted(
            lines_of(short.output), key=lambda line: [line[name] for name in order]
        )


def test_tables_show_it_and_the_manifest_tells_the_width(short, manifest):
    table = run_study(short)
    assert all(0 <= row.values["naopc"].mean <= 1 for row in table.rows)
    assert "| naopc ↑ | aopc ↑ |" in (short.output / "table.md").read_text("utf-8")
    assert manifest()["settings"]["beam_width"] == 5


def test_a_study_without_it_searches_for_nothing(short, searches, manifest):
    study = dataclasses.replace(short, metrics=("aopc",))
    run_study(study)
    assert not searches
    assert not (study.output / "bounds.jsonl").exists()
    assert "beam_width" not in manifest()["settings"]


def test_bounds_without_a_manifest_are_refused(short):
    short.output.mkdir()
    (short.output / "bounds.jsonl").touch()
    with pytest.raises(ValueError, match=r"bounds\.jsonl has no manifest\.json"):
        run_study(short)


def test_damaged_bounds_are_refused(short):
    run_study(short)
    path = short.output / "bounds.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .*bounds\.jsonl.*delete the line"):
        run_study(short)


def test_a_text_without_bounds_is_a_failure_of_that_text(short, monkeypatch, manifest):
    search = module._search

    def failing(text, removal):
        if text.ids.shape[1] > 6:
            raise ZeroDivisionError("on purpose")
        return search(text, removal)

    monkeypatch.setattr(module, "_search", failing)
    table = run_study(short)
    assert {(row.n, row.failures) for row in table.rows} == {(3, 1)}
    errors = {failure["error"] for failure in manifest()["results"]["failures"]}
    assert errors == {"ZeroDivisionError: on purpose"}
