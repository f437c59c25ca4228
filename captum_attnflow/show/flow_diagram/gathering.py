"""What of a flow is drawn singly, and what is gathered: the layout of a flow diagram.

Of a long text the tokens with the largest scores are columns of their own. All others
are one column, and edges too thin to draw are one stream beside the columns. Nothing is
left out: gathered flow is summed, parts of opposite sign apart, as their sum would hide
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from torch import Tensor

from captum_attnflow._checks import (
    check_choice,
    check_example,
    check_flags,
    check_integer,
    check_strings,
    check_type,
)
from captum_attnflow.explanation import ConservationDiagnostics, Explanation
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.scored_tokens import position_labels, printable
from captum_attnflow.show.flow_diagram.layout import (
    GATHERED_WIDEST,
    Booleans,
    Floats,
    FlowLayout,
    Integers,
    MinimumCut,
    RelativeTo,
    Streams,
    relative_width,
)


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
    if tokens is not None:
        check_strings("tokens", tokens, "a list of one str per position")
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
