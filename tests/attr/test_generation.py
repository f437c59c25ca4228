"""Generated text: all tokens from one forward pass."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTokenInput,
)
from models import causal_language_model, encoder_decoder, numbers_tokenizer

import captum_attnflow
from captum_attnflow import (
    GeneralizedAttentionFlow,
    GenerationAttribution,
    GenerationExplanation,
    LayerGeneralizedAttentionFlow,
    RelevanceFlow,
)

METHODS = [
    ("AttentionFlow", {}),
    ("AttentionRollout", {}),
    ("GeneralizedAttentionFlow", {}),
    ("GeneralizedAttentionFlow", {"residual": "free", "game": "independent"}),
    ("RelevanceFlow", {"path_steps": 0}),
]
every_method = pytest.mark.parametrize(("method", "options"), METHODS)
TARGET = "dull but funny ."


@pytest.fixture
def tokenizer(demo):
    return demo.tokenizer


@pytest.fixture
def model(tokenizer):
    return causal_language_model(len(tokenizer)).double()


@pytest.fixture
def prompt(tokenizer):
    return TextTokenInput(
        "a gripping , funny film",
        tokenizer,
        skip_tokens=[tokenizer.cls_token_id, tokenizer.sep_token_id],
    )


def make(method, options, model, layer=None):
    if layer is None:
        return getattr(captum_attnflow, method)(model, **options)
    return getattr(captum_attnflow, f"Layer{method}")(model, layer, **options)


@every_method
def test_one_pass_gives_what_captums_wrapper_gives_step_by_step(
    method, options, model, tokenizer, prompt
):
    attribution = make(method, options, model, model.transformer.wte)
    expected = LLMGradientAttribution(attribution, tokenizer).attribute(prompt, TARGET)
    result = GenerationAttribution(attribution, tokenizer).attribute(prompt, TARGET)
    torch.testing.assert_close(
        result.token_attr, expected.token_attr.float(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(result.seq_attr, result.token_attr.sum(0))
    assert result.input_tokens == expected.input_tokens
    assert result.output_tokens == expected.output_tokens
    assert attribution.forward_func is model


@every_method
def test_the_model_runs_once(method, options, model, tokenizer, prompt):
    lengths = []
    model.register_forward_pre_hook(lambda _, ids: lengths.append(ids[0].shape[1]))
    generation = GenerationAttribution(make(method, options, model), tokenizer)
    explanation = generation.explain(prompt, TARGET)
    assert lengths == [len(explanation.tokens) - 1]


@every_method
def test_every_row_is_the_explanation_of_its_step(
    method, options, model, tokenizer, prompt
):
    attribution = make(method, options, model)
    explanation = GenerationAttribution(attribution, tokenizer).explain(prompt, TARGET)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(explanation.tokens)])
    assert explanation.generated_tokens == tokenizer.tokenize(TARGET)
    assert explanation.scores.shape == (4, ids.shape[1])
    assert not explanation.scores[~explanation.possible()].any()
    attribution.forward_func = lambda ids: model(ids).logits[:, -1].log_softmax(-1)
    for step, row in enumerate(explanation.scores):
        position = explanation.n_given + step
        alone = attribution.explain(ids[:, :position], target=ids[0, position])
        torch.testing.assert_close(
            row[:position], alone.scores[0], rtol=1e-5, atol=1e-8
        )
        torch.testing.assert_close(explanation.log_probabilities[step], alone.output[0])


@pytest.mark.parametrize("family", ["T5", "Bart"])
@every_method
def test_an_encoder_decoder_scores_the_prompt_and_its_own_answer(
    family, method, options
):
    model = encoder_decoder(family)
    tokenizer = numbers_tokenizer()
    attribution = make(method, options, model)
    prompt = TextTokenInput("7 8 9 10", tokenizer)
    explanation = GenerationAttribution(attribution, tokenizer).explain(
        prompt, "11 12 13"
    )
    start = model.generation_config.decoder_start_token_id
    assert explanation.tokens == ["7", "8", "9", "10", str(start), "11", "12", "13"]
    assert explanation.n_given == 5
    for step, row in enumerate(explanation.scores):
        decoder_ids = torch.tensor([[start, 11, 12, 13][: step + 1]])
        attribution.forward_func = lambda encoder_ids, decoder_ids: (
            model(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
            .logits[:, -1]
            .log_softmax(-1)
        )
        alone = attribution.explain(
            (torch.tensor([[7, 8, 9, 10]]), decoder_ids), target=11 + step
        )
        torch.testing.assert_close(
            row[: 5 + step], alone.scores[0], rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_the_model_answers_where_no_target_is_given(kind, model, tokenizer):
    arguments = {"max_new_tokens": 3, "do_sample": False}
    if kind == "causal":
        prompt = TextTokenInput("a gripping film", tokenizer)
        answer = model.generate(prompt.to_model_input(), **arguments)[0, 5:]
    else:
        model, tokenizer = encoder_decoder("T5"), numbers_tokenizer()
        prompt = TextTokenInput("7 8 9", tokenizer)
        answer = model.generate(prompt.to_model_input(), **arguments)[0, 1:]
    generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
    explanation = generation.explain(prompt, gen_args=arguments)
    assert explanation.generated_tokens == tokenizer.convert_ids_to_tokens(answer)


def test_relevance_flow_is_read_at_the_text_itself(model, tokenizer, prompt):
    """A step has the scores of the text up to it, and no path from a baseline."""
    ids = torch.tensor([tokenizer("a gripping , funny film").input_ids])
    generated = tokenizer("dull but", add_special_tokens=False).input_ids
    whole = torch.cat([ids, torch.tensor([generated[:1]])], 1)
    expected = RelevanceFlow(
        lambda ids: model(ids).logits[:, -1].log_softmax(-1)
    ).explain(whole, target=generated[1])
    explanation = GenerationAttribution(RelevanceFlow(model), tokenizer).explain(
        prompt, "dull but"
    )
    torch.testing.assert_close(
        explanation.scores[1, :-1], expected.scores[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:.*(Skipping this token|Pretty tokens length)")
def test_ids_that_the_tokenizer_has_no_token_for_are_shown_as_such(tokenizer, prompt):
    """Vocabularies of models are padded."""
    model = causal_language_model(len(tokenizer) + 8)
    generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
    answer = torch.tensor([len(tokenizer) + 3, 50])
    assert generation.explain(prompt, answer).generated_tokens == [
        f"<{len(tokenizer) + 3}>",
        tokenizer.convert_ids_to_tokens(50),
    ]
    expected = LLMGradientAttribution(
        LayerGeneralizedAttentionFlow(model, model.transformer.wte), tokenizer
    ).attribute(prompt, answer)
    assert generation.attribute(prompt, answer).output_tokens == expected.output_tokens


def test_captum_plots_the_result(model, tokenizer, prompt):
    generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
    result = generation.attribute(prompt, TARGET)
    _, axes = result.plot_token_attr(show=False)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == tokenizer.tokenize(TARGET)


def test_flow_handed_on_by_generated_tokens_starts_in_the_prompt():
    """By shares of a random walk that ends in the prompt."""
    scores = torch.rand(4, 7).double().tril(2)
    explanation = GenerationExplanation(
        tokens=list("abcdefg"),
        scores=scores,
        log_probabilities=torch.zeros(4),
        flow_value=scores.sum(1),
    )
    graph = nx.DiGraph()
    for step in range(4):
        for column in range(3 + step):
            share = float(scores[step, column] / scores[step].sum())
            graph.add_edge(3 + step, column, share=share)
    for step in range(4):
        for column in range(3):
            paths = nx.all_simple_edge_paths(graph, 3 + step, column)
            share = sum(
                torch.tensor([graph.edges[edge]["share"] for edge in path]).prod()
                for path in paths
            )
            assert explanation.from_prompt()[step, column].item() == pytest.approx(
                float(share * scores[step].sum()), rel=1e-5
            )
    torch.testing.assert_close(explanation.from_prompt().sum(1), scores.sum(1))


class TestRefusals:
    def test_other_methods(self, model, tokenizer):
        with pytest.raises(AssertionError, match="does not support"):
            GenerationAttribution(
                LayerIntegratedGradients(model, model.transformer.wte), tokenizer
            )

    def test_nothing_generated(self, model, tokenizer, prompt):
        generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"nothing was generated.*max_new_tokens"):
            generation.explain(prompt, torch.tensor([], dtype=torch.int64))

    def test_an_answer_without_a_token_to_start_with(self):
        model = encoder_decoder("T5")
        model.generation_config.decoder_start_token_id = None
        tokenizer = numbers_tokenizer()
        generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"decoder_start_token_id.*None"):
            generation.explain(TextTokenInput("7 8", tokenizer), "9")

    def test_scores_with_a_sign_are_not_handed_on(self):
        explanation = GenerationExplanation(
            tokens=["a", "b"],
            scores=torch.tensor([[-1.0, 0.0]]),
            log_probabilities=torch.zeros(1),
            flow_value=torch.zeros(1),
        )
        with pytest.raises(ValueError, match="with a sign"):
            explanation.from_prompt()
