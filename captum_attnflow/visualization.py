"""Pictures of text attributions, over Captum's helpers."""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Sequence

import torch
from captum.attr import visualization as captum_visualization
from rich.text import Text

from captum_attnflow.text import TextAttribution

_N_TOP_TOKENS = 5
_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Token attributions</title></head>
<body>{body}</body></html>
"""


def text_records(
    attributions: Sequence[TextAttribution],
) -> list[captum_visualization.VisualizationDataRecord]:
    """Make records for Captum's ``visualize_text``, safe to show in a page.

    Captum puts tokens and labels into HTML as they are; here they are escaped.
    Scores are divided by the largest of their text, so that colours compare tokens.

    Args:
        attributions (sequence of TextAttribution): The attributions.

    Returns:
        list[VisualizationDataRecord]: One per text. The true class is not known and
        shown as a dash; the attribution score is the sum of the token scores.
    """
    return [
        captum_visualization.VisualizationDataRecord(
            word_attributions=torch.tensor(_relative(item.scores)),
            pred_prob=item.probability,
            pred_class=html.escape(item.predicted),
            true_class="-",
            attr_class=html.escape(item.target),
            attr_score=sum(item.scores),
            raw_input_ids=[html.escape(token) for token in item.tokens],
            convergence_score=sum(item.scores) - item.flow_value,
        )
        for item in attributions
    ]


def html_page(attributions: Sequence[TextAttribution]) -> str:
    """Render Captum's text picture as a page of its own.

    Args:
        attributions (sequence of TextAttribution): The attributions, one row each.

    Returns:
        str: A complete HTML document without scripts or outside references.
    """
    # Captum displays as it renders; outside a notebook that prints an object's name.
    with contextlib.redirect_stdout(io.StringIO()):
        picture = captum_visualization.visualize_text(text_records(attributions))
    return _PAGE.format(body=picture.data)


def terminal_text(attribution: TextAttribution) -> Text:
    """Render prediction, coloured tokens and the highest scores for a terminal.

    The deeper the colour behind a token, the higher its share of the text's largest
    score, green for the target and red against it. Characters that are not printable
    are shown as escapes.

    Args:
        attribution (TextAttribution): The attribution of one text.
    """
    text = Text.assemble(
        (_printable(attribution.predicted), "bold"), f" {attribution.probability:.3f}"
    )
    if attribution.target != attribution.predicted:
        text.append(f"  (scores for {_printable(attribution.target)})")
    text.append("\n")
    for token, share in zip(
        attribution.tokens, _relative(attribution.scores), strict=True
    ):
        fade = round(255 * (1 - 0.7 * abs(share)))
        colour = f"{fade},255,{fade}" if share >= 0 else f"255,{fade},{fade}"
        text.append(f" {_printable(token)} ", f"black on rgb({colour})")
    ranked = sorted(
        zip(attribution.scores, attribution.tokens, strict=True), reverse=True
    )
    top = [f"{_printable(token)} {score:.3g}" for score, token in ranked]
    text.append(f"\nhighest: {', '.join(top[:_N_TOP_TOKENS])}")
    return text


def _relative(scores: Sequence[float]) -> list[float]:
    largest = max(map(abs, scores), default=0.0)
    return [score / largest if largest else 0.0 for score in scores]


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else repr(char).strip("'") for char in text
    )
