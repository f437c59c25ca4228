"""Attributions over an image: by Captum, of boxes of its pixels, and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from rich.text import Text
from torch import Tensor

from captum_attnflow._checks import (
    check_choice,
    check_dense,
    check_example,
    check_type,
    described,
)
from captum_attnflow._warnings import warn_caller
from captum_attnflow.scored_tokens import relative
from captum_attnflow.show.figures import (
    ORANGE_WHITE_BLUE,
    drawable,
    shortened,
    shown_in_notebooks,
)

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""
_SHADES = " ░▒▓█"
Sign = Literal["all", "positive", "negative", "absolute_value"]

# In place of Captum's green and red, which not all kinds of colour vision tell apart.
_COLOURS: dict[Sign, str | Colormap] = {
    "all": ORANGE_WHITE_BLUE,
    "positive": "Blues",
    "negative": "Oranges",
    "absolute_value": "Purples",
}
_ALONE = (6.0, 6.0)  # inches, as by Captum
_PANEL = (3.2, 3.6)  # inches, of one of several
_PANELS_IN_A_ROW = 4
_TITLE_CELLS = 28


def image_overlay(
    attributions: Tensor | Mapping[str, Tensor],
    images: Tensor,
    example: int = 0,
    *,
    sign: Sign = "all",
    method: str = "blended_heat_map",
    plt_fig_axis: tuple[Figure, Axes] | None = None,
    **options: Any,
) -> Figure:
    """Lay the attributions of one image over it, by Captum's ``visualize_image_attr``.

    Below it a colour bar names the scores that the colours stand for. As in Captum the
    scale ends where the largest scores, ``outlier_perc`` of the sum, begin.

    Args:
        attributions (Tensor or mapping): Shape ``(B, C, H, W)``, as ``attribute()``
            returns them for pixels; summed over channels. Or the attributions of
            several classes by their names: they are drawn side by side, each with a
            scale and a colour bar of its own.
        images (Tensor): Shape ``(B, C, H, W)``, the images, normalised in any way:
            each is stretched to the range from black to white.
        example (int): Which image of the batch.
        sign (str): ``"all"`` (blue for the target, orange against it), ``"positive"``,
            ``"negative"`` or ``"absolute_value"``.
        method (str): ``"blended_heat_map"`` or another of Captum's; those that mask
            the image need a ``sign`` other than ``"all"``.
        plt_fig_axis (tuple, optional): A figure and axes in it to draw a single class
            into, as Captum's function takes them.
        **options: Further options of Captum's function, such as ``alpha_overlay``,
            ``outlier_perc``, ``show_colorbar``, ``title`` and ``fig_size``; the last
            two are the whole figure's.

    Returns:
        Figure: With the image alone, and a warning, where no attribution has the sign.

    Raises:
        ValueError: If the shapes disagree, or there is no such sign, example or class.

    Examples::

        >>> attributions = torch.zeros(1, 3, 8, 8)
        >>> attributions[..., :4, :4] = 1.0
        >>> image_overlay(attributions, torch.rand(1, 3, 8, 8)).get_size_inches()
        array([6., 6.])
        >>> classes = {"cat": attributions, "dog": -attributions}
        >>> figure = image_overlay(classes, torch.rand(1, 3, 8, 8))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['cat', 'dog']
    """
    classes = attributions if isinstance(attributions, Mapping) else {"": attributions}
    _check(classes, images)
    check_choice("sign", sign, get_args(Sign))
    check_example(example, len(images))
    image = images[example].detach().double().cpu().permute(1, 2, 0)
    image = (image - image.amin()) / (image.amax() - image.amin()).clamp_min(1e-12)
    # Captum blends and masks colour images only.
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image
    check_type("method", method, str, 'a method of Captum, "blended_heat_map"')
    if plt_fig_axis is not None:
        accepted = "a figure and axes in it, as plt.subplots() returns"
        check_type("plt_fig_axis", plt_fig_axis, tuple, accepted)
        if len(plt_fig_axis) != 2 or not isinstance(plt_fig_axis[1], Axes):
            raise ValueError(f"plt_fig_axis={described(plt_fig_axis)}; give {accepted}")
        if len(classes) > 1:
            raise ValueError(
                f"{len(classes)} classes do not go into the axes of one; leave "
                "plt_fig_axis out, or give the attributions of one class"
            )
        [(name, scores)] = classes.items()
        _draw(*plt_fig_axis, scores[example], image, name, sign, method, options)
        return plt_fig_axis[0]
    n_columns = min(len(classes), _PANELS_IN_A_ROW)
    n_rows = -(-len(classes) // n_columns)
    panel = (_PANEL[0] * n_columns, _PANEL[1] * n_rows)
    size = options.pop("fig_size", _ALONE if len(classes) == 1 else panel)
    title = options.pop("title", None)
    figure = Figure(figsize=size)
    panels = figure.subplots(
        n_rows, n_columns, squeeze=False, gridspec_kw={"hspace": 0.4}
    ).ravel()
    for axes in panels[len(classes) :]:
        axes.set_axis_off()
    for axes, (name, scores) in zip(panels, classes.items(), strict=False):
        _draw(figure, axes, scores[example], image, name, sign, method, options)
        # A title of Captum's own would read "$" as mathematics.
        text, families = drawable(shortened(name, _TITLE_CELLS))
        axes.set_title(text, family=families, parse_math=False)
    if title is not None:
        text, families = drawable(title)
        figure.suptitle(text, family=families, parse_math=False)
    return shown_in_notebooks(figure)


def _check(classes: Mapping[str, Tensor], images: Tensor) -> None:
    if not classes:
        raise ValueError(
            "no class was given; give the attributions of one as a tensor, or of "
            "several by their names"
        )
    check_dense("images", images, "(B, C, H, W)")
    for name, attributions in classes.items():
        check_dense("attributions", attributions, "(B, C, H, W), or a dict of these")
        if attributions.dim() != 4 or attributions.shape != images.shape:
            of = f" of {name!r}" if name else ""
            raise ValueError(
                f"attributions{of} of shape {tuple(attributions.shape)} were given for "
                f"images of shape {tuple(images.shape)}; give both as (B, C, H, W)"
            )


def _draw(
    figure: Figure,
    axes: Axes,
    attributions: Tensor,
    image: Tensor,
    name: str,
    sign: Sign,
    method: str,
    options: Mapping[str, Any],
) -> None:
    """Draw one class: attributions ``(C, H, W)`` over the image ``(H, W, C)``."""
    scores = attributions.detach().double().cpu().permute(1, 2, 0)
    largest = scores.sum(-1).abs().amax()
    if not _has_sign(scores.sum(-1), sign):
        of = f" for {name!r}" if name else ""
        warn_caller(
            f"no attribution of the image{of} has the sign {sign!r}, so the image is "
            "shown alone"
        )
        method = "original_image"
        # Captum scales by the largest score, whatever the method.
        scores, largest = torch.ones_like(scores), torch.ones(())
    # Captum scales too, but warns of scores below 1e-5 that they are "close to 0": the
    # score of a patch, spread over its pixels, often is.
    scaled = (scores / largest).numpy()
    captum_visualization.visualize_image_attr(
        scaled,
        image.numpy(),
        method,
        sign if method != "original_image" else "all",
        plt_fig_axis=(figure, axes),
        use_pyplot=False,
        **{"show_colorbar": True, "cmap": _COLOURS[sign], **options},
    )
    _name_scores(axes, scaled.sum(-1) * float(largest))


def _name_scores(axes: Axes, scores: np.ndarray[Any, Any]) -> None:
    """Write scores at the ends of the colour bar, where Captum writes 1."""
    heat_map = axes.images[-1]
    if heat_map.colorbar is None:
        return
    drawn = np.abs(np.asarray(heat_map.get_array()))
    end = np.abs(scores)[drawn >= 1].min()  # the smallest that has the last colour
    low, high = (round(limit) for limit in heat_map.get_clim())
    ticks = sorted({low, 0, high})
    heat_map.colorbar.set_ticks(ticks, labels=[f"{tick * end:.2g}" for tick in ticks])
    heat_map.colorbar.set_label("score of a pixel", fontsize="small")
    # The numbers at the ends stay within the bar, clear of those of the next panel.
    labels = heat_map.colorbar.ax.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def _has_sign(scores: Tensor, sign: Sign) -> bool:
    if sign == "positive":
        return bool((scores > 0).any())
    if sign == "negative":
        return bool((scores < 0).any())
    return bool((scores != 0).any())


def spread_over_boxes(
    scores: Sequence[float], boxes: Sequence[Box], pixels: Tensor
) -> Tensor:
    """Give every pixel an equal share of its box's score.

    Args:
        scores (sequence of float): One per box.
        boxes (sequence of Box): Boxes that do not overlap.
        pixels (Tensor): Shape ``(C, H, W)``, the image.

    Returns:
        Tensor: Shape ``(C, H, W)``; 0 where there is no box.

    Examples::

        >>> spread_over_boxes([4.0], [(0, 0, 2, 2)], torch.rand(1, 2, 3))
        tensor([[[1., 1., 0.],
                 [1., 1., 0.]]])
    """
    shares = torch.zeros_like(pixels)
    for score, (left, top, right, bottom) in zip(scores, boxes, strict=True):
        area = shares[:, top:bottom, left:right]
        area[:] = score / area.numel()
    return shares


def shaded_boxes(scores: Sequence[float], boxes: Sequence[Box]) -> Text:
    """Draw boxes as two cells each: the darker one is, the higher its score.

    Blue is positive; yellow, and with a minus sign, negative.

    Args:
        scores (sequence of float): One per box.
        boxes (sequence of Box): In reading order; those of a line have the same top.

    Examples::

        >>> boxes = [(0, 0, 2, 2), (2, 0, 4, 2), (0, 2, 2, 4), (2, 2, 4, 4)]
        >>> shaded_boxes([1.0, 0.5, 0.0, -1.0], boxes).plain.splitlines()
        ['██▒▒', '  █-']
    """
    lines = []
    shaded = zip(boxes, relative(scores), strict=True)
    for _, row in groupby(shaded, key=lambda pair: pair[0][1]):
        line = Text()
        for _, share in row:
            shade = _SHADES[round(abs(share) * (len(_SHADES) - 1))]
            if share < 0:
                line.append(f"{shade}-", "yellow")  # readable without colours
            else:
                line.append(2 * shade, "blue")
        lines.append(line)
    return Text("\n").join(lines)
