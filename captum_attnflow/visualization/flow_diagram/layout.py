r"""What a flow diagram shows, computed once for both of its renderers.

A token is a column and a token layer a row; an edge leads from the key in its column
below to the query in its column above. Coordinates are columns and rows: the renderers
know inches and pixels, the layout does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from captum_attnflow._options import check_choice, check_example
from captum_attnflow.display.tokens import position_labels, printable
from captum_attnflow.network import LayeredNetwork
from captum_attnflow.result import Explanation

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
RelativeTo = Literal["network", "layer"]


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A minimum cut: its edges are full, and no flow can be larger than they hold.

    Attributes:
        source_side (ndarray): Shape ``(L + 1, T)``, bool, nodes on the source's side.
        severed (ndarray): Shape ``(L, T, T)``, bool, edges that lead across.
        n_edges (int): How many there are, drawn or not.
        capacity (float): What they hold.
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
        edge_flow (ndarray): Shape ``(L, T, T)``, flow of every edge, drawn or not,
            head before tail as in the network.
        node_flow (ndarray): Shape ``(L + 1, T)``, flow through every node.
        largest (ndarray): Shape ``(L,)``, the flow that is as wide as edges are drawn.
        layer (ndarray): Shape ``(E,)``, int64, layer of every edge that is drawn, from
            0, by rising width: the widest are drawn last.
        tail (ndarray): Shape ``(E,)``, int64, column below.
        head (ndarray): Shape ``(E,)``, int64, column above.
        width (ndarray): Shape ``(E,)``, in (0, 1], flow of the edge relative to the
            largest.
        in_cut (ndarray): Shape ``(E,)``, bool, edges that the minimum cut severs.
        cut (MinimumCut, optional): The minimum cut; None where there is none.
        threshold (float): Edges below this share of the largest flow are not drawn.
        relative_to (str): Whether the largest flow is that of the ``"network"`` or of
            the edge's ``"layer"``.
        n_pruned (int): Edges of positive flow that are not drawn.
        drawn_share (ndarray): Shape ``(L,)``, in [0, 1], share of the flow through each
            layer that is drawn. A flow that spreads over thousands of edges leaves none
            wide enough.
    """

    tokens: tuple[str, ...]
    value: float
    edge_flow: Floats
    node_flow: Floats
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
        """Flow that every token sends, shape ``(T,)``."""
        return np.asarray(self.node_flow[0])

    def summary(self) -> str:
        """Say what flows and what the minimum cut is."""
        text = f"flow value {self.value:.4g}"
        if self.cut is None:
            return f"{text}, not a maximum flow: no minimum cut"
        edges = "edge" if self.cut.n_edges == 1 else "edges"
        return (
            f"{text}, minimum cut of {self.cut.n_edges:,} {edges} of capacity "
            f"{self.cut.capacity:.4g}"
        )

    def pruning(self) -> str:
        """Say what is not drawn."""
        n_edges = len(self.layer) + self.n_pruned
        carried = 100 - 100 * self.drawn_share.mean()
        return (
            f"{self.n_pruned:,} of {n_edges:,} edges are below "
            f"{100 * self.threshold:.3g} % of the largest flow in the "
            f"{self.relative_to} and not drawn; they carry {carried:.0f} % of the flow"
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
    network = explanation.network.select(slice(example, example + 1)).trim()
    columns = _live_columns(network)
    flow = flow[:, columns][:, :, columns]
    largest = (
        flow.max((1, 2)) if relative_to == "layer" else np.full(len(flow), flow.max())
    )
    share = flow / np.maximum(largest, np.finfo(float).tiny)[:, None, None]
    drawn = (flow > 0) & (share >= threshold)
    layer, head, tail = drawn.nonzero()
    order = np.argsort(share[drawn], kind="stable")
    layer, head, tail = layer[order], head[order], tail[order]
    cut = _minimum_cut(explanation, network, columns, example)
    severed = np.zeros_like(drawn) if cut is None else cut.severed
    return FlowLayout(
        tokens=tuple(printable(labels[column]) for column in columns),
        value=float(explanation.flow_value[example]),
        edge_flow=flow,
        node_flow=np.concatenate([flow.sum(1), flow[-1:].sum(2)]),
        largest=largest,
        layer=layer,
        tail=tail,
        head=head,
        width=share[layer, head, tail],
        in_cut=severed[layer, head, tail],
        cut=cut,
        threshold=threshold,
        relative_to=relative_to,
        n_pruned=int((flow > 0).sum()) - len(layer),
        drawn_share=np.divide(
            (flow * drawn).sum((1, 2)),
            flow.sum((1, 2)),
            out=np.ones(len(flow)),
            where=flow.any((1, 2)),
        ),
    )


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
            "flow per token. Solve one on its network: solution = "
            "solve_flow(explanation.network), and draw "
            "dataclasses.replace(explanation, flow=solution.flow, cut=solution.cut, "
            "flow_value=solution.value)"
        )
    n_examples, _, _, n_tokens = explanation.flow.shape
    check_example(example, n_examples)
    labels = position_labels(n_tokens) if tokens is None else list(tokens)
    if len(labels) != n_tokens:
        raise ValueError(
            f"{len(labels)} tokens were given for {n_tokens} positions; give one per "
            "position, special tokens and padding included"
        )
    flow = explanation.flow[example].detach().double().cpu().numpy().clip(min=0)
    return flow, labels


def _live_columns(network: LayeredNetwork) -> Integers:
    """Positions with a node on a path from source to sink; all if there is no path."""
    edge = network.capacity[0] > 0
    live = network.source[0] | network.sink[0] | edge.any(1).any(0) | edge.any(2).any(0)
    live = live if live.any() else ~live
    return live.nonzero()[:, 0].cpu().numpy()


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
