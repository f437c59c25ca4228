"""Scores of generated tokens by the tokens before them, as a coloured matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.text import Text
from torch import Tensor

from captum_attnflow._checks import check_choice
from captum_attnflow.explanation import GenerationExplanation, Part
from captum_attnflow.scored_tokens import colour, escaped, printable, strongest
from captum_attnflow.show.figures import (
    Label,
    drawable,
    label_widths,
    shortened,
    shown_in_notebooks,
)
from captum_attnflow.texts.units import Unit

Scale = Literal["row", "matrix"]
"""What the colours of a score are relative to: the largest of its row, or of all."""
LeftOut = Literal["first", "read-out", "system", "template"]
"""What may be left out of a picture: the first token; in each row the token in front
of the generated one, where it is read out, which owes it most for its place alone; or
tokens of a chat."""

_LABEL_CELLS = 16
_FONT_SIZE = 8
_MOST_NUMBERED_COLUMNS = 16  # numbers do not fit into wider matrices
_COLOURS = LinearSegmentedColormap.from_list(
    "red-white-green", [(1.0, 0.3, 0.3), (1.0, 1.0, 1.0), (0.3, 1.0, 0.3)]
)
_STYLE = """<style>
.token-matrix { border-collapse: collapse; font: 12px sans-serif; }
.token-matrix th { font-weight: normal; padding: 2px 5px; white-space: pre; }
.token-matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg);
  text-align: left; }
.token-matrix tbody th { text-align: right; position: sticky; left: 0;
  background: white; z-index: 1; }
.token-matrix td { position: relative; min-width: 18px; height: 20px;
  padding: 0 3px; text-align: center;
  border: 1px solid #e5e7eb; color: black; }
.token-matrix td.blank { border-color: transparent; }
.token-matrix caption { text-align: left; padding: 2px 5px; }
.token-matrix .generated { border-left: 2px solid #4b5563; }
.token-matrix tbody tr.sum th, .token-matrix tbody tr.sum td {
  border-top: 2px solid #4b5563; }
.token-matrix tr:hover th { font-weight: bold; }
.token-matrix td:not(.blank):hover { outline: 2px solid black; z-index: 1; }
.token-matrix td:not(.blank):hover::after { content: attr(data-score);
  position: absolute; left: 100%; bottom: 100%; padding: 2px 6px; z-index: 2;
  background: #111827; color: white; white-space: pre; border-radius: 3px; }
</style>"""


@dataclass(frozen=True, eq=False)
class TokenMatrix:
    """Scores of generated tokens by the tokens before them, drawn.

    The value of a notebook's cell, a figure, or text that rich prints.

    Attributes:
        scores (ndarray): Shape ``(n_outputs, n_inputs)``; NaN, shown as a blank, where
            the input comes after the output and no score can exist, or where the score
            given is not finite.
        input_tokens (tuple of str): The tokens of the columns.
        output_tokens (tuple of str): The tokens of the rows.
        n_prompt (int): Columns in front of the first generated token.
        scale (str): ``"row"``: colours are relative to the largest score of a row;
            ``"matrix"``: of all.
        caption (str): What is shown, and what is left out.
        has_sum (bool): Whether the last row is the sum of those above.
    """

    scores: np.ndarray
    input_tokens: tuple[str, ...]
    output_tokens: tuple[str, ...]
    n_prompt: int
    scale: Scale = "row"
    caption: str = ""
    has_sum: bool = False

    @cached_property
    def colours(self) -> np.ndarray:
        """Scores relative to the largest of the row or of all, in [-1, 1], or NaN."""
        absolute = np.nan_to_num(np.abs(self.scores))
        largest = absolute.max(axis=1, keepdims=True, initial=0.0)
        if self.scale == "matrix":
            largest = np.full_like(largest, largest.max(initial=0.0))
        return np.asarray(self.scores / np.where(largest > 0, largest, 1))

    @cached_property
    def shares(self) -> np.ndarray:
        """Scores relative to the sum of a row's absolute scores, in [-1, 1], or NaN."""
        total = np.nansum(np.abs(self.scores), axis=1, keepdims=True)
        return np.asarray(self.scores / np.where(total > 0, total, 1))

    @property
    def _is_numbered(self) -> bool:
        return len(self.input_tokens) <= _MOST_NUMBERED_COLUMNS

    def figure(self) -> Figure:
        """Draw for a paper; the figure's ``savefig`` writes PDF, PNG or SVG."""
        n_rows, n_columns = self.scores.shape
        rows, columns = _labels(self.output_tokens), _labels(self.input_tokens)
        width = n_columns * (0.45 if self._is_numbered else 0.19) + _longest(rows)
        height = n_rows * 0.22 + _longest(columns)
        figure = Figure(figsize=(width + 1.2, height + 0.5), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(
            self.colours,
            _COLOURS,
            aspect="auto",
            vmin=-1,
            vmax=1,
            extent=(-0.5, max(n_columns, 1) - 0.5, max(n_rows, 1) - 0.5, -0.5),
        )
        axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
        axes.set_frame_on(False)
        _write(axes.xaxis, columns, rotation=90)
        _write(axes.yaxis, rows, rotation=0)
        if 0 < self.n_prompt < n_columns:
            axes.axvline(self.n_prompt - 0.5, color="0.3", linewidth=1)
        if self.has_sum:
            axes.axhline(n_rows - 1.5, color="0.3", linewidth=1)
        if self.caption:
            text, families = drawable(self.caption)
            axes.set_xlabel(text, fontsize=_FONT_SIZE, family=families, loc="left")
            axes.xaxis.label.set_parse_math(False)
        if self._is_numbered:
            for (row, column), score in np.ndenumerate(self.scores):
                if not np.isnan(score):
                    number = axes.text(column, row, f"{score:.2g}", fontsize=7)
                    number.set(ha="center", va="center")
        else:
            bar = figure.colorbar(drawn, shrink=0.8)
            bar.set_label(f"score relative to the largest of the {self.scale}")
        return shown_in_notebooks(figure)

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th{self._mark(column)}>{escaped(token)}</th>"
            for column, token in enumerate(self.input_tokens)
        )
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        body = "".join(self._row(row) for row in range(len(self.output_tokens)))
        return (
            f'{_STYLE}<div style="overflow-x: auto"><table class="token-matrix">'
            f'{caption}<thead><tr><td class="blank"></td>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _mark(self, column: int) -> str:
        """Tell the first generated token from the prompt before it."""
        return ' class="generated"' if column == self.n_prompt else ""

    def _row(self, row: int) -> str:
        is_sum = self.has_sum and row == len(self.output_tokens) - 1
        cells = "".join(
            self._cell(row, column) for column in range(len(self.input_tokens))
        )
        mark = ' class="sum"' if is_sum else ""
        return f"<tr{mark}><th>{escaped(self.output_tokens[row])}</th>{cells}</tr>"

    def _cell(self, row: int, column: int) -> str:
        score, token = self.scores[row, column], self.input_tokens[column]
        if np.isnan(score):
            return '<td class="blank"></td>'
        number = f"{score:.2g}" if self._is_numbered else ""
        share = 100 * self.shares[row, column]
        return (
            f'<td{self._mark(column)} style="background: '
            f'{colour(self.colours[row, column])}" '
            f'data-score="{escaped(token)}: {score:.3g} ({share:.2g} %)">'
            f"{number}</td>"
        )

    def __rich__(self) -> Text:
        lines = [Text(printable(self.caption))] if self.caption else []
        for output, scores, shades in zip(
            self.output_tokens, self.scores, self.colours, strict=True
        ):
            seen = np.flatnonzero(~np.isnan(scores))
            tokens = [self.input_tokens[column] for column in seen]
            line = Text().append(f"{printable(output)}: ", "bold")
            for column, token in zip(seen, tokens, strict=True):
                if column == self.n_prompt:
                    line.append("|")
                line.append(
                    f" {printable(token)} ", f"black on {colour(shades[column])}"
                )
            lines.append(line.append(f"\n  {strongest(tokens, scores[seen])}"))
        return Text("\n").join(lines)


def _labels(tokens: Sequence[str]) -> list[Label]:
    return [drawable(shortened(token, _LABEL_CELLS)) for token in tokens]


def _longest(labels: Sequence[Label]) -> float:
    return float(label_widths(labels, _FONT_SIZE).max(initial=0.0))


def _write(axis: Axis, labels: Sequence[Label], rotation: int) -> None:
    """Write a token at every row or column."""
    axis.set_ticks(range(len(labels)), [text for text, _ in labels])
    for tick, (_, families) in zip(axis.get_ticklabels(), labels, strict=True):
        tick.set(
            family=families, rotation=rotation, fontsize=_FONT_SIZE, parse_math=False
        )


def token_matrix(
    attributions: Tensor,
    input_tokens: Sequence[str],
    output_tokens: Sequence[str],
    n_prompt: int | None = None,
    scale: Scale = "row",
) -> TokenMatrix:
    """Show scores of generated tokens by the tokens before them.

    Args:
        attributions (Tensor): Shape ``(n_outputs, n_inputs)``, such as ``token_attr``
            of Captum's ``LLMAttributionResult``.
        input_tokens (sequence of str): The tokens of the columns: the prompt and, if
            they are scored, the generated tokens.
        output_tokens (sequence of str): The generated tokens, one per row.
        n_prompt (int, optional): Columns that are the prompt; the ones after it are
            the generated tokens, in order. A generated token has scores for those
            before it only, and the rest is left blank. By default all columns are the
            prompt.
        scale (str): ``"row"``: colours are relative to the largest score of a row;
            ``"matrix"``: of all.

    Returns:
        TokenMatrix: Shows itself in a notebook and by rich; ``figure()`` is for papers.

    Raises:
        ValueError: If shapes, tokens and ``n_prompt`` disagree.

    Examples::

        >>> import torch
        >>> matrix = token_matrix(
        ...     torch.tensor([[0.5, 0.0], [0.25, -1.0]]),
        ...     input_tokens=["so", "fun"],
        ...     output_tokens=["fun", "ny"],
        ...     n_prompt=1,
        ... )
        >>> matrix.scores
        array([[ 0.5 ,   nan],
               [ 0.25, -1.  ]])
        >>> matrix.__rich__().plain.splitlines()[-2:]
        ['ny:  so | fun ', '  for: "so" 20 %; against: "fun" 80 %']
    """
    check_choice("scale", scale, get_args(Scale))
    shape = (len(output_tokens), len(input_tokens))
    if tuple(attributions.shape) != shape:
        raise ValueError(
            f"attributions have shape {tuple(attributions.shape)}, but there are "
            f"{shape[0]} output and {shape[1]} input tokens; give (n_outputs, n_inputs)"
        )
    n_prompt = shape[1] if n_prompt is None else n_prompt
    if not 0 <= n_prompt <= shape[1] <= n_prompt + shape[0]:
        raise ValueError(
            f"n_prompt={n_prompt} of {shape[1]} columns leaves "
            f"{shape[1] - n_prompt} for {shape[0]} generated tokens; give the number "
            "of columns that are the prompt"
        )
    rows, columns = np.indices(shape)
    scores = _blank_where(attributions, columns - n_prompt >= rows)
    return TokenMatrix(
        scores, tuple(input_tokens), tuple(output_tokens), n_prompt, scale
    )


def _blank_where(scores: Tensor, is_blank: np.ndarray) -> np.ndarray:
    found = scores.detach().double().cpu().numpy().copy()
    found[is_blank | ~np.isfinite(found)] = np.nan
    return np.asarray(found)


def matrix_of_generated(
    explanation: GenerationExplanation,
    units: Unit | Sequence[tuple[int, int]],
    left_out: Collection[LeftOut],
    scale: Scale,
) -> TokenMatrix:
    """Draw the scores of generated text, see :meth:`GenerationExplanation.matrix`."""
    check_choice("scale", scale, get_args(Scale))
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
    has_sum = len(rows) == len(explanation.log_probabilities) > 1
    outputs = [readable(text) for text in explanation.row_texts]
    if has_sum:
        rows = torch.cat([rows, rows.sum(0, keepdim=True)])
        possible = torch.cat([possible, possible.any(0, keepdim=True)])
        outputs.append("whole answer")
    units_of_text = _with_images_as_one(summed.members, parts)
    members = [[t for t in tokens if drawn[t]] for tokens in units_of_text]
    kept = [unit for unit, tokens in enumerate(members) if tokens]
    scores = torch.stack([rows[:, members[unit]].sum(1) for unit in kept], 1)
    seen = torch.stack([possible[:, members[unit]].any(1) for unit in kept], 1)
    n_prompt = sum(parts[members[unit][0]] != "generated" for unit in kept)
    return TokenMatrix(
        scores=_blank_where(scores, ~seen.cpu().numpy()),
        input_tokens=tuple(_name(explanation, members[unit]) for unit in kept),
        output_tokens=tuple(outputs),
        n_prompt=n_prompt,
        scale=scale,
        caption=_caption(explanation, drawn, left_out),
        has_sum=has_sum,
    )


def _with_images_as_one(
    members: Sequence[Sequence[int]], parts: Sequence[Part]
) -> list[list[int]]:
    """Join the units of an image: hundreds of columns with one name say nothing."""
    joined: list[list[int]] = []
    for tokens in members:
        if joined and parts[tokens[0]] == parts[joined[-1][0]] == "image":
            joined[-1].extend(tokens)
        else:
            joined.append(list(tokens))
    return joined


def _name(explanation: GenerationExplanation, tokens: Sequence[int]) -> str:
    """Name a column."""
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


def _caption(
    explanation: GenerationExplanation,
    drawn: Sequence[bool],
    left_out: Collection[LeftOut],
) -> str:
    against = ""
    if explanation.against:
        others = ", ".join(f'"{readable(token)}"' for token in explanation.against[:8])
        more = ", ..." if len(explanation.against) > 8 else ""
        against = f", less that of {others}{more}"
    said = f"{explanation.output} of each generated token{against}"
    absolute = explanation.scores.abs()
    total = float(absolute.sum()) or 1.0
    if left_out:
        hidden = ~torch.tensor(drawn, device=absolute.device).expand_as(absolute)
        if "read-out" in left_out:
            hidden = hidden | _read_outs(explanation)
        share = float(absolute[hidden].sum()) / total
        said += f"; left out: {', '.join(left_out)} ({100 * share:.2g} % of all scores)"
    else:
        share = float(absolute[:, 0].sum()) / total
        said += f"; the first token has {100 * share:.2g} % of all scores"
    received = explanation.attention_received
    if received is not None:
        elsewhere = received[1:][received[1:] > 0]
        if len(elsewhere):
            ratio = float(received[0] / elsewhere.median())
            said += f" and {ratio:.2g} times the median attention"
    return said
