from __future__ import annotations

import shutil

import pytest
import torch
from models import bert
from safetensors.torch import load_file

from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.text import METHODS, TextClassifier

TEXTS = ["a gripping , funny film", "dull", "the worst thing i have seen in years"]


@pytest.mark.parametrize("method", METHODS)
def test_texts_of_a_batch_are_explained_as_if_alone(demo, method):
    together = demo.explain(TEXTS, method)
    for text, result in zip(TEXTS, together, strict=True):
        [alone] = demo.explain([text], method)
        assert (alone.tokens, alone.predicted) == (result.tokens, result.predicted)
        assert result.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-9)


def test_predicted_class_is_attributed_unless_a_target_is_given(demo):
    [result] = demo.explain(["dull"])
    assert (result.predicted, result.target) == ("negative", "negative")
    assert 0.5 < result.probability <= 1
    for target in ("positive", 1, "1"):
        [result] = demo.explain(["dull"], target=target)
        assert (result.predicted, result.target) == ("negative", "positive")


def test_joint_scores_sum_to_the_flow_value(demo):
    for result in demo.explain(TEXTS):
        assert sum(result.scores) == pytest.approx(result.flow_value)
        assert len(result.tokens) == len(result.scores)


def test_long_text_is_truncated_with_a_warning(demo):
    with pytest.warns(UserWarning, match=r"text 2 of 2 has 302 tokens.*limit of 128"):
        [_, long] = demo.explain(["dull", "very " * 300], "attention-rollout")
    assert len(long.tokens) == 128


@pytest.mark.parametrize("empty", ["", "  \t"])
def test_empty_text_is_refused(demo, empty):
    with pytest.raises(ValueError, match="text 2 of 3 is empty"):
        demo.explain(["dull", empty, "fine"])


@pytest.mark.parametrize("target", ["neutral", 2, -1, "-1"])
def test_unknown_target_is_refused(demo, target):
    with pytest.raises(ValueError, match=r"\['negative', 'positive'\]"):
        demo.explain(["dull"], target=target)


def test_unknown_method_is_refused(demo):
    with pytest.raises(ValueError, match=r"method='lime'.*attention-flow"):
        demo.explain(["dull"], "lime")


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
        assert result.probability == pytest.approx(model(ids).logits.item(), rel=1e-4)
        assert result.predicted == "score"
