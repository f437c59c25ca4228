"""The plane of SLALOM: the values of tokens against their importances.

Labels cover neither each other nor a point. Every label tries places on growing rings
around its point and takes the first that is free, in the order given. The same points
always get the same places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from captum_attnflow._checks import check_example, check_strings, check_type, counted
from captum_attnflow.scored_tokens import position_labels
from captum_attnflow.show.figures import (
    PRINTED,
    Theme,
    drawable,
    shortened,
    shown_in_notebooks,
)
from captum_attnflow.slalom import SlalomExplanation
from captum_attnflow.slalom.model import SlalomReading

Floats = npt.NDArray[np.float64]

_TARGET_CELLS = 24
_LABEL_CELLS = 20
_MINUS = "\N{MINUS SIGN}"
_MARKER_POINTS = 5.0
_POINTS_ON_A_PAGE = 24

# Diagonals first: error bars and other hairlines lie along the axes.
_ANGLES = [step * pi / 8 for step in (2, 6, 10, 14, *range(0, 16, 4), *range(1, 16, 2))]
_MARGIN = 1.5  # between labels, in the units of the points


def slalom_plane(
    explanation: SlalomExplanation | SlalomReading,
    tokens: Sequence[str] | None = None,
    example: int = 0,
    *,
    target: str | None = None,
) -> Figure:
    """Draw every distinct token at its value and importance (Leemann et al. 2025).

    Tokens on the right speak for the target, those on the left against it. Tokens
    near the top outweigh the others. Hairlines are standard errors, where they are
    finite. A token that occurs more than once is one point, labelled with the count.
    A dark line leads from a label that does not touch its point to it.

    Args:
        explanation (SlalomExplanation or SlalomReading): What ``SLALOM.explain``
            returns, or the ``slalom`` of a TextAttribution.
        tokens (sequence of str, optional): The token of every position, special tokens
            and padding included; their positions by default.
        example (int): Which example of the batch of a SlalomExplanation.
        target (str, optional): What the log-odds are of, such as a label; it is named
            in the title and on the axis.

    Returns:
        Figure: Its labels cover neither each other nor a point. A character that no
        installed font has is drawn as its escape.

    Raises:
        ValueError: If there is not one token per position, or no such example.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> from captum_attnflow.pipelines.text_classification import TextClassifier
        >>> classifier = TextClassifier(*load_demo_model())
        >>> [result] = classifier.explain(["a gripping , funny film"], "slalom")
        >>> figure = slalom_plane(result.slalom, result.tokens, target=result.target)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['funny', 'gripping', 'film', ',', 'a']
        >>> figure.axes[0].get_xlabel()
        'against “positive” ← value: log-odds → for “positive”'
    """
    if isinstance(explanation, SlalomExplanation):
        n_examples, n_positions = explanation.type_index.shape
        check_example(example, n_examples)
        everywhere = torch.ones(n_positions, dtype=torch.bool)
        explanation = SlalomReading.of(explanation, example, everywhere)
    accepted = "what SLALOM.explain returns, or the slalom of a TextAttribution"
    check_type("explanation", explanation, SlalomReading, accepted)
    check_type("target", target, (str, type(None)), "the label's name, or None")
    if tokens is not None:
        check_strings("tokens", tokens, "a list of one str per position")
    return shown_in_notebooks(draw_plane(explanation, tokens, target, PRINTED))


def draw_plane(
    reading: SlalomReading,
    tokens: Sequence[str] | None,
    target: str | None,
    theme: Theme,
) -> Figure:
    """Draw a plane in the colours of paper or of a page, see :func:`slalom_plane`."""
    n_positions = len(reading.values)
    labels = position_labels(n_positions) if tokens is None else list(tokens)
    if len(labels) != n_positions:
        raise ValueError(
            f"tokens holds {counted(len(labels), 'token')} for "
            f"{counted(n_positions, 'position')}; give one per position, special "
            "tokens and padding included"
        )
    names, points, errors = _distinct(reading, labels)
    side = max(1.0, (len(names) / _POINTS_ON_A_PAGE) ** 0.5)
    figure = Figure(
        figsize=(6.4 * side, 4.8 * side), layout="constrained", facecolor=theme.paper
    )
    FigureCanvasAgg(figure)  # measures the labels
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(colors=theme.ink)
    axes.spines[:].set_color(theme.muted)
    axes.axhline(0, color=theme.muted, linewidth=0.6, zorder=0)
    axes.axvline(0, color=theme.muted, linewidth=0.6, zorder=0)
    _name_axes(axes, reading, target, theme)
    axes.margins(0.15)
    _draw_points(axes, points, errors, theme)
    _write_labels(figure, axes, names, points, theme)
    return figure


def _name_axes(
    axes: Axes, reading: SlalomReading, target: str | None, theme: Theme
) -> None:
    name = "the target" if target is None else f"“{shortened(target, _TARGET_CELLS)}”"
    numbers = f"{reading.log_odds:+.2f}, by SLALOM {reading.predicted_log_odds:+.2f}"
    for write, words in (
        (axes.set_xlabel, f"against {name} ← value: log-odds → for {name}"),
        (axes.set_ylabel, "importance: log-weight, centred"),
        (axes.set_title, f"log-odds of {name}: {numbers.replace('-', _MINUS)}"),
    ):
        text, families = drawable(words)
        write(
            text,
            family=families,
            fontsize="medium",
            parse_math=False,
            color=theme.ink,
        )


def _distinct(
    reading: SlalomReading, labels: Sequence[str]
) -> tuple[list[str], Floats, Floats]:
    """Distinct explained tokens, the heaviest first: names, points, errors."""
    rows = zip(
        labels,
        reading.values,
        reading.importances,
        reading.value_standard_errors,
        reading.importance_standard_errors,
        strict=True,
    )
    counts = Counter(row for row in rows if None not in row)
    heaviest = sorted(counts, key=lambda row: (-(row[2] or 0.0), row[0]))
    names = [
        row[0] if counts[row] == 1 else f"{row[0]} \N{MULTIPLICATION SIGN}{counts[row]}"
        for row in heaviest
    ]
    numbers = np.array([row[1:] for row in heaviest], float).reshape(-1, 4)
    return names, numbers[:, :2], numbers[:, 2:]


def _draw_points(axes: Axes, points: Floats, errors: Floats, theme: Theme) -> None:
    colours = np.where(points[:, 0] >= 0, theme.positive, theme.negative)
    axes.scatter(points[:, 0], points[:, 1], s=_MARKER_POINTS**2, c=colours, zorder=3)
    # The points alone set the limits: the error of an importance that is not
    # identified is so large that all points would fall together.
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    known = np.isfinite(errors).all(1)
    axes.errorbar(
        points[known, 0],
        points[known, 1],
        xerr=errors[known, 0],
        yerr=errors[known, 1],
        fmt="none",
        ecolor=theme.faint,
        elinewidth=0.5,
        zorder=1,
    )


def _write_labels(
    figure: Figure, axes: Axes, names: Sequence[str], points: Floats, theme: Theme
) -> None:
    """Write names near their points, with a line to the names farther away."""
    labels = []
    for name, point in zip(names, points, strict=True):
        text, families = drawable(shortened(name, _LABEL_CELLS))
        labels.append(
            axes.annotate(
                text,
                point,
                (0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8,
                family=families,
                parse_math=False,
                zorder=4,
                color=theme.ink,
                path_effects=[withStroke(linewidth=2, foreground=theme.halo)],
                arrowprops={
                    "arrowstyle": "-",
                    "color": theme.ink,
                    "linewidth": 0.6,
                    "shrinkA": 0,
                    "shrinkB": 2,
                },
            )
        )
    figure.canvas.draw()
    figure.set_layout_engine("none")
    inch = 72 / figure.dpi
    boxes = [Text.get_window_extent(label) for label in labels]  # without arrows
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2) * inch
    at = axes.transData.transform(points) * inch
    places = place_labels(
        at, sizes, np.array(axes.bbox.extents) * inch, _MARKER_POINTS / 2
    )
    for label, offset in zip(labels, places - at, strict=True):
        label.set_position(tuple(offset))


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
            for angle in _ANGLES:
                # Rings have the label's proportions: the first touches the point.
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
