"""A flow diagram as an interactive page of its own."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files

from captum_attnflow.show.document import html_document
from captum_attnflow.show.flow_diagram.layout import (
    GATHERED,
    GATHERED_WIDEST,
    NEGATIVE,
    POSITIVE,
    SEVERED,
    SINK_SIDE,
    SOURCE_SIDE,
    TINT,
    Floats,
    FlowLayout,
    Lane,
)

WIDEST_LINE = 7
"""Pixels of an edge of width 1."""
_CONTROLS = """
<p><button id="fold" type="button">Fold all layers</button></p>
<p id="reading" aria-live="polite"></p>"""
_DIAGRAM = """<div id="diagram" tabindex="0" role="region" \
aria-label="Diagram, scrolls sideways"></div>
<details id="numbers"><summary>Scores as a table</summary></details>"""


def flow_page(layout: FlowLayout) -> str:
    """Render a flow diagram as one HTML document.

    Args:
        layout (FlowLayout): The diagram.

    Returns:
        str: A complete HTML document.
    """
    lines = [f"<h1>{escape(layout.title())}</h1>"]
    lines += [f'<p class="muted">{escape(text)}</p>' for text in layout.details()]
    lines.append(f'<p class="legend">{"".join(_legend(layout))}</p>')
    return html_document(
        "flow",
        layout.title(),
        "\n".join(lines) + _CONTROLS,
        _DIAGRAM,
        script=(files(__package__) / "page.js").read_text("utf-8"),
        data=_data(layout),
    )


def _legend(layout: FlowLayout) -> list[str]:
    """Say what widths, tints, signs and the cut mean, of what the diagram has."""
    keys = [
        _key("line", what, f"border-top-width: {WIDEST_LINE * width:.1f}px")
        for width, what in layout.scale
    ]
    if layout.has_gathered:
        keys.append(_key("gathered", GATHERED))
    keys.append(_key("tint", TINT))
    if layout.has_negative:
        keys += [_key("positive", POSITIVE), _key("negative", NEGATIVE)]
    if layout.cut is not None:
        keys.append(_key("severed", SEVERED))
        keys += [_key("source-side", SOURCE_SIDE), _key("sink-side", SINK_SIDE)]
    return keys


def _key(kind: str, words: str, style: str = "") -> str:
    sample = f'<i class="{kind}" style="{style}"></i>'
    return f'<span class="key">{sample}{escape(words)}</span>'


def _data(layout: FlowLayout) -> dict[str, object]:
    """Gather the layout for the page's script."""
    streams, cut = layout.streams, layout.cut
    return {
        "tokens": layout.tokens,
        "positions": layout.positions.tolist(),
        "nOthers": layout.n_others,
        "layers": layout.n_layers,
        "value": layout.value,
        "signed": layout.signed,
        "direct": None if layout.direct is None else layout.direct.tolist(),
        "amounts": layout.amounts,
        "tint": layout.tint.tolist(),
        "threshold": layout.threshold,
        "relativeTo": layout.relative_to,
        "hasGathered": layout.has_gathered,
        "gatheredShare": streams.gathered_share.tolist(),
        "widestLine": WIDEST_LINE,
        "widestGathered": GATHERED_WIDEST,
        "largest": streams.largest.tolist(),
        "edges": {
            "layer": streams.layer.tolist(),
            "tail": streams.tail.tolist(),
            "head": streams.head.tolist(),
            "apart": streams.apart.astype(int).tolist(),
            "gathered": streams.gathered.astype(int).tolist(),
            "amount": _floats(streams.amount),
            "width": _floats(streams.width),
        },
        "lanes": [_lane(lane) for lane in layout.lanes],
        "sourceSide": None if cut is None else cut.source_side.astype(int).tolist(),
        "flow": _floats(streams.edge_flow),
    }


def _lane(lane: Lane) -> dict[str, object]:
    return {
        "name": lane.name,
        "column": lane.column,
        "amount": lane.amount.tolist(),
        "width": lane.width.tolist(),
        "numbers": lane.numbers,
    }


def _floats(array: Floats) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()
