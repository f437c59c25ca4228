"""A flow diagram as a figure, for papers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from captum_attnflow.show.figures import (
    Label,
    drawable,
    label_widths,
    shortened,
)
from captum_attnflow.show.flow_diagram.layout import (
    GATHERED,
    GATHERED_WIDEST,
    NEGATIVE,
    POSITIVE,
    SEVERED,
    SINK_SIDE,
    SOURCE_SIDE,
    TINT,
    Booleans,
    Floats,
    FlowLayout,
    Lane,
)

FLOW_COLOUR = "#2f6690"
CUT_COLOUR = "#d9541e"
NEGATIVE_COLOUR = CUT_COLOUR  # a signed flow has no cut
GATHERED_OPACITY = 0.3
_MUTED = "#6b7280"
_LABEL_CELLS = 16
_FONT_SIZE = 8
_SMALL = 7.0  # points, of rows' names and of numbers
_PAGE = 8.0  # inches; wider where the labels of many tokens need it
_UPRIGHT, _ROTATED = 0.45, 0.2  # inches, the narrowest columns
_ROW, _ROWS = 0.62, 9.0  # inches between token layers, and of all of them
_LEFT, _RIGHT = 0.85, 0.75
_LANE = 0.75  # inches, of a stream beside the columns
_AMOUNT = 0.15  # inches of an upright row of numbers
_LINE = 0.17  # inches of a line of the head
_HINTING = 1.1  # letters on a coarse grid of pixels are wider than measured
_HEAD_SIZE = 9.0  # points of the title
_LEGEND = 6.0  # inches, three columns of it
_LONGEST_WORD = 40  # characters, of the head
_WIDEST_LINE = 4.5  # points
_CURVE_POINTS = 24
_DASH, _GAP = 3.5, 1.8  # points, of lines up to 2 wide
_ASIDE = 0.11  # inches, of two gathered streams from their column's middle
_LEGEND_COLUMNS = 3


@dataclass(frozen=True)
class _Sheet:
    """Where columns and rows are on the sheet, in inches from its lower left."""

    n_columns: int
    n_rows: int
    column: float
    row: float
    token: float
    amount: float
    n_amounts: int
    n_lanes: int
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
    def columns(self) -> float:
        """Width of all columns."""
        return self.column * self.n_columns

    @property
    def width(self) -> float:
        return max(_LEFT + self.columns + _LANE * self.n_lanes + _RIGHT, _LEGEND)

    @property
    def height(self) -> float:
        return self.label + 0.25 + self.row * (self.n_rows - 1) + 0.3 + self.head

    def x(self, column: npt.ArrayLike) -> Floats:
        return self._start + self.column * (np.asarray(column) + 0.5)

    def places(self, lanes: tuple[Lane, ...]) -> list[tuple[float, Lane]]:
        """Where streams past the nodes stand: in a column, or beside all in turn."""
        beside = [lane for lane in lanes if lane.column is None]
        right = self._start + self.columns
        return [
            (right + _LANE * (beside.index(lane) + 0.5), lane)
            if lane.column is None
            else (float(self.x(lane.column)), lane)
            for lane in lanes
        ]

    @property
    def _start(self) -> float:
        lanes = _LANE * self.n_lanes
        return _LEFT + (self.width - _LEFT - _RIGHT - lanes - self.columns) / 2

    def y(self, row: npt.ArrayLike) -> Floats:
        return self.label + 0.25 + self.row * np.asarray(row)


def draw_flow(layout: FlowLayout) -> Figure:
    """Draw a flow diagram; ``savefig`` writes it as PDF, PNG or SVG.

    Args:
        layout (FlowLayout): The diagram.

    Returns:
        Figure: As wide as a page, or wide enough that no label touches another.
    """
    labels = [drawable(shortened(token, _LABEL_CELLS)) for token in layout.tokens]
    sheet = _place(layout, labels)
    lines = _head(layout, sheet.width - 0.3)
    legend = _legend(layout)
    n_rows = -(-len(legend) // _LEGEND_COLUMNS)
    sheet = replace(sheet, head=0.15 + _LINE * (len(lines) + n_rows))
    figure = Figure(figsize=(sheet.width, sheet.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, sheet.width), ylim=(0, sheet.height))
    axes.set_axis_off()
    _draw_lanes(axes, layout, sheet)
    _draw_edges(axes, layout, sheet)
    _draw_nodes(axes, layout, sheet)
    _write_tokens(axes, layout, sheet, labels)
    _write_amounts(axes, layout, sheet)
    _write_rows(axes, layout, sheet)
    _write_head(figure, sheet, lines, legend)
    return figure


def _place(layout: FlowLayout, labels: list[Label]) -> _Sheet:
    """Place columns and rows, below a head of no height."""
    longest = float(label_widths(labels, _FONT_SIZE).max())
    numbers = [drawable(number) for _, row in layout.amounts for number in row]
    widest = float(label_widths(numbers, _SMALL).max()) if numbers else 0.0
    n_lanes = sum(lane.column is None for lane in layout.lanes)
    room = (_PAGE - _LEFT - _RIGHT - _LANE * n_lanes) / len(labels)
    upright = max(longest + 0.12, widest + 0.12, _UPRIGHT)
    rotated = upright > room
    return _Sheet(
        n_columns=len(labels),
        n_rows=layout.n_layers + 1,
        column=max(min(room, _UPRIGHT), _ROTATED) if rotated else upright,
        row=min(_ROW, _ROWS / layout.n_layers),
        token=_HINTING * longest if rotated else 0.2,
        amount=_HINTING * widest + 0.12 if rotated else _AMOUNT,
        n_amounts=len(layout.amounts),
        n_lanes=n_lanes,
        head=0.0,
        rotated=rotated,
    )


def _draw_edges(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    streams = layout.streams
    along = np.linspace(0, 1, _CURVE_POINTS)
    sideways = along**2 * (3 - 2 * along)
    # Two streams of the others side by side: one would hide the other.
    aside = streams.gathered * np.where(streams.apart, 1, -1) * _ASIDE
    aside = aside * streams.apart[streams.gathered].any()
    others = len(layout.tokens) - 1
    start, end = (
        (sheet.x(column) + aside * (column == others))[:, None]
        for column in (streams.tail, streams.head)
    )
    x = start + (end - start) * sideways
    y = sheet.y(streams.layer[:, None] + along)
    opacity = np.where(
        streams.gathered, GATHERED_OPACITY, 0.25 + 0.6 * np.sqrt(streams.width)
    )
    axes.add_collection(
        _lines(
            list(np.stack([x, y], -1)), streams.width, streams.apart, opacity, layout
        )
    )


def _draw_lanes(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    """Draw the streams past the nodes, in the column of the others or beside all."""
    style: dict[str, Any] = {"fontsize": _SMALL, "ha": "center", "va": "top"}
    for place, lane in sheet.places(layout.lanes):
        both = lane.amount.any(0).all()
        layer, apart = lane.amount.nonzero()
        x = place + both * np.where(apart == 1, 1, -1) * _ASIDE
        ends = [sheet.y(layer), sheet.y(layer + 1)]
        curves = np.stack([np.stack([x, y], -1) for y in ends], 1)
        pale = np.full(len(x), GATHERED_OPACITY)
        width = lane.width[layer, apart]
        axes.add_collection(_lines(list(curves), width, apart == 1, pale, layout))
        if lane.column is None:
            axes.text(place, sheet.label, lane.name, color=_MUTED, **style)
        for row, number in enumerate(lane.numbers):
            axes.text(place, sheet.amounts(row), number, gid="lane", **style)


def _lines(
    curves: list[Floats],
    width: Floats,
    apart: Booleans,
    opacity: Floats,
    layout: FlowLayout,
) -> LineCollection:
    """Lines as wide as their flow; negative ones are dashed."""
    colours = np.where(apart[:, None], to_rgb(CUT_COLOUR), to_rgb(FLOW_COLOUR))
    linewidths = np.maximum(_WIDEST_LINE * width, 0.3)
    dashed = apart & layout.signed
    return LineCollection(
        curves,
        linewidths=linewidths,
        linestyles=[
            _dashed(linewidth) if negative else "solid"
            for linewidth, negative in zip(linewidths, dashed, strict=True)
        ]
        or "solid",
        colors=np.column_stack([colours, opacity]),
        capstyle="butt",
    )


def _dashed(linewidth: float) -> tuple[float, tuple[float, float]]:
    """Dash a line by lengths in points, which matplotlib multiplies by its width."""
    longer = min(max(1.0, linewidth / 2), 2.0)
    return 0, (_DASH * longer / linewidth, _GAP * longer / linewidth)


def _draw_nodes(axes: Axes, layout: FlowLayout, sheet: _Sheet) -> None:
    share = _shares(layout)
    filled = np.full(share.shape, True)
    if layout.cut is not None:
        n_single = len(layout.positions)
        filled[:, :n_single] = layout.cut.source_side | (share[:, :n_single] == 0)
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


def _shares(layout: FlowLayout) -> Floats:
    """Absolute flows of nodes as shares of the largest; 0 where all are."""
    amounts = np.abs(layout.node_flow)
    return np.asarray(amounts / max(amounts.max(), np.finfo(float).tiny))


def _write_tokens(
    axes: Axes,
    layout: FlowLayout,
    sheet: _Sheet,
    labels: list[Label],
) -> None:
    """Write the token of every column, on a tint that deepens with its flow."""
    negative = layout.sent[:, None] < 0
    colours = np.where(negative, to_rgb(NEGATIVE_COLOUR), to_rgb(FLOW_COLOUR))
    tints = 1 - 0.45 * layout.tint[:, None] * (1 - colours)
    for column, ((text, families), tint) in enumerate(zip(labels, tints, strict=True)):
        axes.text(
            float(sheet.x(column)),
            sheet.label,
            text,
            family=families,
            fontsize=_FONT_SIZE,
            fontstyle="normal" if column < len(layout.positions) else "italic",
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
            float(sheet.x(-0.5)) - 0.1,
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
    """Name the token layers, and write between them the share that is gathered."""
    style: dict[str, Any] = {"fontsize": _SMALL, "color": _MUTED, "va": "center"}
    left = float(sheet.x(-0.5)) - 0.1
    for row in range(sheet.n_rows):
        name = f"layer {row}" if row else "input"
        axes.text(left, float(sheet.y(row)), name, ha="right", **style)
    if not layout.has_gathered:
        return
    right = float(sheet.x(sheet.n_columns - 0.5)) + _LANE * sheet.n_lanes + 0.1
    top = float(sheet.y(sheet.n_rows - 1))
    axes.text(right, top, "gathered", ha="left", **style)
    for layer, share in enumerate(layout.streams.gathered_share):
        percent = f"{100 * share:.0f} %"
        axes.text(right, float(sheet.y(layer + 0.5)), percent, ha="left", **style)


def _head(layout: FlowLayout, width: float) -> list[tuple[str, float]]:
    """Lines above the diagram, each no wider than ``width`` inches, with their size."""
    lines = [(line, _HEAD_SIZE) for line in _wrapped(layout.title(), _HEAD_SIZE, width)]
    for detail in layout.details():
        lines += [(line, _SMALL) for line in _wrapped(detail, _SMALL, width)]
    return lines


def _wrapped(text: str, font_size: float, width: float) -> list[str]:
    """Break a text into lines, and words too, if they are as long as a line."""
    pieces = [
        ((" " if start == 0 else "") + word[start : start + _LONGEST_WORD])
        for word in (drawable(word)[0] for word in text.split(" "))
        for start in range(0, max(len(word), 1), _LONGEST_WORD)
    ]
    widths = _HINTING * label_widths([drawable(piece) for piece in pieces], font_size)
    lines, left = [""], width
    for piece, needed in zip(pieces, widths.tolist(), strict=True):
        if lines[-1] and needed > left:
            lines.append("")
            left = width
        lines[-1] += piece
        left -= needed
    return [line.strip(" ") for line in lines]


def _write_head(
    figure: Figure,
    sheet: _Sheet,
    lines: list[tuple[str, float]],
    legend: list[Artist],
) -> None:
    x = 0.15 / sheet.width
    for number, (line, size) in enumerate(lines):
        text, families = drawable(line)
        figure.text(
            x,
            1 - (0.1 + _LINE * number) / sheet.height,
            text,
            family=families,
            fontsize=size,
            color="black" if size == _HEAD_SIZE else _MUTED,
            va="top",
            parse_math=False,
        )
    if not legend:
        return
    figure.legend(
        handles=legend,
        loc="upper left",
        bbox_to_anchor=(
            0.05 / sheet.width,
            1 - (0.05 + _LINE * len(lines)) / sheet.height,
        ),
        ncols=_LEGEND_COLUMNS,
        fontsize=_SMALL,
        frameon=False,
    )


def _legend(layout: FlowLayout) -> list[Artist]:
    """Say what widths, tints, signs and the cut mean, of what the diagram has."""
    line: dict[str, Any] = {"color": FLOW_COLOUR, "marker": "o", "ms": 4}
    handles: list[Artist] = [
        Line2D([], [], color=FLOW_COLOUR, lw=_WIDEST_LINE * width, label=what)
        for width, what in layout.scale
    ]
    if layout.has_gathered:
        thick = _WIDEST_LINE * GATHERED_WIDEST / 2
        handles.append(
            Line2D(
                [],
                [],
                color=FLOW_COLOUR,
                lw=thick,
                alpha=GATHERED_OPACITY,
                label=GATHERED,
            )
        )
    handles.append(Patch(color=_tint(0.7), label=TINT))
    if layout.has_negative:
        dashed: dict[str, Any] = {"linestyle": _dashed(1.5), "marker": "D", "ms": 4}
        handles.append(Line2D([], [], label=POSITIVE, **line))
        handles.append(Line2D([], [], color=NEGATIVE_COLOUR, label=NEGATIVE, **dashed))
    if layout.cut is not None:
        handles.append(Line2D([], [], color=CUT_COLOUR, lw=2, label=SEVERED))
        for side, face in ((SOURCE_SIDE, FLOW_COLOUR), (SINK_SIDE, "white")):
            node: dict[str, Any] = {**line, "linestyle": "none", "mfc": face}
            handles.append(Line2D([], [], label=side, **node))
    return handles


def _tint(share: float) -> tuple[float, ...]:
    """The flow's colour, the paler the smaller a token's share of the largest."""
    return tuple(1 - 0.45 * share * (1 - part) for part in to_rgb(FLOW_COLOUR))
