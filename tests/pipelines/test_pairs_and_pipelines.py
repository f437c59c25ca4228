from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import transformers

import captum_attnflow
from captum_attnflow import RelevanceFlow, TextClassifier, TextGenerator
from captum_attnflow.pipelines.methods import METHODS

CALM = contextlib.nullcontext()
PAIR = ("the plot is dull", "but the acting is funny")


def pipeline_of(demo, task="text-classification", **options):
    return transformers.pipeline(
        task, model=demo.model, tokenizer=demo.tokenizer, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncation": True, "max_length": 8},
        {"truncation": "only_first", "max_length": 6, "padding": "max_length"},
        {"add_special_tokens": False},
    ],
)
def test_tokens_and_prediction_are_those_of_the_pipeline(demo, options):
    text = "a gripping , funny film which is never dull"
    pipeline = pipeline_of(demo, **options)
    classifier = TextClassifier.load(pipeline)
    encoded = pipeline.preprocess(text, **pipeline._preprocess_params)
    kept = encoded["input_ids"][encoded["attention_mask"].bool()]
    expected = demo.tokenizer.convert_ids_to_tokens(kept)
    is_cut = pytest.warns(match="truncated") if "max_length" in options else CALM
    with is_cut:
        [result] = classifier.explain([text])
    assert result.tokens == tuple(expected)
    [said] = pipeline(text)
    assert result.predicted == said["label"]
    assert result.probability == pytest.approx(said["score"], abs=1e-5)


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis", None])
def test_a_pipeline_gives_what_its_parts_give(demo, task):
    parts = {"model": demo.model, "tokenizer": demo.tokenizer}
    pipeline = (
        transformers.TextClassificationPipeline(**parts)
        if task is None
        else transformers.pipeline(task, **parts)
    )
    [by_parts] = demo.explain([PAIR])
    [by_pipeline] = TextClassifier.load(pipeline).explain([PAIR])
    assert by_pipeline == by_parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, r"'stride': 3.*add_special_tokens, max_length, truncation"),
        ({"function_to_apply": "sigmoid"}, "'sigmoid'.*multi_label_classification"),
    ],
)
def test_a_pipeline_of_other_options_is_refused(demo, options, message):
    with pytest.raises(ValueError, match=message):
        TextClassifier.load(pipeline_of(demo, **options))


def test_a_function_that_the_problem_has_is_accepted(demo):
    pipeline = pipeline_of(demo, function_to_apply="softmax")
    assert TextClassifier.load(pipeline).model is demo.model


def test_a_pipeline_of_another_task_is_refused(demo):
    pipeline = pipeline_of(demo, "feature-extraction")
    with pytest.raises(ValueError, match=r"FeatureExtract.*give a TextClassif"):
        TextClassifier.load(pipeline)
    with pytest.raises(ValueError, match="not used as a language model"):
        TextGenerator.load(pipeline)


def test_a_pipeline_in_training_mode_is_refused(demo):
    model = copy.deepcopy(demo.model).train()
    pipeline = transformers.pipeline(
        "text-classification", model=model, tokenizer=demo.tokenizer
    )
    pipeline.model.train()
    with pytest.raises(ValueError, match=r"call pipeline\.model\.eval"):
        TextClassifier.load(pipeline)


@pytest.mark.parametrize(
    "name",
    [
        *("TextClassifier", "TokenClassifier", "QuestionAnswerer", "TextGenerator"),
        *("SentenceSimilarity", "ImageClassifier", "ImageTextGenerator"),
    ],
)
def test_what_load_takes_is_refused_by_the_class_in_words(demo, name):
    kind = getattr(captum_attnflow, name)
    with pytest.raises(ValueError, match=rf"of a pipeline take {name}\.load\(pipe"):
        kind(pipeline_of(demo))
    what = f"to {name}.load a folder, a hub id or a pipeline"
    with pytest.raises(ValueError, match=rf"model is a str and no model.*{what}"):
        kind("owner/name")
    with pytest.raises(ValueError, match=rf"was not given; give a model.*{what}"):
        kind(demo.model)


def language_model(demo):
    config = transformers.GPT2Config(
        vocab_size=len(demo.tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=2,
        eos_token_id=3,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_a_pipeline_of_generation_is_its_model_and_tokenizer(demo):
    # A pipeline of generation lets its tokenizer pad on the left.
    tokenizer = copy.deepcopy(demo.tokenizer)
    pipeline = transformers.pipeline(
        "text-generation", model=language_model(demo), tokenizer=tokenizer
    )
    generator = TextGenerator.load(pipeline)
    assert generator.model is pipeline.model
    assert generator.tokenizer is tokenizer
    pipeline._preprocess_params["prefix"] = "so"
    with pytest.raises(ValueError, match=r"'prefix': 'so'.*into the prompt"):
        TextGenerator.load(pipeline)


def test_what_names_no_model_is_refused():
    with pytest.raises(ValueError, match=r"int and names no model; give a folder"):
        TextClassifier.load(3)


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_is_explained_as_if_alone_in_a_batch_with_texts(demo, method):
    texts = ["dull", PAIR, "the worst thing i have seen in years"]
    together = demo.explain(texts, method)
    assert [result.text_pair for result in together] == [None, PAIR[1], None]
    for text, result in zip(texts, together, strict=True):
        [alone] = demo.explain([text], method)
        assert (alone.tokens, alone.predicted) == (result.tokens, result.predicted)
        assert result.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-8)


def test_a_pair_is_encoded_with_its_token_types(demo):
    # Types that matter, as those of the demo model were trained on single texts.
    model = copy.deepcopy(demo.model)
    types = model.bert.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        types[1] = types[0] + 0.5 * torch.randn(types.shape[1])
    classifier = TextClassifier(model, demo.tokenizer)
    [result] = classifier.explain([PAIR])
    encoded = demo.tokenizer(*PAIR, return_tensors="pt")
    assert result.tokens == tuple(
        demo.tokenizer.convert_ids_to_tokens(encoded.input_ids[0])
    )
    logits = model(**encoded).logits[0].detach()
    assert result.predicted == classifier.labels[int(logits.argmax())]
    special = torch.isin(encoded.input_ids, torch.tensor([2, 3]))
    baseline = encoded.input_ids.where(special, demo.tokenizer.mask_token_id)
    expected = RelevanceFlow(
        lambda ids, types: model(ids, token_type_ids=types).logits
    ).attribute(
        encoded.input_ids,
        baseline,
        int(logits.argmax()),
        encoded.token_type_ids,
    )
    assert result.scores == pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-6)
    assert sum(result.scores) == pytest.approx(float(logits.max()), abs=1e-4)


def test_an_empty_side_of_a_pair_is_named(demo):
    with pytest.raises(ValueError, match="second sentence of text 2 of 2 is empty"):
        demo.explain(["dull", ("so funny", " ")])


@pytest.mark.parametrize(
    "name",
    [
        "AnswerAttribution",
        "GeneratedFromImage",
        "GeneratedText",
        "ImageAttribution",
        "ImageClassifier",
        "ImageTextGenerator",
        "LabelledWords",
        "QuestionAnswerer",
        "SentenceSimilarity",
        "SideAttribution",
        "SimilarityAttribution",
        "TextAttribution",
        "TextClassifier",
        "TextGenerator",
        "TokenClassifier",
    ],
)
def test_pipelines_are_names_of_the_package(name):
    assert name in dir(captum_attnflow)
    assert getattr(captum_attnflow, name).__name__ == name


def test_a_label_is_explained_alone_or_rather_than_another(demo):
    [alone] = demo.explain(["a funny film"])
    [contrast] = demo.explain(["a funny film"], target=1, against=0)
    assert (alone.explained, alone.attributions) == (alone.target, (alone,))
    assert contrast.explained == f"{contrast.target} rather than {contrast.against}"
    assert "explained" not in alone.to_arrow().column_names
    assert set(contrast.to_arrow()["explained"].to_pylist()) == {contrast.explained}
