"""A page on which a reader chooses a generated token and sees what it was made from.

The prompt and the text generated before are coloured for it. Everything that is shown
is computed by the page's script from the scores of tokens, as the matrix of
:mod:`captum_attnflow.show.generated_matrix` is: what is left out, sums over words,
shares.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from textwrap import shorten
from typing import Any, Protocol, get_args, runtime_checkable

import torch

from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import escaped, printable
from captum_attnflow.show.generated_matrix import (
    described,
    named,
    readable,
    with_images_as_one,
)
from captum_attnflow.show.token_matrix import LeftOut, Scale
from captum_attnflow.texts.units import Unit

_TITLE_LENGTH = 60


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
    results: Sequence[GenerationExplanation | GeneratedResult],
) -> str:
    """Render explained generated texts as one HTML document.

    A reader chooses a generated token by click or arrow keys, or the whole answer, or
    one of the spans that were explained; further the units whose scores are shown, what
    is left out, and what colours are relative to. At first these are as in the first
    result. The page needs no network: its content security policy allows only the very
    script and style inside it.

    Args:
        results (sequence): One per prompt.

    Returns:
        str: A complete HTML document.
    """
    shown = [
        _Unnamed(item) if isinstance(item, GenerationExplanation) else item
        for item in results
    ]
    first = shown[0]
    style, script = (_read(f"page.{kind}") for kind in ("css", "js"))
    tokens = zip(first.explanation.pieces, first.explanation.parts, strict=True)
    prompt = "".join(piece for piece, part in tokens if part == "prompt")
    parts = {
        "title": escaped(shorten(f"Made from: {prompt}", _TITLE_LENGTH)),
        "styles": _hash(style),
        "scripts": _hash(script),
        "style": style,
        "script": script,
        "data": _encoded(
            {
                "texts": [_text(result) for result in shown],
                "units": first.units if isinstance(first.units, str) else "span",
                "leftOut": list(first.left_out),
                "scale": first.scale,
            }
        ),
    }
    # In one pass: a user's word such as "@data@" is no place to fill.
    return re.sub("@([a-z]+)@", lambda place: parts[place[1]], _read("page.html"))


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


def _encoded(data: dict[str, Any]) -> str:
    """Encode data as JSON, as text that no tag can end."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _hash(content: str) -> str:
    """Return what a content security policy names a script or a style by."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
