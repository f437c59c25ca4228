from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from captum.attr import LayerIntegratedGradients
from rich.console import Console

from captum_attnflow import RelevanceFlow, SentenceSimilarity, TextClassifier
from captum_attnflow.pipelines.methods import METHODS
from captum_attnflow.show import html_page, terminal_text

PAIRS = [
    ("the plot is dull", "but the acting is funny and gripping"),
    ("so funny", "a film"),
]


@pytest.fixture(scope="module")
def encoder(demo):
    return SentenceSimilarity(demo.model.bert, demo.tokenizer)


def embedding(encoder, text, pooling="mean"):
    encoded = encoder.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = encoder.model(**encoded).last_hidden_state[0]
    return states.mean(0) if pooling == "mean" else states[0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_similarity_is_the_cosine_of_pooled_states(encoder, pooling):
    similarity = SentenceSimilarity(encoder.model, encoder.tokenizer, pooling=pooling)
    for pair, result in zip(PAIRS, similarity.explain(PAIRS), strict=True):
        first, second = (embedding(encoder, text, pooling) for text in pair)
        expected = float(first @ second / first.norm() / second.norm())
        assert result.similarity == pytest.approx(expected, abs=1e-5)
        assert (result.first.text, result.second.text) == pair
        for side in (result.first, result.second):
            assert side.value == result.similarity
            assert side.probability is None
            # Each side alone accounts for the whole similarity.
            assert sum(side.scores) == pytest.approx(expected, abs=1e-4)
            assert side.flow_value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_pairs_of_a_batch_are_explained_as_if_alone(encoder, method):
    together = encoder.explain(PAIRS, method)
    for pair, result in zip(PAIRS, together, strict=True):
        [alone] = encoder.explain([pair], method)
        assert result.similarity == pytest.approx(alone.similarity, abs=1e-5)
        for one, other in (
            (result.first, alone.first),
            (result.second, alone.second),
        ):
            assert one.tokens == other.tokens
            assert one.scores == pytest.approx(other.scores, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_sides_change_places_with_their_texts(encoder, method):
    [result] = encoder.explain(PAIRS[:1], method)
    [swapped] = encoder.explain([PAIRS[0][::-1]], method)
    for one, other in (
        (result.first, swapped.second),
        (result.second, swapped.first),
    ):
        assert one.scores == pytest.approx(other.scores, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("side", ["first", "second"])
def test_a_side_is_explained_with_the_other_fixed(encoder, side):
    text, other = PAIRS[0] if side == "first" else PAIRS[0][::-1]
    fixed = embedding(encoder, other)
    ids = encoder.tokenizer(text, return_tensors="pt").input_ids
    special = torch.isin(ids, torch.tensor([2, 3]))
    baseline = ids.where(special, encoder.tokenizer.mask_token_id)

    def similarity(ids):
        states = encoder.model(ids).last_hidden_state.mean(1)
        return torch.cosine_similarity(states, fixed[None])

    expected = RelevanceFlow(similarity).attribute(ids, baseline)[0].tolist()
    [result] = encoder.explain(PAIRS[:1])
    assert getattr(result, side).scores == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_tokens_that_matter_by_integrated_gradients_matter_here(encoder):
    """Completeness of both, from the same baseline, and ranks that agree."""
    first, second = PAIRS[0]
    fixed = embedding(encoder, second)
    encoded = encoder.tokenizer(first, return_tensors="pt")
    ids = encoded.input_ids
    special = torch.isin(ids, torch.tensor([2, 3]))
    baseline = ids.where(special, encoder.tokenizer.mask_token_id)

    def similarity(ids):
        states = encoder.model(ids).last_hidden_state.mean(1)
        return torch.cosine_similarity(states, fixed[None])

    integrated, delta = LayerIntegratedGradients(
        similarity, encoder.model.embeddings
    ).attribute(ids, baseline, n_steps=300, return_convergence_delta=True)
    expected = integrated[0].sum(-1)
    assert abs(float(delta)) < 0.02
    [result] = encoder.explain(PAIRS[:1])
    scores = torch.tensor(result.first.scores)
    with torch.no_grad():
        change = float(similarity(ids) - similarity(baseline))
    assert float(expected.sum()) == pytest.approx(change, abs=0.02)
    assert float(scores.sum()) == pytest.approx(float(similarity(ids)), abs=1e-4)
    content = slice(1, -1)
    both = torch.stack([expected[content], scores[content].float()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8


def test_slalom_takes_the_cosine_as_it_is(encoder):
    [result] = encoder.explain(PAIRS[:1], "slalom")
    for side in (result.first, result.second):
        assert side.slalom.log_odds == pytest.approx(result.similarity, abs=1e-5)
        assert side.slalom.values[0] is None


def test_results_show_themselves_escaped(encoder):
    [result] = encoder.explain(PAIRS[:1], "attention-rollout")
    tokens = ("<i>", *result.first.tokens[1:])
    first = replace(result.first, tokens=tokens, words=None)
    page = html_page([replace(result, first=first)])
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    console = Console(record=True, width=200)
    console.print(result)
    assert console.export_text().count(f"similarity {result.similarity:.3f}") == 2


def saved(encoder, folder, **files):
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    names = {
        "pooling": "1_Pooling/config.json",
        "modules": "modules.json",
        "length": "sentence_bert_config.json",
    }
    for name, content in files.items():
        (folder / names[name]).write_text(json.dumps(content))
    return folder


OLD = {"word_embedding_dimension": 128, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("files", "pooling"),
    [
        ({}, "mean"),
        ({"pooling": {**OLD, "pooling_mode_cls_token": True}}, "cls"),
        ({"pooling": {**OLD, "pooling_mode_mean_tokens": True}}, "mean"),
        ({"pooling": {"embedding_dimension": 128, "pooling_mode": "cls"}}, "cls"),
    ],
)
def test_a_folder_says_how_it_pools(encoder, tmp_path, files, pooling):
    folder = saved(encoder, tmp_path, **files)
    loaded = SentenceSimilarity.load(folder)
    assert loaded.pooling == pooling
    assert SentenceSimilarity.load(folder, pooling="cls").pooling == "cls"
    expected = SentenceSimilarity(encoder.model, encoder.tokenizer, pooling=pooling)
    assert loaded.explain(PAIRS, "attnlrp") == expected.explain(PAIRS, "attnlrp")


def test_the_list_of_modules_says_where_the_pooling_is(encoder, tmp_path):
    kind = "sentence_transformers.models"
    modules = [
        {"type": f"{kind}.Transformer", "path": ""},
        {"type": f"{kind}.Pooling", "path": "2_Pooling"},
    ]
    mean = {**OLD, "pooling_mode_mean_tokens": True}
    folder = saved(encoder, tmp_path, pooling=mean, modules=modules)
    (folder / "2_Pooling").mkdir()
    by = {"pooling_mode_cls_token": True}
    (folder / "2_Pooling" / "config.json").write_text(json.dumps(by))
    assert SentenceSimilarity.load(folder).pooling == "cls"
    by = {"pooling_mode_max_tokens": True}
    (folder / "2_Pooling" / "config.json").write_text(json.dumps(by))
    with pytest.raises(ValueError, match=r"^2_Pooling/config\.json of .* pools by"):
        SentenceSimilarity.load(folder)


def test_a_folder_says_how_long_texts_may_be(encoder, tmp_path):
    loaded = SentenceSimilarity.load(
        saved(encoder, tmp_path, length={"max_seq_length": 6, "do_lower_case": False})
    )
    with pytest.warns(UserWarning, match="limit of 6"):
        [result] = loaded.explain(PAIRS[:1], "attention-rollout")
    assert len(result.second.tokens) == 6
    assert result.second.n_truncated == 3
    assert result.first.n_truncated == 0
    assert "did not see 3 of 9 tokens" in result._repr_html_()
    with pytest.raises(ValueError, match="has 9 tokens, and the model's limit is 6"):
        loaded.explain(PAIRS[:1], truncation="refuse")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pools by .*'max_tokens'"),
        (
            {
                "pooling": {
                    "pooling_mode_mean_tokens": True,
                    "pooling_mode_cls_token": True,
                }
            },
            "pools by .*mean and cls are read here",
        ),
        (
            {"modules": [{"type": "sentence_transformers.models.Dense"}]},
            "has Dense, which changes the embedding",
        ),
        ({"length": {"do_lower_case": True}}, "asks for lower case"),
    ],
)
def test_a_folder_of_another_embedding_is_refused(encoder, tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        SentenceSimilarity.load(saved(encoder, tmp_path, **files))


def test_a_pooling_file_that_is_no_json_is_refused(encoder, tmp_path):
    folder = saved(encoder, tmp_path)
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json of .* is no JSON"):
        SentenceSimilarity.load(folder)


def test_a_pipeline_of_features_is_an_encoder(encoder):
    pipeline = transformers.pipeline(
        "feature-extraction", model=encoder.model, tokenizer=encoder.tokenizer
    )
    loaded = SentenceSimilarity.load(pipeline, pooling="cls")
    assert (loaded.model, loaded.pooling) == (encoder.model, "cls")


def test_wrong_arguments_are_refused(encoder):
    with pytest.raises(ValueError, match="truncation='window' is unknown; give one of"):
        encoder.explain(PAIRS, truncation="window")
    with pytest.raises(ValueError, match=r"pair 2 of 2 is a str.*\(first, second\)"):
        encoder.explain([PAIRS[0], "so"])
    with pytest.raises(ValueError, match="pooling='max' is unknown; give one of"):
        SentenceSimilarity(encoder.model, encoder.tokenizer, pooling="max")


def test_rows_of_a_table_name_the_text_by_which_they_explain(encoder, tmp_path):
    pytest.importorskip("pandas")
    [result] = encoder.explain(PAIRS[:1])
    assert result.attributions == (result.first, result.second)
    assert (result.first.text, result.first.text_pair) == PAIRS[0]
    assert (result.second.text_pair, result.second.text) == PAIRS[0]
    assert result.second.explained == "similarity by the second text"
    table = result.to_pandas()
    by_side = table.groupby("explained")["score"].sum()
    assert by_side["similarity by the first text"] == pytest.approx(
        sum(result.first.scores)
    )
    result.second.save(tmp_path / "second")
    assert type(result.second).load(tmp_path / "second") == result.second


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_pooling_without_its_name_is_refused(encoder, tmp_path, pooling):
    message = f"is a pooling; pooling is given by name: pooling='{pooling}'"
    with pytest.raises(ValueError, match=f"tokenizer_options='{pooling}' {message}"):
        SentenceSimilarity(encoder.model, encoder.tokenizer, pooling)
    with pytest.raises(ValueError, match=f"device='{pooling}' {message}"):
        SentenceSimilarity.load(saved(encoder, tmp_path), pooling)


@pytest.mark.parametrize("options", ["max", ["truncation"], None, 128])
def test_options_of_a_tokenizer_are_a_mapping(encoder, options):
    for kind in (SentenceSimilarity, TextClassifier):
        with pytest.raises(ValueError, match=r"tokenizer_options=.*; give a mapping"):
            kind(encoder.model, encoder.tokenizer, options)
    encoder = replace(encoder, tokenizer_options={"truncation": True, "max_length": 6})
    with pytest.warns(UserWarning, match="limit of 6"):
        encoder.explain(PAIRS[:1], "attention-rollout")


def test_both_texts_of_a_pair_are_shown_by_words(encoder):
    [result] = encoder.explain([("Unfathomable, dull", "(an Unfathomable film)")])
    shown, pieces = terminal_text(result).plain, terminal_text(result, "token").plain
    assert shown.count(" Unfathomable ") == 2
    assert " ##" not in shown
    assert " ##" in pieces
    page = html_page(result)
    assert page.count('<section class="section"') == 2
    assert page.count("relevance-flow: scores for “similarity”") >= 2
    assert [side.index for side in result.attributions] == [0, 0]
