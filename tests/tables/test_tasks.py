"""Tables of labelled words, answers and similarities."""

from __future__ import annotations

import builtins
import io
import json
import math
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import bert_for
from pyarrow import parquet
from tables.conftest import contents, lines_of

from captum_attnflow.demo import load_demo_model
from captum_attnflow.pipelines.question_answering import QuestionAnswerer
from captum_attnflow.pipelines.sentence_similarity import SentenceSimilarity
from captum_attnflow.pipelines.token_classification import TokenClassifier
from captum_attnflow.runs.folder import model_hashes
from captum_attnflow.summary import summarize
from captum_attnflow.summary.folder import ScoreFolder
from captum_attnflow.tables import TableJob, explain_table
from captum_attnflow.tables.run import TASKS
from captum_attnflow.tables.settings import TASK_COLUMNS

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
ROWS = [
    ("which film ?", "a gripping , funny film"),
    ("how dull ?", "the plot is sad and the film is long"),
    ("", "a film"),
    ("who ?", "never a dull actor"),
]
CLASSES = {
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "sentence-similarity": "AutoModel",
}


@pytest.fixture
def job_of(tmp_path):
    """A job of a task, with a tiny model of random weights."""

    def make(task: str, **settings) -> TableJob:
        model, data = tmp_path / task, tmp_path / "texts.jsonl"
        _, tokenizer = load_demo_model()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            named = {"id2label": LABELS} if task == "token-classification" else {}
            made = bert_for(CLASSES[task], len(tokenizer), **named)
        made.save_pretrained(model)
        tokenizer.save_pretrained(model)
        names = ("question", "context")
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
        data.write_text("\n".join(lines))
        pairs = task != "token-classification"
        columns = {
            "text_column": "question" if pairs else "context",
            "pair_column": "context" if pairs else None,
        }
        given = {"rows_per_part": 2, "method": "attention-rollout", **columns}
        output = tmp_path / "scores"
        return TableJob(
            str(data), output, model=str(model), task=task, **{**given, **settings}
        )

    return make


def test_each_labelled_word_has_a_line(job_of):
    job = job_of("token-classification")
    outcome = explain_table(job)
    lines = lines_of(job.output)
    model = TokenClassifier.load(job.model)
    expected = model.explain([context for _, context in ROWS], job.method)
    attributions = [each for result in expected for each in result.attributions]
    explained = [line for line in lines if line["status"] == "explained"]
    assert len(explained) == len(attributions) >= 4
    for line, each in zip(explained, attributions, strict=True):
        assert line["word"] == each.word.text
        assert line["text"][line["start"] : line["end"]] == each.word.text
        assert line["predicted"] == each.word.label
        assert line["scores"] == pytest.approx(each.scores, abs=1e-5)
    assert outcome.n_rows == 4
    of_row = [[line["index"] for line in explained if line["row"] == n] for n in (0, 1)]
    assert of_row == [list(range(len(indices))) for indices in of_row]


def test_a_text_without_a_labelled_word_is_in_the_output_with_a_reason(job_of):
    job = job_of("token-classification")
    model = TokenClassifier.load(job.model)
    with torch.no_grad():
        model.model.classifier.bias[0] += 1e4
    model.model.save_pretrained(job.model)
    outcome = explain_table(job)
    assert outcome.reasons == {"no word has another label than O": 4}
    assert [line["row"] for line in lines_of(job.output)] == [0, 1, 2, 3]


def test_an_answer_has_a_line_for_its_start_and_one_for_its_end(job_of):
    job = job_of("question-answering", options={"max_answer_tokens": 2})
    outcome = explain_table(job)
    assert outcome.reasons == {"the text is blank": 1}
    lines = lines_of(job.output)
    assert [(line["row"], line["part"]) for line in lines] == [
        *((0, "start"), (0, "end"), (1, "start"), (1, "end")),
        *((2, None), (3, "start"), (3, "end")),
    ]
    model = QuestionAnswerer.load(job.model)
    for line in lines:
        if line["part"] is not None:
            [expected] = model.explain(
                [(line["text"], line["text_pair"])],
                job.method,
                part=line["part"],
                max_answer_tokens=2,
            )
            assert line["text_pair"][line["start"] : line["end"]] == line["predicted"]
            assert line["predicted"] == expected.predicted
            assert line["scores"] == pytest.approx(expected.scores, abs=1e-5)
            assert line["target"] == f"{line['part']} of the answer"


def test_a_similarity_has_a_line_for_each_text(job_of):
    job = job_of("sentence-similarity", format="jsonl")
    explain_table(job)
    lines = [
        json.loads(line)
        for path in sorted(job.output.glob("part-*"))
        for line in path.read_text().splitlines()
    ]
    explained = [line for line in lines if line["status"] == "explained"]
    assert Counter(line["part"] for line in explained) == {"first": 3, "second": 3}
    model = SentenceSimilarity.load(job.model)
    for first, second in zip(explained[::2], explained[1::2], strict=True):
        [expected] = model.explain([(first["text"], first["text_pair"])], job.method)
        assert first["value"] == pytest.approx(expected.similarity, abs=1e-5)
        assert first["value"] == second["value"]
        assert tuple(first["tokens"]) == expected.first.tokens
        assert tuple(second["tokens"]) == expected.second.tokens
        assert second["scores"] == pytest.approx(expected.second.scores, abs=1e-5)


@pytest.mark.parametrize("task", CLASSES)
def test_parts_and_a_second_run_keep_every_line(job_of, task):
    job = job_of(task)
    explain_table(job)
    parted = replace(job, output=job.output.with_name("parted"))
    for part in ((2, 2), (1, 2)):
        explain_table(replace(parted, part=part))
    assert contents(parted.output) == contents(job.output)
    assert explain_table(job).n_kept == 2


@pytest.mark.parametrize("task", CLASSES)
def test_two_methods_are_summarized_and_compared_by_texts(job_of, task):
    job = job_of(task)
    other = replace(
        job, output=job.output.with_name("other"), method="chefer-relevance"
    )
    for each in (job, other):
        explain_table(each)
    summary = summarize([job.output, other.output])
    rows_of = defaultdict(set)
    for line in lines_of(job.output):
        if line["status"] == "explained":
            rows_of[line["target"]].add(line["row"])
    for folder in summary.folders:
        n_texts = {label.label: label.n_texts for label in folder.labels}
        assert n_texts == {label: len(rows) for label, rows in rows_of.items()}
        assert folder.counts.n_texts == len(ROWS)
    found = summary.agreement
    assert found.n_compared == len(set.union(*rows_of.values()))
    assert (found.n_other_words, found.n_unmatched) == (0, 0)


@pytest.mark.parametrize("task", CLASSES)
def test_a_folder_agrees_with_itself_where_lines_are_missing(job_of, task):
    job = job_of(task, format="jsonl")
    explain_table(job)
    fewer = job.output.with_name("fewer")
    shutil.copytree(job.output, fewer)
    part = fewer / "part-000000.jsonl"
    first, *others = part.read_text().splitlines(keepends=True)
    assert json.loads(first)["status"] == "explained"
    part.write_text("".join(others))
    with pytest.raises(
        ValueError, match=r"part-000000.jsonl was changed .* SHA256SUMS"
    ):
        summarize([job.output, fewer])
    (fewer / "SHA256SUMS").unlink()
    found = summarize([job.output, fewer]).agreement
    assert found.n_unmatched == 1
    assert found.pairs[0].rank_correlation.low == pytest.approx(1)


@pytest.mark.parametrize("task", ["token-classification", "sentence-similarity"])
def test_true_labels_are_of_texts_as_a_whole(job_of, task):
    job = job_of(task, format="jsonl")
    explain_table(job)
    with pytest.raises(ValueError, match=rf"is of {task}, which predicts none .*leave"):
        summarize(job.output, label_column="gold")


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("token-classification", {"pair_column": "question"}, "has no pair_column"),
        ("question-answering", {"pair_column": None}, "needs pairs: give pair_column"),
        ("question-answering", {"against": "a"}, "against='a' is of text-class"),
        ("sentence-similarity", {"target": 1}, "target=1 names a label"),
        ("sentence-similarity", {"truncation": "window"}, "truncation='window' is unk"),
        ("token-classification", {"target": "B-ORG"}, "target='B-ORG' is unknown"),
        ("token-classification", {"columns": ("word",)}, "'word' cannot be carried"),
        ("token-classification", {"options": {"max_answer_tokens": 2}}, "no option"),
    ],
)
def test_what_a_task_does_not_have_is_refused(job_of, task, changed, message):
    job = job_of(task, **changed)
    with pytest.raises(ValueError, match=message):
        explain_table(job)
    assert not job.output.exists()


def test_the_package_holds_no_model_for_other_tasks(job):
    for task in CLASSES:
        with pytest.raises(ValueError, match=f"no model for task='{task}'; give"):
            explain_table(replace(job, task=task))
    with pytest.raises(ValueError, match="task='poetry' is unknown; give one of"):
        explain_table(replace(job, task="poetry"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_folder_that_was_begun_with_fewer_columns_goes_on(job, kind, monkeypatch):
    """Its manifest names no task, and it keeps its columns."""
    job = replace(job, format=kind)
    with monkeypatch.context() as earlier:
        fewer = tuple(name for name in job.own_columns if name != "n_windows")
        earlier.setattr(TableJob, "own_columns", fewer)
        explain_table(replace(job, part=(1, 2)))
    path = job.output / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("task", "other_files", "own_columns"):
        del manifest[name]
    path.write_text(json.dumps(manifest))
    assert explain_table(job).n_kept == 3
    assert explain_table(job).n_kept == 5
    first, second, *_ = sorted(job.output.glob("part-*"))
    names = {"n_truncated", "n_windows"}
    for part in (first, second):
        assert names & {*column_names(part)} == {"n_truncated"}
    assert summarize(job.output).folders[0].counts.n_explained == 40


@pytest.mark.parametrize("task", TASKS)
def test_rows_say_how_many_windows_a_text_was_read_in(job, job_of, tmp_path, task):
    if task in CLASSES:
        job = job_of(task)
    if task == "sentence-similarity":
        explain_table(job)
        assert "n_windows" not in lines_of(job.output)[0]
        return
    long = json.dumps({"question": "who ?", "context": "a funny film " * 50})
    (tmp_path / "long.jsonl").write_text(f"{long}\n{long}")
    column = {} if task in CLASSES else {"text_column": "context"}
    data = str(tmp_path / "long.jsonl")
    explain_table(replace(job, data=data, truncation="window", **column))
    lines = lines_of(job.output)
    assert {line["n_truncated"] for line in lines} == {0}
    assert {line["n_windows"] > 1 for line in lines} == {True}
    folder = ScoreFolder.open(job.output)
    assert folder.carried == ()
    assert summarize(job.output).folders[0].counts.n_explained == len(lines)


LONG = {"truncation": "refuse"}
OVERLAPPING = {"truncation": "window", "options": {"stride": 62}}


@pytest.mark.parametrize(
    ("task", "settings", "reason"),
    [
        ("token-classification", LONG, "the text has more tokens than the model's"),
        ("question-answering", LONG, "the pair has more tokens than the model's limit"),
        ("sentence-similarity", LONG, "the text has more tokens than the model's"),
        ("token-classification", OVERLAPPING, "windows of 64 tokens have too little"),
        (
            "question-answering",
            {"target": "tree"},
            "target='tree' does not stand in the context",
        ),
        (
            "token-classification",
            {"method": "slalom", "options": {"n_samples": 2}},
            "n_samples=2 is too few for the text's distinct tokens",
        ),
    ],
)
def test_texts_of_one_fault_have_one_reason(job_of, tmp_path, task, settings, reason):
    job = job_of(task, **settings)
    rows = [("which film ?", f"a film {'so very funny ' * n}") for n in (30, 40, 50)]
    lines = [json.dumps({"question": q, "context": c}) for q, c in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    [(found, count)] = explain_table(job).reasons.items()
    assert (found[: len(reason)], count) == (reason, 3)
    assert "funny" not in found


def test_a_vocabulary_too_large_is_one_reason(job_of):
    job = job_of("token-classification")
    model = TokenClassifier.load(job.model).model
    model.resize_token_embeddings(10)
    model.save_pretrained(job.model)
    [(reason, count)] = explain_table(job).reasons.items()
    assert "has embeddings of 10 tokens only: the tokenizer is of another" in reason
    assert count == len(ROWS)


def test_values_that_are_not_finite_have_no_shape_in_a_reason(job_of):
    job = job_of("token-classification", method="attnlrp")
    model = TokenClassifier.load(job.model).model
    with torch.no_grad():
        model.classifier.weight[1, 0] = torch.inf
    model.save_pretrained(job.model)
    reasons = "; ".join(explain_table(job).reasons)
    assert "the gradient of a tensor holds NaN or infinite entries" in reasons


def column_names(part: Path) -> list[str]:
    if part.suffix == ".parquet":
        return list(parquet.read_schema(part).names)
    first = part.read_text().splitlines()[0]
    return first.split(",") if part.suffix == ".csv" else list(json.loads(first))


def write_pooling(folder, mode, inner="1_Pooling"):
    """The file of sentence-transformers that says how embeddings are pooled."""
    pooling = Path(folder) / inner / "config.json"
    pooling.parent.mkdir(exist_ok=True)
    pooling.write_text(json.dumps({f"pooling_mode_{mode}": True}))


def test_another_pooling_is_refused_and_mixes_nothing(job_of):
    job = job_of("sentence-similarity", rows_per_part=1)
    write_pooling(job.model, "mean_tokens")
    explain_table(replace(job, part=(1, 2)))
    before = contents(job.output)
    write_pooling(job.model, "cls_token")
    with pytest.raises(ValueError, match=r"another 'other_files'.*1_Pooling/config"):
        explain_table(replace(job, part=(2, 2)))
    assert contents(job.output) == before
    write_pooling(job.model, "mean_tokens")
    assert explain_table(job).n_kept == len(before)


def test_a_pooling_of_another_folder_is_compared_too(job_of):
    job = job_of("sentence-similarity", rows_per_part=1)
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "2_Pooling"}]
    (Path(job.model) / "modules.json").write_text(json.dumps(modules))
    write_pooling(job.model, "mean_tokens", "2_Pooling")
    explain_table(replace(job, part=(1, 2)))
    write_pooling(job.model, "cls_token", "2_Pooling")
    with pytest.raises(ValueError, match=r"another 'other_files'.*2_Pooling/config"):
        explain_table(replace(job, part=(2, 2)))


def test_what_was_not_noted_when_a_folder_was_begun_is_noted(job_of):
    job = job_of("sentence-similarity", rows_per_part=1)
    write_pooling(job.model, "mean_tokens")
    explain_table(replace(job, part=(1, 2)))
    path = job.output / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["other_files"]
    path.write_text(json.dumps(manifest))
    explain_table(replace(job, part=(1, 2)))
    write_pooling(job.model, "cls_token")
    with pytest.raises(ValueError, match="another 'other_files'"):
        explain_table(job)


def test_a_folder_of_another_version_of_the_package_is_refused(job):
    explain_table(replace(job, part=(1, 2)))
    before = contents(job.output)
    path = job.output / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["captum-attnflow"] = "0.0.1"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"another 'versions'.*0\.0\.1.* there"):
        explain_table(job)
    assert contents(job.output) == before


@pytest.mark.parametrize("task", CLASSES)
def test_every_file_that_a_model_is_read_from_is_hashed(job_of, task, monkeypatch):
    """Of those that Python opens: weights and fast tokenizers are read elsewhere."""
    folder = Path(job_of(task).model)
    write_pooling(folder, "mean_tokens")
    for name, content in {
        "modules.json": [],
        "sentence_bert_config.json": {"max_seq_length": 32},
    }.items():
        (folder / name).write_text(json.dumps(content))
    opened = []

    def open_file(file, *arguments, **options):
        opened.append(file)
        return there(file, *arguments, **options)

    there = io.open
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", open_file)
    TASKS[task].load(str(folder))
    paths = [Path(file) for file in opened if isinstance(file, (str, Path))]
    read = {
        path.relative_to(folder).as_posix()
        for path in paths
        if path.is_relative_to(folder)
    }
    assert "config.json" in read
    assert ("1_Pooling/config.json" in read) == (task == "sentence-similarity")
    assert read <= model_hashes(str(folder), TASKS[task].files(str(folder))).keys()


def test_tasks_have_columns_and_all_scores_are_finite(job_of):
    assert TASKS.keys() == TASK_COLUMNS.keys()
    job = job_of("token-classification", method="relevance-flow")
    explain_table(job)
    scores = [line["scores"] for line in lines_of(job.output) if line["scores"]]
    assert scores
    assert all(math.isfinite(score) for of_line in scores for score in of_line)
