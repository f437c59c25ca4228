from __future__ import annotations

import pytest
import torch
from models import bert, decoder, token_ids

from captum_attnflow import (
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayeredNetwork,
    LayerGeneralizedAttentionFlow,
)
from captum_attnflow.flow.scores import normalize

TOKEN = 7
OPTIONS = [
    (AttentionFlow, {}),
    (AttentionRollout, {}),
    (GeneralizedAttentionFlow, {}),
    (GeneralizedAttentionFlow, {"residual": "free", "game": "independent"}),
]
every_option = pytest.mark.parametrize(("method", "options"), OPTIONS)


@pytest.fixture(scope="module")
def model():
    return decoder("gpt2")


def divided_by_hand(scores, predicted):
    """Counts, one by one, the positions up to and including the predicted one."""
    divided = []
    for row, position in zip(scores.tolist(), predicted, strict=True):
        fields = [
            max(1, sum(start <= other <= position for other in range(99)))
            for start in range(len(row))
        ]
        divided.append([value / n for value, n in zip(row, fields, strict=True)])
    return torch.tensor(divided, dtype=torch.float64)


@every_option
def test_scores_are_divided_by_the_positions_up_to_the_predicted_one(
    method, options, model
):
    ids, target = token_ids(2, 8), [(5, TOKEN), (2, TOKEN)]
    plain = method(lambda ids: model(ids).logits, **options)
    normalized = method(
        lambda ids: model(ids).logits, normalization="receptive-field", **options
    )
    raw = plain.explain(ids, target=target)
    explanation = normalized.explain(ids, target=target)
    assert raw.unnormalized_scores is None
    assert torch.equal(explanation.unnormalized_scores, raw.scores)
    assert torch.equal(explanation.flow_value, raw.flow_value)
    # The logits at position 5 predict the token at position 6.
    torch.testing.assert_close(
        explanation.scores, divided_by_hand(raw.scores, predicted=(6, 3))
    )
    attributions, delta = normalized.attribute(
        ids, target=target, return_convergence_delta=True
    )
    torch.testing.assert_close(attributions, explanation.scores.float())
    lost = explanation.scores.sum(1) - raw.flow_value
    torch.testing.assert_close(delta, lost.float())


def test_where_several_positions_are_read_the_last_one_counts(model):
    ids = token_ids(2, 8)

    def forward(ids):
        return model(ids).logits[:, 2:5, TOKEN].sum(1)

    raw = AttentionFlow(forward).explain(ids)
    assert raw.network.sink[0].nonzero()[:, 0].tolist() == [2, 3, 4]
    normalized = AttentionFlow(forward, normalization="receptive-field")
    torch.testing.assert_close(
        normalized.explain(ids).scores, divided_by_hand(raw.scores, predicted=(5, 5))
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_receptive_field(side):
    model = decoder("llama", "sdpa")
    ids, mask = token_ids(1, 8), torch.ones(1, 8, dtype=torch.long)
    mask[:, slice(3) if side == "left" else slice(5, None)] = 0
    rollout = AttentionRollout(
        lambda ids, mask: model(ids, attention_mask=mask).logits,
        normalization="receptive-field",
    )
    kept = mask == 1
    padded = rollout.explain(
        ids,
        target=(7 if side == "left" else 4, TOKEN),
        additional_forward_args=(mask,),
    ).scores
    alone = rollout.explain(
        ids[kept][None], target=(4, TOKEN), additional_forward_args=(mask[kept][None],)
    ).scores
    assert not padded[~kept].any()
    torch.testing.assert_close(padded[kept], alone[0], rtol=1e-5, atol=1e-7)


def test_padded_queries_that_look_ahead_are_no_sign_of_an_encoder():
    """Nothing reads them, so that they lie on no path to the read-out."""
    causal = torch.full((2, 2, 4, 4), 0.25).tril()
    causal[:, :, 1:, 0] = 0  # the first position is padding
    padded = causal.clone()
    padded[:, :, 0] = 0.25
    ends = torch.ones(2, 4, dtype=torch.bool)
    read_out = torch.tensor([[False, False, False, True]] * 2)
    scores = torch.tensor([[0.0, 3.0, 2.0, 1.0]] * 2)
    network = LayeredNetwork(padded, ends, read_out)
    normalized = normalize(scores, network, "receptive-field")
    torch.testing.assert_close(normalized, scores / torch.tensor([5, 4, 3, 2]))
    padded[1, 0, 1, 3] = 0.25  # a query that is read
    with pytest.raises(ValueError, match=r"\[1\] attend to later positions"):
        normalize(scores, LayeredNetwork(padded, ends, read_out), "receptive-field")


@pytest.mark.parametrize(
    "method",
    [LayerAttentionFlow, LayerAttentionRollout, LayerGeneralizedAttentionFlow],
)
def test_layer_forms_take_the_option(method, model):
    ids = token_ids(2, 6)
    attribution = method(
        lambda ids: model(ids).logits[:, -1],
        model.transformer.wte,
        normalization="receptive-field",
    )
    scores = attribution.explain(ids, target=TOKEN)
    raw = scores.unnormalized_scores
    torch.testing.assert_close(scores.scores, divided_by_hand(raw, predicted=(6, 6)))
    attributions = attribution.attribute(ids, target=TOKEN)
    torch.testing.assert_close(attributions.sum(-1), scores.scores)


@every_option
def test_an_encoder_has_nothing_to_normalise(method, options):
    model = bert()
    attribution = method(
        lambda ids: model(ids).logits, normalization="receptive-field", **options
    )
    with pytest.raises(ValueError, match=r"\[0, 1\] attend to later positions"):
        attribution.attribute(token_ids(), target=1)


@pytest.mark.parametrize("method", [AttentionFlow, GeneralizedAttentionFlow])
def test_an_encoder_is_refused_before_a_flow_is_solved(method, monkeypatch):
    def solve(*_):
        raise AssertionError("a flow was solved for nothing")

    monkeypatch.setattr("captum_attnflow.explanation.score_tokens", solve)
    model = bert()
    attribution = method(lambda ids: model(ids).logits, normalization="receptive-field")
    with pytest.raises(ValueError, match=r"attend to later positions"):
        attribution.attribute(token_ids(), target=1)


@pytest.mark.parametrize(
    "method", [AttentionFlow, AttentionRollout, GeneralizedAttentionFlow]
)
def test_another_name_is_refused(method):
    with pytest.raises(ValueError, match="'receptive-field'"):
        method(lambda ids: ids, normalization="rows")
