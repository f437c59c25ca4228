"""The matrix of a generated text: what is left out, and what its caption says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_type
from captum_attnflow.explanation import GenerationExplanation, Part
from captum_attnflow.scored_tokens import rounded
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
    kinds = (str, list, tuple, set, frozenset)
    check_type("left_out", left_out, kinds, f"some of {get_args(LeftOut)}")
    for name in [left_out] if isinstance(left_out, str) else left_out:
        check_choice("left_out", name, get_args(LeftOut))
    parts = explanation.parts
    drawn = [
        not (position == 0 and "first" in left_out) and part not in left_out
        for position, part in enumerate(parts)
    ]
    summed = explanation.sum_over(units)
    rows, possible = explanation.scores, explanation.possible()
    if "read-out" in left_out:
        read_out = _read_outs(explanation)
        rows, possible = rows.masked_fill(read_out, 0), possible & ~read_out
    has_sum = explanation.has_row_per_token and len(rows) > 1
    outputs = [readable(text) for text in explanation.row_texts]
    if has_sum:
        rows = torch.cat([rows, rows.sum(0, keepdim=True)])
        possible = torch.cat([possible, possible.any(0, keepdim=True)])
        outputs.append("whole answer")
    units_of_text = with_images_as_one(summed.members, parts)
    members = [[t for t in tokens if drawn[t]] for tokens in units_of_text]
    kept = [unit for unit, tokens in enumerate(members) if tokens]
    scores = rows.new_zeros(len(rows), len(kept))
    seen = possible.new_zeros(len(rows), len(kept))
    for column, unit in enumerate(kept):
        scores[:, column] = rows[:, members[unit]].sum(1)
        seen[:, column] = possible[:, members[unit]].any(1)
    n_prompt = sum(parts[members[unit][0]] != "generated" for unit in kept)
    return TokenMatrix(
        scores=blank_where(scores, ~seen.cpu().numpy()),
        input_tokens=tuple(named(explanation, members[unit]) for unit in kept),
        output_tokens=tuple(outputs),
        n_prompt=n_prompt,
        scale=scale,
        caption=_caption(explanation, drawn, left_out),
        has_sum=has_sum,
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
        return f"[image: {len(tokens)} tokens]"
    return readable("".join(explanation.pieces[token] for token in tokens))


def _read_outs(explanation: GenerationExplanation) -> Tensor:
    """Where the logits of each row's tokens are read, shape ``(R, N)``, bool."""
    found = torch.zeros_like(explanation.scores, dtype=torch.bool)
    before = explanation.n_given - 1
    for row, (start, stop) in enumerate(explanation.spans):
        found[row, before + start : before + stop] = True
    return found


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
    drawn: Sequence[bool],
    left_out: Collection[LeftOut],
) -> str:
    if not left_out:
        return described(explanation)
    absolute = explanation.scores.abs()
    hidden = ~torch.tensor(drawn, device=absolute.device).expand_as(absolute)
    if "read-out" in left_out:
        hidden = hidden | _read_outs(explanation)
    share = _share_of(absolute, absolute[hidden])
    names = ", ".join([left_out] if isinstance(left_out, str) else left_out)
    attention = _attention(explanation)
    beside = f"; the first token has {attention}" if attention else ""
    return f"{_output(explanation)}; left out: {names} ({share}){beside}"


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
