from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from captum.attr import visualization as captum_visualization

from captum_attnflow.show import image_overlay


def patches(batch: int = 2, size: int = 16) -> torch.Tensor:
    scores = torch.randn(batch, 1, size // 4, size // 4)
    return scores.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def pixels(figure) -> np.ndarray:
    written = io.BytesIO()
    figure.savefig(written, format="rgba", dpi=40)
    return np.frombuffer(written.getvalue(), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("method", "sign"),
    [
        ("blended_heat_map", "all"),
        ("heat_map", "negative"),
        ("masked_image", "positive"),
        ("alpha_scaling", "absolute_value"),
    ],
)
def test_the_picture_is_captums(method, sign, channels):
    attributions, images = patches()[:, :channels], torch.rand(2, channels, 16, 16)
    figure = image_overlay(attributions, images, 1, method=method, sign=sign)
    image = images[1].permute(1, 2, 0).expand(-1, -1, 3)
    image = (image - image.min()) / (image.max() - image.min())
    expected, _ = captum_visualization.visualize_image_attr(
        attributions[1].permute(1, 2, 0).double().numpy(),
        image.double().numpy(),
        method,
        sign,
        use_pyplot=False,
    )
    assert (pixels(figure) == pixels(expected)).all()


def test_normalised_images_are_stretched_to_black_and_white():
    attributions, images = patches(), torch.rand(2, 3, 16, 16)
    images[:, :, 0, 0], images[:, :, 1, 1] = 0, 1
    one = image_overlay(attributions, images)
    other = image_overlay(attributions, images * 4 - 2)
    differences = np.abs(pixels(one).astype(int) - pixels(other).astype(int))
    assert differences.max() <= 1


@pytest.mark.parametrize(
    ("scores", "sign", "method"),
    [
        (torch.zeros(1, 3, 8, 8), "all", "blended_heat_map"),
        (-torch.ones(1, 3, 8, 8), "positive", "masked_image"),
        (torch.ones(1, 3, 8, 8), "negative", "alpha_scaling"),
    ],
)
def test_without_a_score_of_the_sign_the_image_is_shown_alone(scores, sign, method):
    with pytest.warns(UserWarning, match="shown alone"):
        figure = image_overlay(scores, torch.rand(1, 3, 8, 8), sign=sign, method=method)
    assert len(figure.axes[0].images) == 1


def test_an_image_of_one_colour_is_shown():
    assert pixels(image_overlay(patches(1), torch.ones(1, 3, 16, 16))).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"example": 2}, "example=2 is not in a batch of 2"),
        ({"sign": "+"}, "sign='\\+'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        image_overlay(patches(), torch.rand(2, 3, 16, 16), **options)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\).*\(1, 3, 4, 4\)"):
        image_overlay(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 4, 4))
