"""Tokens and flows for the tests of pictures."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from networks import attention_network

from captum_attnflow import Explanation, solve_flow

HOSTILE = "<img src=x onerror=alert(1)>"
SCRIPTS = [
    HOSTILE,
    "</script>",
    "שלום",
    "مرحبا",
    "映画",
    "😀",
    "👩‍💻",
    "$5$",
    "a&b",
    "\x1b[2J",
    "",
]


def an_explanation(n_layers: int, n_tokens: int) -> Explanation:
    """A maximum flow over random attention, read out at the first position."""
    network = attention_network(n_layers, n_tokens, read_out=0)
    solution = solve_flow(network)
    return Explanation(
        scores=solution.source_flow,
        network=network,
        joint_flow=solution,
    )


def overlapping(figure: Figure, texts: list[Text]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap in the figure as it is drawn."""
    FigureCanvasAgg(figure).draw()
    # Of the text alone: an annotation's own extent includes its arrow.
    boxes = np.array([Text.get_window_extent(text).extents for text in texts])
    low, high = boxes[:, :2], boxes[:, 2:]
    overlap = np.minimum(high[:, None], high) - np.maximum(low[:, None], low) > 0
    pairs = np.triu(overlap.all(-1), 1).nonzero()
    return [
        (texts[one].get_text(), texts[other].get_text())
        for one, other in zip(*pairs, strict=True)
    ]
