"""Attributions of a vision transformer over its image, by Captum."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from captum.attr import visualization as captum_visualization
from matplotlib.figure import Figure
from torch import Tensor

from captum_attnflow._checks import check_choice, check_example
from captum_attnflow._warnings import warn_caller
from captum_attnflow.show.figures import shown_in_notebooks

Sign = Literal["all", "positive", "negative", "absolute_value"]


def image_overlay(
    attributions: Tensor,
    images: Tensor,
    example: int = 0,
    *,
    sign: Sign = "all",
    method: str = "blended_heat_map",
    **options: Any,
) -> Figure:
    """Lay the attributions of one image over it, by Captum's ``visualize_image_attr``.

    Args:
        attributions (Tensor): Shape ``(B, C, H, W)``, as ``attribute()`` returns them
            for pixels; summed over channels.
        images (Tensor): Shape ``(B, C, H, W)``, the images, normalised in any way:
            each is stretched to the range from black to white.
        example (int): Which image of the batch.
        sign (str): ``"all"`` (green for the target, red against it), ``"positive"``,
            ``"negative"`` or ``"absolute_value"``.
        method (str): ``"blended_heat_map"`` or another of Captum's; those that mask
            the image need a ``sign`` other than ``"all"``.
        **options: Further options of Captum's function, such as ``alpha_overlay``,
            ``outlier_perc``, ``show_colorbar``, ``title`` and ``fig_size``.

    Returns:
        Figure: With the image alone, and a warning, where no attribution has the sign.

    Raises:
        ValueError: If the shapes disagree, or there is no such sign or example.

    Examples::

        >>> attributions = torch.zeros(1, 3, 8, 8)
        >>> attributions[..., :4, :4] = 1.0
        >>> image_overlay(attributions, torch.rand(1, 3, 8, 8)).get_size_inches()
        array([6., 6.])
    """
    if attributions.dim() != 4 or attributions.shape != images.shape:
        raise ValueError(
            f"attributions of shape {tuple(attributions.shape)} were given for images "
            f"of shape {tuple(images.shape)}; give both as (B, C, H, W)"
        )
    check_choice("sign", sign, get_args(Sign))
    check_example(example, len(images))
    scores = attributions[example].detach().double().cpu().permute(1, 2, 0)
    image = images[example].detach().double().cpu().permute(1, 2, 0)
    image = (image - image.amin()) / (image.amax() - image.amin()).clamp_min(1e-12)
    # Captum blends and masks colour images only.
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image
    if not _has_sign(scores.sum(-1), sign):
        warn_caller(
            f"no attribution of image {example} has the sign {sign!r}, so the image is "
            "shown alone"
        )
        method = "original_image"
        # Captum scales by the largest score, whatever the method.
        scores = torch.ones_like(scores)
    figure: Figure
    figure, _ = captum_visualization.visualize_image_attr(
        scores.numpy(),
        image.numpy(),
        method,
        sign if method != "original_image" else "all",
        use_pyplot=False,
        **options,
    )
    return shown_in_notebooks(figure)


def _has_sign(scores: Tensor, sign: Sign) -> bool:
    if sign == "positive":
        return bool((scores > 0).any())
    if sign == "negative":
        return bool((scores < 0).any())
    return bool((scores != 0).any())
