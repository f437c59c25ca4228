"""A flow diagram as a figure, for papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from captum_attnflow.show.figures import (
    Label,
    drawable,
    label_widths,
    shortened,
)
from captum_attnflow.show.flow_diagram.layout import (
    NEGATIVE,
    POSITIVE,
    Floats,
    FlowLayout,
)

FLOW_COLOUR = "#2f6690"
CUT_COLOUR = "#d9541e"
NEGATIVE_COLOUR = CUT_COLOUR  # a signed flow has no cut
_MUTED = "#6b7280"
_LABEL_CELLS = 16
_FONT_SIZE = 8
_UPRIGHT_COLUMNS = 24  # most columns whose labels may stand upright
_ROW = 0.62  # inches between token layers
_LEFT, _RIGHT, _TOP = 0.75, 0.85, 0.85
_SMALL = 7  # points, of rows' names and of numbers
_AMOUNT = 0.15  # inches of an upright row of numbers
_HINTING = 1.1  # letters on a coarse grid of pixels are wider than measured
_HEAD_SIZES = 9, 7  # points of the lines above
_LEGEND = 4.6  # inches
_WIDEST_LINE = 4.5  # points
_CURVE_POINTS = 24
_DASH, _GAP = 3.5, 1.8  # points, of lines up to 2 wide


@dataclass(frozen=True)
class _Sheet:
    """Where columns and rows are on the sheet, in inches from its lower left."""

    n_columns: int
    n_rows: int
    column: float
    token: float
    amount: float
    n_amounts: int
    head: float
    rotated: bool

    @property
    def label(self) -> float:
        """Where labels of tokens end; numbers are below them."""
        return self.token + 0.15 + self.amount * self.n_amounts

    def amounts(self, row: int) -> float:
        """Where a row of numbers ends."""
        return self.label - self.token - 0.05 - self.amount * row

    @property
    def width(self) -> float:
        return max(_LEFT + self.column * self.n_columns + _RIGHT, self.head)

    @property
    def height(self) -> float:
        return self.label + 0.25 + _ROW * (self.n_rows - 1) + _TOP

    def x(self, column: npt.ArrayLike) -> Floats:
        spare = self.width - _LEFT - _RIGHT - self.column * self.n_columns
        return _LEFT + spare / 2 + self.column * (np.asarray(column) + 0.5)

    def y(self, row: npt.ArrayLike) -> Floats:
        return self.label + 0.25 + _ROW * np.asarray(row)


def draw_flow(layout: FlowLayout) -> Figure:
    """Draw a flow diagram; ``savefig`` writes it as PDF, PNG or SVG.

    Args:
        layout (FlowLayout): The diagram.

    Returns:
        Figure: Wide enough that no label touches another, at any number of tokens.
    """
    labels = [drawable(shortened(token, _LABEL_CELLS)) for token in layout.tokens]
    longest = label_widths(labels, _FONT_SIZE).max()
    numbers = [drawable(number) for _, row in layout.amounts for number in row]
    widest = label_widths(numbers, _SMALL).max() if numbers else 0
    rotated = len(labels) > _UPRIGHT_COLUMNS
    sheet = _Sheet(
        n_columns=len(labels),
        n_rows=layout.n_layers + 1,
        column=0.2 if rotated else max(longest + 0.12, widest + 0.12, 0.45),
        token=longest if rotated else 0.2,
        amount=widest + 0.12 if rotated else _AMOUNT,
        n_amounts=len(layout.amounts),
        head=0.3 + _HINTING * max(_LEGEND, *_head_widths(layout)),
        rotated=rotated,
    )
    figure = Figure(figsize=(sheet.width, sheet.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, sheet.width), ylim=(0, sheet.height))
    axes.set_axis_off()
    _draw_edges(axes, layout, sheet)
    _draw_nodes(axes, layout, sheet)
    _write_tokens(axes, layout, sheet, labels)
    _write_amounts(axes, layout, sheet)
    _write_rows(axes, layout, sheet)
    _write_head(figure, layout, sheet)
    return figure


def _draw_edges(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    along = np.linspace(0, 1, _CURVE_POINTS)
    sideways = along**2 * (3 - 2 * along)
    tail, head, layer = (
        ends[:, None] for ends in (layout.tail, layout.head, layout.layer)
    )
    x = sheet.x(tail + (head - tail) * sideways)
    y = sheet.y(layer + along)
    width = layout.width
    apart = (layout.in_cut | layout.negative)[:, None]
    colours = np.where(apart, to_rgb(CUT_COLOUR), to_rgb(FLOW_COLOUR))
    opacity = 0.25 + 0.6 * np.sqrt(width)
    linewidths = np.maximum(_WIDEST_LINE * width, 0.3)
    axes.add_collection(
        LineCollection(
            list(np.stack([x, y], -1)),
            linewidths=linewidths,
            linestyles=[
                _dashed(linewidth) if negative else "solid"
                for linewidth, negative in zip(linewidths, layout.negative, strict=True)
            ]
            or "solid",
            colors=np.column_stack([colours, opacity]),
            capstyle="butt",
        )
    )


def _dashed(linewidth: float) -> tuple[float, tuple[float, float]]:
    """Dash a line by lengths in points, which matplotlib multiplies by its width."""
    longer = max(1.0, linewidth / 2)
    return 0, (_DASH * longer / linewidth, _GAP * longer / linewidth)


def _draw_nodes(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    share = _shares(layout.node_flow)
    filled = np.full(share.shape, True)
    if layout.cut is not None:
        filled = layout.cut.source_side | (share == 0)
    negative = layout.node_flow < 0
    for drawn, marker, colour in (
        (~negative, "o", FLOW_COLOUR),
        (negative, "D", NEGATIVE_COLOUR),
    ):
        if not drawn.any():
            continue
        row, column = drawn.nonzero()
        axes.scatter(
            sheet.x(column),
            sheet.y(row),
            s=3 + 45 * share[drawn],
            marker=marker,
            c=np.where(filled[drawn], colour, "white"),
            edgecolors=np.where(share[drawn] > 0, colour, "#c5cad3"),
            linewidths=0.7,
            zorder=3,
        )


def _shares(amounts: Floats) -> Floats:
    """Absolute values as shares of the largest; 0 where all are."""
    most = np.abs(amounts).max()
    return np.asarray(np.abs(amounts) / max(most, np.finfo(float).tiny))


def _write_tokens(
    axes: Axes,
    layout: FlowLayout,
    sheet: _Sheet,
    labels: list[Label],
) -> None:
    """Write the token of every column, on a tint that deepens with its flow."""
    negative = layout.sent[:, None] < 0
    colours = np.where(negative, to_rgb(NEGATIVE_COLOUR), to_rgb(FLOW_COLOUR))
    tints = 1 - 0.45 * _shares(layout.sent)[:, None] * (1 - colours)
    for column, ((text, families), tint) in enumerate(zip(labels, tints, strict=True)):
        axes.text(
            float(sheet.x(column)),
            sheet.label,
            text,
            family=families,
            fontsize=_FONT_SIZE,
            rotation=90 if sheet.rotated else 0,
            ha="center",
            va="top",
            parse_math=False,
            bbox={"facecolor": tint, "edgecolor": "none", "pad": 1.2},
            gid="token",
        )


def _write_amounts(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    """Write what every token of a signed flow sends, and its directly sent part."""
    for row, (name, numbers) in enumerate(layout.amounts):
        top = sheet.amounts(row)
        axes.text(
            _LEFT - 0.1,
            top,
            name,
            fontsize=_SMALL,
            color=_MUTED,
            ha="right",
            va="top",
        )
        for column, number in enumerate(numbers):
            axes.text(
                float(sheet.x(column)),
                top,
                number,
                fontsize=_SMALL,
                rotation=90 if sheet.rotated else 0,
                ha="center",
                va="top",
                gid=name,
            )


def _write_rows(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    """Name the token layers, and write between them the share of the flow drawn."""
    style: dict[str, Any] = {"fontsize": _SMALL, "color": _MUTED, "va": "center"}
    for row in range(sheet.n_rows):
        name = f"layer {row}" if row else "input"
        axes.text(_LEFT - 0.1, float(sheet.y(row)), name, ha="right", **style)
    right = sheet.width - _RIGHT + 0.1
    for layer, share in enumerate(layout.drawn_share):
        drawn = f"{100 * share:.0f} % drawn"
        axes.text(right, float(sheet.y(layer + 0.5)), drawn, ha="left", **style)


def _head_widths(layout: FlowLayout) -> list[float]:
    lines = layout.summary(), layout.pruning()
    return [
        float(label_widths([drawable(line)], size)[0])
        for line, size in zip(lines, _HEAD_SIZES, strict=True)
    ]


def _write_head(figure: Figure, layout: FlowLayout, sheet: _Sheet) -> None:
    x = 0.15 / sheet.width
    top = 1 - 0.12 / sheet.height
    figure.text(x, top, layout.summary(), fontsize=_HEAD_SIZES[0], va="top")
    figure.text(
        x,
        1 - 0.3 / sheet.height,
        layout.pruning(),
        fontsize=_HEAD_SIZES[1],
        color=_MUTED,
        va="top",
    )
    handles = _legend(layout)
    if not handles:
        return
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.05 / sheet.width, 1 - 0.4 / sheet.height),
        ncols=3,
        fontsize=_SMALL,
        frameon=False,
    )


def _legend(layout: FlowLayout) -> list[Line2D]:
    if layout.has_negative:
        return [
            Line2D([], [], color=FLOW_COLOUR, marker="o", ms=4, label=POSITIVE),
            Line2D(
                [],
                [],
                color=NEGATIVE_COLOUR,
                linestyle=_dashed(1.5),
                marker="D",
                ms=4,
                label=NEGATIVE,
            ),
        ]
    if layout.cut is None:
        return []
    nodes = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=5,
            markeredgecolor=FLOW_COLOUR,
            markerfacecolor=face,
            label=f"{side}'s side",
        )
        for side, face in (("source", FLOW_COLOUR), ("sink", "white"))
    ]
    return [
        Line2D([], [], color=CUT_COLOUR, lw=2, label="severed by the minimum cut"),
        *nodes,
    ]
