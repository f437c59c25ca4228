"""Attributions of encoder-decoders: players on both sides."""

from __future__ import annotations

import pytest
import torch
import transformers
from captum.attr import TextTokenInput
from models import (
    ENCODER_DECODERS,
    VOCABULARY,
    encoder_decoder,
    numbers_tokenizer,
    token_ids,
)

import captum_attnflow
from captum_attnflow import (
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
    GenerationAttribution,
    LayerGeneralizedAttentionFlow,
    RelevanceFlow,
)

METHODS = [
    ("AttentionFlow", {}),
    ("AttentionFlow", {"game": "joint"}),
    ("AttentionRollout", {}),
    ("AttentionRollout", {"residual": None}),
    ("CheferRelevance", {}),
    ("GeneralizedAttentionFlow", {}),
    ("GeneralizedAttentionFlow", {"residual": "free", "game": "independent"}),
    ("RelevanceFlow", {"path_steps": 0}),
]


def forward_of(model):
    def forward(encoder_ids, decoder_ids, mask=None):
        return model(
            input_ids=encoder_ids, decoder_input_ids=decoder_ids, attention_mask=mask
        ).logits[:, 2]

    return forward


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
class TestRules:
    def attribution(self, family, method, options, implementation="sdpa"):
        forward = forward_of(encoder_decoder(family, implementation))
        return getattr(captum_attnflow, method)(forward, **options)

    def test_a_tuple_of_both_sides_gets_a_tuple(self, family, method, options):
        ids = token_ids(2, 6), token_ids(2, 4)
        attribution = self.attribution(family, method, options)
        encoder, decoder = attribution.attribute(ids, target=3)
        assert encoder.shape == (2, 6)
        assert decoder.shape == (2, 4)
        scores = attribution.explain(ids, target=3).scores.float()
        torch.testing.assert_close(torch.cat([encoder, decoder], 1), scores)
        assert encoder.any(1).all()

    def test_one_side_alone_gets_the_same_scores(self, family, method, options):
        encoder_ids, decoder_ids = token_ids(2, 5), token_ids(2, 5)
        attribution = self.attribution(family, method, options)
        expected = attribution.attribute((encoder_ids, decoder_ids), target=3)
        alone = attribution.attribute(
            encoder_ids, target=3, additional_forward_args=(decoder_ids,)
        )
        torch.testing.assert_close(alone, expected[0])
        forward = attribution.forward_func
        attribution.forward_func = lambda decoder, encoder: forward(encoder, decoder)
        alone = attribution.attribute(
            decoder_ids, target=3, additional_forward_args=(encoder_ids,)
        )
        torch.testing.assert_close(alone, expected[1])

    def test_padding_and_what_follows_the_read_out_get_zero(
        self, family, method, options
    ):
        ids = token_ids(2, 6), token_ids(2, 5)
        mask = torch.ones(2, 6)
        mask[1, 4:] = 0
        attribution = self.attribution(family, method, options)
        encoder, decoder = attribution.attribute(ids, None, 3, mask)
        assert not encoder[1, 4:].any()
        assert not decoder[:, 3:].any()
        rows = [
            attribution.attribute(
                (ids[0][row : row + 1, :length], ids[1][row : row + 1]), target=3
            )
            for row, length in ((0, 6), (1, 4))
        ]
        for row, (encoder_row, decoder_row) in enumerate(rows):
            length = encoder_row.shape[1]
            torch.testing.assert_close(
                encoder[row, :length], encoder_row[0], rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(
                decoder[row], decoder_row[0], rtol=1e-5, atol=1e-6
            )

    def test_sdpa_equals_eager(self, family, method, options):
        ids = token_ids(2, 6), token_ids(2, 4)
        scores = [
            self.attribution(family, method, options, implementation)
            .explain(ids, target=3)
            .scores
            for implementation in ("sdpa", "eager")
        ]
        torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_of_either_side_gets_that_sides_scores(family, side, trained):
    model = encoder_decoder(family).requires_grad_(trained)
    ids = token_ids(2, 5), token_ids(2, 5)
    forward = forward_of(model)
    expected = GeneralizedAttentionFlow(forward).attribute(ids, target=3)[side]
    stack = [model.get_encoder(), model.get_decoder()][side]
    blocks = stack.block if family == "T5" else stack.layers
    for layer in (stack.embed_tokens, *blocks):
        attributions = LayerGeneralizedAttentionFlow(forward, layer).attribute(
            ids, target=3
        )
        if isinstance(attributions, tuple):
            attributions = attributions[0]
        torch.testing.assert_close(attributions.sum(-1).float(), expected)


def test_shared_embeddings_get_the_scores_of_both_sides():
    model = encoder_decoder("T5")
    model.decoder.embed_tokens = model.encoder.embed_tokens
    ids = token_ids(2, 5), token_ids(2, 5)
    forward = forward_of(model)
    attributions = LayerGeneralizedAttentionFlow(
        forward, model.encoder.embed_tokens
    ).attribute(ids, target=3)
    expected = GeneralizedAttentionFlow(forward).attribute(ids, target=3)
    for mine, theirs in zip(attributions, expected, strict=True):
        torch.testing.assert_close(mine.sum(-1).float(), theirs)


def test_ids_of_equal_lengths_at_a_layers_input_are_refused():
    model = encoder_decoder("Bart")
    ids = token_ids(2, 5), token_ids(2, 5)
    attribution = LayerGeneralizedAttentionFlow(
        forward_of(model), model.get_encoder().embed_tokens
    )
    with pytest.raises(ValueError, match="2 of them have its length"):
        attribution.attribute(ids, target=3, attribute_to_layer_input=True)


def test_rollout_splits_one_unit_between_the_sides():
    forward = forward_of(encoder_decoder("Bart"))
    ids = token_ids(2, 6), token_ids(2, 4)
    for residual in (0.5, None):
        explanation = AttentionRollout(forward, residual=residual).explain(
            ids, target=3
        )
        torch.testing.assert_close(explanation.scores.sum(1), torch.ones(2).double())
        imbalance = explanation.network.divergence(
            explanation.flow, explanation.scores, explanation.flow[:, -1].sum(-1)
        )
        assert imbalance.abs().max() < 1e-12


def test_more_inputs_than_sides_are_refused():
    forward = forward_of(encoder_decoder("Bart"))
    ids = token_ids(2, 6), token_ids(2, 4), torch.ones(2, 6)
    with pytest.raises(ValueError, match="2 inputs were given"):
        AttentionFlow(forward).attribute(ids, target=3)


def test_a_path_through_one_of_two_sides_is_refused():
    forward = forward_of(encoder_decoder("Bart"))
    with pytest.raises(ValueError, match="path_steps=0"):
        RelevanceFlow(forward).attribute(
            (token_ids(2, 6), token_ids(2, 4)), (3, 3), target=3
        )


def test_each_of_two_models_has_its_own_window():
    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**size, max_position_embeddings=16),
        transformers.BertConfig(
            **size,
            max_position_embeddings=8,
            is_decoder=True,
            add_cross_attention=True,
        ),
    )
    model = transformers.EncoderDecoderModel(config).eval()
    model.generation_config.decoder_start_token_id = 1
    tokenizer = numbers_tokenizer()
    generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
    for n_prompt, n_generated, fits in ((16, 8, True), (17, 8, False), (16, 9, False)):
        prompt = TextTokenInput(" ".join(["7"] * n_prompt), tokenizer)
        target = [8] * n_generated
        if fits:
            scores = generation.explain(prompt, target).scores
            assert scores.shape == (n_generated, n_prompt + 1 + n_generated)
            continue
        with pytest.raises(ValueError, match=r"longer than the (16|8) positions"):
            generation.explain(prompt, target)
