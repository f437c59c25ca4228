"""Scores of generated tokens by the tokens before them, as a coloured matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.text import Text
from torch import Tensor

from captum_attnflow.scored_tokens import colour, escaped, highest, printable
from captum_attnflow.show.figures import (
    Label,
    drawable,
    label_widths,
    shortened,
    shown_in_notebooks,
)

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
    """

    scores: np.ndarray
    input_tokens: tuple[str, ...]
    output_tokens: tuple[str, ...]

    @property
    def shares(self) -> np.ndarray:
        """Scores relative to the largest of the matrix, in [-1, 1], or NaN."""
        largest = np.nanmax(np.abs(self.scores), initial=0.0)
        return self.scores / largest if largest else self.scores

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
        largest = np.nanmax(np.abs(self.scores), initial=0.0) or 1.0
        drawn = axes.imshow(
            self.scores,
            _COLOURS,
            aspect="auto",
            vmin=-largest,
            vmax=largest,
            extent=(-0.5, max(n_columns, 1) - 0.5, max(n_rows, 1) - 0.5, -0.5),
        )
        axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
        axes.set_frame_on(False)
        _write(axes.xaxis, columns, rotation=90)
        _write(axes.yaxis, rows, rotation=0)
        if self._is_numbered:
            for (row, column), score in np.ndenumerate(self.scores):
                if not np.isnan(score):
                    number = axes.text(column, row, f"{score:.2g}", fontsize=7)
                    number.set(ha="center", va="center")
        else:
            figure.colorbar(drawn, shrink=0.8)
        return shown_in_notebooks(figure)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escaped(token)}</th>" for token in self.input_tokens)
        body = "".join(
            f"<tr><th>{escaped(output)}</th>"
            + "".join(
                _cell(score, share, token, self._is_numbered)
                for score, share, token in zip(
                    scores, shares, self.input_tokens, strict=True
                )
            )
            + "</tr>"
            for output, scores, shares in zip(
                self.output_tokens, self.scores, self.shares, strict=True
            )
        )
        return (
            f'{_STYLE}<div style="overflow-x: auto"><table class="token-matrix">'
            f'<thead><tr><td class="blank"></td>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def __rich__(self) -> Text:
        lines = []
        for output, scores, shares in zip(
            self.output_tokens, self.scores, self.shares, strict=True
        ):
            seen = np.flatnonzero(~np.isnan(scores))
            tokens = [self.input_tokens[column] for column in seen]
            line = Text().append(f"{printable(output)}: ", "bold")
            for token, share in zip(tokens, shares[seen], strict=True):
                line.append(f" {printable(token)} ", f"black on {colour(share)}")
            lines.append(line.append(f"\n  {highest(tokens, scores[seen])}"))
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


def _cell(score: float, share: float, token: str, numbered: bool) -> str:
    if np.isnan(score):
        return '<td class="blank"></td>'
    number = f"{score:.2g}" if numbered else ""
    return (
        f'<td style="background: {colour(share)}" '
        f'data-score="{escaped(token)}: {score:.3g}">{number}</td>'
    )


def token_matrix(
    attributions: Tensor,
    input_tokens: Sequence[str],
    output_tokens: Sequence[str],
    n_prompt: int | None = None,
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
        ['ny:  so  fun ', '  highest: so 0.25, fun -1']
    """
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
    scores = attributions.detach().double().cpu().numpy().copy()
    row, column = np.indices(shape)
    scores[(column - n_prompt >= row) | ~np.isfinite(scores)] = np.nan
    return TokenMatrix(scores, tuple(input_tokens), tuple(output_tokens))
