from __future__ import annotations

import copy
import io
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from models import bert, classifier
from rich.console import Console
from safetensors.torch import load_file, save_file

from captum_attnflow import AttnLRP
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.pipelines.encoding import TextEncoder
from captum_attnflow.pipelines.methods import METHODS
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.show import html_page, terminal_text

TEXTS = ["a gripping , funny film", "dull", "the worst thing i have seen in years"]


@pytest.mark.parametrize("method", METHODS)
def test_texts_of_a_batch_are_explained_as_if_alone(demo, method):
    together = demo.explain(TEXTS, method)
    for text, result in zip(TEXTS, together, strict=True):
        [alone] = demo.explain([text], method)
        assert (alone.tokens, alone.predicted) == (result.tokens, result.predicted)
        assert result.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("method", ["relevance-flow", "slalom"])
def test_a_text_of_special_tokens_alone_is_refused_by_every_method(demo, method):
    with pytest.raises(ValueError, match=r"^the text, '.u200b', has no token but spec"):
        demo.explain(["\u200b"], method)
    with pytest.raises(ValueError, match=r"^text 2 of 2, '.u200b', has no token but"):
        demo.explain(["so funny", "\u200b"], method)


def test_a_list_of_results_is_printed_without_what_is_long(demo):
    results = demo.explain(["so funny"], "attention-rollout")
    console = Console(record=True, width=200)
    console.print(results)
    printed = console.export_text()
    assert printed.startswith("[TextAttribution(text='so funny', predicted='positive'")
    assert "method='attention-rollout'" in printed
    for long in ("scores", "tokens", "words", "None"):
        assert long not in printed


def test_loading_a_folder_prints_nothing_and_leaves_progress_bars_on(capfd):
    transformers.logging.enable_progress_bar()
    TextClassifier.load(str(DEMO_MODEL_PATH))
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.is_progress_bar_enabled()


def test_predicted_class_is_attributed_unless_a_target_is_given(demo):
    [result] = demo.explain(["dull"])
    assert (result.predicted, result.target) == ("negative", "negative")
    assert 0.5 < result.probability <= 1
    for target in ("positive", 1, "1"):
        [result] = demo.explain(["dull"], target=target)
        assert (result.predicted, result.target) == ("negative", "positive")


@pytest.mark.parametrize("method", ["relevance-flow", "attnlrp", "slalom"])
def test_a_contrast_explains_the_difference_of_two_logits(demo, method):
    [result] = demo.explain(
        ["not so funny , but a gripping film"], method, "negative", against="positive"
    )
    assert (result.target, result.against) == ("negative", "positive")
    with torch.no_grad():
        logits = demo.model(
            **demo.encode(["not so funny , but a gripping film"])
        ).logits[0]
    difference = float(logits[0] - logits[1])
    if method == "slalom":
        assert result.slalom.log_odds == pytest.approx(difference, rel=1e-4)
    elif method == "attnlrp":
        assert result.output == pytest.approx(difference, rel=1e-4)
    else:
        assert sum(result.scores) == pytest.approx(difference, rel=1e-4)
        [of], [other] = (
            demo.explain(["not so funny , but a gripping film"], method, i)
            for i in (0, 1)
        )
        alone = [a - b for a, b in zip(of.scores, other.scores, strict=True)]
        assert result.scores == pytest.approx(alone, rel=1e-3, abs=1e-5)
    shown = terminal_text(result).plain
    assert f"{method}: scores for “negative” against “positive”" in shown


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("attention-flow", {}),
        ("attention-rollout", {}),
        ("generalized-attention-flow", {"information": "AF"}),
    ],
)
def test_a_contrast_that_attention_alone_does_not_see_is_refused(demo, method, options):
    with pytest.raises(ValueError, match=r"attention alone.*Leave against out"):
        demo.explain(["so funny"], method, "negative", against="positive", **options)


@pytest.mark.parametrize(
    ("target", "against", "words"),
    [
        ("positive", "positive", "is the label that is explained itself"),
        (None, "bored", "against='bored' is unknown"),
        (None, 7, "against=7 is unknown"),
    ],
)
def test_a_contrast_with_no_other_label_is_refused(demo, target, against, words):
    with pytest.raises(ValueError, match=words):
        demo.explain(["so funny"], target=target, against=against)


def test_a_contrast_names_the_texts_that_have_no_other_label(demo):
    texts = ["so very dull", "so funny", "a warm film"]
    with pytest.raises(
        ValueError, match=r"itself of 'so funny' and 1 other text; give"
    ):
        demo.explain(texts, against="positive")
    with pytest.raises(ValueError, match=r"itself of 'so funny'; give"):
        demo.explain(texts[:2], against="positive")


def test_joint_scores_sum_to_the_flow_value(demo):
    for result in demo.explain(TEXTS):
        assert sum(result.scores) == pytest.approx(result.flow_value)
        assert len(result.tokens) == len(result.scores)


def test_long_text_is_truncated_with_a_warning(demo):
    with pytest.warns(UserWarning, match=r"'very very.*302 tokens.*limit of 128"):
        [_, long] = demo.explain(["dull", "very " * 300], "attention-rollout")
    assert len(long.tokens) == 128


@pytest.mark.parametrize("empty", ["", "  \t"])
def test_empty_text_is_refused(demo, empty):
    with pytest.raises(ValueError, match="text 2 of 3 is empty"):
        demo.explain(["dull", empty, "fine"])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (("first", "second", "third"), "tuple"),
        (("first", None), "tuple"),
        (["first", "second"], "list"),
        ({"text": "first", "text_pair": "second"}, "dict"),
        (None, "NoneType"),
        (3, "int"),
        (b"film", "bytes"),
    ],
)
def test_what_is_no_text_is_refused(demo, wrong, kind):
    with pytest.raises(
        ValueError, match=rf"text 2 of 2 is an? {kind}, .*tokenizer\(fir"
    ):
        demo.explain(["dull", wrong])


@pytest.mark.parametrize("code", [0xD83D, 0xDCE9])
def test_half_a_character_is_refused(demo, code):
    with pytest.raises(ValueError, match=r"text 2 of 2, 'caf\\u.*no UTF-8"):
        demo.explain(["dull", f"caf{chr(code)}"])


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_pipeline_is_no_part_of_it(demo, part):
    pipeline = transformers.pipeline(
        "text-classification", model=demo.model, tokenizer=demo.tokenizer
    )
    parts = {"model": demo.model, "tokenizer": demo.tokenizer}
    with pytest.raises(ValueError, match=r"TextClassifier\.load\(pipeline\)"):
        TextClassifier(**{**parts, part: pipeline})
    with pytest.raises(ValueError, match=f"{part} was not given"):
        TextClassifier(**{**parts, part: None})


@pytest.mark.parametrize("target", ["neutral", 2, -1, "-1"])
def test_unknown_target_is_refused(demo, target):
    with pytest.raises(ValueError, match=r"\['negative', 'positive'\]"):
        demo.explain(["dull"], target=target)


@pytest.mark.parametrize(
    "method", ["lime", ["slalom", "attnlrp"], np.array(["slalom", "attnlrp"])]
)
def test_unknown_method_is_refused(demo, method):
    with pytest.raises(
        ValueError, match=r"method=.* is unknown; give .*attention-flow"
    ):
        demo.explain(["dull"], method)


@pytest.mark.parametrize(
    "targets", [[1, 0], ("positive",), np.array([1, 0]), torch.tensor([1]), {1}]
)
def test_several_targets_are_none(demo, targets):
    kind = type(targets).__name__
    for name in ("target", "against"):
        words = (
            rf"{name}=.* is an? {kind}, and all texts of a call have one {name}; give"
        )
        with pytest.raises(ValueError, match=words):
            demo.explain(["dull"], **{name: targets})


def test_no_texts_and_a_bare_string_are_refused(demo):
    for wrong in ([], "a film", b"a film", None, 5, torch.tensor([[2, 3]])):
        with pytest.raises(ValueError, match="list of at least one text"):
            demo.explain(wrong)


def test_unknown_option_is_refused(demo):
    with pytest.raises(ValueError, match=r"no option 'game'; it has residual"):
        demo.explain(["dull"], "attention-rollout", game="joint")


@pytest.mark.parametrize(
    ("family", "limit"), [("Roberta", 62), ("MPNet", 62), ("Bert", 64), ("XLNet", None)]
)
def test_limit_is_that_of_the_position_embeddings(demo, family, limit):
    model = classifier(family)
    tokenizer = copy.deepcopy(demo.tokenizer)
    tokenizer.model_max_length = int(1e30)
    model.resize_token_embeddings(len(tokenizer))
    model.config.id2label = {0: "negative", 1: "positive"}
    [result] = TextClassifier(model, tokenizer).explain(["dull"], "attention-rollout")
    assert TextEncoder(model, tokenizer, {}).limit == limit
    if limit is not None:
        with pytest.warns(UserWarning, match=f"limit of {limit}"):
            [result] = TextClassifier(model, tokenizer).explain(
                ["very " * 300], "attention-rollout"
            )
        assert len(result.tokens) == limit


def of_problem(demo, problem, n_labels):
    """The body of the demo model under a random head with labels a, b, ..."""
    model = copy.deepcopy(demo.model)
    model.classifier = torch.nn.Linear(model.config.hidden_size, n_labels)
    model.config.id2label = dict(enumerate("abcdef"[:n_labels]))
    model.config.problem_type = problem
    return TextClassifier(model, demo.tokenizer)


def logits_of(classifier, text):
    ids = classifier.tokenizer(text, return_tensors="pt").input_ids
    return classifier.model(ids).logits[0].detach()


@pytest.mark.parametrize("method", METHODS)
def test_every_label_above_the_threshold_is_explained(demo, method):
    several = of_problem(demo, "multi_label_classification", 6)
    several.model.classifier.bias.data += 0.2
    results = several.explain(TEXTS, method)
    expected = []
    for text in TEXTS:
        logits = logits_of(several, text)
        expected += [
            (text, "abcdef"[i], float(logits[i].sigmoid()))
            for i in (logits > 0).nonzero()[:, 0].tolist()
        ]
    assert len(expected) > len(TEXTS)  # more than one batch of the texts' size
    assert [(r.text, r.predicted) for r in results] == [e[:2] for e in expected]
    for result, (text, label, probability) in zip(results, expected, strict=True):
        assert result.target == label
        assert result.probability == pytest.approx(probability, rel=1e-4)
        assert result.value is None
        [alone] = several.explain([text], method, target=label)
        assert result.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-6)


def test_the_label_asked_for_is_explained_by_its_own_probability(demo):
    several = of_problem(demo, "multi_label_classification", 6)
    logits = logits_of(several, TEXTS[0])
    lowest = int(logits.argmin())
    [result] = several.explain(TEXTS[:1], target=lowest)
    assert result.probability == pytest.approx(
        float(logits[lowest].sigmoid()), rel=1e-4
    )
    assert result.probability < 0.5
    assert result.predicted == result.target == "abcdef"[lowest]


def test_no_label_above_the_threshold_is_told(demo):
    several = of_problem(demo, "multi_label_classification", 3)
    several.model.classifier.bias.data -= 100
    with pytest.warns(UserWarning, match="no label of 'dull' has a probability above"):
        [result] = several.explain(["dull"])
    assert result.predicted == "abc"[int(logits_of(several, "dull").argmax())]
    assert result.probability < 0.5


def test_slalom_explains_the_log_odds_of_the_label_alone(demo):
    several = of_problem(demo, "multi_label_classification", 4)
    for index, label in enumerate("abcd"):
        [result] = several.explain(["so funny"], "slalom", target=label)
        expected = float(logits_of(several, "so funny")[index])
        assert result.slalom.log_odds == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("problem", "n_values"), [(None, 1), ("regression", 3)])
@pytest.mark.parametrize("method", ["relevance-flow", "slalom"])
def test_a_value_is_no_probability(demo, method, problem, n_values):
    regression = of_problem(demo, problem, n_values)
    values = logits_of(regression, "so funny").tolist()
    results = regression.explain(["so funny"], method)
    assert [result.target for result in results] == list("abc"[:n_values])
    for result, value in zip(results, values, strict=True):
        assert result.probability is None
        assert result.value == pytest.approx(value, abs=1e-5)
        assert terminal_text(result).plain.startswith(f"{result.target} {value:.3f}\n")
        assert f"{result.target} ({value:.2f})" in html_page([result])
        assert result.labels["value"] == result.value
        assert "probability" not in result.labels
        explained = result.slalom.log_odds if result.slalom else sum(result.scores)
        assert explained == pytest.approx(value, abs=1e-4)


def test_scores_of_propagation_rules_are_those_of_the_class(demo):
    [result] = demo.explain(["so funny"], "attnlrp", rules="cp-lrp")
    ids = demo.tokenizer("so funny", return_tensors="pt").input_ids
    rules = AttnLRP(lambda ids: demo.model(ids).logits, rules="cp-lrp")
    expected, delta = rules.attribute(ids, target=1, return_convergence_delta=True)
    assert result.scores == pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-6)
    output = float(logits_of(demo, "so funny")[1])
    assert (result.flow_value, result.output) == (None, pytest.approx(output, abs=1e-4))
    assert result.delta == pytest.approx(float(delta), abs=1e-4)


def test_a_problem_that_transformers_does_not_know_is_refused(demo):
    strange = of_problem(demo, None, 2)
    strange.model.config.problem_type = "weird"
    with pytest.raises(ValueError, match=r"problem_type='weird'.*'regression'"):
        strange.explain(["so funny"])


def test_one_label_of_many_is_a_sigmoid_and_no_value(demo):
    single = of_problem(demo, "multi_label_classification", 1)
    [result] = single.explain(["dull"], target="a")
    expected = float(logits_of(single, "dull").sigmoid())
    assert result.probability == pytest.approx(expected, rel=1e-4)


def test_labels_that_are_not_numbered_from_0_are_refused(demo):
    model = copy.deepcopy(demo.model)
    model.config.id2label = {1: "negative", 2: "positive"}
    with pytest.raises(ValueError, match="number the labels from 0 to 1"):
        TextClassifier(model, demo.tokenizer).explain(["dull"])


def test_labels_that_do_not_fit_the_outputs_are_refused(demo):
    model = copy.deepcopy(demo.model)
    model.config.id2label = {0: "only"}
    with pytest.raises(ValueError, match="2 outputs but id2label"):
        TextClassifier(model, demo.tokenizer).explain(["dull"])


class TestLoad:
    def test_folder(self):
        classifier = TextClassifier.load(str(DEMO_MODEL_PATH))
        assert classifier.labels == ["negative", "positive"]
        assert classifier.model.dtype == torch.float32
        assert not classifier.model.training

    @pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c"])
    def test_missing_folder_is_refused_without_a_look_at_the_network(self, name):
        with pytest.raises(FileNotFoundError, match="there is no model folder"):
            TextClassifier.load(name)

    def test_folder_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"config\.json, model\.safetensors"):
            TextClassifier.load(str(tmp_path))

    def folder_with(self, tmp_path, **changes):
        shutil.copytree(DEMO_MODEL_PATH, tmp_path, dirs_exist_ok=True)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        return tmp_path

    def test_code_of_a_model_folder_never_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
        trace = tmp_path / "ran"
        folder = self.folder_with(
            tmp_path,
            model_type="evil",
            auto_map={
                "AutoConfig": "evil.Config",
                "AutoModelForSequenceClassification": "evil.Model",
            },
        )
        (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()")
        with pytest.raises(ValueError, match="could not be loaded"):
            TextClassifier.load(str(folder))
        assert not trace.exists()

    def test_model_without_a_trained_head_is_refused(self, tmp_path):
        folder = self.folder_with(tmp_path)
        weights = load_file(folder / "model.safetensors")
        body = {k: v for k, v in weights.items() if not k.startswith("classifier")}
        save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"classifier\.weight.*would be random"):
            TextClassifier.load(str(folder))

    def test_folder_without_a_tokenizer_is_refused(self, tmp_path):
        folder = self.folder_with(tmp_path)
        for file in folder.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ValueError, match="tokenizer"):
            TextClassifier.load(str(folder))

    def test_broken_weights_are_refused(self, tmp_path):
        folder = self.folder_with(tmp_path)
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:1000])
        with pytest.raises(ValueError, match="could not be loaded"):
            TextClassifier.load(str(folder))

    def test_pickled_weights_are_refused(self, tmp_path):
        for file in DEMO_MODEL_PATH.iterdir():
            if file.suffix == ".json":
                shutil.copy(file, tmp_path)
        weights = load_file(DEMO_MODEL_PATH / "model.safetensors")
        torch.save(weights, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="could not be loaded"):
            TextClassifier.load(str(tmp_path))

    def test_model_of_one_output_gives_its_raw_value(self, demo):
        model = bert(torch.float32)
        model.resize_token_embeddings(len(demo.tokenizer))
        model.classifier = torch.nn.Linear(32, 1)
        model.config.num_labels = 1
        model.config.id2label = {0: "score"}
        [result] = TextClassifier(model, demo.tokenizer).explain(["a film"])
        ids = demo.tokenizer("a film", return_tensors="pt").input_ids
        assert result.value == pytest.approx(model(ids).logits.item(), rel=1e-4)
        assert result.predicted == "score"


@pytest.mark.parametrize("method", ["relevance-flow", "slalom"])
def test_training_mode_is_warned_of_once(demo, method):
    random = TextClassifier(copy.deepcopy(demo.model).train(), demo.tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        random.explain(["so funny", "dull"], method)
    said = [str(each.message) for each in caught]
    assert sum("eval()" in message for message in said) == 1
