"""Pixels in, pixel-shaped attributions out, for every layout of the tokens."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from captum.attr import visualization as captum_visualization
from models import (
    VISION_MODELS,
    PatchEncoder,
    image_captioner,
    token_ids,
    vision_classifier,
    vision_model,
)
from torch import nn

from captum_attnflow import (
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
    LayerGeneralizedAttentionFlow,
    RelevanceFlow,
)

METHODS = [AttentionFlow, AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow]
every_method = pytest.mark.parametrize("method", METHODS)


def images(height=32, width=32):
    return torch.randn(2, 3, height, width).double()


def laid_out(scores, model, pixels, n_before):
    """Patch scores put where the model's convolution reads its patches."""
    (convolution,) = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    size = {"kernel_size": convolution.kernel_size, "stride": convolution.stride}
    n_elements, n_patches = F.unfold(pixels[:1], **size).shape[1:]
    shares = scores[:, None, n_before : n_before + n_patches] / n_elements
    return F.fold(shares.expand(-1, n_elements, -1), pixels.shape[2:], **size)


def read_cls(model, **options):
    return lambda pixels: model(pixels, **options).last_hidden_state[:, 0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", VISION_MODELS)
def test_the_pixels_of_a_patch_get_the_score_of_its_token(name, implementation):
    model, pixels = vision_model(name, implementation), images()
    attribution = GeneralizedAttentionFlow(read_cls(model))
    attributions = attribution.attribute(pixels, target=3)
    scores = attribution.explain(pixels, target=3).scores
    n_before = VISION_MODELS[name][2]
    assert scores[:, n_before:].any()
    torch.testing.assert_close(
        attributions, laid_out(scores, model, pixels, n_before), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", VISION_MODELS)
def test_fused_and_eager_attention_agree(name):
    pixels = images()
    scores = [
        AttentionFlow(read_cls(vision_model(name, implementation)))
        .explain(pixels, target=3)
        .scores
        for implementation in ("eager", "sdpa")
    ]
    assert (scores[0] - scores[1]).abs().max() <= 1e-6 * scores[0].sum()


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_interpolated_positions_of_another_image_size(name):
    model, pixels = vision_model(name), images(32, 48)
    attribution = AttentionRollout(read_cls(model, interpolate_pos_encoding=True))
    expected = laid_out(
        attribution.explain(pixels, target=3).scores,
        model,
        pixels,
        VISION_MODELS[name][2],
    )
    attributions = attribution.attribute(pixels, target=3)
    torch.testing.assert_close(attributions, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("size", "patch", "n_before", "n_behind"),
    [
        ((32, 32), (8, 8), 0, 0),
        ((32, 32), (8, 8), 0, 1),
        ((32, 32), (8, 8), 3, 2),
        ((16, 16), (8, 8), 12, 0),  # as many tokens as patches of 4 by 4 pixels
        ((16, 16), (8, 8), 0, 12),
        ((8, 16), (8, 8), 1, 0),  # as many tokens as channels
        ((16, 48), (16, 4), 1, 1),
        ((35, 33), (8, 8), 1, 0),  # a border that belongs to no patch
    ],
)
@every_method
def test_no_layout_is_mistaken_for_another(method, size, patch, n_before, n_behind):
    model, pixels = PatchEncoder(patch, n_before, n_behind), images(*size)
    attribution = method(model)
    scores = attribution.explain(pixels, target=1).scores
    expected = laid_out(scores, model, pixels, n_before)
    attributions = attribution.attribute(pixels, target=1)
    torch.testing.assert_close(attributions, expected, rtol=1e-12, atol=0)


def test_the_path_to_pixels_is_summed_over_the_patch_of_each_token():
    model, pixels = PatchEncoder((8, 4), 2, 3), images(16, 24)
    gradients = IntegratedGradients(model).attribute(
        pixels, target=1, n_steps=2, method="riemann_middle"
    )
    per_patch = F.unfold(gradients, (8, 4), stride=(8, 4)).sum(1)
    expected = F.pad(per_patch, (2, 3))
    method = RelevanceFlow(model, rules="gradient", path_steps=2)
    direct = method.explain(pixels, 0.0, target=1).direct
    torch.testing.assert_close(2 * direct, expected)


@every_method
@pytest.mark.parametrize(
    ("width", "n_tokens"),
    [(32, 26), (14, 3)],  # or as many as channels
)
def test_patches_that_overlap_are_refused(method, width, n_tokens):
    model = PatchEncoder((8, 8), 1, stride=(6, 6))
    height = 32 if n_tokens == 26 else 8
    with pytest.raises(ValueError, match=rf"shape .*{width}\).*{n_tokens} tokens"):
        method(model).attribute(images(height, width), target=1)


def test_the_layer_that_makes_the_tokens_of_overlapping_patches_is_taken():
    model = PatchEncoder((8, 8), 1, stride=(6, 6))
    attributions = LayerGeneralizedAttentionFlow(model, model.encoder).attribute(
        images(), target=1, attribute_to_layer_input=True
    )
    assert attributions.shape == (2, 26, 32)


def test_each_column_of_a_table_that_is_a_token_gets_its_score():
    weights = torch.randn(5, 32).double()
    encoder = PatchEncoder((8, 8)).encoder

    def forward(table):
        tokens = table[..., None] * weights
        cls = torch.ones(len(table), 1, 32).double()
        return encoder(torch.cat([tokens, cls], 1))[:, -1]

    table = torch.rand(3, 5).double()
    attribution = AttentionRollout(forward)
    scores = attribution.explain(table, target=1).scores
    assert torch.equal(attribution.attribute(table, target=1), scores[:, :5])


def test_an_image_and_its_caption_share_the_flow():
    model, pixels, ids = image_captioner(), images(), token_ids(2, 6)
    attribution = GeneralizedAttentionFlow(
        lambda pixels, ids: model(pixel_values=pixels, decoder_input_ids=ids).logits
    )
    explanation = attribution.explain((pixels, ids), target=(4, 7))
    scores = explanation.scores
    of_image, of_text = attribution.attribute((pixels, ids), target=(4, 7))
    expected = laid_out(scores, model, pixels, 1)
    torch.testing.assert_close(of_image, expected, rtol=1e-12, atol=0)
    assert of_image.any()
    torch.testing.assert_close(of_text.double(), scores[:, 17:], rtol=1e-6, atol=1e-9)
    assert not of_text[:, 5:].any()


def test_a_patch_without_a_gradient_in_one_image_is_found_in_another():
    model, pixels = PatchEncoder((8, 8), 1), images(16, 16).abs()
    nn.init.constant_(model.projection.bias, -0.1)
    model.projection = nn.Sequential(model.projection, nn.ReLU())
    pixels[0, :, :8, :8] = 0  # all of its features are behind the ReLU's bend
    attribution = AttentionRollout(model)
    together = attribution.attribute(pixels, target=1)
    scores = attribution.explain(pixels, target=1).scores
    torch.testing.assert_close(together, laid_out(scores, model, pixels, 1))


def test_a_model_that_normalises_pixels_in_place_leaves_those_of_the_caller():
    model, pixels = PatchEncoder((8, 8)), images()
    given = pixels.clone()
    attributions = AttentionRollout(
        lambda pixels: model(pixels.sub_(0.5).div_(0.2))
    ).attribute(given, target=1)
    expected = AttentionRollout(model).attribute((pixels - 0.5) / 0.2, target=1)
    torch.testing.assert_close(attributions, expected)
    torch.testing.assert_close(given, pixels, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_found_in_every_precision(dtype):
    model, pixels = vision_classifier().to(dtype), images().to(dtype)
    attribution = AttentionRollout(lambda pixels: model(pixels).logits)
    scores = attribution.explain(pixels, target=1).scores
    expected = laid_out(scores, model, pixels.float(), 1).float()
    torch.testing.assert_close(attribution.attribute(pixels, target=1), expected)


@every_method
def test_captums_picture_takes_the_attributions(method):
    mpl.use("Agg")
    model, pixels = vision_classifier(), images()
    attributions = method(lambda pixels: model(pixels).logits).attribute(
        pixels, target=1
    )
    figure, _ = captum_visualization.visualize_image_attr(
        attributions[0].permute(1, 2, 0).numpy(),
        pixels[0].sigmoid().permute(1, 2, 0).numpy(),
        method="blended_heat_map",
        sign="all",
        use_pyplot=False,
    )
    assert figure.axes[0].images


def test_a_batch_of_images_equals_its_rows_alone():
    model, pixels = vision_classifier(), images()
    attribution = GeneralizedAttentionFlow(lambda pixels: model(pixels).logits)
    together = attribution.attribute(pixels, target=[0, 1])
    for row in range(2):
        alone = attribution.attribute(pixels[row : row + 1], target=row)
        torch.testing.assert_close(together[row : row + 1], alone)


class Shuffled(PatchEncoder):
    """Mixes patches anew in every pass and row, as masked autoencoders do; drops some.

    Without positions the order of tokens says nothing to the model.
    """

    n_kept: int | None = None
    shuffles = True

    def forward(self, pixels):
        patches = self.projection(pixels).flatten(2).mT
        noise = torch.rand(patches.shape[:2], dtype=patches.dtype)
        order = noise.argsort(1)[:, : self.n_kept, None]
        if self.shuffles:
            patches = patches.gather(1, order.expand(-1, -1, patches.shape[2]))
        return self.head(self.encoder(patches).mean(1))


@every_method
def test_shuffled_patches_keep_their_pixels(method):
    """Which pixels a token is made of is read off the very pass that is explained."""
    model, pixels = Shuffled((8, 8)), images()
    shuffled = method(model).attribute(pixels, target=1)
    model.shuffles = False
    torch.testing.assert_close(shuffled, method(model).attribute(pixels, target=1))


@every_method
def test_pixels_of_dropped_patches_get_nothing(method):
    model, pixels = Shuffled((8, 8)), images()
    model.n_kept = 5
    attributions = method(model).attribute(pixels, target=1)
    patches = F.unfold(attributions.abs(), 8, stride=8).sum(1)
    assert ((patches > 0).sum(1) == 5).all()
