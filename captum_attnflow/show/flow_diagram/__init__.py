"""Flow diagrams: one layout, drawn as a figure and as an interactive page.

The layout chooses what of a long text is drawn singly and what is gathered; both
renderers draw it. On the page a reader follows a token's flow and folds layers.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from matplotlib.figure import Figure

from captum_attnflow.explanation import Explanation
from captum_attnflow.show.document import html_document
from captum_attnflow.show.figures import shown_in_notebooks
from captum_attnflow.show.flow_diagram.figure import draw_flow
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

        It is a page wide, or wide enough that no label touches another if more tokens
        are drawn. A character that no installed font has is drawn as its escape.
        """
        return shown_in_notebooks(draw_flow(self.layout))

    def to_html(self) -> str:
        """Return a page of its own, which shows where a token's flow goes.

        Hover or focus a token or a node to see its flow and its share, an edge to see
        what it carries; click to keep it. Arrow keys lead from node to node, layers
        fold. Flow is followed in proportion through every node, the others being one.
        Of a signed flow, which cancels where edges meet, the page shows the edges of
        the token or node. The page needs no network.
        """
        return _flow_page(self.layout)

    def _repr_html_(self) -> str:
        rows = 60 * self.layout.n_layers + 18 * len(self.layout.amounts)
        height = min(320 + rows, 800)
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
    *,
    n_tokens: int = 12,
    cut: bool = False,
    method: str | None = None,
    target: str | None = None,
) -> FlowDiagram:
    """Draw one example's flow: tokens are columns, token layers rows.

    Of a long text the read-out and the tokens with the largest scores are drawn singly,
    in their order; the last column gathers all others. Edges are as wide as their flow,
    and those too thin to draw are one pale stream, which stands in the column of the
    others or beside the tokens. So the whole flow is drawn: in every layer the edges
    and the stream sum to it. Columns that no path uses, such as padding, are left out.

    The flow of RelevanceFlow is signed. Edges are as wide as its absolute value, and
    those that lower the output are dashed and of another colour, nodes diamonds; flows
    of opposite sign are gathered apart. Below a token stand its score and the part on
    its direct edge; beside the tokens a stream gathers the direct edges, which pass the
    layers. The layer's flow and this stream sum to the output.

    Args:
        explanation (Explanation): What ``explain()`` returns, with a joint flow: of
            RelevanceFlow, AttentionFlow, GeneralizedAttentionFlow or AttentionRollout.
            Only the second and third are maximum flows and have a cut.
        tokens (sequence of str, optional): The token of every position, special tokens
            and padding included; their positions by default.
        example (int): Which example of the batch.
        threshold (float): Edges below this share of the largest (absolute) flow between
            two tokens are gathered; the picture says how many they are.
        relative_to (str): Widths are relative to the largest flow of the ``"network"``
            or of each edge's ``"layer"``. By layer, widths of different layers do not
            compare, but a layer whose flow spreads over many edges shows its main
            ones; a threshold of some tenths suits it.
        n_tokens (int): Tokens to draw singly, at least 1. One more is drawn where it
            would be the only other.
        cut (bool): Whether to mark the edges that the minimum cut severs, and to fill
            the nodes on the source's side only.
        method (str, optional): The method's name, for the title.
        target (str, optional): What is explained, such as a label, for the title.

    Returns:
        FlowDiagram: Shows itself in a notebook; ``figure()`` is for papers, and
        :func:`~captum_attnflow.show.save_html` writes the page.

    Raises:
        ValueError: If there is no joint flow, as for RelevanceFlow with
            ``flow="maximum"``; if ``cut`` is asked of a flow without one; if
            ``example``, ``threshold``, ``n_tokens`` or the number of tokens is out of
            range, or ``relative_to`` unknown.

    Examples::

        >>> from captum_attnflow import GeneralizedAttentionFlow, RelevanceFlow
        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> flow = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
        >>> explanation = flow.explain(ids, target=1)
        >>> tokens = tokenizer.convert_ids_to_tokens(ids[0])
        >>> diagram = flow_diagram(explanation, tokens, n_tokens=3)
        >>> diagram.layout.tokens
        ('[CLS]', 'funny', 'film', '4 others')
        >>> relevance = RelevanceFlow(lambda ids: model(ids).logits)
        >>> explanation = relevance.explain(ids, target=1)
        >>> names = {"method": "RelevanceFlow", "target": "positive"}
        >>> flow_diagram(explanation, tokens, **names).layout.title()[:60]
        'RelevanceFlow for “positive”: the scores of 7 tokens sum to '
    """
    return FlowDiagram(
        lay_out_flow(
            explanation,
            tokens,
            example,
            n_tokens=n_tokens,
            threshold=threshold,
            relative_to=relative_to,
            cut=cut,
            method=method,
            target=target,
        )
    )


_WIDEST_LINE = 7
"""Pixels of an edge of width 1."""
_CONTROLS = """
<p><button id="fold" type="button">Fold all layers</button></p>
<p id="reading" aria-live="polite"></p>"""
_DIAGRAM = """<div id="diagram" tabindex="0" role="region" \
aria-label="Diagram, scrolls sideways"></div>
<details id="numbers"><summary>Scores as a table</summary></details>"""


def _flow_page(layout: FlowLayout) -> str:
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
        _key("line", what, f"border-top-width: {_WIDEST_LINE * width:.1f}px")
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
        "widestLine": _WIDEST_LINE,
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
