"""Pictures of text attributions, over Captum's helpers."""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Sequence

import torch
from captum.attr import visualization as captum_visualization
from rich.text import Text

from captum_attnflow.surrogate.reading import SlalomReading
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
    The convergence score is their sum minus the flow value, or for SLALOM the function
    minus the model at the text.

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
            convergence_score=_convergence(item),
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
    if attribution.slalom is not None:
        text.append(_side_by_side(attribution.tokens, attribution.slalom))
    return text


def _side_by_side(tokens: Sequence[str], slalom: SlalomReading) -> str:
    """A line per explained token: value and importance, with their standard errors."""
    printable = [_printable(token) for token in tokens]
    width = max(map(len, printable))
    lines = [f"\n{'':{width}}          value     importance"]
    for token, *numbers in zip(
        printable,
        slalom.values,
        slalom.value_standard_errors,
        slalom.importances,
        slalom.importance_standard_errors,
        strict=True,
    ):
        if None not in numbers:
            value, its_error, importance, error = numbers
            lines.append(
                f"{token:{width}} {value:+7.2f} ±{its_error:5.2f} "
                f"{importance:+7.2f} ±{error:5.2f}"
            )
    known = {"short inputs": slalom.r2_short, "deletions": slalom.r2_deletions}
    fits = [f"{name} {r2:.2f}" for name, r2 in known.items() if r2 is not None]
    if fits:
        lines.append(f"held-out R2: {', '.join(fits)}")
    return "\n".join(lines)


def _convergence(attribution: TextAttribution) -> float:
    slalom = attribution.slalom
    if slalom is not None:
        return slalom.predicted_log_odds - slalom.log_odds
    return sum(attribution.scores) - (attribution.flow_value or 0.0)


def _relative(scores: Sequence[float]) -> list[float]:
    largest = max(map(abs, scores), default=0.0)
    return [score / largest if largest else 0.0 for score in scores]


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else repr(char).strip("'") for char in text
    )
