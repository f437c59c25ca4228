"""Flow diagrams: one layout, drawn as a figure and as an interactive page.

On the page a reader hovers over a token to see its flow and chooses the layers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from matplotlib.figure import Figure

from captum_attnflow.explanation import Explanation
from captum_attnflow.show.figures import shown_in_notebooks
from captum_attnflow.show.flow_diagram.figure import draw_flow
from captum_attnflow.show.flow_diagram.layout import (
    NEGATIVE,
    POSITIVE,
    FlowLayout,
    RelativeTo,
    lay_out_flow,
)

__all__ = ["FlowDiagram", "FlowLayout", "flow_diagram"]


@dataclass(frozen=True)
class FlowDiagram:
    """A flow, drawn: the value of a notebook's cell, a figure or a page.

    Attributes:
        layout (FlowLayout): What is drawn.
    """

    layout: FlowLayout

    def figure(self) -> Figure:
        """Draw for a paper; the figure's ``savefig`` writes PDF, PNG or SVG.

        It is wide enough that no label touches another, at any number of tokens.
        A character that no installed font has is drawn as its escape.
        """
        return shown_in_notebooks(draw_flow(self.layout))

    def to_html(self) -> str:
        """Return a page of its own, which shows where a token's flow goes.

        Hover or focus a token or a node to see its flow and its share, click to keep
        it; choose which layers are shown. Of a signed flow, which cancels where edges
        meet, it shows the edges of the token or node. The page needs no network.
        """
        return flow_page(self.layout)

    def _repr_html_(self) -> str:
        rows = 60 * self.layout.n_layers + 18 * len(self.layout.amounts)
        height = min(280 + rows, 760)
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" sandbox="allow-scripts" '
            f'style="width: 100%; height: {height}px; border: 0"></iframe>'
        )


def flow_diagram(
    explanation: Explanation,
    tokens: Sequence[str] | None = None,
    example: int = 0,
    threshold: float = 0.01,
    relative_to: RelativeTo = "network",
) -> FlowDiagram:
    """Draw one example's flow: tokens are columns, token layers rows.

    An edge is as wide as its flow; the edges that the minimum cut severs stand out,
    and nodes are filled on the source's side of it. Columns that no path uses, such as
    padding, are left out.

    The flow of RelevanceFlow is signed. Edges are as wide as its absolute value, and
    those that lower the output are dashed and of another colour, nodes diamonds; below
    a token stand its score and the part on its direct edge, which is not drawn. The
    flows out of the tokens' nodes and on the direct edges sum to the output.

    Args:
        explanation (Explanation): What ``explain()`` returns, with a joint flow: of
            RelevanceFlow, AttentionFlow, GeneralizedAttentionFlow or AttentionRollout.
            Only the second and third are maximum flows and have a cut.
        tokens (sequence of str, optional): The token of every position, special tokens
            and padding included; their positions by default.
        example (int): Which example of the batch.
        threshold (float): Edges below this share of the largest (absolute) flow are not
            drawn; the picture says how many they are and what they carry.
        relative_to (str): Widths are relative to the largest flow of the ``"network"``
            or of each edge's ``"layer"``. By layer, widths of different layers do not
            compare, but a layer whose flow spreads over many edges shows its main
            ones; a threshold of some tenths suits it.

    Returns:
        FlowDiagram: Shows itself in a notebook; ``figure()`` is for papers, and
        :func:`~captum_attnflow.show.save_html` writes the page.

    Raises:
        ValueError: If there is no joint flow, as for RelevanceFlow with
            ``flow="maximum"``; if ``example``, ``threshold`` or the number of tokens
            is out of range, or ``relative_to`` unknown.

    Examples::

        >>> from captum_attnflow import GeneralizedAttentionFlow, RelevanceFlow
        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> flow = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
        >>> explanation = flow.explain(ids, target=1)
        >>> tokens = tokenizer.convert_ids_to_tokens(ids[0])
        >>> diagram = flow_diagram(explanation, tokens, threshold=0.05)
        >>> diagram.layout.tokens[4], diagram.layout.n_layers
        ('funny', 3)
        >>> relevance = RelevanceFlow(lambda ids: model(ids).logits)
        >>> diagram = flow_diagram(relevance.explain(ids, target=1), tokens)
        >>> diagram.layout.summary()[:45]
        'relevance flow of 7 tokens sums to the output'
    """
    return FlowDiagram(
        lay_out_flow(explanation, tokens, example, threshold, relative_to)
    )


_SIGN_LEGEND = f"""<span class="key positive">{POSITIVE}</span>
    <span class="key negative">{NEGATIVE}</span>"""
_CUT_LEGEND = """<span class="key severed">severed by the minimum cut</span>
    <span class="key source-side">source's side</span>
    <span class="key sink-side">sink's side</span>"""


def flow_page(layout: FlowLayout) -> str:
    """Render a flow diagram as one HTML document.

    It needs no network: its content security policy allows only the script, the style
    and the data inside it.

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
        return _SIGN_LEGEND
    return "" if layout.cut is None else _CUT_LEGEND


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
