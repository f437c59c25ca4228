"""A page on which a reader chooses a generated token and sees what it was made from.

The prompt and the text generated before are coloured for it. Everything that is shown
is computed by the page's script from the scores of tokens, as the matrix of
:mod:`captum_attnflow.show.generated_matrix` is: what is left out, sums over words,
shares.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from textwrap import shorten
from typing import Any, Protocol, get_args, runtime_checkable

import torch

from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import escaped, printable
from captum_attnflow.show.document import html_document
from captum_attnflow.show.generated_matrix import (
    described,
    named,
    readable,
    with_images_as_one,
)
from captum_attnflow.show.token_matrix import LeftOut, Scale
from captum_attnflow.texts.units import Unit

_TITLE_LENGTH = 60
_HEADER = """<h1>What generated text was made from</h1>
<form id="controls" autocomplete="off">
  <label>Scores of <select id="units"></select></label>
  <label>Colours relative to
    <select id="scale">
      <option value="row">the largest of this choice</option>
      <option value="matrix">the largest of all</option>
    </select></label>
  <fieldset id="left-out"><legend>Leave out</legend></fieldset>
</form>
<p class="legend"></p>
<nav id="prompts" aria-label="Prompts" hidden></nav>
<noscript><p>This page colours text by a script that is part of it. Please allow \
scripts.</p></noscript>"""


@runtime_checkable
class GeneratedResult(Protocol):
    """An explained generated text, and how it is shown at first.

    A :class:`captum_attnflow.pipelines.text_generation.GeneratedText` is one.
    """

    @property
    def explanation(self) -> GenerationExplanation:
        """The scores of its tokens."""

    @property
    def method(self) -> str:
        """What they were made by."""

    @property
    def units(self) -> Unit | Sequence[tuple[int, int]]:
        """What scores are summed over, see :meth:`GenerationExplanation.sum_over`."""

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """What is not shown, see :meth:`GenerationExplanation.matrix`."""

    @property
    def scale(self) -> Scale:
        """What colours are relative to."""


@dataclass(frozen=True)
class _Unnamed:
    explanation: GenerationExplanation
    method: str = ""
    units: Unit | Sequence[tuple[int, int]] = "token"
    left_out: Sequence[LeftOut] = ()
    scale: Scale = "row"


def generated_page(
    results: Sequence[GenerationExplanation | GeneratedResult], said: str = ""
) -> str:
    """Render explained generated texts as one HTML document.

    A reader chooses a generated token by click or arrow keys, or the whole answer, or
    one of the spans that were explained; further the units whose scores are shown, what
    is left out, and what colours are relative to. At first these are as in the first
    result.

    Args:
        results (sequence): One per prompt.
        said (str): A line on all of them, such as the model.

    Returns:
        str: A complete HTML document.
    """
    shown = [
        _Unnamed(item) if isinstance(item, GenerationExplanation) else item
        for item in results
    ]
    first = shown[0]
    tokens = zip(first.explanation.pieces, first.explanation.parts, strict=True)
    prompt = "".join(piece for piece, part in tokens if part == "prompt")
    return html_document(
        "generated",
        shorten(f"Made from: {prompt}", _TITLE_LENGTH),
        _HEADER + (f'<p class="caption">{escaped(said)}</p>' if said else ""),
        '<div id="texts"></div>',
        script=(files(__package__) / "generated_page.js").read_text("utf-8"),
        data={
            "texts": [_text(result) for result in shown],
            "units": first.units if isinstance(first.units, str) else "span",
            "leftOut": list(first.left_out),
            "scale": first.scale,
        },
    )


def _text(result: GeneratedResult) -> dict[str, Any]:
    """Gather what the script shows of one text; it counts tokens from 0."""
    explanation = result.explanation
    # Its placeholders say nothing: the tokens of an image are one, with their sum. The
    # first token is left out alone, whatever it is.
    tokens = [[token] for token in range(len(explanation.tokens))]
    shown = tokens[:1] + with_images_as_one(tokens[1:], explanation.parts)
    scores = torch.stack(
        [explanation.scores.detach()[:, tokens].sum(1) for tokens in shown], 1
    )
    kinds: dict[str, Unit | Sequence[tuple[int, int]]] = {
        unit: unit for unit in get_args(Unit) if unit != "token"
    }
    if not isinstance(result.units, str):
        kinds["span"] = result.units
    of_method = f"{result.method}: " if result.method else ""
    return {
        "caption": of_method + described(explanation),
        "pieces": [_piece(explanation, tokens) for tokens in shown],
        "parts": [explanation.parts[tokens[0]] for tokens in shown],
        "given": len(shown) - len(explanation.generated_tokens),
        "spans": [list(span) for span in explanation.spans],
        "hasRowPerToken": explanation.has_row_per_token,
        # Rows of little-endian floats, one per token.
        "scores": base64.b64encode(
            scores.float().cpu().numpy().astype("<f4").tobytes()
        ).decode(),
        "against": [printable(readable(piece)) for piece in explanation.against_pieces],
        "probabilities": [
            math.exp(value) if math.isfinite(value) else None
            for value in explanation.log_probabilities.tolist()
        ],
        # The first token of each unit.
        "starts": {
            name: _starts(explanation, units, shown) for name, units in kinds.items()
        },
    }


def _piece(explanation: GenerationExplanation, tokens: Sequence[int]) -> str:
    if explanation.parts[tokens[0]] == "image":
        return named(explanation, tokens)
    return _written(explanation.pieces[tokens[0]])


def _starts(
    explanation: GenerationExplanation,
    units: Unit | Sequence[tuple[int, int]],
    shown: Sequence[Sequence[int]],
) -> list[int]:
    place_of = {token: place for place, tokens in enumerate(shown) for token in tokens}
    firsts = [tokens[0] for tokens in explanation.sum_over(units).members]
    return list(dict.fromkeys(place_of[first] for first in firsts))


def _written(piece: str) -> str:
    """Show what is not printable as its escape, but keep line feeds and tabs."""
    return "".join(char if char in "\n\t" else printable(char) for char in piece)
