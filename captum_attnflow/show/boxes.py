"""Scores of boxes of pixels: spread over an image, and as shades in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from rich.text import Text
from torch import Tensor

from captum_attnflow.scored_tokens import relative

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""
_SHADES = " ░▒▓█"


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
