"""Every kind of result in a file: of its own pipeline, and as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from models import VOCABULARY, bert_for, causal_language_model, numbers_tokenizer
from models import vision_classifier as tiny_vision_classifier
from PIL import Image
from rich.console import Console
from vision_language import PROMPTS, vision_language_model

import captum_attnflow
from captum_attnflow import SLALOM, RelevanceFlow
from captum_attnflow._tree import CLASSES
from captum_attnflow.demo import load_demo_model
from captum_attnflow.storage import KINDS, Storable, load_results, save_results

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
PAIRS = [("which film ?", "a gripping , funny film"), ("how dull ?", "the plot is sad")]
TEXTS = [context for _, context in PAIRS]


def by_tensors(attribution: type) -> list[Any]:
    model, tokenizer = load_demo_model()
    ids = tokenizer(TEXTS[:1], return_tensors="pt").input_ids
    return [attribution(lambda given: model(given).logits).explain(ids, target=1)]


def tiny(auto_class: str, **options: Any) -> tuple[Any, Any]:
    """A model of random weights for a task, with a tokenizer of words."""
    _, tokenizer = load_demo_model()
    return bert_for(auto_class, len(tokenizer), **options), tokenizer


def labelled_words() -> list[Any]:
    parts = tiny("AutoModelForTokenClassification", id2label=LABELS)
    return captum_attnflow.TokenClassifier(*parts).explain([*TEXTS, "dull"])


def similarities() -> list[Any]:
    return captum_attnflow.SentenceSimilarity(*tiny("AutoModel")).explain(PAIRS)


def answers() -> list[Any]:
    parts = tiny("AutoModelForQuestionAnswering")
    return captum_attnflow.QuestionAnswerer(*parts).explain(PAIRS)


def generated_text() -> list[Any]:
    parts = causal_language_model(VOCABULARY), numbers_tokenizer()
    return captum_attnflow.TextGenerator(*parts).explain(["7 8 9"], max_new_tokens=3)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), "uint8")
    Image.fromarray(pixels).save(file)
    return str(file)


def images(photo: str) -> list[Any]:
    # Before transformers named a processor by its backend, this one needed no
    # torchvision.
    by_pillow = getattr(transformers, "ViTImageProcessorPil", None)
    processor = (by_pillow or transformers.ViTImageProcessor)(
        size={"height": 32, "width": 32}
    )
    model = tiny_vision_classifier().float()
    return captum_attnflow.ImageClassifier(model, processor).explain([photo])


def generated_from_image(photo: str) -> list[Any]:
    generator = captum_attnflow.ImageTextGenerator(*vision_language_model("LLaVA"))
    return generator.explain([photo], [PROMPTS["LLaVA"]], target="a cat")


MADE: dict[str, Callable[..., list[Any]]] = {
    "Explanation": partial(by_tensors, RelevanceFlow),
    "GenerationExplanation": lambda: [each.explanation for each in generated_text()],
    "SlalomExplanation": partial(by_tensors, SLALOM),
    "TextAttribution": lambda: captum_attnflow.TextClassifier(
        *load_demo_model()
    ).explain(TEXTS),
    "GeneratedText": generated_text,
    "AnswerAttribution": answers,
    "WordAttribution": lambda: [
        word for text in labelled_words() for word in text.attributions
    ],
    "LabelledWords": labelled_words,
    "SideAttribution": lambda: [
        side for pair in similarities() for side in pair.attributions
    ],
    "SimilarityAttribution": similarities,
}
OF_IMAGES = {"GeneratedFromImage": generated_from_image, "ImageAttribution": images}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_of_every_kind_is_read_as_it_was(kind, photo, tmp_path):
    one, many, again = (tmp_path / name for name in ("one", "many", "again"))
    results = OF_IMAGES[kind](photo) if kind in OF_IMAGES else MADE[kind]()
    assert {type(each).__name__ for each in results} == {kind}
    results[0].save(one)
    assert type(results[0]).load(one) == results[0]
    save_results(results, many)
    stored = load_results(many)
    assert stored.results == tuple(results)
    save_results(stored.results, again)
    assert again.read_bytes() == many.read_bytes()
    console = Console(record=True, width=100)
    console.print([results[0]])
    shown = console.export_text()
    assert shown.lstrip("[ \n").startswith(f"{kind}(")
    assert len(shown.splitlines()) < 35


def test_every_result_of_the_package_is_of_a_kind():
    public = [getattr(captum_attnflow, name) for name in captum_attnflow.__all__]
    shown = {each for each in public if hasattr(each, "_repr_html_")}
    kinds = {getattr(import_module(CLASSES[kind]), kind) for kind in KINDS}
    assert shown <= kinds
    assert all(issubclass(kind, Storable) for kind in kinds)
