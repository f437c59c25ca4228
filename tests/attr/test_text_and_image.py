"""Words, pixels and soft prompts in one sequence, each with its own tokens' scores."""

from __future__ import annotations

import pytest
import torch
import transformers
from models import VOCABULARY, TorchEncoder, bert, decoder, token_ids
from torch import Tensor, nn

from captum_attnflow import (
    AttentionFlow,
    CheferRelevance,
    GeneralizedAttentionFlow,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
    RelevanceFlow,
)

METHODS = [AttentionFlow, GeneralizedAttentionFlow, RelevanceFlow, CheferRelevance]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
every_method = pytest.mark.parametrize("method", METHODS)


def vilt() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViltConfig(
        **SIZES, image_size=16, patch_size=8, max_image_length=-1, num_labels=3
    )
    return transformers.ViltForQuestionAnswering(config).double().eval()


def visual_bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.VisualBertConfig(
        **SIZES, visual_embedding_dim=16, num_labels=3
    )
    return transformers.VisualBertForQuestionAnswering(config).double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, dtype=torch.float64)


@every_method
def test_words_and_pixels_have_the_scores_of_their_tokens(method):
    model, ids, pixels = vilt(), token_ids(2, 9), images()

    def forward(ids, pixels):
        return model(input_ids=ids, pixel_values=pixels).logits

    explanation = method(forward).explain((ids, pixels), target=1)
    words, pixels_of = method(forward).attribute((ids, pixels), target=1)
    assert words.shape == ids.shape
    assert pixels_of.shape == pixels.shape
    scores = explanation.scores  # words, the image's [CLS], then 4 patches in any order
    torch.testing.assert_close(words, scores[:, :9].float())
    torch.testing.assert_close(pixels_of.sum((1, 2, 3)), scores[:, 10:].sum(1))
    patches = pixels_of.unfold(2, 8, 8).unfold(3, 8, 8).sum((1, 4, 5)).flatten(1)
    torch.testing.assert_close(patches.sort(1)[0], scores[:, 10:].sort(1)[0])


@pytest.mark.parametrize("layer_method", [LayerGeneralizedAttentionFlow])
def test_the_layers_that_make_each_have_them_too(layer_method):
    model, ids, pixels = vilt(), token_ids(2, 9), images()

    def forward(ids, pixels):
        return model(input_ids=ids, pixel_values=pixels).logits

    words, _ = GeneralizedAttentionFlow(forward).attribute((ids, pixels), target=1)
    embeddings = model.vilt.embeddings
    of_text = layer_method(forward, embeddings.text_embeddings)
    attributions = of_text.attribute((ids, pixels), (0, 0), target=1)
    assert attributions.shape == (2, 9, 32)
    torch.testing.assert_close(attributions.sum(-1).float(), words)
    # The mask that it returns besides holds no tokens.
    of_both = layer_method(forward, embeddings)
    everything, mask = of_both.attribute((ids, pixels), (0, 0), target=1)
    torch.testing.assert_close(everything.sum(-1)[:, :9].float(), words)
    assert not mask.any()


@pytest.mark.parametrize("baselines", [None, (0, 0.0)])
def test_relevance_starts_at_words_and_pixels(baselines):
    """Direct edges and all: scores sum to the output."""
    model, ids, pixels = vilt(), token_ids(2, 9), images()

    def forward(ids, pixels):
        return model(input_ids=ids, pixel_values=pixels).logits

    explanation = RelevanceFlow(forward).explain((ids, pixels), baselines, target=1)
    torch.testing.assert_close(explanation.scores.sum(1), forward(ids, pixels)[:, 1])
    assert explanation.direct[:, :9].all()
    if baselines is None:
        assert explanation.direct[:, 10:].all()
        assert not explanation.direct[:, 9].any()  # the image's [CLS] is no input


@pytest.mark.parametrize("path_steps", [0, 1])
def test_a_path_leads_through_the_layer_of_one_input(path_steps):
    model, ids, pixels = vilt(), token_ids(2, 9), images()

    def forward(ids, pixels):
        return model(input_ids=ids, pixel_values=pixels).logits

    layer = model.vilt.embeddings.text_embeddings
    flow = LayerRelevanceFlow(forward, layer, path_steps=path_steps)
    attributions = flow.attribute((ids, pixels), (0, 0), target=1)
    assert attributions.shape == (2, 9, 32)
    alone = flow.attribute((ids[:1], pixels[:1]), (0, 0), target=1)
    torch.testing.assert_close(attributions[:1], alone)


@every_method
def test_features_of_regions_are_tokens_behind_the_words(method):
    model, ids = visual_bert(), token_ids(2, 7)
    features = torch.randn(2, 3, 16, dtype=torch.float64)

    def forward(ids, features):
        mask = torch.ones_like(ids)
        return model(ids, attention_mask=mask, visual_embeds=features).logits

    attribution = method(forward)
    scores = attribution.explain((ids, features), target=1).scores
    words, regions = attribution.attribute((ids, features), target=1)
    torch.testing.assert_close(words, scores[:, :7].float())
    torch.testing.assert_close(regions.sum(-1), scores[:, 7:])


@every_method
@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_soft_prompts_stand_before_the_words(method, n_rows):
    """Also of as many prompts as examples."""
    model, ids = bert(), token_ids(n_rows, 6)
    prompt = torch.randn(4, 32, dtype=torch.float64)

    def forward(ids):
        words = model.bert.embeddings.word_embeddings(ids)
        prompts = prompt.expand(len(ids), -1, -1)
        return model(inputs_embeds=torch.cat([prompts, words], 1)).logits

    attribution = method(forward)
    words = attribution.attribute(ids, target=1)
    assert words.shape == ids.shape
    scores = attribution.explain(ids, target=1).scores
    torch.testing.assert_close(words, scores[:, 4:].float())


@every_method
def test_inputs_of_the_same_tokens_are_refused(method):
    model, ids = bert(), token_ids(2, 6)
    kinds = torch.zeros_like(ids)

    def forward(ids, kinds):
        return model(ids, token_type_ids=kinds).logits

    with pytest.raises(ValueError, match=r"2 inputs were given.*split between them"):
        method(forward).attribute((ids, kinds), target=1)


@every_method
def test_features_that_stand_for_placeholders_have_their_scores(method):
    """As of LLaVA-like decoders: the ids of placeholders themselves make no token."""
    model, ids = decoder("llama", "sdpa"), token_ids(2, 9)
    ids[:, 2:5] = 7
    features = torch.randn(2, 3, 32, dtype=torch.float64)

    def forward(ids, features):
        words = model.get_input_embeddings()(ids)
        places = (ids == 7)[..., None].expand_as(words)
        embedded = words.masked_scatter(places, features)
        return model(inputs_embeds=embedded).logits[:, -1]

    ids[:, 5:] = ids[:, 5:].masked_fill(ids[:, 5:] == 7, 8)
    ids[:, :2] = ids[:, :2].masked_fill(ids[:, :2] == 7, 8)
    attribution = method(forward)
    scores = attribution.explain((ids, features), target=1).scores
    words, image = attribution.attribute((ids, features), target=1)
    torch.testing.assert_close(image.sum(-1), scores[:, 2:5])
    expected = scores.clone()
    expected[:, 2:5] = 0
    torch.testing.assert_close(words, expected.float())


@every_method
def test_a_tower_in_front_of_the_decoder_is_refused_with_what_to_do(method):
    tower, model = TorchEncoder(), decoder("llama", "sdpa")
    ids = token_ids(2, 6)

    def forward(ids):
        hidden = tower.encoder(tower.embedding(ids))
        words = torch.cat([hidden, model.get_input_embeddings()(ids)], 1)
        return model(inputs_embeds=words).logits[:, -1]

    with pytest.raises(ValueError, match=r"tower.*image features"):
        method(forward).attribute(ids, target=1)
