"""What is said of models that cannot be loaded, or not as what a task needs."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import captum_attnflow
from captum_attnflow import ImageClassifier, TextClassifier, TextGenerator
from captum_attnflow.demo import DEMO_MODEL_PATH

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DEMO_MODEL_PATH, tmp_path / "model")


def rewrite(folder, **changed):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], "it has no config.json; it holds"),
        (["model.safetensors"], "it has no model.safetensors; it holds"),
        (
            ["config.json", "model.safetensors"],
            "it has no config.json and no model.safetensors; it holds",
        ),
    ],
)
def test_a_folder_without_its_files_is_told_what_is_missing(folder, missing, message):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message):
        TextClassifier.load(folder)


def test_an_empty_folder_lacks_everything(tmp_path):
    lacking = "no config.json and no model.safetensors and no files of a tokenizer\n"
    with pytest.raises(ValueError, match=lacking):
        TextClassifier.load(tmp_path)


def test_pickled_weights_are_not_read_and_the_way_out_is_named(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not read.*save_pre"):
        TextClassifier.load(folder)


def test_a_model_of_another_task_names_the_task(capfd):
    with pytest.raises(ValueError, match="TextClassifier, --task text-classification"):
        TextGenerator.load(DEMO_MODEL_PATH)
    with pytest.raises(ValueError, match=r"no files of a processor.*TextClassifier"):
        ImageClassifier.load(DEMO_MODEL_PATH)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_weights_of_other_shapes_than_the_config_are_named(folder, capfd):
    rewrite(folder, id2label={"0": "a", "1": "b", "2": "c"})
    shapes = r"classifier\.bias is of shape \(2,\), and config\.json makes it \(3,\)"
    with pytest.raises(ValueError, match=shapes):
        TextClassifier.load(folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_what_a_library_says_at_length_is_shortened(folder):
    rewrite(folder, model_type="no_such_model", architectures=None)
    with pytest.raises(ValueError, match="no_such_model") as caught:
        TextClassifier.load(folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (" ", ValueError, "names no model"),
        ("C:\\models\\mine", FileNotFoundError, "there is no model folder"),
        ("https://hub/a/b", FileNotFoundError, "there is no model folder"),
    ],
)
def test_names_that_are_no_folder_and_no_hub_id_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        TextClassifier.load(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ValueError, match="is a file; give the folder that it lies in"):
        TextClassifier.load(folder / "model.safetensors")


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    asked = []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with pytest.raises(ValueError, match="and the hub cannot be reached"):
        TextClassifier.load("no-such-owner/no-such-model")
    assert asked[0] == "hub.invalid"
    assert len(asked) < 4  # it was five times for each file


def test_ids_that_the_model_has_no_embedding_of_are_refused(demo):
    config = BertConfig(vocab_size=50, intermediate_size=16, **SMALL)
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(ValueError, match="has embeddings of 50 tokens only"):
        TextClassifier(model, demo.tokenizer).explain(["a gripping film"])


def test_a_classifier_on_a_decoder_takes_its_padding_from_the_tokenizer(demo, tmp_path):
    config = GPT2Config(
        vocab_size=len(demo.tokenizer), n_embd=16, n_layer=1, n_head=1, n_positions=32
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    demo.tokenizer.save_pretrained(tmp_path)
    classifier = TextClassifier.load(tmp_path)
    texts = ["a gripping film", "dull"]
    together = classifier.explain(texts)
    for text, result in zip(texts, together, strict=True):
        [alone] = classifier.explain([text])
        assert result.probability == pytest.approx(alone.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "pipeline", "given"),
    [
        ("SequenceClassification", "TextClassifier", "so funny"),
        ("TokenClassification", "TokenClassifier", "so funny"),
        ("QuestionAnswering", "QuestionAnswerer", ("who ?", "a funny film")),
    ],
)
def test_outputs_that_are_no_numbers_are_refused(demo, kind, pipeline, given):
    """Nothing can be read from them, not even that no word has a label."""
    config = transformers.BertConfig(
        vocab_size=len(demo.tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "O", 1: "NAME"},
    )
    model = getattr(transformers, f"BertFor{kind}")(config).eval()
    torch.nn.init.constant_(model.bert.encoder.layer[0].output.dense.bias, torch.nan)
    explainer = getattr(captum_attnflow, pipeline)(model, demo.tokenizer)
    with pytest.raises(ValueError, match="an output of the model is NaN"):
        explainer.explain([given])
