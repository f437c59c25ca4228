"""Generated text: all tokens from one forward pass."""

from __future__ import annotations

import re

import networkx as nx
import pytest
import torch
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTemplateInput,
    TextTokenInput,
)
from models import (
    causal_language_model,
    decoder,
    encoder_decoder,
    numbers_tokenizer,
)
from torch import nn

import captum_attnflow
import captum_attnflow.attr.generation as module
from captum_attnflow import (
    GeneralizedAttentionFlow,
    GenerationAttribution,
    GenerationExplanation,
    LayerGeneralizedAttentionFlow,
    RelevanceFlow,
)
from captum_attnflow.texts import ChatInput

METHODS = [
    ("AttentionFlow", {}),
    ("AttentionRollout", {}),
    ("GeneralizedAttentionFlow", {}),
    ("GeneralizedAttentionFlow", {"residual": "free", "game": "independent"}),
    ("RelevanceFlow", {"path_steps": 0}),
    ("AttnLRP", {}),
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


def scores_of(attribution, inputs, target):
    """Token scores by ``attribute()``, of all sequences in turn."""
    found = attribution.attribute(inputs, target=target)
    return torch.cat(found if isinstance(found, tuple) else (found,), 1).double()


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
def test_a_contrast_changes_the_scores_or_is_refused(
    method, options, model, tokenizer, prompt
):
    generation = GenerationAttribution(make(method, options, model), tokenizer)
    if method in ("AttentionFlow", "AttentionRollout"):
        with pytest.raises(ValueError, match=r"reads attention alone.*Leave against"):
            generation.explain(prompt, TARGET, against="runner-up")
        return
    found = generation.explain(prompt, TARGET, against="runner-up").scores
    assert not torch.allclose(found, generation.explain(prompt, TARGET).scores)


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
        alone = scores_of(attribution, ids[:, :position], target=ids[0, position])
        torch.testing.assert_close(row[:position], alone[0], rtol=1e-5, atol=1e-8)
    logits = model(ids).logits[0, explanation.n_given - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[:, explanation.n_given :].T)[:, 0]
    torch.testing.assert_close(explanation.log_probabilities, expected.detach())


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
        alone = scores_of(
            attribution, (torch.tensor([[7, 8, 9, 10]]), decoder_ids), target=11 + step
        )
        torch.testing.assert_close(row[: 5 + step], alone[0], rtol=1e-5, atol=1e-8)


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


def test_a_target_is_a_text_or_ids_of_any_kind(model, tokenizer, prompt):
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
    ids = tokenizer(TARGET, add_special_tokens=False).input_ids
    of_text = generation.explain(prompt, TARGET).scores
    for target in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy()):
        assert torch.equal(generation.explain(prompt, target).scores, of_text)


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


CHAT = (
    "{% for m in messages %}{{ m.role }} : {{ m.content | trim }} . {% endfor %}"
    "{% if add_generation_prompt %}film : {% endif %}"
)


@pytest.mark.parametrize("answer", ["a", "film", "film : a", " a \n", "."])
def test_a_message_that_the_template_holds_too_is_found(answer, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    chat = ChatInput(
        [
            {"role": "user", "content": "a film"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "dull ?"},
        ],
        tokenizer,
        system="a",
    )
    words = tokenizer.tokenize(answer)
    assert [
        (value, part)
        for value, part in zip(chat.values, chat.parts, strict=True)
        if part != "template"
    ] == [
        ("a", "system"),
        *((word, "prompt") for word in ["a", "film", *words, "dull", "?"]),
    ]


def test_the_message_that_a_template_changes_is_named(tokenizer, monkeypatch):
    """As templates do that leave out what a model thought before it answered."""
    cutting = CHAT.replace("m.content", "m.content.split('?')[-1]")
    monkeypatch.setattr(tokenizer, "chat_template", cutting)
    chat = [
        {"role": "user", "content": "a film"},
        {"role": "assistant", "content": "so long ? dull"},
        {"role": "user", "content": "so ."},
    ]
    with pytest.raises(ValueError, match=r"drops the assistant's message 'so long"):
        ChatInput(chat, tokenizer)


def test_a_template_that_changes_a_message_is_refused(tokenizer, monkeypatch):
    changing = CHAT.replace("| trim", "| upper")
    monkeypatch.setattr(tokenizer, "chat_template", changing)
    with pytest.raises(ValueError, match=r"changes or drops the user's message 'dull'"):
        ChatInput("dull", tokenizer)


class TestRefusals:
    def test_other_methods(self, model, tokenizer):
        with pytest.raises(ValueError, match=r"attr_method.*; give a method of this"):
            GenerationAttribution(
                LayerIntegratedGradients(model, model.transformer.wte), tokenizer
            )

    def test_a_method_of_a_function(self, model, tokenizer):
        method = RelevanceFlow(lambda ids: model(ids).logits)
        with pytest.raises(ValueError, match=r"made with a function; give.*\(model\)"):
            GenerationAttribution(method, tokenizer)

    def test_nothing_generated(self, model, tokenizer, prompt, monkeypatch):
        monkeypatch.setattr(model, "generate", lambda input_ids, **_: input_ids)
        generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"nothing was generated.*max_new_tokens"):
            generation.explain(prompt)
        with pytest.raises(ValueError, match=r"nothing was generated.*max_new_tokens"):
            generation.attribute(prompt)

    @pytest.mark.parametrize("target", ["", [], torch.tensor([], dtype=torch.int64)])
    def test_a_target_without_a_token(self, target, model, tokenizer, prompt):
        generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"target=.* is no token; give"):
            generation.explain(prompt, target)

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ([10**6], "target holds the id 1000000"),
            ([10**6, 5], "the ids 1000000 were given"),
            ([5, -1], "target holds the id -1"),
        ],
    )
    def test_a_target_beyond_the_vocabulary(
        self, target, words, model, tokenizer, prompt
    ):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match=words):
            generation.explain(prompt, target)

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_a_prompt_longer_than_the_window(self, family):
        model, ids = decoder(family), list(range(2, 9))
        model.config.max_position_embeddings = 8
        tokenizer = numbers_tokenizer()
        prompt = TextTokenInput("7 8 9 10 11 12", tokenizer)
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        assert generation.explain(prompt, ids[:3]).scores.shape == (3, 9)
        with pytest.raises(ValueError, match=r"6 tokens with 4 .* the 8 positions"):
            generation.explain(prompt, ids[:4])

    def test_arguments_of_generate_beside_a_target(self, model, tokenizer, prompt):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"gen_args=.*; give one of both"):
            generation.attribute(prompt, TARGET, {"max_new_tokens": 3})

    def test_an_answer_without_a_token_to_start_with(self):
        model = encoder_decoder("T5")
        model.generation_config.decoder_start_token_id = None
        tokenizer = numbers_tokenizer()
        generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"decoder_start_token_id.*None"):
            generation.explain(TextTokenInput("7 8", tokenizer), "9")

    @pytest.mark.parametrize(
        ("against", "words"),
        [
            ("dull", "is 1 token, and what is explained is 4 tokens"),
            (torch.zeros(4), "no token ids"),
            (-1, "holds the id -1"),
            (10**6, "holds the id 1000000"),
            ([], "is no token ids|is 0 tokens"),
        ],
    )
    def test_a_contrast_that_does_not_fit(
        self, against, words, model, tokenizer, prompt
    ):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match=words):
            generation.explain(prompt, TARGET, against=against)

    def test_a_contrast_of_spans_that_both_texts_have(self, model, tokenizer, prompt):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match="the same tokens at all steps"):
            generation.explain(prompt, "dull but", against="so but", spans=[(1, 2)])

    @pytest.mark.parametrize("spans", [[], [(0, 0)], [(0, 5)], [(-1, 2)], ["a"], 3])
    def test_a_span_outside_of_the_text(self, spans, model, tokenizer, prompt):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"of 4 generated tokens; give"):
            generation.explain(prompt, TARGET, spans=spans)

    def test_a_prompt_that_is_a_text_alone(self, model, tokenizer):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        with pytest.raises(ValueError, match=r"inp.*TextTokenInput"):
            generation.explain("a gripping film", TARGET)

    def test_an_unknown_output(self, model, tokenizer):
        with pytest.raises(ValueError, match=r"output='energy'.*log-probability"):
            GenerationAttribution(RelevanceFlow(model), tokenizer, output="energy")

    def test_sums_over_tokens_of_rows_that_are_spans(self, model, tokenizer, prompt):
        generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        explanation = generation.explain(prompt, TARGET, spans=[(0, 4)])
        for call in (explanation.from_prompt, explanation.answer):
            with pytest.raises(ValueError, match="explain without spans"):
                call()


def step_logits(model, tokenizer, prompt, target):
    """Logits (G, V) of every step, by a pass over the whole text."""
    ids = tokenizer(target, add_special_tokens=False).input_ids
    text = torch.cat([prompt.inp_tensor, torch.tensor([ids])], 1)
    with torch.no_grad():
        logits = model(text).logits[0]
    return logits[-len(ids) - 1 : -1], torch.tensor(ids)


OTHER = "funny and so ."


@pytest.mark.parametrize("output", ["logit", "log-probability", "probability"])
def test_what_is_explained_is_the_output_asked_for(output, model, tokenizer, prompt):
    logits, ids = step_logits(model, tokenizer, prompt, TARGET)
    values = {
        "logit": logits,
        "log-probability": logits.log_softmax(-1),
        "probability": logits.softmax(-1),
    }[output]
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer, output)
    explanation = generation.explain(prompt, TARGET)
    own = values.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(explanation.outputs, own)
    torch.testing.assert_close(explanation.scores.sum(1), own, rtol=1e-5, atol=1e-8)
    others = torch.tensor(tokenizer(OTHER, add_special_tokens=False).input_ids)
    contrast = generation.explain(prompt, TARGET, against=OTHER)
    assert list(contrast.against) == tokenizer.tokenize(OTHER)
    torch.testing.assert_close(
        contrast.outputs, own - values.gather(1, others[:, None])[:, 0]
    )
    logs = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(contrast.log_probabilities, logs)


def test_relevance_of_a_contrast_is_the_difference_of_relevances(
    model, tokenizer, prompt
):
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer, "logit")
    [token] = tokenizer("funny", add_special_tokens=False).input_ids
    contrast = generation.explain(prompt, "dull", against=token)
    difference = (
        generation.explain(prompt, "dull").scores
        - generation.explain(prompt, "funny").scores
    )
    torch.testing.assert_close(contrast.scores, difference, rtol=1e-5, atol=1e-8)


def test_the_runner_up_is_the_most_probable_other_token(model, tokenizer, prompt):
    logits, ids = step_logits(model, tokenizer, prompt, TARGET)
    expected = []
    for row, own in zip(logits, ids.tolist(), strict=True):
        ranked = row.argsort(descending=True).tolist()
        expected.append(next(token for token in ranked if token != own))
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer, "logit")
    found = generation.explain(prompt, TARGET, against="runner-up")
    assert list(found.against) == tokenizer.convert_ids_to_tokens(expected)
    by_ids = generation.explain(prompt, TARGET, against=torch.tensor(expected))
    torch.testing.assert_close(found.scores, by_ids.scores)


@pytest.mark.parametrize(
    "method", [RelevanceFlow, GeneralizedAttentionFlow, captum_attnflow.AttnLRP]
)
@pytest.mark.parametrize("spans", [None, [(0, 2), (1, 2), (1, 3)]])
def test_tokens_that_both_texts_of_a_contrast_have_are_0(
    method, spans, model, tokenizer, prompt
):
    generation = GenerationAttribution(method(model), tokenizer)
    words = r"all scores of \d rows? \(1(, 2)?\) are 0"
    with pytest.warns(UserWarning, match=words) as said:
        found = generation.explain(
            prompt, "dull but funny", against="so but funny", spans=spans
        )
    assert not any("no path of positive capacity" in str(one.message) for one in said)
    rows = [(0, 1), (1, 2), (2, 3)] if spans is None else spans
    assert found.scores.any(1).tolist() == [start == 0 for start, _ in rows]
    alone = generation.explain(
        prompt, "dull but funny", against="so dull so", spans=[(0, 1)]
    )
    torch.testing.assert_close(found.scores[0], alone.scores[0])
    torch.testing.assert_close(found.outputs[0], alone.outputs[0])


@pytest.mark.parametrize("contrasts", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_relevance_of_a_span_is_the_sum_of_its_tokens(contrasts, family):
    model = decoder(family)
    tokenizer = numbers_tokenizer()
    prompt, target = TextTokenInput("7 8 9 10", tokenizer), "11 12 13 14"
    against = "15 16 17 18" if contrasts else None
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer, "logit")
    rows = generation.explain(prompt, target, against=against)
    spans = generation.explain(prompt, target, against=against, spans=[(1, 3), (0, 4)])
    torch.testing.assert_close(
        spans.scores[0], rows.scores[1:3].sum(0), rtol=1e-5, atol=1e-8
    )
    torch.testing.assert_close(spans.scores[1], rows.answer(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(spans.outputs[1], rows.outputs.sum())
    assert spans.row_texts == [" 12 13", " 11 12 13 14"]
    assert not spans.scores[~spans.possible()].any()


def test_one_pass_from_a_spans_sum_knows_all_but_what_its_read_outs_have():
    """Why relevance of a span takes a pass for each of its tokens."""
    model, tokenizer = decoder("llama"), numbers_tokenizer()
    prompt, target = TextTokenInput("7 8 9 10", tokenizer), "11 12 13 14"
    expected = (
        GenerationAttribution(RelevanceFlow(model), tokenizer, "logit")
        .explain(prompt, target, spans=[(0, 4)])
        .scores[0, :-1]
    )
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 13]])

    def summed(ids):
        logits = model(ids).logits[:, -4:]
        return sum(logits[:, step, token] for step, token in enumerate(range(11, 15)))

    found = RelevanceFlow(summed).explain(ids).scores[0]
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[3:].sum(), expected[3:].sum())
    assert not torch.allclose(found[3:], expected[3:], rtol=1e-2)


class TestTemplates:
    """Captum's template inputs, whose segments are slots of tokens."""

    VALUES = ("a gripping", "funny")

    @pytest.fixture
    def generation(self, model, tokenizer):
        return GenerationAttribution(RelevanceFlow(model), tokenizer)

    def by_tokens(self, generation, tokenizer):
        prompt = TextTokenInput("a gripping film is so funny .", tokenizer)
        return generation.explain(prompt, TARGET).scores

    @pytest.mark.parametrize(
        "given",
        [
            ("{} film is so {} .", list(VALUES)),
            ("{what} film is so {how} .", {"what": VALUES[0], "how": VALUES[1]}),
            (lambda what, how: f"{what} film is so {how} .", list(VALUES)),
        ],
    )
    def test_a_value_has_the_sum_of_its_tokens(self, given, generation, tokenizer):
        inp = TextTemplateInput(*given)
        result = generation.attribute(inp, TARGET)
        tokens = self.by_tokens(generation, tokenizer)  # [CLS] a gripping film is ...
        expected = torch.stack([tokens[:, 1:3].sum(1), tokens[:, 6]], 1).float()
        torch.testing.assert_close(result.token_attr, expected)
        torch.testing.assert_close(result.seq_attr, expected.sum(0))
        assert result.input_tokens == list(self.VALUES)
        explanation = generation.explain(inp, TARGET)
        torch.testing.assert_close(explanation.scores, tokens)
        assert explanation.parts[:9] == (
            *("template", "prompt", "prompt", "template", "template", "template"),
            *("prompt", "template", "template"),
        )

    def test_values_of_one_group_have_its_sum(self, generation, tokenizer):
        inp = TextTemplateInput(
            "{} {} film is so {} .", ["a", "gripping", "funny"], mask=[7, 3, 7]
        )
        result = generation.attribute(inp, TARGET)
        tokens = self.by_tokens(generation, tokenizer).float()
        both = tokens[:, 1] + tokens[:, 6]
        expected = torch.stack([both, tokens[:, 2], both], 1)
        torch.testing.assert_close(result.token_attr, expected)

    def test_a_value_that_stands_twice_has_both_sums(self, generation, tokenizer):
        inp = TextTemplateInput("{0} film is so funny {0}", ["a"])
        tokens = generation.explain(
            TextTokenInput("a film is so funny a", tokenizer), TARGET
        ).scores
        expected = (tokens[:, 1] + tokens[:, 6]).float()
        found = generation.attribute(inp, TARGET).token_attr[:, 0]
        torch.testing.assert_close(found, expected)

    def test_the_model_may_answer(self, generation):
        inp = TextTemplateInput("{} film", ["a"])
        arguments = {"max_new_tokens": 3, "do_sample": False}
        result = generation.attribute(inp, gen_args=arguments)
        assert result.token_attr.shape == (3, 1)

    @pytest.mark.parametrize("template", [str.upper, "{:>9}", lambda value: value[3]])
    def test_templates_that_change_values_are_refused(self, template, generation):
        with pytest.raises(ValueError, match="changes its values"):
            generation.explain(TextTemplateInput(template, ["funny"]), TARGET)


def test_a_flow_of_a_span_is_that_of_the_summed_outputs(model, tokenizer, prompt):
    method = GeneralizedAttentionFlow(model)
    spans = GenerationAttribution(method, tokenizer).explain(
        prompt, TARGET, spans=[(1, 4)]
    )
    ids = tokenizer(TARGET, add_special_tokens=False).input_ids
    text = torch.cat([prompt.inp_tensor, torch.tensor([ids[:-1]])], 1)

    def summed(text):
        steps = model(text).logits[:, -3:].log_softmax(-1)
        return torch.stack([steps[:, i, token] for i, token in enumerate(ids[1:])]).sum(
            0
        )

    alone = GeneralizedAttentionFlow(summed).explain(text)
    torch.testing.assert_close(spans.scores[0, :-1], alone.scores[0])


def test_attention_received_is_that_of_the_models_own_maps(model, tokenizer, prompt):
    generation = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
    found = generation.explain(prompt, TARGET).attention_received
    ids = tokenizer(TARGET, add_special_tokens=False).input_ids
    text = torch.cat([prompt.inp_tensor, torch.tensor([ids[:-1]])], 1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.cat(model(text, output_attentions=True).attentions)  # (L, H, T, T)
    n_tokens = text.shape[1]
    expected = [maps[:, :, key:, key].mean() for key in range(n_tokens)]
    torch.testing.assert_close(found[:-1], torch.stack(expected).double())
    assert found[-1] == 0  # the last token is no input


def test_relevance_with_a_sign_is_handed_on_and_keeps_its_sum():
    """Against the definition, by recursion over the steps."""
    torch.manual_seed(0)
    scores = torch.randn(5, 8).double().tril(2)
    explanation = GenerationExplanation(
        tokens=list("abcdefgh"),
        scores=scores,
        log_probabilities=torch.zeros(5),
        flow_value=scores.sum(1),
    )

    def origin(step):
        found = scores[step, :3].clone()
        for earlier in range(step):
            owed = origin(earlier)
            shares = owed.clamp(min=0) if (owed > 0).any() else owed.abs()
            found += scores[step, 3 + earlier] * shares / shares.sum()
        return found

    expected = torch.stack([origin(step) for step in range(5)])
    torch.testing.assert_close(explanation.from_prompt(), expected)
    torch.testing.assert_close(explanation.from_prompt().sum(1), scores.sum(1))


@pytest.mark.parametrize("units", ["word", "sentence", "line", [(0, 5), (7, 12)]])
def test_scores_of_units_are_sums_of_their_tokens(units, model, tokenizer, prompt):
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
    explanation = generation.explain(prompt, TARGET)
    summed = explanation.sum_over(units)
    members = [token for unit in summed.members for token in unit]
    assert members == list(range(len(explanation.tokens)))
    for unit, members in enumerate(summed.members):
        assert len({explanation.parts[token] for token in members}) == 1
        torch.testing.assert_close(
            summed.scores[:, unit], explanation.scores[:, members].sum(1)
        )
    assert "".join(summed.texts) == "".join(explanation.pieces)


@pytest.mark.parametrize("method", [RelevanceFlow, GeneralizedAttentionFlow])
def test_half_precision_gives_nearly_the_same_scores(method, tokenizer, prompt):
    torch.manual_seed(0)
    model = causal_language_model(len(tokenizer)).float()
    full, half = (
        GenerationAttribution(method(model.to(dtype)), tokenizer, "logit")
        .explain(prompt, TARGET)
        .scores
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == full.dtype == torch.float64
    assert (half - full).norm() < 0.05 * full.norm()


def test_a_spans_caption_names_what_its_own_steps_are_held_against(
    model, tokenizer, prompt
):
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
    found = generation.explain(prompt, TARGET, against=OTHER, spans=[(0, 2)])
    assert found.matrix().caption.count('"') == 4
    assert 'less that of "funny", "and"' in found.matrix().caption


class Dequantising(nn.Module):
    """A linear layer of int8 weights, whose backward pass needs them as floats."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = (linear.weight.detach() / self.scale).round().to(torch.int8)

    def forward(self, states):
        return nn.functional.linear(states, self.weight.to(states) * self.scale)


class TestMemory:
    """A text that memory has no room for is refused before its pass."""

    @pytest.fixture(autouse=True)
    def measured_early(self, monkeypatch):
        monkeypatch.setattr(module, "_MEASURED_FROM", 48)
        monkeypatch.setattr(module, "_MEASURED_AT", (8, 16, 24))

    @staticmethod
    def explain(generation):
        words = " ".join(map(str, range(7, 67)))
        prompt = TextTokenInput(words, generation.tokenizer)
        return generation.explain(prompt, "11")

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("method", ["RelevanceFlow", "AttnLRP"])
    @pytest.mark.parametrize("dequantised", [False, True])
    def test_the_number_of_tokens_that_would_fit_is_that_of_the_bytes(
        self, method, implementation, dequantised, monkeypatch
    ):
        model = decoder("llama", implementation)
        if dequantised:
            for layer in model.model.layers:
                for name, linear in list(layer.mlp.named_children())[:3]:
                    setattr(layer.mlp, name, Dequantising(linear))
        generation = GenerationAttribution(make(method, {}, model), numbers_tokenizer())
        ids = torch.arange(7, 67)[None]
        [free] = generation._held((ids[:, :40],)).values()
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        lengths = []
        model.register_forward_pre_hook(lambda _, ids: lengths.append(ids[0].shape[1]))
        with pytest.raises(ValueError, match="tokens would fit") as refused:
            self.explain(generation)
        assert lengths == [8, 8, 16, 24]
        [fitting] = re.findall(r"about (\d+) tokens", str(refused.value))
        assert 39 <= int(fitting) <= 41

    def test_what_autocast_keeps_between_passes_is_counted_once(self, monkeypatch):
        model = decoder("llama", dtype=torch.float32)
        generation = GenerationAttribution(RelevanceFlow(model), numbers_tokenizer())
        ids = torch.arange(60)[None] % 40
        with torch.autocast("cpu", torch.bfloat16):
            [first] = generation._held((ids[:, :40],)).values()
            [free] = generation._held((ids[:, :40],)).values()
        assert first > 1.1 * free
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(ValueError, match=r"about (39|40|41) tokens would fit"),
        ):
            self.explain(generation)

    def test_each_device_holds_its_own_part(self, monkeypatch):
        model, kept = decoder("llama"), []
        per_token = 2**20

        def keep_elsewhere(_, inputs):
            size = (inputs[0].shape[1], per_token)
            kept[:] = [torch.empty(size, dtype=torch.uint8, device="meta")]

        model.register_forward_pre_hook(keep_elsewhere)
        generation = GenerationAttribution(RelevanceFlow(model), numbers_tokenizer())
        ids = torch.arange(60)[None] % 40
        held = {device.type: n for device, n in generation._held((ids,)).items()}
        assert held["meta"] == 60 * per_token
        free = {"cpu": 2 * held["cpu"], "meta": 70 * per_token}
        monkeypatch.setattr(module, "free_memory", lambda device: free[device.type])
        assert self.explain(generation).scores.any()
        for device, share in (("meta", 40 * per_token), ("cpu", held["cpu"] // 2)):
            monkeypatch.setitem(free, device, share)
            with pytest.raises(ValueError, match=f"GiB on {device} for its backward"):
                self.explain(generation)
            monkeypatch.setitem(free, device, None)
            assert self.explain(generation).scores.any()

    def test_the_device_that_holds_fewest_tokens_says_how_many(self, monkeypatch):
        found = [{"cpu": 100 + n, "cuda:1": n**2, "mps": n**3} for n in (8, 16, 24)]
        generation = GenerationAttribution(
            RelevanceFlow(decoder("llama")), numbers_tokenizer()
        )
        monkeypatch.setattr(
            generation, "_held", lambda parts: found[parts[0].shape[1] // 8 - 1]
        )
        free = {"cpu": 150, "cuda:1": 30.5**2, "mps": None}
        monkeypatch.setattr(module, "free_memory", lambda device: free[str(device)])
        with pytest.raises(ValueError, match=r"on cuda:1 for .* about 30 tokens would"):
            self.explain(generation)
        free["cpu"] = 120
        with pytest.raises(ValueError, match=r"on cpu for .* about (19|20) tokens wou"):
            self.explain(generation)
        free["cpu"] = 90  # less than what is taken for any text
        with pytest.raises(ValueError, match=r"on cpu for .* about 0 tokens would"):
            self.explain(generation)

    def test_what_fits_is_explained_as_ever(self, monkeypatch):
        model = decoder("llama")
        generation = GenerationAttribution(RelevanceFlow(model), numbers_tokenizer())
        found = self.explain(generation).scores
        monkeypatch.setattr(module, "_MEASURED_FROM", 1000)
        assert torch.equal(found, self.explain(generation).scores)
