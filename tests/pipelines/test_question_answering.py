from __future__ import annotations

import re

import pytest
import torch
import transformers
from rich.console import Console

from captum_attnflow import QuestionAnswerer, RelevanceFlow
from captum_attnflow.pipelines.methods import METHODS
from captum_attnflow.show import html_page, terminal_text

PAIRS = [
    (
        "what is funny ?",
        "the plot is dull but the acting is funny, and the film gripping",
    ),
    ("who ?", "an unfathomable film"),
]


@pytest.fixture(scope="module")
def answerer(demo):
    config = transformers.BertConfig(
        vocab_size=len(demo.tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForQuestionAnswering.from_config(config)
    return QuestionAnswerer(model.eval(), demo.tokenizer)


def short(answerer, limit):
    options = {"truncation": True, "max_length": limit}
    return QuestionAnswerer(answerer.model, answerer.tokenizer, options)


def best_span(answerer, encoded, row, most=15):
    """Every span of the context, one after the other."""
    given = {
        name: encoded[name][row : row + 1]
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    with torch.no_grad():
        output = answerer.model(**given)
    start, end = output.start_logits[0], output.end_logits[0]
    sequences = encoded.sequence_ids(row)
    inside = [i for i, sequence in enumerate(sequences) if sequence == 1]
    best = max(
        (float(start[i] + end[j]), i, j)
        for i in inside
        for j in inside
        if i <= j < i + most
    )
    probability = start[inside].softmax(0)[best[1] - inside[0]]
    probability = probability * end[inside].softmax(0)[best[2] - inside[0]]
    return (*best, float(probability), float(start[best[1]]), float(end[best[2]]))


@pytest.mark.parametrize("most", [1, 3, 15])
def test_the_answer_is_the_best_span_of_the_context(answerer, most):
    results = answerer.explain(PAIRS, "attention-rollout", max_answer_tokens=most)
    for (question, context), result in zip(PAIRS, results, strict=True):
        encoded = answerer.tokenizer(question, context, return_tensors="pt")
        _, first, last, probability, _, _ = best_span(answerer, encoded, 0, most)
        start = encoded.token_to_chars(first).start
        end = encoded.token_to_chars(last).end
        assert (result.start, result.end) == (start, end)
        assert result.predicted == context[start:end]
        assert result.probability == pytest.approx(probability, rel=1e-4)
        assert (result.text, result.text_pair) == (question, context)


@pytest.mark.parametrize("part", ["both", "start", "end"])
def test_scores_account_for_the_logits_of_start_and_end(answerer, part):
    question, context = PAIRS[0]
    [result] = answerer.explain(PAIRS[:1], part=part)
    encoded = answerer.tokenizer(question, context, return_tensors="pt")
    both, first, last, _, start, end = best_span(answerer, encoded, 0)
    expected = {"both": both, "start": start, "end": end}[part]
    assert sum(result.scores) == pytest.approx(expected, abs=1e-4)
    assert part in result.target or part == "both"

    def chosen(ids, types):
        output = answerer.model(ids, token_type_ids=types)
        start, end = output.start_logits[:, first], output.end_logits[:, last]
        return {"both": start + end, "start": start, "end": end}[part]

    ids = encoded.input_ids
    special = torch.isin(ids, torch.tensor([2, 3]))
    baseline = ids.where(special, answerer.tokenizer.mask_token_id)
    scores = RelevanceFlow(chosen).attribute(
        ids, baseline, additional_forward_args=encoded.token_type_ids
    )
    assert result.scores == pytest.approx(scores[0].tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_pairs_of_a_batch_are_explained_as_if_alone(answerer, method):
    together = answerer.explain(PAIRS, method)
    for pair, result in zip(PAIRS, together, strict=True):
        [alone] = answerer.explain([pair], method)
        assert alone.predicted == result.predicted
        assert result.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-6)


def test_slalom_takes_the_logits_as_they_are(answerer):
    question, context = PAIRS[0]
    encoded = answerer.tokenizer(question, context, return_tensors="pt")
    both, first, last, *_ = best_span(answerer, encoded, 0)
    [result] = answerer.explain(PAIRS[:1], "slalom")
    assert result.slalom.log_odds == pytest.approx(both, abs=1e-4)
    assert result.scores[first] == result.scores[last] == 0
    assert result.slalom.values[1] is not None  # the question is explained, too


def test_another_answer_is_explained_if_it_is_given(answerer):
    [own, _] = answerer.explain(PAIRS, "attention-rollout")
    [result] = answerer.explain(PAIRS[:1], target="the acting")
    assert result.predicted == "the acting" != own.predicted
    encoded = answerer.tokenizer(*PAIRS[0], return_tensors="pt")
    first = encoded.char_to_token(result.start, sequence_index=1)
    last = encoded.char_to_token(result.end - 1, sequence_index=1)
    with torch.no_grad():
        output = answerer.model(**encoded)
    expected = output.start_logits[0, first] + output.end_logits[0, last]
    assert sum(result.scores) == pytest.approx(float(expected), abs=1e-4)


def test_windows_of_a_long_context_give_their_best_answer(answerer):
    question, context = PAIRS[0]
    long = " ".join([context, "while the music is loud and", context])
    limited = short(answerer, 20)
    [result] = limited.explain([(question, long)], truncation="window", stride=4)
    encoded = answerer.tokenizer(
        question,
        long,
        truncation="only_second",
        max_length=20,
        stride=4,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    spans = [best_span(answerer, encoded, row) for row in range(len(encoded.input_ids))]
    row = max(range(len(spans)), key=lambda row: spans[row][0])
    logit, first, last, *_ = spans[row]
    assert result.n_windows == len(spans) > 3
    assert result.start == encoded.token_to_chars(row, first).start
    assert result.end == encoded.token_to_chars(row, last).end
    assert sum(result.scores) == pytest.approx(logit, abs=1e-4)
    whole = answerer.tokenizer(question, long).input_ids
    assert len(result.tokens) == len(whole)
    n_shown = int(encoded.attention_mask[row].sum())
    assert sum(score != 0 for score in result.scores) <= n_shown
    assert "best answer of" in html_page([result])


def test_a_context_is_truncated_and_never_the_question(answerer):
    limited = short(answerer, 12)
    with pytest.warns(UserWarning, match="truncated"):
        [result] = limited.explain(PAIRS[:1], "attention-rollout")
    assert result.tokens[1:5] == ("what", "is", "funny", "?")
    assert len(result.tokens) == 12
    assert result.n_truncated > 0
    with pytest.raises(ValueError, match="has 21 tokens, and the model's limit is 12"):
        limited.explain(PAIRS[:1], truncation="refuse")


def test_a_result_shows_itself(answerer):
    [result] = answerer.explain(PAIRS[:1], "attention-rollout", part="start")
    console = Console(record=True, width=200)
    console.print(result)
    printed = console.export_text()
    assert printed.startswith(f"{result.predicted} {result.probability:.3f}")
    assert "scores for “start of the answer”" in printed
    assert result.predicted in result._repr_html_()


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (["what ?"], {}, "the pair is a str.*question, context"),
        ([("what ?", " ")], {}, "the context of the pair is empty"),
        ([], {}, "list of at least one pair"),
        (PAIRS, {"part": "middle"}, "part='middle' is unknown; give one of 'both'"),
        (PAIRS, {"target": "nobody"}, "'nobody' does not stand in context 1 of 2"),
        (PAIRS, {"max_answer_tokens": 0}, "max_answer_tokens=0 must be an integer"),
    ],
)
def test_wrong_arguments_are_refused(answerer, pairs, options, message):
    with pytest.raises(ValueError, match=message):
        answerer.explain(pairs, **options)


def test_a_saved_folder_is_the_same_model(answerer, tmp_path):
    answerer.model.save_pretrained(tmp_path)
    answerer.tokenizer.save_pretrained(tmp_path)
    loaded = QuestionAnswerer.load(tmp_path)
    expected = answerer.explain(PAIRS, "attnlrp")
    assert loaded.explain(PAIRS, "attnlrp") == expected


def test_every_row_of_a_table_names_the_answer_that_it_explains(answerer):
    pytest.importorskip("pandas")
    [result] = answerer.explain([("which film ?", "a gripping , funny film")])
    assert result.explained == f"start and end of the answer: {result.predicted}"
    assert result.attributions == (result,)
    assert set(result.to_pandas()["explained"]) == {result.explained}


def test_words_of_question_and_context_are_shown_as_written(answerer):
    pair = ("Who, now?", "An Unfathomable (dull) film.")
    [result] = answerer.explain([pair])
    names = [word.text for word in result.words if word.kind != "special"]
    said = ["Who", ",", "now", "?", "An", "Unfathomable", "(", "dull", ")", "film", "."]
    assert names == said
    pieces = terminal_text(result, by="token").plain
    assert "##" in pieces
    assert "##" not in terminal_text(result).plain
    assert "relevance-flow: scores for" in terminal_text(result).plain
    spans = re.sub("<[^>]*>", "", re.search('class="words".*', html_page(result))[0])
    assert "Who, now?" in spans
    assert "An Unfathomable (dull) film." in spans


@pytest.mark.parametrize("part", ["both", "start", "end"])
def test_an_answer_is_explained_without_a_warning(answerer, part, recwarn):
    answerer.explain(PAIRS, part=part)
    assert not recwarn.list


def test_of_several_places_of_a_target_the_most_probable_is_taken(answerer):
    context = "the film is dull , the film is funny , and the film is long"
    starts = [match.start() for match in re.finditer("the film", context)]
    for question in ("what ?", "what is funny ?", "how long is it ?"):
        [result] = answerer.explain(
            [(question, context)], "attention-rollout", target="the film"
        )
        encoded = answerer.tokenizer(question, context, return_tensors="pt")
        with torch.no_grad():
            output = answerer.model(**encoded)
        sums = {}
        for start in starts:
            first = encoded.char_to_token(start, sequence_index=1)
            last = encoded.char_to_token(start + len("the film") - 1, sequence_index=1)
            sums[start] = output.start_logits[0, first] + output.end_logits[0, last]
        assert result.start == max(sums, key=sums.__getitem__)
        assert result.predicted == "the film"
