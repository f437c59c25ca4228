r"""What a flow diagram shows, computed once for both of its renderers.

A token is a column and a token layer a row; an edge leads from the key in its column
below to the query in its column above. Coordinates are columns and rows: the renderers
know inches and pixels, the layout does not.

A relevance flow is signed: widths and shares are those of its absolute flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from captum_attnflow._checks import check_choice, check_example
from captum_attnflow.explanation import ConservationDiagnostics, Explanation
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.scored_tokens import position_labels, printable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
RelativeTo = Literal["network", "layer"]

POSITIVE = "raises the output"
NEGATIVE = "lowers the output: dashed edges, diamonds"


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A minimum cut: its edges are full, and their capacity bounds every flow.

    Attributes:
        source_side (ndarray): Shape ``(L + 1, T)``, bool, nodes on the source's side.
        severed (ndarray): Shape ``(L, T, T)``, bool, edges that lead across.
        n_edges (int): Number of severed edges, drawn or not.
        capacity (float): Sum of their capacities.
    """

    source_side: Booleans
    severed: Booleans
    n_edges: int
    capacity: float


@dataclass(frozen=True, eq=False)
class FlowLayout:
    """A flow through ``L`` layers of ``T`` tokens, as it is drawn.

    Attributes:
        tokens (tuple of str): The token of every column, length ``T``, printable.
        value (float): The flow value.
        signed (bool): Whether it is the conserved flow of Relevance Flow, whose edges
            and nodes have a sign and whose value is the output.
        edge_flow (ndarray): Shape ``(L, T, T)``, flow of every edge, drawn or not,
            head before tail as in the network.
        node_flow (ndarray): Shape ``(L + 1, T)``, flow through every node.
        direct (ndarray, optional): Shape ``(T,)``, flow of the direct edges of a signed
            flow, which lead from the token past all layers; None where there are none.
        largest (ndarray): Shape ``(L,)``, the absolute flow of the widest possible
            edge of each layer.
        layer (ndarray): Shape ``(E,)``, int64, layer of every edge that is drawn, from
            0, by rising width: the widest are drawn last.
        tail (ndarray): Shape ``(E,)``, int64, column below.
        head (ndarray): Shape ``(E,)``, int64, column above.
        width (ndarray): Shape ``(E,)``, in (0, 1], absolute flow of the edge relative
            to the largest.
        in_cut (ndarray): Shape ``(E,)``, bool, edges that the minimum cut severs.
        cut (MinimumCut, optional): The minimum cut; None where there is none.
        threshold (float): Edges below this share of the largest flow are not drawn.
        relative_to (str): Whether the largest flow is that of the ``"network"`` or of
            the edge's ``"layer"``.
        n_pruned (int): Number of edges with flow that are not drawn.
        drawn_share (ndarray): Shape ``(L,)``, in [0, 1], share of the absolute flow
            through each layer that is drawn. A flow that spreads over thousands of
            edges leaves none wide enough.
    """

    tokens: tuple[str, ...]
    value: float
    signed: bool
    edge_flow: Floats
    node_flow: Floats
    direct: Floats | None
    largest: Floats
    layer: Integers
    tail: Integers
    head: Integers
    width: Floats
    in_cut: Booleans
    cut: MinimumCut | None
    threshold: float
    relative_to: RelativeTo
    n_pruned: int
    drawn_share: Floats

    @property
    def n_layers(self) -> int:
        """Layers of edges, ``L``."""
        return len(self.node_flow) - 1

    @property
    def sent(self) -> Floats:
        """Flow that every token sends, direct edges included, shape ``(T,)``."""
        through_layers: Floats = self.node_flow[0]
        return through_layers if self.direct is None else through_layers + self.direct

    @property
    def negative(self) -> Booleans:
        """Edges, of those drawn, whose flow lowers the output, shape ``(E,)``."""
        return np.asarray(self.edge_flow[self.layer, self.head, self.tail] < 0)

    @property
    def has_negative(self) -> bool:
        """Whether an edge, node or token is drawn that lowers the output."""
        drawn = self.negative, self.node_flow < 0, self.sent < 0
        return any(bool(below.any()) for below in drawn)

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

    def summary(self) -> str:
        """Describe the flow and its minimum cut in one line."""
        if self.signed:
            return self._sum()
        text = f"flow value {self.value:.4g}"
        if self.cut is None:
            return f"{text}, not a maximum flow: no minimum cut"
        edges = "edge" if self.cut.n_edges == 1 else "edges"
        return (
            f"{text}, minimum cut of {self.cut.n_edges:,} {edges} of capacity "
            f"{self.cut.capacity:.4g}"
        )

    def _sum(self) -> str:
        tokens = "token" if len(self.tokens) == 1 else "tokens"
        text = (
            f"relevance flow of {len(self.tokens):,} {tokens} sums to the output "
            f"{_minus(f'{self.value:.4g}')}"
        )
        if self.direct is None:
            return text
        parts = float(self.node_flow[0].sum()), float(self.direct.sum())
        drawn, direct = (_minus(f"{part:.4g}") for part in parts)
        return f"{text}: {drawn} through the layers, {direct} on direct edges"

    def pruning(self) -> str:
        """Describe in one line what is not drawn."""
        n_edges = len(self.layer) + self.n_pruned
        carried = 100 - 100 * self.drawn_share.mean()
        whole = "absolute flow" if self.signed else "flow"
        return (
            f"{self.n_pruned:,} of {n_edges:,} edges are below "
            f"{100 * self.threshold:.3g} % of the largest flow in the "
            f"{self.relative_to} and not drawn; they carry {carried:.0f} % of the "
            f"{whole}"
        )


def lay_out_flow(
    explanation: Explanation,
    tokens: Sequence[str] | None = None,
    example: int = 0,
    threshold: float = 0.01,
    relative_to: RelativeTo = "network",
) -> FlowLayout:
    """Read one example's flow; see :func:`flow_diagram` for arguments and errors."""
    flow, labels = _read(explanation, tokens, example)
    check_choice("relative_to", relative_to, get_args(RelativeTo))
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold!r} must be a share of the largest flow, from 0 to 1"
        )
    signed = _is_signed(explanation)
    direct = _direct(explanation, example) if signed else None
    network = explanation.network.select(slice(example, example + 1)).trim()
    columns = _live_columns(network, direct)
    flow = flow[:, columns][:, :, columns]
    amount = np.abs(flow)
    largest = (
        amount.max((1, 2))
        if relative_to == "layer"
        else np.full(len(amount), amount.max())
    )
    share = amount / np.maximum(largest, np.finfo(float).tiny)[:, None, None]
    drawn = (amount > 0) & (share >= threshold)
    layer, head, tail = drawn.nonzero()
    order = np.argsort(share[drawn], kind="stable")
    layer, head, tail = layer[order], head[order], tail[order]
    cut = _minimum_cut(explanation, network, columns, example)
    severed = np.zeros_like(drawn) if cut is None else cut.severed
    return FlowLayout(
        tokens=tuple(printable(labels[column]) for column in columns),
        value=float(explanation.flow_value[example]),
        signed=signed,
        edge_flow=flow,
        node_flow=np.concatenate([flow.sum(1), flow[-1:].sum(2)]),
        direct=None if direct is None else direct[columns],
        largest=largest,
        layer=layer,
        tail=tail,
        head=head,
        width=share[layer, head, tail],
        in_cut=severed[layer, head, tail],
        cut=cut,
        threshold=threshold,
        relative_to=relative_to,
        n_pruned=int((amount > 0).sum()) - len(layer),
        drawn_share=_drawn_share(amount, drawn),
    )


def _drawn_share(amount: Floats, drawn: Booleans) -> Floats:
    """Share of each layer's absolute flow on its drawn edges; 1 where nothing flows."""
    share = np.ones(len(amount))
    whole = amount.sum((1, 2))
    np.divide((amount * drawn).sum((1, 2)), whole, out=share, where=whole > 0)
    return share


def _read(
    explanation: Explanation, tokens: Sequence[str] | None, example: int
) -> tuple[Floats, list[str]]:
    """Return the flow, shape ``(L, T, T)``, head before tail, and the labels."""
    if not isinstance(explanation, Explanation):
        raise ValueError(
            f"a {type(explanation).__name__} has no flow to draw; give what explain() "
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
    labels = position_labels(n_tokens) if tokens is None else list(tokens)
    if len(labels) != n_tokens:
        raise ValueError(
            f"{len(labels)} tokens were given for {n_tokens} positions; give one per "
            "position, special tokens and padding included"
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


def _live_columns(network: LayeredNetwork, direct: Floats | None) -> Integers:
    """Positions with a node on a path from source to sink or with a direct edge."""
    live: Booleans = network.used()[0].cpu().numpy()
    if direct is not None:
        live = live | (direct != 0)
    live = live if live.any() else ~live
    return live.nonzero()[0]


def _minimum_cut(
    explanation: Explanation, network: LayeredNetwork, columns: Integers, example: int
) -> MinimumCut | None:
    if explanation.cut is None:
        return None
    source_side = explanation.cut[example].cpu().numpy()[:, columns]
    capacity = network.capacity[0].cpu().numpy()[:, columns][:, :, columns]
    severed = source_side[:-1, None, :] & ~source_side[1:, :, None] & (capacity > 0)
    return MinimumCut(
        source_side, severed, int(severed.sum()), float(capacity[severed].sum())
    )


def _numbers(values: Floats, most: float) -> tuple[str, ...]:
    """Write numbers with their sign, to three digits of the largest of the picture."""
    if not 1e-4 <= most < 1e6:
        return tuple(_minus(f"{value:+.1e}") if value else "0" for value in values)
    decimals = max(0, 2 - math.floor(math.log10(most)))
    return tuple(_minus(f"{value:+.{decimals}f}") for value in values)


def _minus(number: str) -> str:
    """Set a number with the minus sign, which is as wide as the plus sign."""
    return number.replace("-", "\N{MINUS SIGN}")
