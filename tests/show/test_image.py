from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from captum.attr import visualization as captum_visualization

from captum_attnflow.show import image_overlay
from captum_attnflow.show.figures import ORANGE_WHITE_BLUE


def patches(batch: int = 2, size: int = 16) -> torch.Tensor:
    scores = torch.randn(batch, 1, size // 4, size // 4)
    return scores.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def pixels(figure) -> np.ndarray:
    written = io.BytesIO()
    figure.savefig(written, format="rgba", dpi=40)
    return np.frombuffer(written.getvalue(), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("method", "sign", "colours"),
    [
        ("blended_heat_map", "all", ORANGE_WHITE_BLUE),
        ("heat_map", "negative", "Oranges"),
        ("masked_image", "positive", None),
        ("alpha_scaling", "absolute_value", None),
    ],
)
def test_the_picture_is_captums_in_blue_and_orange(method, sign, colours, channels):
    attributions, images = patches()[:, :channels], torch.rand(2, channels, 16, 16)
    figure = image_overlay(
        attributions, images, 1, method=method, sign=sign, show_colorbar=False
    )
    image = images[1].permute(1, 2, 0).expand(-1, -1, 3)
    image = (image - image.min()) / (image.max() - image.min())
    expected, _ = captum_visualization.visualize_image_attr(
        attributions[1].permute(1, 2, 0).double().numpy(),
        image.double().numpy(),
        method,
        sign,
        cmap=colours,
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


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("image", [torch.rand(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
def test_scores_of_any_size_look_the_same_without_a_warning(image, scale):
    attributions = patches(1).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = image_overlay(attributions * scale, image, show_colorbar=False)
        plain = image_overlay(attributions, image, show_colorbar=False)
    differences = np.abs(pixels(figure).astype(int) - pixels(plain).astype(int))
    assert differences.max() <= 1


@pytest.mark.parametrize(
    ("sign", "ends"), [("all", (-1, 0, 1)), ("positive", (0, 1)), ("negative", (0, 1))]
)
@pytest.mark.parametrize("scale", [1e-7, 1.0])
def test_the_colour_bar_names_the_scores_that_its_ends_stand_for(scale, sign, ends):
    # 64 patches of 1, ..., 64 of each sign: without outliers the last colour is 64's.
    scores = torch.arange(1.0, 65).view(1, 1, 8, 8)
    attributions = torch.cat([scores, -scores], 2).double() * scale
    figure = image_overlay(
        attributions, torch.rand(1, 1, 16, 8), sign=sign, outlier_perc=0
    )
    [bar] = figure.axes[1:]
    labels = [label.get_text() for label in bar.get_xticklabels()]
    expected = [f"{end * 64 * scale:.2g}" for end in ends]
    assert labels == expected


def test_outliers_have_the_last_colour_and_the_bar_ends_where_they_begin():
    scores = torch.ones(1, 1, 10, 10)
    scores[..., 0, 0] = 50.0  # a third of the sum
    figure = image_overlay(scores, torch.rand(1, 1, 10, 10), outlier_perc=40)
    [bar] = figure.axes[1:]
    assert [label.get_text() for label in bar.get_xticklabels()] == ["-1", "0", "1"]


def test_classes_are_drawn_side_by_side_with_their_names_and_own_bars():
    one, other = patches(1), patches(1) * 1e-6
    images = torch.rand(1, 3, 16, 16)
    figure = image_overlay({"a cat": one, "$dog_{": other}, images, title="$two_{")
    first, second, *bars = figure.axes
    assert [first.get_title(), second.get_title()] == ["a cat", "$dog_{"]
    assert first.get_position().y0 == pytest.approx(second.get_position().y0)
    assert first.get_position().x1 < second.get_position().x0
    ends = [float(bar.get_xticklabels()[-1].get_text()) for bar in bars]
    assert ends[0] > 1e3 * ends[1] > 0
    assert figure.get_suptitle() == "$two_{"
    for axes, scores in ((first, one), (second, other)):
        alone = image_overlay(scores, images)
        assert np.allclose(
            axes.images[-1].get_array(), alone.axes[0].images[-1].get_array()
        )
    assert pixels(figure).any()


@pytest.mark.parametrize("n_classes", [1, 5, 9])
def test_many_classes_are_at_most_four_in_a_row(n_classes):
    classes = {f"class {n}": patches(1) for n in range(n_classes)}
    figure = image_overlay(classes, torch.rand(1, 3, 16, 16))
    assert figure.get_size_inches()[0] <= 13
    titles = [axes.get_title() for axes in figure.axes]
    assert [title for title in titles if title] == list(classes)


def test_a_class_without_a_score_is_named_in_the_warning():
    classes = {"cat": patches(1), "dog": torch.zeros(1, 3, 16, 16)}
    with pytest.warns(UserWarning, match="image for 'dog' has the sign 'all'"):
        image_overlay(classes, torch.rand(1, 3, 16, 16))


def test_classes_of_another_shape_or_none_are_refused():
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"of 'dog' of shape \(1, 3, 8, 8\)"):
        image_overlay({"cat": patches(1), "dog": patches(1, 8)}, images)
    with pytest.raises(ValueError, match="no class was given"):
        image_overlay({}, images)


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
