"""Relevance of Chefer et al. against a replica written from the paper."""

from __future__ import annotations

import pytest
import torch
from models import (
    ENCODER_DECODERS,
    bert,
    causal_language_model,
    encoder_decoder,
    token_ids,
)
from reference.chefer import relevance_of, relevance_of_both_sides

from captum_attnflow import CheferRelevance


def assert_same(scores, expected):
    wanted = torch.as_tensor(expected).to(scores)
    torch.testing.assert_close(scores, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_scores_are_the_row_of_cls(implementation):
    model = bert(implementation=implementation)
    ids, targets = token_ids(3, 7), [0, 1, 1]
    chefer = CheferRelevance(lambda ids: model(ids).logits)
    scores = chefer.explain(ids, target=targets).scores
    for row, target in enumerate(targets):
        replica = relevance_of(bert(implementation="eager"), ids[row], (target,))
        assert_same(scores[row], replica[0])


@pytest.mark.parametrize("position", [3, 7])
def test_scores_of_a_language_model_are_the_row_of_the_position(position):
    model, ids = causal_language_model(50).double(), token_ids(1, 8)
    model.set_attn_implementation("eager")
    chefer = CheferRelevance(lambda ids: model(ids).logits)
    scores = chefer.explain(ids, target=(position, 7)).scores
    replica = relevance_of(model, ids[0], (position, 7))
    assert_same(scores[0], replica[position])
    assert not scores[0, position + 1 :].any()


def test_several_read_out_positions_are_averaged():
    model, ids = bert(), token_ids(1, 6)
    head = torch.linspace(-1, 1, 32).double()
    chefer = CheferRelevance(lambda ids: model.bert(ids)[0].mean(1) @ head)
    explanation = chefer.explain(ids)
    assert explanation.network.sink.all()
    paths = torch.eye(6).double()
    for layer in explanation.network.capacity[0]:
        paths = layer @ paths
    assert_same(explanation.scores[0], paths.mean(0))


def test_scores_are_sums_over_all_paths_through_the_network():
    model, ids = bert(), token_ids(1, 5)
    explanation = CheferRelevance(lambda ids: model(ids).logits).explain(ids, target=1)
    first, second, third = explanation.network.capacity[0]
    for token in range(5):
        total = sum(
            third[0, j] * second[j, i] * first[i, token]
            for i in range(5)
            for j in range(5)
        )
        assert_same(explanation.scores[0, token], total)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_both_sides_of_an_encoder_and_decoder_follow_the_bi_modal_rules(family):
    model = encoder_decoder(family)
    encoder_ids, decoder_ids = token_ids(2, 6), token_ids(2, 4)
    chefer = CheferRelevance(
        lambda encoder, decoder: model(
            input_ids=encoder, decoder_input_ids=decoder
        ).logits[:, 2]
    )
    scores = chefer.explain((encoder_ids, decoder_ids), target=3).scores
    replica_model = encoder_decoder(family).requires_grad_(True)
    for row in range(2):
        of_encoder, of_decoder = relevance_of_both_sides(
            replica_model, encoder_ids[row], decoder_ids[row], (2, 3)
        )
        assert_same(scores[row, :6], of_encoder[2])
        assert_same(scores[row, 6:], of_decoder[2])


def test_delta_is_what_the_layers_added_to_the_read_out():
    model, ids = bert(), token_ids(2, 6)
    explanation = CheferRelevance(lambda ids: model(ids).logits).explain(ids, target=1)
    assert torch.equal(explanation.flow_value, torch.ones(2).double())
    assert_same(explanation.delta, explanation.scores.sum(1) - 1)
    assert (explanation.delta > 0).all()


def test_receptive_fields_divide_a_decoders_scores():
    model, ids = causal_language_model(50).double(), token_ids(1, 6)

    def scores(**options):
        chefer = CheferRelevance(lambda ids: model(ids).logits[:, -1], **options)
        return chefer.explain(ids, target=7).scores[0]

    field = torch.arange(7, 1, -1)
    assert_same(scores(normalization="receptive-field"), scores() / field)
