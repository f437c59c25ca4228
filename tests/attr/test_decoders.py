"""Decoder-only families: what a pipeline may rely on."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from models import DECODERS, FUSED_DECODERS, decoder, token_ids
from scipy.stats import spearmanr

from captum_attnflow import (
    AttentionFlow,
    GeneralizedAttentionFlow,
    LayerAttentionFlow,
    LayeredNetwork,
    LayerGeneralizedAttentionFlow,
    RelevanceFlow,
)
from captum_attnflow.explanation import Explanation, GivenFlow, warn_of_position

TOKEN = 7
METHODS = [
    (AttentionFlow, {}),
    (GeneralizedAttentionFlow, {}),
    (GeneralizedAttentionFlow, {"residual": "free", "game": "independent"}),
    (RelevanceFlow, {"path_steps": 1}),
]
every_family = pytest.mark.parametrize("family", DECODERS)
every_method = pytest.mark.parametrize(("method", "options"), METHODS)


def forward_of(model):
    """Logits of a padded batch, with positions counted from the first token."""
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(ids, mask):
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        further = {"position_ids": positions} if takes_positions else {}
        return model(ids, attention_mask=mask, **further).logits

    return forward


def assert_same(scores, expected, tolerance=1e-6):
    assert expected.any()
    assert (scores - expected).abs().max() <= tolerance * expected.abs().sum()


@every_family
@every_method
def test_tokens_after_the_read_out_get_exactly_zero(family, method, options):
    model, ids = decoder(family), token_ids(2, 8)
    attribution = method(lambda ids: model(ids).logits, **options)
    scores = attribution.explain(ids, target=[(5, TOKEN), (3, TOKEN)]).scores
    for row, position in enumerate((5, 3)):
        assert not scores[row, position + 1 :].any()
        # They might as well not be there, and their logits be the last.
        alone = method(lambda ids: model(ids).logits[:, -1], **options).explain(
            ids[row : row + 1, : position + 1], target=TOKEN
        )
        assert_same(scores[row, : position + 1], alone.scores[0])


@every_family
@every_method
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone(family, method, options, side):
    # Eager models of most families take the softmax in float32, where the mask of a
    # float64 model overflows; in float32 the model's own rows agree to 1e-6 only.
    is_fused = family in FUSED_DECODERS
    model = decoder(family, "sdpa") if is_fused else decoder(family, dtype=torch.float)
    tolerance = 1e-6 if is_fused else 1e-5
    forward, ids = forward_of(model), token_ids(2, 8)
    mask = torch.ones_like(ids)
    kept = slice(3, None) if side == "left" else slice(5)
    mask[1] = 0
    mask[1, kept] = 1
    ids = torch.where(mask == 1, ids, 0)
    last = 7 if side == "left" else 4
    attribution = method(forward, **options)
    together = attribution.explain(
        ids, target=[(7, TOKEN), (last, TOKEN)], additional_forward_args=(mask,)
    ).scores
    assert not together[1][mask[1] == 0].any()
    for row, part in ((0, slice(None)), (1, kept)):
        alone = attribution.explain(
            ids[row : row + 1, part],
            target=(7 if row == 0 else 4, TOKEN),
            additional_forward_args=(mask[row : row + 1, part],),
        ).scores
        assert_same(together[row, part], alone[0], tolerance)


@pytest.mark.parametrize("family", FUSED_DECODERS)
@every_method
def test_fused_and_eager_attention_agree(family, method, options):
    ids, scores = token_ids(2, 8), []
    for implementation in ("eager", "sdpa"):
        model = decoder(family, implementation)
        attribution = method(lambda ids, model=model: model(ids).logits, **options)
        scores.append(attribution.explain(ids, target=(6, TOKEN)).scores)
    assert_same(*scores, tolerance=1e-5)  # eager: a softmax in float32


@every_family
@pytest.mark.parametrize("method", [LayerAttentionFlow, LayerGeneralizedAttentionFlow])
def test_the_layer_form_is_shaped_like_the_embeddings(family, method):
    model, ids = decoder(family), token_ids(2, 8)
    attribution = method(lambda ids: model(ids).logits, model.get_input_embeddings())
    attributions, delta = attribution.attribute(
        ids, target=(6, TOKEN), return_convergence_delta=True
    )
    assert attributions.shape == (2, 8, 32)
    assert delta.shape == (2,)
    scores = attribution.explain(ids, target=(6, TOKEN)).scores
    torch.testing.assert_close(attributions.sum(-1), scores)


@every_family
def test_ids_and_embeddings_give_the_same_scores(family):
    model, ids = decoder(family), token_ids(2, 8)
    of_ids = GeneralizedAttentionFlow(lambda ids: model(ids).logits[:, -1])
    scores = of_ids.attribute(ids, target=TOKEN)
    assert scores.shape == ids.shape
    assert scores.dtype == torch.float32
    embeddings = model.get_input_embeddings()(ids).detach()
    of_embeddings = GeneralizedAttentionFlow(
        lambda embeddings: model(inputs_embeds=embeddings).logits[:, -1]
    )
    attributions = of_embeddings.attribute(embeddings, target=TOKEN)
    assert attributions.shape == embeddings.shape
    assert_same(attributions.sum(-1), scores.double())


def scores_of_rank_correlation(n_tokens, wanted):
    """Scores of n tokens before the read-out, as near to a rank correlation as may be.

    The earlier, the more; with noise of growing weight, of which the best is taken.
    """
    positions = np.arange(n_tokens)
    noise = np.random.default_rng(0).standard_normal((400, n_tokens))
    tried = [
        20 - positions * 12 / n_tokens + weight * one
        for weight, one in zip(np.linspace(0, 8, 400), noise, strict=True)
    ]
    rhos = [abs(spearmanr(positions, one).statistic) for one in tried]
    best = int(np.argmin(np.abs(np.array(rhos) - wanted)))
    return torch.tensor(tried[best] - tried[best].min() + 1)[None], rhos[best]


@pytest.mark.parametrize(
    ("n_tokens", "correlation", "warns"),
    [
        (5, 1.0, False),  # one of 60 orders has it by chance
        (6, 1.0, True),
        (7, 0.86, False),  # which Relevance Flow reaches by chance
        (7, 0.96, True),
        (15, 0.80, True),
        (26, 0.66, False),  # the most of Layer Integrated Gradients
        (31, 0.78, True),  # the least of GAF
        (60, 0.96, True),
        (198, 0.55, False),  # the most of Relevance Flow
    ],
)
def test_position_is_warned_of_by_the_rank_correlation_and_the_length(
    n_tokens, correlation, warns
):
    scores, found = scores_of_rank_correlation(n_tokens, correlation)
    assert found == pytest.approx(correlation, abs=0.02)
    network = LayeredNetwork(
        capacity=torch.ones(1, 2, n_tokens + 1, n_tokens + 1).tril(),
        source=torch.ones(1, n_tokens + 1, dtype=torch.bool),
        sink=(torch.arange(n_tokens + 1) == n_tokens)[None],
    )
    explanation = Explanation(
        torch.cat([scores, scores.new_full((1, 1), 99)], 1),
        network,
        GivenFlow(torch.ones(1)),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_position(explanation)
    assert [("follow the position" in str(one.message)) for one in caught] == (
        [True] if warns else []
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_flows_of_a_decoder_are_warned_of_and_relevance_is_not(family):
    """At 32 tokens, where the correlation is .78 to .98 for flows."""
    model = decoder(family)
    ids = torch.randint(5, 45, (1, 32), generator=torch.Generator().manual_seed(0))

    def forward(ids):
        return model(ids).logits[:, -1]

    with pytest.warns(UserWarning, match="follow the position of the tokens"):
        GeneralizedAttentionFlow(forward).explain(ids, target=TOKEN)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*follow the position")
        RelevanceFlow(forward).explain(ids, target=TOKEN)
        GeneralizedAttentionFlow(
            forward, residual="free", game="independent", gradient="attnlrp"
        ).explain(ids, target=TOKEN)
