"""What of a flow is drawn singly, and what is gathered: the layout of a flow diagram.

A token is a column and a token layer a row; an edge leads from the key in its column
below to the query in its column above. Coordinates are columns and rows: the renderers
know inches and pixels, the layout does not. A relevance flow is signed: widths and
shares are those of its absolute flow.

Of a long text the tokens with the largest scores are columns of their own. All others
are one column, and edges too thin to draw are one stream beside the columns. Nothing is
left out: gathered flow is summed, parts of opposite sign apart, as their sum would hide
both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from captum_attnflow._checks import (
    check_choice,
    check_example,
    check_flags,
    check_integer,
    check_strings,
    check_type,
    counted,
    type_of,
)
from captum_attnflow.explanation import ConservationDiagnostics, Explanation
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.scored_tokens import position_labels, printable

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
        tokens = counted(self.n_tokens, "token")
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
                f"Drawn: {counted(len(self.positions), 'token')}, the read-out and "
                f"those of the largest scores. The column “{self.tokens[-1]}” gathers "
                "the rest."
            )
        n_thin = self.streams.n_thin
        if not n_thin:
            return drawn
        stream = "that column" if self.n_others else "the pale stream beside them"
        return (
            f"{drawn} Gathered in {stream}: {counted(n_thin, 'edge')} below "
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
        edges = counted(self.cut.n_edges, "edge")
        return f"The minimum cut severs {edges} of capacity {self.cut.capacity:.4g}."


def relative_width(
    amount: Floats, largest: npt.ArrayLike, widest: npt.ArrayLike
) -> Floats:
    """Absolute flow relative to the largest, at most the widest that is drawn."""
    share = np.abs(amount) / np.maximum(largest, np.finfo(float).tiny)
    return np.asarray(np.minimum(share, widest))


def _numbers(values: Floats, most: float) -> tuple[str, ...]:
    """Write numbers with their sign, to three digits of the largest of the picture."""
    if not 1e-4 <= most < 1e6:
        return tuple(_minus(f"{value:+.1e}") if value else "0" for value in values)
    decimals = max(0, 2 - math.floor(math.log10(most)))
    return tuple(_minus(f"{value:+.{decimals}f}") for value in values)


def _minus(number: str) -> str:
    """Set a number with the minus sign, which is as wide as the plus sign."""
    return number.replace("-", "\N{MINUS SIGN}")


def lay_out_flow(
    explanation: Explanation,
    tokens: Sequence[str] | None = None,
    example: int = 0,
    *,
    n_tokens: int = 12,
    threshold: float = 0.01,
    relative_to: RelativeTo = "network",
    cut: bool = False,
    method: str | None = None,
    target: str | None = None,
) -> FlowLayout:
    """Read one example's flow; see :func:`flow_diagram` for arguments and errors."""
    _check_options(n_tokens, threshold, relative_to, cut)
    for name, given in (("method", method), ("target", target)):
        check_type(name, given, (str, type(None)), "its name, or None")
    flow, labels = _read(explanation, tokens, example)
    signed = _is_signed(explanation)
    direct = _direct(explanation, example) if signed else None
    network = explanation.network.select(slice(example, example + 1)).trim()
    live = _live_positions(network, direct)
    flow = flow[:, live][:, :, live]
    direct = None if direct is None else direct[live]
    read_out = network.sink[0].cpu().numpy()[live]
    single = _most_important(flow, direct, read_out, n_tokens)
    membership = _membership(len(live), single)
    apart, minimum_cut = flow < 0, None
    if cut:
        side, apart, capacity = _severed(explanation, network, live, example)
        minimum_cut = MinimumCut(
            side[:, single], int(apart.sum()), float(capacity[apart].sum())
        )
    streams = gather(flow, apart, membership, threshold, relative_to)
    names = [printable(labels[position]) for position in live]
    n_others = len(live) - len(single)
    others = [f"{n_others:,} others"] if n_others else []
    return FlowLayout(
        tokens=(*(names[token] for token in single), *others),
        positions=live[single],
        n_others=n_others,
        read_out=tuple(names[token] for token in read_out.nonzero()[0]),
        method=None if method is None else printable(method),
        target=None if target is None else printable(target),
        value=float(explanation.flow_value[example]),
        signed=signed,
        streams=streams,
        node_flow=np.concatenate(
            [streams.edge_flow.sum(1), streams.edge_flow[-1:].sum(2)]
        ),
        direct=None if direct is None else direct @ membership,
        past=_signed_sums(direct),
        cut=minimum_cut,
        threshold=threshold,
        relative_to=relative_to,
    )


def gather(
    flow: Floats,
    apart: Booleans,
    membership: Floats,
    threshold: float,
    relative_to: RelativeTo,
) -> Streams:
    """Sum a flow over the tokens of each column, and the edges too thin to draw.

    Args:
        flow (ndarray): Shape ``(L, T, T)``, head before tail, of any sign.
        apart (ndarray): Shape ``(L, T, T)``, bool, edges that are not summed with the
            others: of negative flow, or severed by the minimum cut.
        membership (ndarray): Shape ``(T, C)``, 1 where a token is of a column, else 0.
            A column of several tokens is the last.
        threshold (float): Edges below this share of the largest are gathered.
        relative_to (str): ``"network"`` or ``"layer"``.

    Returns:
        Streams: The whole flow.

    Examples::

        >>> flow = np.array([[[4.0, 0.0, 1.0], [0.0, 2.0, -3.0], [0.0, 0.0, 0.02]]])
        >>> columns = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> streams = gather(flow, flow < 0, columns, 0.01, "network")
        >>> streams.amount  # from others to the first, and from the first to itself
        array([1., 4.])
        >>> streams.rest  # from others to others
        array([[ 2.02, -3.  ]])
    """
    parts = np.stack(  # (2, L, C, C)
        [membership.T @ (flow * part) @ membership for part in (~apart, apart)]
    )
    is_single = membership.sum(0) == 1
    single = is_single[:, None] & is_single
    of_single = is_single[:, None] | is_single
    absolute = np.abs(parts)
    largest = _largest(absolute, single, relative_to)
    share = relative_width(absolute, largest[:, None, None], np.inf)
    drawn = (absolute > 0) & (share >= threshold) & of_single
    kind, layer, head, tail = drawn.nonzero()
    order = np.lexsort((share[drawn], single[head, tail]))
    kind, layer, head, tail = kind[order], layer[order], head[order], tail[order]
    amount, gathered = parts[kind, layer, head, tail], ~single[head, tail]
    widest = np.where(gathered, GATHERED_WIDEST, 1.0)
    return Streams(
        edge_flow=parts.sum(0),
        largest=largest,
        layer=layer,
        tail=tail,
        head=head,
        amount=amount,
        width=relative_width(amount, largest[layer], widest),
        gathered=gathered,
        apart=kind == 1,
        rest=(parts * ~drawn).sum((2, 3)).T,
        n_thin=int(((absolute > 0) & ~drawn & single).sum()),
        gathered_share=_share(absolute, ~(drawn & single)),
    )


def _largest(absolute: Floats, single: Booleans, relative_to: RelativeTo) -> Floats:
    """The largest edge between two tokens; where none carries any, the largest of all.

    Args:
        absolute (ndarray): Shape ``(2, L, C, C)``.
        single (ndarray): Shape ``(C, C)``, bool, edges between two tokens.
        relative_to (str): ``"network"`` or ``"layer"``.

    Returns:
        ndarray: Shape ``(L,)``.
    """
    between = absolute * single
    edges = between if between.any() else absolute
    by_layer = edges.max((0, 2, 3))
    if relative_to == "layer":
        return np.asarray(np.where(by_layer > 0, by_layer, absolute.max((0, 2, 3))))
    return np.full(len(by_layer), by_layer.max())


def _share(absolute: Floats, gathered: Booleans) -> Floats:
    """Share of each layer's absolute flow that is gathered; 0 where nothing flows."""
    whole = absolute.sum((0, 2, 3))
    share = np.zeros(len(whole))
    np.divide((absolute * gathered).sum((0, 2, 3)), whole, out=share, where=whole > 0)
    return share


def _most_important(
    flow: Floats, direct: Floats | None, read_out: Booleans, n_tokens: int
) -> Integers:
    """Tokens to draw singly, in their order: a read-out and the largest scores.

    Of several read-outs it is the one that most of the flow reaches.
    """
    n_live = len(read_out)
    if n_live <= n_tokens + 1:  # a column of one other token would gather nothing
        return np.arange(n_live)
    sent = flow[0].sum(0) + (0.0 if direct is None else direct)
    rank = np.abs(sent)
    if read_out.any():
        reached = np.where(read_out, np.abs(flow[-1].sum(1)), -1.0)
        rank[reached.argmax()] = np.inf
    return np.sort(np.argsort(-rank, kind="stable")[:n_tokens])


def _membership(n_live: int, single: Integers) -> Floats:
    """Columns of tokens, shape ``(T, C)``: single ones, and the others as the last."""
    column = np.full(n_live, len(single))
    column[single] = np.arange(len(single))
    return np.asarray(np.eye(column.max() + 1)[column])


def _signed_sums(direct: Floats | None) -> Floats:
    if direct is None:
        return np.zeros(2)
    return np.array([direct[direct > 0].sum(), direct[direct < 0].sum()])


def _check_options(
    n_tokens: int, threshold: float, relative_to: str, cut: bool
) -> None:
    check_integer("n_tokens", n_tokens, 1)
    check_flags(cut=cut)
    check_choice("relative_to", relative_to, get_args(RelativeTo))
    check_type("threshold", threshold, (int, float), "a share, from 0 to 1")
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold!r} must be a share of the largest flow, from 0 to 1"
        )


def _read(
    explanation: Explanation, tokens: Sequence[str] | None, example: int
) -> tuple[Floats, list[str]]:
    """Return the flow, shape ``(L, T, T)``, head before tail, and the labels."""
    if not isinstance(explanation, Explanation):
        raise ValueError(
            f"{type_of(explanation)} has no flow to draw; give what explain() "
            "of a flow method returns. slalom_plane draws SLALOM's"
        )
    if explanation.flow is None:
        raise ValueError(
            "this explanation has no joint flow to draw: its scores are values of one "
            'flow per token. RelevanceFlow has one unless flow="maximum". Or solve one '
            "on this network, and draw dataclasses.replace(explanation, "
            "joint_flow=solve_flow(explanation.network))"
        )
    n_examples, _, _, n_tokens = explanation.flow.shape
    check_example(example, n_examples)
    if tokens is not None:
        check_strings("tokens", tokens, "a list of one str per position")
    labels = position_labels(n_tokens) if tokens is None else list(tokens)
    if len(labels) != n_tokens:
        raise ValueError(
            f"tokens holds {counted(len(labels), 'token')} for "
            f"{counted(n_tokens, 'position')}; give one per position, special tokens "
            "and padding included"
        )
    flow = _array(explanation.flow[example])
    if not _is_signed(explanation):
        flow = flow.clip(min=0)  # rounding puts some edges of a maximum flow below 0
    return flow, labels


def _is_signed(explanation: Explanation) -> bool:
    """Whether the flow is Relevance Flow's own, not a maximum flow on its network."""
    conserved = isinstance(explanation.diagnostics, ConservationDiagnostics)
    return conserved and explanation.cut is None


def _direct(explanation: Explanation, example: int) -> Floats | None:
    return None if explanation.direct is None else _array(explanation.direct[example])


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().double().cpu().numpy()
    return array


def _live_positions(network: LayeredNetwork, direct: Floats | None) -> Integers:
    """Positions with a node on a path from source to sink or with a direct edge."""
    live: Booleans = network.used()[0].cpu().numpy()
    if direct is not None:
        live = live | (direct != 0)
    live = live if live.any() else ~live
    return live.nonzero()[0]


def _severed(
    explanation: Explanation, network: LayeredNetwork, live: Integers, example: int
) -> tuple[Booleans, Booleans, Floats]:
    """Read the minimum cut: nodes on the source's side, severed edges, capacities."""
    if explanation.cut is None:
        raise ValueError(
            "cut=True was given for a flow that is not a maximum flow and has no "
            "minimum cut; give cut=False, or an explanation of AttentionFlow or "
            "GeneralizedAttentionFlow"
        )
    source_side = explanation.cut[example].cpu().numpy()[:, live]
    capacity = network.capacity[0].cpu().numpy()[:, live][:, :, live]
    severed = source_side[:-1, None, :] & ~source_side[1:, :, None] & (capacity > 0)
    return source_side, severed, capacity
