from __future__ import annotations

import pytest
import torch
from captum.attr import TextTokenInput
from models import VOCABULARY, causal_language_model, encoder_decoder, numbers_tokenizer

from captum_attnflow import AttentionFlow, GenerationAttribution
from captum_attnflow.pipelines.text_generation import TextGenerator
from captum_attnflow.texts.units import find_text


@pytest.fixture(params=["causal", "encoder-decoder"], scope="module")
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "causal":
        model = causal_language_model(VOCABULARY)
    else:
        model = encoder_decoder("Bart").float()
    model.save_pretrained(folder)
    numbers_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def generator(folder):
    return TextGenerator.load(folder)


def test_prompts_are_continued_and_every_generated_token_is_scored(generator):
    first, second = generator.explain(["7 8 9", "10"], max_new_tokens=4)
    assert (first.prompt, second.prompt) == ("7 8 9", "10")
    explanation = first.explanation
    assert explanation.tokens[:3] == ["7", "8", "9"]
    assert first.generated.split() == explanation.generated_tokens
    assert explanation.scores.shape == (4, len(explanation.tokens))
    assert explanation.scores.any(1).all()
    answer = generator.model.generate(
        torch.tensor([[7, 8, 9]]), max_new_tokens=4, do_sample=False
    )
    assert answer[0, -4:].tolist() == [int(t) for t in explanation.generated_tokens]


def test_a_given_continuation_is_attributed_by_any_method_and_option(generator):
    (result,) = generator.explain(
        ["7 8 9"], "attention-flow", "11 12", residual=0.3, game="joint"
    )
    expected = GenerationAttribution(
        AttentionFlow(generator.model, residual=0.3, game="joint"), generator.tokenizer
    ).explain(TextTokenInput("7 8 9", generator.tokenizer), "11 12")
    assert result.generated == "11 12"
    torch.testing.assert_close(result.explanation.scores, expected.scores)


def test_a_span_is_found_as_words_or_else_anywhere(generator):
    pieces = generator.explain(["7"], target="11 1 21", spans=["1", "21"])
    assert pieces[0].explanation.spans == ((1, 2), (2, 3))
    (within,) = generator.explain(["7"], target="11 21 3", spans=["2"])
    assert within.explanation.spans == ((1, 2),)
    (twice_in_one,) = generator.explain(["7"], target="11 5", spans=["1"])
    assert twice_in_one.explanation.spans == ((0, 1),)


@pytest.mark.parametrize(
    ("text", "whole", "places"),
    [
        ("art", "art, no artist is in the party of art", [0, 34]),
        ("art", "a party", [3]),
        ("東京", "東京は日本の首都。東京。", [0, 9]),
        ("ไทย", "ภาษาไทยและคนไทย", [4, 12]),
        ("ana", "banana", [1, 3]),
        ("it's", "it's and bit's", [0]),
    ],
)
def test_a_text_is_found_as_words_where_scripts_part_them(text, whole, places):
    assert find_text(text, whole) == places


def test_what_is_left_out_is_one_name_or_several(generator):
    alone, listed = (
        generator.explain(["7 8"], target="9", left_out=given)[0]
        for given in ("first", ["first"])
    )
    assert alone.left_out == listed.left_out == ("first",)


class TestRefusals:
    def test_a_span_that_stands_twice(self, generator):
        with pytest.raises(
            ValueError, match=r"'12' occurs 2 times.*\(1, 2\) or \(3, 4\).* 1:2"
        ):
            generator.explain(["7"], target="11 12 13 12", spans=["12"])

    def test_an_empty_prompt(self, generator):
        with pytest.raises(ValueError, match="prompt 2 of 2 is empty"):
            generator.explain(["7", " "], max_new_tokens=1)

    @pytest.mark.parametrize("prompts", ["7 8", []])
    def test_no_list_of_prompts(self, generator, prompts):
        with pytest.raises(ValueError, match="at least one prompt"):
            generator.explain(prompts)

    def test_more_tokens_than_positions(self, generator):
        with pytest.raises(ValueError, match=r"3 tokens with 1025 .* positions"):
            generator.explain(["7 8 9"], max_new_tokens=1025)

    def test_a_method_that_deletes_tokens(self, generator):
        with pytest.raises(ValueError, match="'slalom' does not serve this task"):
            generator.explain(["7 8"], "slalom")

    def test_an_unknown_option(self, generator):
        with pytest.raises(ValueError, match="no option 'score'"):
            generator.explain(["7 8"], score="value")

    def test_a_classifier(self, tmp_path, demo):
        demo.model.save_pretrained(tmp_path)
        demo.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="not trained as a language model"):
            TextGenerator.load(str(tmp_path))
