"""Generated text: a matrix of its scores, and a page to choose a token on.

On the page a reader chooses a generated token, and the prompt and the text generated
before are coloured for it. Everything that is shown there is computed by the page's
script from the scores of tokens, as the matrix is: what is left out, sums over words,
shares.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from textwrap import shorten
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_type, counted
from captum_attnflow.explanation import GenerationExplanation, Part
from captum_attnflow.scored_tokens import escaped, printable, rounded
from captum_attnflow.show.document import html_document
from captum_attnflow.show.token_matrix import LeftOut, Scale, TokenMatrix, blank_where
from captum_attnflow.texts.units import Unit

_MOST_NAMED = 8  # tokens of a contrast


def matrix_of_generated(
    explanation: GenerationExplanation,
    units: Unit | Sequence[tuple[int, int]],
    left_out: Collection[LeftOut],
    scale: Scale,
) -> TokenMatrix:
    """Draw the scores of generated text, see :meth:`GenerationExplanation.matrix`."""
    check_choice("scale", scale, get_args(Scale))
    names = names_left_out(left_out)
    hidden = where_left_out(explanation, names)
    parts, drawn = explanation.parts, _drawn(explanation, names)
    summed = explanation.sum_over(units)
    rows = explanation.scores.masked_fill(hidden, 0)
    possible = explanation.possible() & ~hidden
    has_sum = explanation.has_row_per_token and len(rows) > 1
    outputs = [readable(text) for text in explanation.row_texts]
    if has_sum:
        rows = torch.cat([rows, rows.sum(0, keepdim=True)])
        possible = torch.cat([possible, possible.any(0, keepdim=True)])
        outputs.append("whole answer")
    units_of_text = with_images_as_one(summed.members, parts)
    members = [[t for t in tokens if drawn[t]] for tokens in units_of_text]
    members = [tokens for tokens in members if tokens]
    scores = rows.new_zeros(len(rows), len(members))
    possible = possible.cpu()
    seen = possible.new_zeros(scores.shape)
    for column, tokens in enumerate(members):
        scores[:, column] = rows[:, tokens].sum(1)
        seen[:, column] = possible[:, tokens].any(1)
    n_prompt = sum(parts[tokens[0]] != "generated" for tokens in members)
    return TokenMatrix(
        scores=blank_where(scores, ~seen.numpy()),
        input_tokens=tuple(named(explanation, tokens) for tokens in members),
        output_tokens=tuple(outputs),
        n_prompt=n_prompt,
        scale=scale,
        caption=_caption(explanation, hidden, names) + _unlike_axes(explanation, units),
        has_sum=has_sum,
        parts_of_units=_parts_of_units(explanation, members, possible),
    )


def with_images_as_one(
    members: Sequence[Sequence[int]], parts: Sequence[Part]
) -> list[list[int]]:
    """Join the units of an image: hundreds of columns with one name say nothing.

    Args:
        members (sequence): The tokens of each unit.
        parts (sequence of str): What each token belongs to.
    """
    joined: list[list[int]] = []
    for tokens in members:
        if joined and parts[tokens[0]] == parts[joined[-1][0]] == "image":
            joined[-1].extend(tokens)
        else:
            joined.append(list(tokens))
    return joined


def named(explanation: GenerationExplanation, tokens: Sequence[int]) -> str:
    """Name a unit as people read it, or the image by how many tokens it has."""
    if explanation.parts[tokens[0]] == "image":
        return f"[image: {counted(len(tokens), 'token')}]"
    return readable("".join(explanation.pieces[token] for token in tokens))


def _parts_of_units(
    explanation: GenerationExplanation,
    members: Sequence[Sequence[int]],
    is_summed: Tensor,
) -> dict[tuple[int, int], str]:
    """Name what a row's sum holds of a unit, by row and unit, where it is a part of it.

    Args:
        explanation (GenerationExplanation): Whose tokens they are.
        members (sequence): The tokens of each unit.
        is_summed (Tensor): Shape ``(R, N)``, bool, the tokens of each row's sums.
    """
    found = {}
    for unit, tokens in enumerate(members):
        of_unit = is_summed[:, tokens]
        is_part = of_unit.any(1) & ~of_unit.all(1)
        for row in is_part.nonzero()[:, 0].tolist():
            held = of_unit[row].nonzero()[:, 0].tolist()
            found[row, unit] = named(explanation, [tokens[place] for place in held])
    return found


def names_left_out(left_out: str | Collection[LeftOut]) -> tuple[LeftOut, ...]:
    """Return the names of what is left out, however they are given.

    Args:
        left_out (str or collection of str): One name, or some in whatever order.

    Returns:
        tuple of str: In the order of :data:`LeftOut`.

    Raises:
        ValueError: If a name is unknown.
    """
    choices: tuple[LeftOut, ...] = get_args(LeftOut)
    kinds = (str, list, tuple, set, frozenset)
    check_type("left_out", left_out, kinds, f"some of {choices}")
    given = [left_out] if isinstance(left_out, str) else left_out
    for name in given:
        check_choice("left_out", name, choices)
    return tuple(name for name in choices if name in given)


def where_left_out(
    explanation: GenerationExplanation, left_out: Collection[LeftOut]
) -> Tensor:
    """Tell which scores are left out, for a choice of what is.

    Args:
        explanation (GenerationExplanation): Whose scores they are.
        left_out (collection of str): See :meth:`GenerationExplanation.matrix`.

    Returns:
        Tensor: Shape ``(R, N)``, bool.

    Raises:
        ValueError: If the choice is unknown.
    """
    names = names_left_out(left_out)
    absent = [not is_drawn for is_drawn in _drawn(explanation, names)]
    hidden = torch.zeros_like(explanation.scores, dtype=torch.bool)
    hidden[:, absent] = True
    if "read-out" in names:
        before = explanation.n_given - 1
        for row, (start, stop) in enumerate(explanation.spans):
            hidden[row, before + start : before + stop] = True
    return hidden


def _drawn(
    explanation: GenerationExplanation, left_out: tuple[LeftOut, ...]
) -> list[bool]:
    """Which tokens have columns. The read-out, left out row by row, keeps its own."""
    return [
        not (position == 0 and "first" in left_out) and part not in left_out
        for position, part in enumerate(explanation.parts)
    ]


def readable(text: str) -> str:
    """Show a piece of text as people read it: no space around, but line feeds."""
    shown = text.strip(" ").replace("\n", "\u23ce").replace("\t", "\u21e5")
    return shown or ("\u2423" if text else "\u2026")


def described(explanation: GenerationExplanation) -> str:
    """Say what is explained, and how much of it the first token has.

    Args:
        explanation (GenerationExplanation): Of a generated text.

    Returns:
        str: A line.
    """
    absolute = explanation.scores.abs()
    share = _share_of(absolute, absolute[:, :1])
    attention = _attention(explanation)
    beside = f" and {attention}" if attention else ""
    return f"{_output(explanation)}; the first token has {share}{beside}"


def _caption(
    explanation: GenerationExplanation,
    hidden: Tensor,
    left_out: tuple[LeftOut, ...],
) -> str:
    if not left_out:
        return described(explanation)
    absolute = explanation.scores.abs()
    share = _share_of(absolute, absolute[hidden])
    attention = _attention(explanation)
    beside = f"; the first token has {attention}" if attention else ""
    return f"{_output(explanation)}; left out: {', '.join(left_out)} ({share}){beside}"


def _unlike_axes(explanation: GenerationExplanation, units: object) -> str:
    """Say what rows and columns are where they differ.

    Each generated token has an output of its own, which a sum over the tokens of a word
    is none of; scores of columns do sum.
    """
    if units == "token" or not explanation.has_row_per_token:
        return ""
    columns = f"{units}s" if isinstance(units, str) else "spans"
    return f"; rows are tokens, columns {columns}"


def _output(explanation: GenerationExplanation) -> str:
    kind = "token" if explanation.has_row_per_token else "span"
    against = ""
    if explanation.against:
        # Rows that are spans need not be of all generated tokens.
        spans = explanation.spans
        steps = sorted({step for start, stop in spans for step in range(start, stop)})
        named = [explanation.against_pieces[step] for step in steps[:_MOST_NAMED]]
        others = ", ".join(f'"{readable(token)}"' for token in named)
        more = ", ..." if len(steps) > _MOST_NAMED else ""
        against = f", less that of {others}{more}"
    return f"{explanation.output} of each generated {kind}{against}"


def _share_of(absolute: Tensor, part: Tensor) -> str:
    total = float(absolute.sum()) or 1.0
    return f"{rounded(100 * float(part.sum()) / total)} % of all scores"


def _attention(explanation: GenerationExplanation) -> str:
    """How much attention the first token receives, for it may be a sink."""
    received = explanation.attention_received
    if received is None:
        return ""
    elsewhere = received[1:][received[1:] > 0]
    if not len(elsewhere):
        return ""
    ratio = float(received[0] / elsewhere.median())
    return f"{rounded(ratio)} times the median attention"


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
            "leftOut": list(names_left_out(first.left_out)),
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
