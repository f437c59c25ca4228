"""Scores of generated tokens by the tokens before them, as a coloured matrix."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.text import Text
from torch import Tensor

from captum_attnflow._checks import (
    check_choice,
    check_dense,
    check_integer,
    check_strings,
)
from captum_attnflow.scored_tokens import (
    MINUS,
    WEAKEST_SIGN,
    coloured_token,
    escaped,
    printable,
    rounded,
    strongest,
)
from captum_attnflow.show.figures import (
    ORANGE_WHITE_BLUE,
    Label,
    drawable,
    label_widths,
    shortened,
    shown_in_notebooks,
)

Scale = Literal["row", "matrix"]
"""What the colours of a score are relative to: the largest of its row, or of all."""
LeftOut = Literal["first", "read-out", "system", "template"]
"""What may be left out of a picture: the first token; in each row the token in front
of the generated one, where it is read out, which owes it most for its place alone; or
tokens of a chat."""

_LABEL_CELLS = 16
_FONT_SIZE = 8
_LINE = 1.2 * _FONT_SIZE / 72  # inches
_MOST_NUMBERED_COLUMNS = 16  # numbers do not fit into wider matrices
_MOST_COLUMNS = 42  # whose labels fit beside each other on a page
_PAGE_WIDTH = 8.2  # inches of A4 and Letter paper
_ROWS_HEIGHT = 9.0  # what labels and caption leave of such a page
_MARGIN = 1.2  # for the colour bar
_BAR = 0.8  # of the height
_FEWEST = 20  # characters of a line beside the bar
# Light in a dark notebook, which names no colours; a page's own where it is in one.
_STYLE = """<style>
.token-scores { margin: 0; padding: 4px; font: 12px sans-serif;
  background: var(--paper, white); color: var(--ink, #1f2937); }
.token-scores figcaption { padding: 2px 5px; }
.token-scores div { overflow: auto; max-height: 640px; }
.token-matrix { border-collapse: separate; border-spacing: 0; font: 12px sans-serif;
  color: var(--ink, #1f2937); background: var(--paper, white); }
.token-matrix th { font-weight: normal; padding: 2px 5px; white-space: pre;
  background: var(--paper, white); overflow: hidden; text-overflow: ellipsis; }
.token-matrix thead { position: sticky; top: 0; z-index: 3;
  background: var(--paper, white); }
.token-matrix thead th { vertical-align: bottom; text-align: left; }
.token-matrix thead th.part span { position: sticky; left: 9em; }
.token-matrix thead th:not(.part) { writing-mode: vertical-rl;
  transform: rotate(180deg); max-height: 130px; }
.token-matrix tbody th { text-align: right; position: sticky; left: 0; z-index: 2;
  max-width: 16em; border-right: 1px solid #4b5563; }
.token-matrix thead td.blank { position: sticky; left: 0; z-index: 1;
  background: var(--paper, white); }
.token-matrix td { position: relative; min-width: 18px; height: 20px;
  padding: 0 3px; text-align: center;
  color: var(--ink, black);
  border: solid var(--line, #e5e7eb); border-width: 0 1px 1px 0; }
.token-matrix td.for, .token-scores i.for { background: rgb(var(--for, 100 168 222) /
  calc(var(--share) * var(--depth, 1))); }
.token-matrix td.against,
.token-scores i.against { background: rgb(var(--against, 240 138 93) /
  calc(var(--share) * var(--depth, 1))); }
.token-scores i { --share: 0.8; padding: 0 6px; font-style: normal;
  color: var(--ink, black); }
.token-scores figcaption span { white-space: nowrap; }
.token-matrix td.blank { border-color: transparent; }
.token-matrix .generated { border-left: 2px solid #4b5563; }
.token-matrix thead th.generated:not(.part) { border-left: 0;
  border-right: 2px solid #4b5563; }  /* turned by half */
.token-matrix tbody tr.sum th, .token-matrix tbody tr.sum td {
  border-top: 2px solid #4b5563; }
.token-matrix tbody tr.sum { position: sticky; bottom: 0; z-index: 3;
  background: var(--paper, white); }
.token-matrix tr:hover th { text-decoration: underline; }
.token-matrix td:not(.blank):hover { outline: 2px solid var(--ink, black); z-index: 4; }
.token-matrix td:not(.blank):hover::after { content: attr(data-score);
  position: absolute; left: 100%; bottom: 100%; padding: 2px 6px;
  background: #111827; color: white; white-space: pre; border-radius: 3px; }
.token-matrix td:nth-child(n+9):nth-last-child(-n+9):hover::after { left: auto;
  right: 100%; }
</style>"""


@dataclass(frozen=True, eq=False)
class TokenMatrix:
    """Scores of generated tokens by the tokens before them, drawn.

    The value of a notebook's cell, a figure, or text that rich prints.

    Attributes:
        scores (ndarray): Shape ``(n_outputs, n_inputs)``; NaN, shown as a blank, where
            the input comes after the output and no score can exist, or where the score
            given is not finite.
        input_tokens (tuple of str): The tokens of the columns, or their units, whole.
        output_tokens (tuple of str): The tokens of the rows.
        n_prompt (int): Columns in front of the first generated token.
        scale (str): ``"row"``: colours are relative to the largest score of a row;
            ``"matrix"``: of all.
        caption (str): What is shown, and what is left out.
        has_sum (bool): Whether the last row is the sum of those above.
        parts_of_units (dict): By row and column, the part of the column's unit that the
            score is of, where it is not the whole unit.
    """

    scores: np.ndarray
    input_tokens: tuple[str, ...]
    output_tokens: tuple[str, ...]
    n_prompt: int
    scale: Scale = "row"
    caption: str = ""
    has_sum: bool = False
    parts_of_units: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def names(self, row: int) -> list[str]:
        """Name the columns by what the scores of this row are of.

        Args:
            row (int): From 0.

        Returns:
            list of str: One per column. Of a unit of which the row's sum holds some
            tokens, as others come later or are left out, it is these.

        Raises:
            ValueError: If there is no such row.
        """
        check_integer("row", row, 0, len(self.output_tokens) - 1)
        return [
            self.parts_of_units.get((row, column), unit)
            for column, unit in enumerate(self.input_tokens)
        ]

    @cached_property
    def colours(self) -> np.ndarray:
        """Scores relative to the largest of the row or of all, in [-1, 1], or NaN.

        A last row that is the sum of the others is of another size than each of them,
        and has its own scale.
        """
        absolute = np.nan_to_num(np.abs(self.scores))
        largest = absolute.max(axis=1, keepdims=True, initial=0.0)
        if self.scale == "matrix":
            rows = slice(-1 if self.has_sum else None)
            largest[rows] = largest[rows].max(initial=0.0)
        return np.asarray(self.scores / np.where(largest > 0, largest, 1))

    @cached_property
    def shares(self) -> np.ndarray:
        """Scores relative to the sum of a row's absolute scores, in [-1, 1], or NaN."""
        total = np.nansum(np.abs(self.scores), axis=1, keepdims=True)
        return np.asarray(self.scores / np.where(total > 0, total, 1))

    @property
    def _is_numbered(self) -> bool:
        return len(self.input_tokens) <= _MOST_NUMBERED_COLUMNS

    def figure(self, n_tokens: int | None = _MOST_COLUMNS) -> Figure:
        """Draw for a paper; the figure's ``savefig`` writes PDF, PNG or SVG.

        It fits on a page: of many rows not each is labelled, and of more than
        ``n_tokens`` input tokens those with the largest shares of all rows are columns
        of their own, at least half of them of the prompt. Each run of others is a
        column with their mean, which says how many they are.

        Args:
            n_tokens (int, optional): Most columns; None draws one for each input token.

        Raises:
            ValueError: If ``n_tokens`` is not a number from 2.
        """
        if n_tokens is not None:
            check_integer("n_tokens", n_tokens, 2)
        sizes = self._run_lengths(n_tokens)
        # Colours stay relative to the largest score of a token.
        colours = _mean_over(self.colours, sizes)
        return shown_in_notebooks(self._gathered(sizes)._draw(colours, sizes))

    def _run_lengths(self, n_tokens: int | None) -> list[int]:
        """How many tokens each column stands for, such that ``n_tokens`` are left."""
        n = len(self.input_tokens)
        if n_tokens is None or n <= n_tokens:
            return [1] * n
        shares = np.nansum(np.abs(self.shares), 0)
        prompt, generated = shares[: self.n_prompt], shares[self.n_prompt :]
        n_prompt = max(n_tokens // 2, n_tokens - len(generated))
        lengths = _run_lengths(prompt, n_prompt)
        return lengths + _run_lengths(generated, n_tokens - len(lengths))

    def _gathered(self, sizes: Sequence[int]) -> TokenMatrix:
        """Let each column stand for a run of columns."""
        if len(sizes) == len(self.input_tokens):
            return self
        starts = _run_starts(sizes)
        is_single = np.equal(sizes, 1)
        names = [
            self.input_tokens[start] if single else f"{size} tokens"
            for start, size, single in zip(starts, sizes, is_single, strict=True)
        ]
        others = np.repeat(~is_single, sizes)
        absolute = np.nan_to_num(np.abs(self.scores))
        share = absolute[:, others].sum() / (absolute.sum() or 1)
        said = (
            f"in italics the mean of weaker tokens, {rounded(100 * share)} % of what "
            "is shown"
        )
        return replace(
            self,
            scores=_mean_over(self.scores, sizes),
            input_tokens=tuple(names),
            n_prompt=int((starts < self.n_prompt).sum()),
            caption=f"{self.caption}; {said}" if self.caption else said,
            parts_of_units={},
        )

    def _draw(self, colours: np.ndarray, sizes: Sequence[int]) -> Figure:
        n_rows, n_columns = self.scores.shape
        rows, columns = _labels(self.output_tokens), _labels(self.input_tokens)
        cell_width = 0.45 if self._is_numbered else 0.19
        if n_columns <= _MOST_COLUMNS:
            room = _PAGE_WIDTH - _MARGIN - _longest(rows)
            cell_width = min(cell_width, room / max(n_columns, 1))
        cell_height = min(0.22, _ROWS_HEIGHT / max(n_rows, 1))
        width = n_columns * cell_width + _longest(rows) + _MARGIN
        caption = _lines(self.caption, width)
        height = n_rows * cell_height + _longest(columns) + 0.5
        height += _LINE * len(caption)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(
            colours,
            ORANGE_WHITE_BLUE,
            aspect="auto",
            vmin=-1,
            vmax=1,
            extent=(-0.5, max(n_columns, 1) - 0.5, max(n_rows, 1) - 0.5, -0.5),
        )
        axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
        axes.set_frame_on(False)
        _write(axes.xaxis, columns, rotation=90)
        for label, size in zip(axes.get_xticklabels(), sizes, strict=True):
            if size > 1:
                label.set(style="italic", color="0.4")
        _write(axes.yaxis, rows, rotation=0, step=math.ceil(_LINE / cell_height))
        if 0 < self.n_prompt < n_columns:
            axes.axvline(self.n_prompt - 0.5, color="0.3", linewidth=1)
        if self.has_sum:
            axes.axhline(n_rows - 1.5, color="0.3", linewidth=1)
        if caption:
            families = [name for _, names in caption for name in names]
            text = "\n".join(line for line, _ in caption)
            axes.set_xlabel(text, fontsize=_FONT_SIZE, loc="left")
            axes.xaxis.label.set(family=[*dict.fromkeys(families)], parse_math=False)
        if self._is_numbered:
            _write_numbers(axes, self.scores)
        else:
            _mark_signs(axes, colours)
            said = f"score relative to the largest of the {self.scale}"
            _add_colour_bar(figure, drawn, said, signed=bool((colours < 0).any()))
        return figure

    def _repr_html_(self) -> str:
        n_columns = len(self.input_tokens)
        sides = [("prompt", self.n_prompt), ("generated", n_columns - self.n_prompt)]
        parts = "".join(
            f'<th class="part {name}" scope="colgroup" colspan="{size}">'
            f"<span>{name}</span></th>"
            for name, size in sides
        )
        if not all(size > 0 for _, size in sides):
            parts = ""
        head = "".join(
            f'<th{self._mark(column)} scope="col">{escaped(token)}</th>'
            for column, token in enumerate(self.input_tokens)
        )
        corner = '<td class="blank"></td>'
        heads = [parts, head] if parts else [head]
        rows = "".join(f"<tr>{corner}{cells}</tr>" for cells in heads)
        body = "".join(self._row(row) for row in range(len(self.output_tokens)))
        caption = f"{escaped(self.caption)} {self._legend()}"
        return (
            f'{_STYLE}<figure class="token-scores"><figcaption>{caption}</figcaption>'
            '<div tabindex="0" role="region" aria-label="Scores, scroll both ways">'
            f'<table class="token-matrix"><thead>{rows}</thead>'
            f"<tbody>{body}</tbody></table></div></figure>"
        )

    def _legend(self) -> str:
        is_signed = bool((np.nan_to_num(self.scores) < 0).any())
        words = ("for it", "against it") if is_signed else ("counts for it",)
        samples = "".join(
            f'<i class="{side}">{name}</i> '
            for side, name in zip(("for", "against"), words, strict=False)
        )
        of = f"the deeper, the larger, relative to the {self.scale}"
        return f"<span>{samples}{of}</span>"

    def _mark(self, column: int) -> str:
        """Tell the first generated token from the prompt before it."""
        return ' class="generated"' if column == self.n_prompt else ""

    def _row(self, row: int) -> str:
        is_sum = self.has_sum and row == len(self.output_tokens) - 1
        cells = "".join(
            self._cell(row, column, token)
            for column, token in enumerate(self.names(row))
        )
        mark = ' class="sum"' if is_sum else ""
        name = escaped(self.output_tokens[row])
        return f'<tr{mark}><th scope="row" title="{name}">{name}</th>{cells}</tr>'

    def _cell(self, row: int, column: int, token: str) -> str:
        score = self.scores[row, column]
        if np.isnan(score):
            return '<td class="blank"></td>'
        shade = self.colours[row, column]
        sign = MINUS if shade <= -WEAKEST_SIGN else ""
        number = f"{score:.2g}" if self._is_numbered else sign
        share = rounded(100 * self.shares[row, column])
        side = "for" if shade >= 0 else "against"
        kind = f"{side} generated" if column == self.n_prompt else side
        return (
            f'<td class="{kind}" style="--share: {abs(shade):.3f}" '
            f'data-score="{escaped(token)}: {score:.3g} ({share} %)">{number}</td>'
        )

    def __rich__(self) -> Text:
        lines = [Text(printable(self.caption))] if self.caption else []
        for row, output in enumerate(self.output_tokens):
            scores, shades, names = self.scores[row], self.colours[row], self.names(row)
            seen = np.flatnonzero(~np.isnan(scores))
            tokens = [names[column] for column in seen]
            line = Text().append(f"{printable(output)}: ", "bold")
            for column, token in zip(seen, tokens, strict=True):
                if column == self.n_prompt:
                    line.append("|")
                line.append_text(coloured_token(token, shades[column]))
            lines.append(line.append(f"\n  {strongest(tokens, scores[seen])}"))
        return Text("\n").join(lines)


def _run_lengths(strengths: np.ndarray, n_columns: int) -> list[int]:
    """Cut tokens into at most this many runs, the strongest into runs of one."""
    n = len(strengths)
    strongest = np.argsort(-strengths, kind="stable")
    for n_kept in range(min(n, n_columns), -1, -1):
        kept = strongest[:n_kept]
        edges = sorted({0, n, *kept.tolist(), *(kept + 1).tolist()})
        if len(edges) - 1 <= n_columns:
            break
    return [stop - start for start, stop in pairwise(edges)]


def _run_starts(sizes: Sequence[int]) -> np.ndarray:
    """Return the first column of each run."""
    return np.cumsum([0, *sizes])[:-1]


def _mean_over(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Take the mean over each run of columns, of what is not blank."""
    if len(sizes) == values.shape[1]:
        return values
    starts = _run_starts(sizes)
    sums = np.add.reduceat(np.nan_to_num(values), starts, axis=1)
    seen = np.add.reduceat(~np.isnan(values), starts, axis=1, dtype=float)
    return np.asarray(sums / np.where(seen, seen, np.nan))


def _write_numbers(axes: Axes, scores: np.ndarray) -> None:
    for (row, column), score in np.ndenumerate(scores):
        if not np.isnan(score):
            number = axes.text(column, row, f"{score:.2g}", fontsize=7)
            number.set(ha="center", va="center")


def _add_colour_bar(figure: Figure, drawn: AxesImage, said: str, signed: bool) -> None:
    bar = figure.colorbar(drawn, shrink=_BAR)
    bar.ax.tick_params(labelsize=_FONT_SIZE)
    if signed:
        said += "; \N{MINUS SIGN} is against"
    else:
        bar.ax.set_ylim(0, 1)
    inches = figure.get_figheight()
    n_characters = int(72 * _BAR * inches / (0.55 * _FONT_SIZE))
    lines = textwrap.wrap(said, max(n_characters, _FEWEST))
    bar.set_label("\n".join(lines), fontsize=_FONT_SIZE)


def _mark_signs(axes: Axes, colours: np.ndarray) -> None:
    """Mark cells that speak against, for those who see no colours."""
    rows, columns = np.nonzero(np.nan_to_num(colours) <= -WEAKEST_SIGN)
    axes.plot(columns, rows, "_", color="0.2", markersize=4)


def _labels(tokens: Sequence[str]) -> list[Label]:
    return [drawable(shortened(token, _LABEL_CELLS)) for token in tokens]


def _longest(labels: Sequence[Label]) -> float:
    return float(label_widths(labels, _FONT_SIZE).max(initial=0.0))


def _lines(caption: str, width: float) -> list[Label]:
    """Break a caption into lines that fit into a figure of this width in inches."""
    n_characters = int(72 * width / (0.6 * _FONT_SIZE))
    return [drawable(line) for line in textwrap.wrap(caption, n_characters)]


def _write(axis: Axis, labels: Sequence[Label], rotation: int, step: int = 1) -> None:
    """Write a token at every row or column, or where they are narrow at some."""
    labels = labels[::step]
    places = range(0, step * len(labels), step)
    axis.set_ticks(places, [text for text, _ in labels])
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
        >>> matrix.__rich__().plain.splitlines()[-1]
        '  for: "so" 20 %; against: "fun" 80 %'
    """
    check_choice("scale", scale, get_args(Scale))
    check_dense("attributions", attributions, "(n_outputs, n_inputs)")
    for name, tokens in (("input", input_tokens), ("output", output_tokens)):
        check_strings(f"{name}_tokens", tokens, "a list of str")
    if n_prompt is not None:
        check_integer("n_prompt", n_prompt, 0)
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
    scores = blank_where(attributions, columns - n_prompt >= rows)
    return TokenMatrix(
        scores, tuple(input_tokens), tuple(output_tokens), n_prompt, scale
    )


def blank_where(scores: Tensor, is_blank: np.ndarray) -> np.ndarray:
    """Return scores, NaN where they are blank or not finite.

    Args:
        scores (Tensor): Of any shape.
        is_blank (ndarray): Of the same.
    """
    found = scores.detach().double().cpu().numpy().copy()
    found[is_blank | ~np.isfinite(found)] = np.nan
    return np.asarray(found)
