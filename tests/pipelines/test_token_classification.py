from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from rich.console import Console

from captum_attnflow import (
    AttnLRP,
    QuestionAnswerer,
    RelevanceFlow,
    TextClassifier,
    TokenClassifier,
)
from captum_attnflow.pipelines.methods import METHODS
from captum_attnflow.show import html_page, terminal_text

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "gripping unfathomable films are funny, and the plot is dull",
    "so dull",
    "the worst thing i have seen in years",
]


@pytest.fixture(scope="module")
def tagger(demo):
    config = transformers.BertConfig(
        vocab_size=len(demo.tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        id2label=dict(enumerate(LABELS)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForTokenClassification.from_config(config)
    model.classifier.bias.data[0] = 3.0  # some words are outside
    return TokenClassifier(model.eval(), demo.tokenizer)


def first_tokens(tokenizer, text):
    """The position of each word's first token."""
    words = tokenizer(text).word_ids()
    return [words.index(word) for word in range(max(w or 0 for w in words) + 1)]


def logits_of(tagger, text):
    with torch.no_grad():
        return tagger.model(**tagger.tokenizer(text, return_tensors="pt")).logits[0]


def test_a_word_has_the_label_of_its_first_token(tagger):
    for text, result in zip(TEXTS, tagger.explain(TEXTS, "attnlrp"), strict=True):
        logits = logits_of(tagger, text)[first_tokens(tagger.tokenizer, text)]
        assert [word.label for word in result.words] == [
            LABELS[index] for index in logits.argmax(-1).tolist()
        ]
        assert [word.probability for word in result.words] == pytest.approx(
            logits.softmax(-1).amax(-1).tolist(), abs=1e-5
        )
        for word in result.words:
            assert text[word.start : word.end] == word.text
    assert tagger.explain(TEXTS, "attnlrp")[0].words[1].text == "unfathomable"


def test_a_text_of_which_no_word_is_explained_says_so(tagger):
    result = replace(
        tagger.explain(["so dull"], "attention-rollout")[0], attributions=()
    )
    said = "no word is explained: those labelled O are not, unless they are named"
    assert result.__rich__().plain.endswith(f"\n{said}")
    assert f"<p>{said}</p>" in result._repr_html_()


def test_words_outside_are_not_explained_unless_named(tagger):
    results = tagger.explain(TEXTS, "attention-rollout")
    labels = {word.label for result in results for word in result.words}
    assert "O" in labels
    assert len(labels) > 1
    for result in results:
        explained = [each.word for each in result.attributions]
        assert explained == [word for word in result.words if word.label != "O"]
    outside = next(
        word for result in results for word in result.words if word.label == "O"
    )
    named = tagger.explain(TEXTS, "attention-rollout", words=[outside.text])
    found = [each.word.text for result in named for each in result.attributions]
    assert set(found) == {outside.text}


@pytest.mark.parametrize("target", [None, "B-LOC", 4])
def test_scores_are_those_of_the_label_at_the_word(tagger, target):
    text = TEXTS[0]
    [result] = tagger.explain([text], target=target, words=[1, "plot"])
    encoded = tagger.tokenizer(text, return_tensors="pt")
    logits = logits_of(tagger, text)
    firsts = first_tokens(tagger.tokenizer, text)
    flow = RelevanceFlow(lambda ids: tagger.model(ids).logits)
    baseline = encoded.input_ids.where(
        torch.isin(encoded.input_ids, torch.tensor([2, 3])),
        tagger.tokenizer.mask_token_id,
    )
    assert [each.word.text for each in result.attributions] == ["unfathomable", "plot"]
    for each in result.attributions:
        position = firsts[result.words.index(each.word)]
        label = int(logits[position].argmax())
        if target is not None:
            label = 4 if target == 4 else LABELS.index(target)
        assert each.target == LABELS[label]
        expected = flow.attribute(encoded.input_ids, baseline, (position, label))
        assert each.scores == pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-6)
        output = float(logits[position, label])
        assert sum(each.scores) == pytest.approx(output, abs=1e-4)
        assert each.flow_value == pytest.approx(output, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_texts_of_a_batch_are_explained_as_if_alone(tagger, method):
    together = tagger.explain(TEXTS, method, words=[0, 1])
    for text, result in zip(TEXTS, together, strict=True):
        [alone] = tagger.explain([text], method, words=[0, 1])
        assert [w.label for w in alone.words] == [w.label for w in result.words]
        for one, other in zip(alone.attributions, result.attributions, strict=True):
            assert one.scores == pytest.approx(other.scores, rel=1e-3, abs=1e-6)


def test_slalom_explains_the_others_of_the_word_that_is_asked_for(tagger):
    [result] = tagger.explain(TEXTS[:1], "slalom", words=["plot"])
    [attribution] = result.attributions
    at = attribution.tokens.index("plot")
    assert attribution.scores[at] == 0
    assert attribution.slalom.values[at] is None
    assert sum(score != 0 for score in attribution.scores) > 5
    logits = logits_of(tagger, TEXTS[0])[at].double()
    label = int(logits.argmax())
    others = torch.cat([logits[:label], logits[label + 1 :]])
    expected = float(logits[label] - others.logsumexp(0))
    assert attribution.slalom.log_odds == pytest.approx(expected, abs=1e-4)


def test_entities_are_those_of_the_pipeline(tagger):
    pipeline = transformers.pipeline(
        "token-classification", model=tagger.model, tokenizer=tagger.tokenizer
    )
    loaded = TokenClassifier.load(pipeline)
    results = loaded.explain(TEXTS, "attention-rollout", unit="entity")
    n_words = []
    for text, result in zip(TEXTS, results, strict=True):
        expected = pipeline(text, aggregation_strategy="first")
        entities = [word for word in result.words if word.label != "O"]
        assert [
            (entity["entity_group"], entity["start"], entity["end"])
            for entity in expected
        ] == [(word.label, word.start, word.end) for word in entities]
        assert [float(entity["score"]) for entity in expected] == pytest.approx(
            [word.probability for word in entities], abs=1e-5
        )
        n_words += [len(word.text.split()) for word in entities]
    assert max(n_words) > 1


def test_an_entity_is_the_mean_of_its_words(tagger):
    [words] = tagger.explain(TEXTS[:1], words=range(11))
    [entities] = tagger.explain(TEXTS[:1], unit="entity")
    several = [
        (entity, inside)
        for entity in entities.attributions
        if len(
            inside := [
                word
                for word in words.attributions
                if entity.word.start <= word.word.start < entity.word.end
            ]
        )
        > 1
    ]
    assert several
    for entity, inside in several:
        expected = torch.tensor([word.scores for word in inside]).mean(0)
        assert entity.scores == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
        assert entity.delta == pytest.approx(0, abs=1e-4)


def test_a_word_of_a_long_text_is_the_mean_of_the_windows_that_show_it(tagger):
    limit, stride = 16, 6
    text = " ".join((TEXTS[1] + " " + TEXTS[2]).split()[i % 10] for i in range(24))
    short = TokenClassifier(
        tagger.model, tagger.tokenizer, {"truncation": True, "max_length": limit}
    )
    [result] = short.explain(
        [text], target="B-PER", words=range(24), truncation="window", stride=stride
    )
    windows = tagger.tokenizer(
        text,
        truncation=True,
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = tagger.model(windows.input_ids, windows.attention_mask).logits
    assert result.n_windows == len(logits) > 2
    seen = []
    for word, each in zip(result.words, result.attributions, strict=True):
        rows = [
            logits[row, column]
            for row in range(len(logits))
            for column, (start, end) in enumerate(windows.offset_mapping[row].tolist())
            if start == word.start and end > start
        ]
        mean = torch.stack(rows).mean(0)
        assert word.label == LABELS[int(mean.argmax())]
        assert sum(each.scores) == pytest.approx(float(mean[1]), abs=1e-4)
        assert "windows of the text that show the word" in each.note
        seen.append(len(rows))
    assert set(seen) == {1, 2}


def test_a_truncated_text_has_labels_of_what_the_model_saw(tagger):
    short = TokenClassifier(
        tagger.model, tagger.tokenizer, {"truncation": True, "max_length": 8}
    )
    with pytest.warns(UserWarning, match="truncated"):
        [result] = short.explain(TEXTS[:1], "attention-rollout", words=[0])
    [whole] = tagger.explain(TEXTS[:1], "attention-rollout", words=[0])
    assert [word.text for word in result.words] == ["gripping", "unfathomable", "films"]
    assert result.n_truncated == len(whole.attributions[0].tokens) - 8
    assert "did not see" in result._repr_html_()


def test_results_show_themselves_escaped(tagger):
    [result] = tagger.explain(["<b>dull</b> plot"], "attnlrp", words=["dull", "plot"])
    page = html_page([result])
    assert "<b>dull</b>" not in page
    assert ">&lt;</span>" in page
    assert f"dull: {result.attributions[0].predicted}" in page
    console = Console(record=True, width=200)
    console.print(result)
    console.print(result.attributions[1])
    printed = console.export_text()
    word = result.attributions[1].word
    assert printed.count(f"plot: {word.label} {word.probability:.3f}") == 2
    assert f"plot: {word.label}" in html_page(list(result.attributions))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plot", "words='plot'; give a list of indices"),
        ([], r"words=\[\]; give a list"),
        ([True], r"words=\[True\]; give a list"),
        ([-1], r"words=\[-1\]; give a list"),
        ([99], r"names word 99, but a text has 11.*from 0 to 10"),
        (["film"], r"names \['film'\], which none of 1 text has"),
    ],
)
def test_words_that_are_not_there_are_refused(tagger, words, message):
    with pytest.raises(ValueError, match=message):
        tagger.explain(TEXTS[:1], words=words)


def test_other_wrong_arguments_are_refused(tagger):
    with pytest.raises(ValueError, match="unit='span' is unknown; give one of 'word'"):
        tagger.explain(TEXTS, unit="span")
    with pytest.raises(ValueError, match=r"target='B-ORG' is unknown; give a label of"):
        tagger.explain(TEXTS, target="B-ORG")
    with pytest.raises(ValueError, match="the text is a tuple"):
        tagger.explain([("a film", "so dull")])
    entities = transformers.pipeline(
        "ner", model=tagger.model, tokenizer=tagger.tokenizer
    )
    with pytest.raises(ValueError, match="a TokenClassificationPipeline was given"):
        TextClassifier.load(entities)


def test_labels_that_do_not_fit_the_outputs_are_refused(tagger):
    model = copy.deepcopy(tagger.model)
    model.config.id2label = {0: "O"}
    with pytest.raises(ValueError, match="5 outputs but id2label"):
        TokenClassifier(model, tagger.tokenizer).explain(TEXTS)


def test_a_slow_tokenizer_is_refused(tagger, monkeypatch):
    tokenizer = copy.deepcopy(tagger.tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match=r"does not know which .*tokenizer\.json"):
        TokenClassifier(tagger.model, tokenizer).explain(TEXTS)


def test_a_saved_folder_is_the_same_classifier(tagger, tmp_path):
    tagger.model.save_pretrained(tmp_path)
    tagger.tokenizer.save_pretrained(tmp_path)
    loaded = TokenClassifier.load(str(tmp_path))
    assert loaded.labels == LABELS
    expected = tagger.explain(TEXTS[:1], "attnlrp")
    assert loaded.explain(TEXTS[:1], "attnlrp") == expected
    with pytest.raises(ValueError, match=r"has no weights for \['qa_outputs"):
        QuestionAnswerer.load(tmp_path)


def test_rules_are_those_of_the_label_at_the_word(tagger):
    [result] = tagger.explain(TEXTS[1:2], "attnlrp", words=[1], target="O")
    ids = tagger.tokenizer(TEXTS[1], return_tensors="pt").input_ids
    rules = AttnLRP(lambda ids: tagger.model(ids).logits)
    expected, delta = rules.attribute(ids, target=(2, 0), return_convergence_delta=True)
    [attribution] = result.attributions
    assert attribution.scores == pytest.approx(expected[0].tolist(), rel=1e-4)
    assert attribution.delta == pytest.approx(float(delta), abs=1e-4)


def test_every_row_of_a_table_names_the_word_that_it_explains(tagger):
    pytest.importorskip("pandas")
    [result] = tagger.explain(["a gripping , funny film"], words=["funny", "film"])
    one, other = result.attributions
    assert one.explained == f"funny: {one.target}"
    assert result.explained == f"{one.explained}, {other.explained}"
    table = result.to_pandas()
    assert list(dict.fromkeys(table["explained"])) == [one.explained, other.explained]
    assert table["score"].tolist() == [*one.scores, *other.scores]
    assert set(table["example"]) == {0}


def test_what_a_word_rests_on_is_shown_by_words(tagger):
    [result] = tagger.explain(["Unfathomable, dull"], words=["Unfathomable"])
    [word] = result.attributions
    first = f"Unfathomable: {word.predicted} {word.probability:.3f}\n"
    assert terminal_text(word).plain.startswith(first)
    assert " ##" not in terminal_text(result).plain
    assert " ##" in terminal_text(result, "token").plain
    assert html_page(result).count('<section class="section"') == 1
