"""The script that trains the demo model, on a handful of phrases."""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.demo.train import (
    ARCHITECTURES,
    Examples,
    accuracy,
    build_model,
    encode,
    fit,
    forward,
    main,
    predict,
    save,
    train_tokenizer,
)

PRAISE = ["a good film", "funny and warm", "a warm , clever story", "good and clever"]
BLAME = ["a dull film", "slow and cold", "a cold , silly story", "dull and silly"]
PHRASES = Examples(PRAISE + BLAME, torch.tensor([1] * len(PRAISE) + [0] * len(BLAME)))
ALL = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PHRASES.texts, vocab_size=60)


def train(model, tokenizer, epochs):
    settings = Namespace(lr=3e-3, batch_size=4, epochs=epochs, seed=0)
    fit(model, tokenizer, PHRASES, PHRASES, settings)


@ALL
def test_training_tells_praise_from_blame(architecture, tokenizer):
    model = build_model(architecture, tokenizer)
    train(model, tokenizer, epochs=15)
    assert accuracy(model, tokenizer, PHRASES) == 1.0


@ALL
def test_a_saved_model_reloads_with_the_same_logits(architecture, tokenizer, tmp_path):
    model = build_model(architecture, tokenizer)
    train(model, tokenizer, epochs=1)
    save(model, tokenizer, tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    # The file holds float16 weights.
    model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    encoded = encode(tokenizer, PHRASES.texts)
    again = encode(AutoTokenizer.from_pretrained(tmp_path), PHRASES.texts)
    assert reloaded.dtype == torch.float32
    assert torch.equal(predict(reloaded, again), predict(model, encoded))


@ALL
def test_logits_do_not_depend_on_padding(architecture, tokenizer):
    model = build_model(architecture, tokenizer).eval()
    short, long = encode(tokenizer, ["dull", "a warm , clever story"])
    assert len(short) < len(long)
    with torch.no_grad():
        padded, alone = forward(model, [short, long])[0], forward(model, [short])[0]
    torch.testing.assert_close(padded, alone)


def test_the_default_is_the_packaged_model(demo):
    built = build_model("bert", demo.tokenizer).config.to_diff_dict()
    packaged = demo.model.config.to_diff_dict()
    for of_a_saved_model in ("architectures", "_name_or_path", "dtype"):
        built.pop(of_a_saved_model, None)
        packaged.pop(of_a_saved_model, None)
    assert built == packaged


@ALL
def test_the_script_trains_under_a_teacher(architecture, tmp_path, monkeypatch, capsys):
    rows = [
        f"{text}\t{label}"
        for text, label in zip(PHRASES.texts, PHRASES.labels.tolist(), strict=True)
    ]
    for name in ("phrases.train", "train", "dev.words", "test.words"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]))
    output = tmp_path / "model"
    paths = f"--data {tmp_path} --output {output} --teacher {DEMO_MODEL_PATH}"
    options = f"--architecture {architecture} --perturbed 4 --epochs 1 --batch-size 4"
    monkeypatch.setattr(sys, "argv", ["train", *paths.split(), *options.split()])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the teacher's logits
    main()
    assert "test accuracy: " in capsys.readouterr().out
    saved = AutoModelForSequenceClassification.from_pretrained(output)
    assert saved.config.id2label == {0: "negative", 1: "positive"}
