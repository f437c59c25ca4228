"""A flow diagram as a page: hover a token, choose the layers."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib.resources import files

from captum_attnflow.show.flow_diagram.layout import (
    NEGATIVE,
    POSITIVE,
    FlowLayout,
)

_OF_SIGNS = f"""<span class="key positive">{POSITIVE}</span>
    <span class="key negative">{NEGATIVE}</span>"""
_OF_CUT = """<span class="key severed">severed by the minimum cut</span>
    <span class="key source-side">source's side</span>
    <span class="key sink-side">sink's side</span>"""


def flow_page(layout: FlowLayout) -> str:
    """Render a flow diagram as one HTML document.

    It needs no network: its content security policy allows nothing but the script,
    the style and the data that stand in it.

    Args:
        layout (FlowLayout): The diagram.

    Returns:
        str: A complete HTML document.
    """
    parts = {
        "style": _read("page.css"),
        "script": _read("page.js"),
        "summary": escape(layout.summary()),
        "pruning": escape(layout.pruning()),
        "legend": _legend(layout),
        "data": _data(layout),
    }
    page = _read("page.html")
    for name, part in parts.items():
        page = page.replace(f"@{name}@", part)
    return page


def _legend(layout: FlowLayout) -> str:
    if layout.has_negative:
        return _OF_SIGNS
    return "" if layout.cut is None else _OF_CUT


def _data(layout: FlowLayout) -> str:
    """Encode the layout for the page's script, as text that no tag can end."""
    n_columns = len(layout.tokens)
    place = (layout.layer * n_columns + layout.head) * n_columns + layout.tail
    cut = layout.cut
    encoded = json.dumps(
        {
            "tokens": layout.tokens,
            "layers": layout.n_layers,
            "value": layout.value,
            "signed": layout.signed,
            "direct": None if layout.direct is None else layout.direct.tolist(),
            "amounts": layout.amounts,
            "threshold": layout.threshold,
            "relativeTo": layout.relative_to,
            "largest": layout.largest.tolist(),
            "edges": place.tolist(),
            "drawnShare": layout.drawn_share.tolist(),
            "severed": layout.in_cut.astype(int).tolist(),
            "sourceSide": None
            if cut is None
            else cut.source_side.ravel().astype(int).tolist(),
            "flow": base64.b64encode(layout.edge_flow.astype("<f4").tobytes()).decode(),
        }
    )
    return encoded.replace("<", "\\u003c")


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
