r"""What a flow diagram shows, the same for both of its renderers.

A token is a column and a token layer a row; an edge leads from the key in its column
below to the query in its column above. Coordinates are columns and rows: the renderers
know inches and pixels, the layout does not.

A relevance flow is signed: widths and shares are those of its absolute flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
RelativeTo = Literal["network", "layer"]

POSITIVE = "raises the output"
NEGATIVE = "lowers the output: dashed, diamonds"
GATHERED = "pale: gathered, never drawn wider"
TINT = "token: the deeper, the larger its score"
SEVERED = "severed by the minimum cut"
SOURCE_SIDE, SINK_SIDE = "source's side", "sink's side"
GATHERED_WIDEST = 3.0
"""How much wider than the largest edge a gathered stream is drawn, at most.

Gathered streams may carry a hundred times the flow of an edge. Drawn to scale they
would cover the rows, or leave only hairlines of the edges.
"""


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A minimum cut: its edges are full, and their capacity bounds every flow.

    Attributes:
        source_side (ndarray): Shape ``(L + 1, K)``, bool, nodes on the source's side,
            of the ``K`` tokens that are drawn singly.
        n_edges (int): Number of severed edges, drawn or not.
        capacity (float): Sum of their capacities.
    """

    source_side: Booleans
    n_edges: int
    capacity: float


@dataclass(frozen=True, eq=False)
class Streams:
    """The whole flow between ``C`` columns, as edges and a rest.

    In every layer ``amount`` of its edges and ``rest`` sum to the flow through the
    layer, and so do their absolute values.

    Attributes:
        edge_flow (ndarray): Shape ``(L, C, C)``, flow between columns, drawn or not,
            head before tail as in the network.
        largest (ndarray): Shape ``(L,)``, the absolute flow of an edge of width 1.
        layer (ndarray): Shape ``(E,)``, int64, layer of every edge that is drawn, from
            0. Gathered edges are the first, then by rising width: the widest are
            drawn last.
        tail (ndarray): Shape ``(E,)``, int64, column below.
        head (ndarray): Shape ``(E,)``, int64, column above.
        amount (ndarray): Shape ``(E,)``, flow of the edge. Between two columns there
            are two edges where one column gathers both negative or severed flow and
            other flow.
        width (ndarray): Shape ``(E,)``, absolute flow of the edge relative to the
            largest; at most 1, and at most ``GATHERED_WIDEST`` if it is gathered.
        gathered (ndarray): Shape ``(E,)``, bool, edges from or to the others.
        apart (ndarray): Shape ``(E,)``, bool, edges of negative flow, or edges that
            the minimum cut severs.
        rest (ndarray): Shape ``(L, 2)``, what the stream beside the columns gathers:
            flow from others to others, and on edges too thin to draw. The second
            is its part that is negative, or that the minimum cut severs.
        n_thin (int): Number of edges from one token to another with flow that are too
            thin to draw.
        gathered_share (ndarray): Shape ``(L,)``, in [0, 1], share of the absolute flow
            through each layer that is gathered, on edges of others or in the rest.
    """

    edge_flow: Floats
    largest: Floats
    layer: Integers
    tail: Integers
    head: Integers
    amount: Floats
    width: Floats
    gathered: Booleans
    apart: Booleans
    rest: Floats
    n_thin: int
    gathered_share: Floats


@dataclass(frozen=True, eq=False)
class Lane:
    """A straight stream past the nodes.

    Attributes:
        name (str): What it gathers.
        column (int, optional): The column that it stands in; None if it stands beside
            them.
        amount (ndarray): Shape ``(L, 2)``, flow that passes each layer, and that of it
            which is negative or severed.
        width (ndarray): Shape ``(L, 2)``, on the scale of the edges.
        numbers (tuple of str): What is written below it.
    """

    name: str
    column: int | None
    amount: Floats
    width: Floats
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FlowLayout:
    """A flow through ``L`` layers, drawn in ``C`` columns.

    Every column is a token; the last one may stand for all others.

    Attributes:
        tokens (tuple of str): The name of every column, length ``C``, printable.
        positions (ndarray): Shape ``(C - 1,)`` or ``(C,)``, int64, where the tokens
            that are drawn singly stand in the sequence.
        n_others (int): Tokens that the last column gathers; 0 if it is a token itself.
        read_out (tuple of str): The tokens where the output is read.
        method (str, optional): The method's name, for the title.
        target (str, optional): What is explained, for the title.
        value (float): The flow value.
        signed (bool): Whether it is the conserved flow of Relevance Flow, whose edges
            and nodes have a sign and whose value is the output.
        streams (Streams): The whole flow, drawn or gathered.
        node_flow (ndarray): Shape ``(L + 1, C)``, flow through every node.
        direct (ndarray, optional): Shape ``(C,)``, flow of the direct edges of a signed
            flow, which lead from the token past all layers; None where there are none.
        past (ndarray): Shape ``(2,)``, the sums of the positive and of the negative
            direct edges.
        cut (MinimumCut, optional): The minimum cut of the whole network; None where it
            is not drawn.
        threshold (float): Edges below this share of the largest flow are gathered.
        relative_to (str): Whether the largest flow is that of the ``"network"`` or of
            the edge's ``"layer"``.
    """

    tokens: tuple[str, ...]
    positions: Integers
    n_others: int
    read_out: tuple[str, ...]
    method: str | None
    target: str | None
    value: float
    signed: bool
    streams: Streams
    node_flow: Floats
    direct: Floats | None
    past: Floats
    cut: MinimumCut | None
    threshold: float
    relative_to: RelativeTo

    @property
    def n_layers(self) -> int:
        """Layers of edges, ``L``."""
        return len(self.node_flow) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens with flow, drawn singly or gathered."""
        return len(self.positions) + self.n_others

    @property
    def sent(self) -> Floats:
        """Flow that every column sends, direct edges included, shape ``(C,)``."""
        through_layers: Floats = self.node_flow[0]
        return through_layers if self.direct is None else through_layers + self.direct

    @property
    def tint(self) -> Floats:
        """Absolute scores as shares of the largest, shape ``(C,)``; 0 for the others.

        The sum of many would pale the tokens.
        """
        share: Floats = np.abs(self.sent)
        share[len(self.positions) :] = 0.0
        return np.asarray(share / max(share.max(), np.finfo(float).tiny))

    @property
    def has_negative(self) -> bool:
        """Whether an edge, node or token is drawn that lowers the output."""
        streams = self.streams
        amounts = streams.amount, streams.rest, self.past, self.node_flow, self.sent
        return any(bool((amount < 0).any()) for amount in amounts)

    @property
    def has_gathered(self) -> bool:
        """Whether anything is gathered."""
        return bool(self.n_others or self.streams.rest.any())

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Streams past the nodes: the rest, and the direct edges of a signed flow."""
        lanes = []
        if self.has_gathered:
            column = len(self.tokens) - 1 if self.n_others else None
            name = self.tokens[-1] if self.n_others else "thin edges"
            lanes.append(self._lane(name, column, self.streams.rest))
        if self.past.any():
            amount = np.tile(self.past, (self.n_layers, 1))
            numbers = _numbers(self.past, float(np.abs(self.past).max()))
            lanes.append(self._lane("direct edges", None, amount, numbers))
        return tuple(lanes)

    def _lane(
        self,
        name: str,
        column: int | None,
        amount: Floats,
        numbers: tuple[str, ...] = (),
    ) -> Lane:
        largest = self.streams.largest[:, None]
        width = relative_width(amount, largest, GATHERED_WIDEST)
        return Lane(name, column, amount, width, numbers)

    @property
    def amounts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Rows of numbers to write below the tokens of a signed flow, named."""
        if not self.signed:
            return ()
        rows = {"score": self.sent}
        if self.direct is not None:
            rows["of it direct"] = self.direct
        most = max(float(np.abs(row).max()) for row in rows.values())
        return tuple((name, _numbers(row, most)) for name, row in rows.items())

    @property
    def scale(self) -> tuple[tuple[float, str], ...]:
        """Widths with what they stand for, for the legend."""
        largest = self.streams.largest.max()
        if not largest:
            return ()
        if self.relative_to == "layer":
            return (1.0, "largest flow of its layer"), (0.25, "a quarter of it")
        return tuple((width, f"flow {width * largest:.2g}") for width in (1.0, 0.25))

    def title(self) -> str:
        """Say in words what flow it is: method, target, value and read-out."""
        name = self.method or ("Relevance flow" if self.signed else "Flow")
        explains = f"{name} for “{self.target}”" if self.target else name
        tokens = _counted(self.n_tokens, "token")
        if self.signed:
            output = _minus(f"{self.value:.4g}")
            return f"{explains}: the scores of {tokens} sum to the output {output}"
        read_out = (
            f"“{self.read_out[0]}”"
            if len(self.read_out) == 1
            else f"{len(self.read_out):,} read-outs"
        )
        return f"{explains}: {self.value:.4g} flows from {tokens} to {read_out}"

    def details(self) -> tuple[str, ...]:
        """Say what is gathered, what passes the layers, and the minimum cut."""
        parts = [self._gathered(), self._parts(), self._cut()]
        return tuple(part for part in parts if part)

    def _gathered(self) -> str:
        drawn = "All tokens are drawn."
        if self.n_others:
            drawn = (
                f"Drawn: {_counted(len(self.positions), 'token')}, the read-out and "
                f"those of the largest scores. The column “{self.tokens[-1]}” gathers "
                "the rest."
            )
        n_thin = self.streams.n_thin
        if not n_thin:
            return drawn
        stream = "that column" if self.n_others else "the pale stream beside them"
        return (
            f"{drawn} Gathered in {stream}: {_counted(n_thin, 'edge')} below "
            f"{100 * self.threshold:.3g} % of the largest in the {self.relative_to}."
        )

    def _parts(self) -> str:
        if self.direct is None:
            return ""
        parts = float(self.node_flow[0].sum()), float(self.past.sum())
        through, direct = (_minus(f"{part:.4g}") for part in parts)
        return f"{through} goes through the layers, {direct} past them on direct edges."

    def _cut(self) -> str:
        if self.cut is None:
            return ""
        edges = _counted(self.cut.n_edges, "edge")
        return f"The minimum cut severs {edges} of capacity {self.cut.capacity:.4g}."


def relative_width(
    amount: Floats, largest: npt.ArrayLike, widest: npt.ArrayLike
) -> Floats:
    """Absolute flow relative to the largest, at most the widest that is drawn."""
    share = np.abs(amount) / np.maximum(largest, np.finfo(float).tiny)
    return np.asarray(np.minimum(share, widest))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _numbers(values: Floats, most: float) -> tuple[str, ...]:
    """Write numbers with their sign, to three digits of the largest of the picture."""
    if not 1e-4 <= most < 1e6:
        return tuple(_minus(f"{value:+.1e}") if value else "0" for value in values)
    decimals = max(0, 2 - math.floor(math.log10(most)))
    return tuple(_minus(f"{value:+.{decimals}f}") for value in values)


def _minus(number: str) -> str:
    """Set a number with the minus sign, which is as wide as the plus sign."""
    return number.replace("-", "\N{MINUS SIGN}")
