"""Flow diagrams: one layout, drawn as a figure and as an interactive page.

The layout chooses what of a long text is drawn singly and what is gathered; both
renderers draw it. On the page a reader follows a token's flow and folds layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from captum_attnflow.explanation import Explanation
from captum_attnflow.show.figures import shown_in_notebooks
from captum_attnflow.show.flow_diagram.figure import draw_flow
from captum_attnflow.show.flow_diagram.gathering import lay_out_flow
from captum_attnflow.show.flow_diagram.layout import FlowLayout, RelativeTo
from captum_attnflow.show.flow_diagram.page import flow_page

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
        return flow_page(self.layout)

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
