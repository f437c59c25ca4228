"""What stands for token ids in the graph, however a model treats them first."""

from __future__ import annotations

import pytest
import torch
from models import bert, encoder_decoder, token_ids
from torch import nn

from captum_attnflow import (
    AttentionRollout,
    AttnLRP,
    LayerRelevanceFlow,
    RelevanceFlow,
)


@pytest.fixture(scope="module")
def model():
    return bert()


@pytest.mark.parametrize(
    "treat",
    [
        lambda ids: ids.clamp(min=0),
        lambda ids: torch.where(ids > 0, ids, 0),
        lambda ids: ids.masked_fill(ids < 0, 0),
        lambda ids: ids.clone(),
        lambda ids: ids.to(torch.int32),
        lambda ids: ids + 0,
    ],
)
def test_ids_that_the_model_treats_first_have_the_same_scores(model, treat):
    ids = token_ids(2, 6)
    expected = RelevanceFlow(lambda ids: model(ids).logits).explain(ids, target=1)
    treated = RelevanceFlow(lambda ids: model(treat(ids)).logits)
    torch.testing.assert_close(treated.explain(ids, target=1).scores, expected.scores)


def test_ids_that_are_not_seen_to_be_looked_up_are_told(model):
    weight = model.bert.embeddings.word_embeddings.weight

    def forward(ids):
        one_hot = nn.functional.one_hot(ids, len(weight)).to(weight)
        return model(inputs_embeds=one_hot @ weight).logits

    with pytest.warns(UserWarning, match=r"inputs \[0\] were not seen"):
        RelevanceFlow(forward).explain(token_ids(2, 6), target=1)


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_scores_do_not_depend_on_which_side_is_an_input(family):
    model = encoder_decoder(family)
    encoder_ids, decoder_ids = token_ids(2, 6), token_ids(2, 4)

    def forward(encoder_ids, decoder_ids):
        outputs = model(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
        return outputs.logits[:, -1]

    def of_decoder(decoder_ids, encoder_ids):
        return forward(encoder_ids, decoder_ids)

    both = RelevanceFlow(forward).explain((encoder_ids, decoder_ids), target=5).scores
    for method, given, further in (
        (RelevanceFlow(forward), encoder_ids, decoder_ids),
        (RelevanceFlow(of_decoder), decoder_ids, encoder_ids),
    ):
        alone = method.explain(given, target=5, additional_forward_args=(further,))
        torch.testing.assert_close(alone.scores, both, rtol=1e-4, atol=1e-5)


def test_a_layer_of_one_row_for_all_is_no_embedding_of_the_tokens(model):
    """Position embeddings have shape (1, T, D), whatever the batch."""
    positions = model.bert.embeddings.position_embeddings
    flow = LayerRelevanceFlow(lambda ids: model(ids).logits, positions)
    ids = token_ids(2, 6)
    together, alone = (flow.explain(rows, target=1).scores for rows in (ids, ids[:1]))
    torch.testing.assert_close(together[:1], alone)


def test_no_hook_stays_while_targets_are_explained(model, monkeypatch):
    layer = model.bert.embeddings
    before = len(layer._forward_hooks)
    flow = LayerRelevanceFlow(lambda ids: model(ids).logits, layer)
    explanations = flow.explain_targets(token_ids(2, 6), [0, 1])
    next(explanations)
    assert len(layer._forward_hooks) == before


class _Mixed(torch.autograd.Function):
    """x + x W, which is written where autograd is off."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x + x @ weight

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return gradient + gradient @ weight.T, None


def test_a_linear_function_of_the_users_is_taken_for_no_activation():
    weight, inputs = torch.randn(4, 4), torch.randn(2, 4)
    scores = AttnLRP(lambda x: _Mixed.apply(x, weight) * 1.0)
    with pytest.warns(UserWarning, match="_MixedBackward"):
        found = scores.attribute(inputs, target=1)
    expected = inputs * (torch.eye(4) + weight)[:, 1]
    torch.testing.assert_close(found, expected)


def test_checkpointing_is_refused_in_words(model):
    layer = torch.nn.Sequential(*model.bert.encoder.layer)

    def forward(embeddings):
        def run(x):
            for part in layer:
                x = part(x)
                x = x[0] if isinstance(x, tuple) else x
            return x

        hidden = torch.utils.checkpoint.checkpoint(run, embeddings, use_reentrant=False)
        return hidden[:, 0, :2]

    embeddings = torch.randn(2, 5, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        RelevanceFlow(forward).attribute(embeddings, target=1)


@pytest.mark.parametrize("method", [AttentionRollout, RelevanceFlow])
@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_heads_that_weigh_parts_of_the_input_itself_are_no_windows(method, n_heads):
    """Without a projection of values each head has features of its own."""
    project, head = nn.Linear(8, 16), nn.Linear(8, 2)

    def forward(x):
        q, k, v = (
            part.unflatten(-1, (n_heads, -1)).transpose(1, 2)
            for part in (*project(x).chunk(2, -1), x)
        )
        mixed = (q @ k.mT).softmax(-1) @ v
        return head((x + mixed.transpose(1, 2).flatten(2))[:, 0])

    scores = method(forward).attribute(torch.randn(2, 6, 8), target=1)
    assert bool(scores.any())
