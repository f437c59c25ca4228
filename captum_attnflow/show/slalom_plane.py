"""The plane of SLALOM: what tokens say against how much they count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from captum_attnflow._options import check_example
from captum_attnflow.scored_tokens import position_labels
from captum_attnflow.show.figures import shown_in_notebooks
from captum_attnflow.show.fonts import drawable, shortened
from captum_attnflow.show.label_placement import Floats, place_labels
from captum_attnflow.slalom import SlalomExplanation
from captum_attnflow.slalom.explanation import SlalomReading

_FOR_COLOUR, _AGAINST_COLOUR, _MUTED = "#2a7f3f", "#c0392b", "#9aa1ad"
_LABEL_CELLS = 20
_MARKER_POINTS = 5.0
_POINTS_ON_A_PAGE = 40


def slalom_plane(
    explanation: SlalomExplanation | SlalomReading,
    tokens: Sequence[str] | None = None,
    example: int = 0,
) -> Figure:
    """Draw every distinct token at its value and importance (Leemann et al. 2025).

    Right of the middle speaks for the target, left against it; what stands high
    outweighs the rest. Hairlines are standard errors, where they are finite. A token
    that occurs more than once is one point, labelled with the count.

    Args:
        explanation (SlalomExplanation or SlalomReading): What ``SLALOM.explain``
            returns, or the ``slalom`` of a TextAttribution.
        tokens (sequence of str, optional): The token of every position, special tokens
            and padding included; their positions by default.
        example (int): Which example of the batch of a SlalomExplanation.

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
        >>> figure = slalom_plane(result.slalom, result.tokens)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['funny', 'gripping', 'film', ',', 'a']
    """
    if isinstance(explanation, SlalomExplanation):
        n_examples, n_positions = explanation.type_index.shape
        check_example(example, n_examples)
        everywhere = torch.ones(n_positions, dtype=torch.bool)
        explanation = SlalomReading.of(explanation, example, everywhere)
    n_positions = len(explanation.values)
    labels = position_labels(n_positions) if tokens is None else list(tokens)
    if len(labels) != n_positions:
        raise ValueError(
            f"{len(labels)} tokens were given for {n_positions} positions; give one "
            "per position, special tokens and padding included"
        )
    names, points, errors = _distinct(explanation, labels)
    side = max(1.0, (len(names) / _POINTS_ON_A_PAGE) ** 0.5)
    figure = Figure(figsize=(6.4 * side, 4.8 * side), layout="constrained")
    FigureCanvasAgg(figure)  # measures the labels
    axes = figure.subplots()
    axes.axhline(0, color=_MUTED, linewidth=0.6, zorder=0)
    axes.axvline(0, color=_MUTED, linewidth=0.6, zorder=0)
    axes.set_xlabel("value: log-odds for the target")
    axes.set_ylabel("importance: log-weight, centred")
    axes.set_title(
        f"log-odds {explanation.log_odds:+.2f}, SLALOM "
        f"{explanation.predicted_log_odds:+.2f}",
        fontsize="medium",
    )
    axes.margins(0.15)
    _draw_points(axes, points, errors)
    _write_labels(figure, axes, names, points)
    return shown_in_notebooks(figure)


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


def _draw_points(axes: Axes, points: Floats, errors: Floats) -> None:
    colours = np.where(points[:, 0] >= 0, _FOR_COLOUR, _AGAINST_COLOUR)
    axes.scatter(points[:, 0], points[:, 1], s=_MARKER_POINTS**2, c=colours, zorder=3)
    # Hairlines show what the limits leave room for: an importance that is not
    # identified has an error that would shrink the plane to a dot.
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    known = np.isfinite(errors).all(1)
    axes.errorbar(
        points[known, 0],
        points[known, 1],
        xerr=errors[known, 0],
        yerr=errors[known, 1],
        fmt="none",
        ecolor=_MUTED,
        elinewidth=0.5,
        zorder=1,
    )


def _write_labels(
    figure: Figure, axes: Axes, names: Sequence[str], points: Floats
) -> None:
    """Write names near their points, with a line to those that had to move away."""
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
                path_effects=[withStroke(linewidth=2, foreground="white")],
                arrowprops={
                    "arrowstyle": "-",
                    "color": _MUTED,
                    "linewidth": 0.5,
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
