"""Labels beside points, so that none covers another; the same points, the same places.

Every label tries places on growing rings around its point and takes the first that is
free. Labels are placed in the order given, so that the first get the nearest places.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Diagonals first: error bars and other hairlines lie along the axes.
_TURNS = [turn * pi / 8 for turn in (2, 6, 10, 14, *range(0, 16, 4), *range(1, 16, 2))]
_MARGIN = 1.5  # between labels, in the units of the points


def place_labels(points: Floats, sizes: Floats, area: Floats, clear: float) -> Floats:
    """Place a label beside every point.

    Args:
        points (ndarray): Shape ``(N, 2)``, the points, in any unit of length.
        sizes (ndarray): Shape ``(N, 2)``, width and height of each label.
        area (ndarray): Shape ``(4,)``, left, bottom, right and top of where labels may
            be; they leave it only where it is full.
        clear (float): Radius of a point, which no label covers.

    Returns:
        ndarray: Shape ``(N, 2)``, the centres of the labels.

    Examples::

        >>> points = np.array([[0.0, 0.0], [1.0, 0.0]])
        >>> sizes = np.full((2, 2), 10.0)
        >>> area = np.array([-99.0, -99.0, 99.0, 99.0])
        >>> first, second = place_labels(points, sizes, area, clear=2.0)
        >>> bool(np.abs(first - second).max() >= 10)
        True
    """
    centres = np.empty_like(points)
    # Boxes as (left, bottom, right, top): all points first, then the labels so far.
    taken = np.concatenate([points - clear, points + clear], 1)
    for index, (point, size) in enumerate(zip(points, sizes, strict=True)):
        for centre in _places(point, size, clear, area):
            box = np.concatenate([centre - size / 2, centre + size / 2])
            if not _overlaps(box, taken):
                break
        centres[index] = centre
        margin = np.array([-_MARGIN, -_MARGIN, _MARGIN, _MARGIN])
        taken = np.concatenate([taken, (box + margin)[None]])
    return centres


def _places(
    point: Floats, size: Floats, clear: float, area: Floats
) -> Iterator[Floats]:
    """Centres on rings around the point, those in the area before those outside."""
    left, bottom, right, top = area
    half = size / 2
    farthest = np.hypot(right - left, top - bottom)
    step = max(float(size[1]) / 2, 1.0)
    for inside in (True, False):
        for ring in range(int(farthest / step) + 1):
            reach = half + clear + 1 + ring * step
            for angle in _TURNS:
                # Rings are as oblong as the label, so that it touches its point.
                centre = point + reach * _on_square(cos(angle), sin(angle))
                low, high = centre - half, centre + half
                fits = (
                    left <= low[0]
                    and bottom <= low[1]
                    and high[0] <= right
                    and high[1] <= top
                )
                if fits == inside:
                    yield centre


def _on_square(x: float, y: float) -> Floats:
    return np.array([x, y]) / max(abs(x), abs(y))


def _overlaps(box: Floats, others: Floats) -> bool:
    left, bottom, right, top = box
    apart = (
        (others[:, 0] >= right)
        | (others[:, 2] <= left)
        | (others[:, 1] >= top)
        | (others[:, 3] <= bottom)
    )
    return not apart.all()
