"""Exact maximum flows by Dinic's algorithm (1970), each certified by a cut.

Numba compiles it in :class:`DinicSolver`; without Numba, SciPy's runs in its place.

**All tokens of one network, each sending alone, by SciPy.** A token's flow is small
beside what the layers in the middle could carry. It is solved over the widest edges of
every node, which are a tenth of all, and judged within the whole network: where no
edge, used or not, leads further, it is a maximum flow and the reached nodes are a
minimum cut. Only tokens for which one does are solved again over more edges, at last
over all.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers.barrier.compilation import (
    check_compiled,
    numba_passes,
    passes_for,
)
from captum_attnflow.flow.solvers.base import (
    FlowSolution,
    FlowSolver,
    SourceFlows,
    bounds_of,
    certified,
    own_path_is_free,
    refuse_infinite,
    source_bounds,
    tie,
)
from captum_attnflow.flow.solvers.scipy_graph import (
    FIRST,
    SINK,
    SOURCE,
    Graph,
    edge_lists,
    from_units,
    in_units,
    source_side,
)

# Fewer edges are not worth a second thread.
_EDGES_A_THREAD = 1 << 18
# How many of the widest edges into and out of every node are kept, fewest first. A
# width is skipped where it keeps more than this share of all edges: more are not worth
# the time.
_WIDTHS = (4, 15, 40)
_LARGEST_SHARE = 0.25
# One token in this many tries a graph for the others. They use it if at most this share
# of the trials fails.
_PROBE_EVERY = 8
_MAY_FAIL = 0.25
# A bound this many times the value makes the unit too coarse: solve again with a finer
# one.
_LOOSE = 16
# Edges of the tokens whose flows are held at once, to bound memory.
_MAX_EDGES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class DinicSolver(FlowSolver):
    r"""Maximum flows by Dinic's algorithm (1970) in float64, on a CPU.

    Each flow comes with a minimum cut, whose capacity is the value; the flow stays
    below by what rounding leaves, at most a :math:`2^{-50}`-th of the value for each
    edge of the cut.

    The flow is whichever of the many maximum flows the algorithm meets first: use it
    for values, such as one flow per token, and the barrier for joint token scores.

    Args:
        compiled (bool, optional): Whether to solve by code that Numba compiles (the
            extra ``compiled``). Without it, SciPy's implementation of the same
            algorithm solves, five to forty times slower: the same values within the
            gaps, by another of the maximum flows. By default, wherever Numba is
            installed. The first joint flow on a machine waits for it, for seconds, so
            that none is another one later. Flows of tokens alone, whose values are
            unique, are SciPy's until all is compiled, see :class:`BarrierSolver`.

    Raises:
        ImportError: If ``compiled`` is ``True`` and Numba is not installed.
        ValueError: If ``compiled`` is of another type.
    """

    compiled: bool | None = None

    def __post_init__(self) -> None:
        check_compiled(self.compiled)

    @torch.no_grad()
    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of networks; see :class:`FlowSolution`."""
        if self.compiled is False or numba_passes() is None:
            return SciPySolver().solve(network)
        _, bound = bounds_of(network)
        if not network.n_networks:
            return FlowSolution.zero(network)
        network = replace(network, capacity=network.capacity.double())
        flow = np.empty(tuple(network.capacity.shape))
        cut = np.empty((len(flow), network.n_layers + 1, network.n_tokens), np.bool_)
        arrays = map(_array, (network.capacity, network.source, network.sink, bound))
        _run("joint_flows", flow.size, *arrays, flow, cut)
        on_device = torch.from_numpy(flow).to(network.capacity)
        side = torch.from_numpy(cut).to(network.capacity)
        return _answer(network, on_device, on_device[:, -1].sum(-1), side)

    @torch.no_grad()
    def solve_sources(self, network: LayeredNetwork) -> SourceFlows:
        """Solve one maximum flow per token, all of a network on the same arrays.

        The imbalance is given as 0: what leaves an edge enters the next, and only the
        rounding of sums is between them.
        """
        if passes_for(self.compiled) is None:
            return SciPySolver().solve_sources(network)
        value, gap = (torch.zeros_like(network.capacity[:, 0, 0]) for _ in range(2))
        if network.n_networks:
            own_sink = ~own_path_is_free(network)
            arrays = map(_array, (network.capacity, network.sink, own_sink))
            on_cpu = [np.zeros(tuple(value.shape)) for _ in range(2)]
            work = network.capacity.numel() * network.n_tokens
            _run("token_flows", work, *arrays, *on_cpu)
            value, gap = (torch.from_numpy(array).to(value) for array in on_cpu)
            refuse_infinite(value.amax(1))
            value = tie(value)
        nothing = torch.zeros_like(value)
        return SourceFlows(value, gap, nothing, nothing.to(torch.int64))


def _array(tensor: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = tensor.detach().cpu().contiguous().numpy()
    return array


def _run(kernel: str, n_edges: int, *arguments: NDArray[np.generic]) -> None:
    """Run a kernel in as many threads as edges to look at are worth.

    Threads of Python, as kernels leave its lock: Numba would compile its own loop over
    threads once more, for as long as the kernel itself.
    """
    from captum_attnflow.flow.solvers import dinic_kernels

    work = getattr(dinic_kernels, kernel)
    n_parts = min(torch.get_num_threads(), -(-n_edges // _EDGES_A_THREAD))
    if n_parts == 1:
        work(0, 1, *arguments)
        return
    with ThreadPoolExecutor(n_parts) as pool:
        parts = [
            pool.submit(work, part, n_parts, *arguments) for part in range(n_parts)
        ]
        for part in parts:
            part.result()


@dataclass(frozen=True)
class SciPySolver(FlowSolver):
    """One maximum flow after the other by Dinic's algorithm in SciPy.

    SciPy's flows are integers. Capacities are rounded down to multiples of a unit, a
    :math:`2^{30}`-th of a bound of the value: the flow is feasible, and lacks at most
    a unit per edge of the cut. The cut that the algorithm ends with is least
    among cuts of the rounded capacities and evaluated with the given ones in float64:
    the duality gap is the difference to the flow.

    The flow is whichever of the many maximum flows the algorithm meets first: use it
    for values, such as one flow per token, and the barrier for joint token scores.
    """

    def solve(self, network: LayeredNetwork) -> FlowSolution:
        """Solve a batch of networks; see :class:`FlowSolution`."""
        _, bounds = bounds_of(network)
        if not network.n_networks:
            return FlowSolution.zero(network)
        network = replace(network, capacity=network.capacity.double())
        parts = [
            _solve_one(network.select(slice(index, index + 1)), bound)
            for index, bound in enumerate(bounds.tolist())
        ]
        return FlowSolution.concatenate(parts)

    def solve_sources(self, network: LayeredNetwork) -> SourceFlows:
        """Solve one maximum flow per token, all of a network on one graph."""
        bound, own_sink = source_bounds(network), ~own_path_is_free(network)
        value, gap = torch.zeros_like(bound), torch.zeros_like(bound)
        on_cpu = LayeredNetwork(
            network.capacity.cpu(), network.source.cpu(), network.sink.cpu()
        )
        for index, bounds in enumerate(bound.cpu()):
            tokens = bounds.nonzero()[:, 0]
            alone = TokenNetworks.of(
                on_cpu.select(slice(index, index + 1)),
                tokens,
                own_sink[index].cpu()[tokens],
            )
            cut, below = token_flows(alone, bounds[tokens])
            value[index, tokens] = cut.to(value)
            gap[index, tokens] = below.to(gap)
        nothing = torch.zeros_like(value)
        return SourceFlows(value, gap, nothing, nothing.to(torch.int64))


@dataclass(frozen=True, eq=False)
class _JointGraph:
    """The edges of one network, between token layers and to the terminals."""

    layer: NDArray[np.intp]
    head: NDArray[np.intp]
    tail: NDArray[np.intp]
    capacity: NDArray[np.float64]
    sinks: NDArray[np.intp]
    sources: NDArray[np.intp]

    @staticmethod
    def of(network: LayeredNetwork) -> _JointGraph:
        capacity = network.capacity[0].cpu().numpy()
        layer, head, tail = capacity.nonzero()
        return _JointGraph(
            layer,
            head,
            tail,
            capacity[layer, head, tail],
            sinks=network.sink[0].cpu().numpy().nonzero()[0],
            sources=network.source[0].cpu().numpy().nonzero()[0],
        )

    def solve(
        self, shape: tuple[int, int], bound: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Flow and residual capacity in units, ``(1, E)``: inner edges, then others."""
        n_layers, n_tokens = shape
        below, last = FIRST + self.layer * n_tokens, FIRST + n_layers * n_tokens
        tails = [below + self.tail, last + self.sinks, 0 * self.sources + SOURCE]
        heads = [below + n_tokens + self.head, 0 * self.sinks + SINK]
        heads.append(FIRST + self.sources)
        graph = Graph(np.concatenate(tails), np.concatenate(heads), last + n_tokens)
        unlimited = np.full(len(self.sinks) + len(self.sources), np.inf)
        capacity = np.concatenate([self.capacity, unlimited])
        units = in_units(capacity[None], np.array([bound]))
        flow = graph.maximum_flows(units)
        return flow, units - flow


def _solve_one(network: LayeredNetwork, bound: float) -> FlowSolution:
    solution = _solve_in_units(network, bound)
    # Capacities below a unit were rounded to 0: solve with a finer unit.
    while (least := float(solution.cut_capacity)) * _LOOSE < bound:
        bound = least
        solution = _solve_in_units(network, bound)
    return solution


def _solve_in_units(network: LayeredNetwork, bound: float) -> FlowSolution:
    graph, shape = _JointGraph.of(network), (network.n_layers, network.n_tokens)
    flow, residual = graph.solve(shape, bound)
    n_inner = len(graph.layer)
    saturated, carrying = (
        edge_lists(
            chosen[:, :n_inner],
            graph.layer,
            graph.head,
            graph.tail,
            np.zeros(1, np.int64),
            shape,
        )
        for chosen in (residual == 0, flow > 0)
    )
    edges = (network.capacity[0] > 0).float().cpu()
    cut = source_side(edges, network.source.cpu(), saturated, carrying)
    cut = cut.movedim(1, 0).to(network.capacity)
    amount = from_units(flow, np.array([bound]))[0]
    inner = np.zeros(tuple(network.capacity.shape))
    # The rounding of the unit may exceed a capacity in its last digit.
    inner[0, graph.layer, graph.head, graph.tail] = np.minimum(
        amount[:n_inner], graph.capacity
    )
    sink_flow = np.zeros((1, network.n_tokens))
    sink_flow[0, graph.sinks] = amount[n_inner : n_inner + len(graph.sinks)]
    return _answer(
        network,
        torch.from_numpy(inner).to(network.capacity),
        torch.from_numpy(sink_flow).to(network.capacity),
        cut,
    )


def _answer(
    network: LayeredNetwork, flow: Tensor, sink_flow: Tensor, cut: Tensor
) -> FlowSolution:
    value = sink_flow.sum(-1)
    gap = network.cut_capacity(cut > 0) - value
    return certified(
        network,
        flow=flow,
        source_flow=flow[:, 0].sum(-2),
        sink_flow=sink_flow,
        potential=-cut,
        mu=torch.zeros_like(value),
        duality_gap=gap.clamp_min(0),
        iterations=torch.zeros_like(value, dtype=torch.int64),
    )


@dataclass(frozen=True, eq=False)
class TokenNetworks:
    """The networks of ``P`` tokens of one network, each sending alone.

    The first layer is the token's own edges, and the terminals never bind, so that the
    last layer is one edge per node: the sum of its edges into the token's read-outs.

    Attributes:
        token (Tensor): Shape ``(P,)``, int64.
        first (Tensor): Shape ``(P, T)``, float64, capacity from the token.
        middle (Tensor): Shape ``(M, T, T)``, float64, as in ``LayeredNetwork``.
        last (Tensor): Shape ``(P, T)``, float64, capacity to the sink.
        read_out (Tensor): Positions that feed the sink, int64.
    """

    token: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor
    read_out: Tensor

    @staticmethod
    def of(network: LayeredNetwork, token: Tensor, own_sink: Tensor) -> TokenNetworks:
        """Split a network of one, on the CPU.

        Args:
            network (LayeredNetwork): The network; its sources do not count.
            token (Tensor): Shape ``(P,)``, int64, the tokens that send.
            own_sink (Tensor): Shape ``(P,)``, bool, whether a token's flow may end at
                its own position.
        """
        capacity = network.capacity[0]
        sink = network.sink[0].repeat(len(token), 1)
        sink[torch.arange(len(token)), token] &= own_sink
        if network.n_layers == 1:
            last = torch.where(sink, torch.inf, capacity.new_zeros(()))
        else:
            # Not a product with infinite capacities: inf * 0 is NaN.
            free = capacity[-1].isinf()
            weights = sink.to(capacity.dtype)
            last = weights @ capacity[-1].masked_fill(free, 0.0)
            last.masked_fill_(weights @ free.to(capacity.dtype) > 0, torch.inf)
        return TokenNetworks(
            token=token,
            first=capacity[0].mT[token],
            middle=capacity[1:-1],
            last=last,
            read_out=network.sink[0].nonzero()[:, 0],
        )

    def select(self, index: Tensor) -> TokenNetworks:
        """Return the networks of some of the tokens."""
        return replace(
            self,
            token=self.token[index],
            first=self.first[index],
            last=self.last[index],
        )

    def cut_capacity(self, side: Tensor) -> Tensor:
        """Capacity of the edges that leave a cut's side ``(M + 1, P, T)``."""
        crossing = torch.where(side[0], 0.0, self.first).sum(1)
        # Edges that never bind cross no minimum cut.
        finite = self.middle.masked_fill(self.middle.isinf(), 0.0)
        for layer, capacity in enumerate(finite):
            arriving = side[layer].to(capacity.dtype) @ capacity.mT
            crossing += arriving.masked_fill_(side[layer + 1], 0.0).sum(1)
        return crossing + torch.where(side[-1], self.last, 0.0).sum(1)


class _SparseGraph:
    """Some edges of the middle, and all that may leave the token's own nodes.

    A token's nodes are those of its position in every layer. Their edges may have to be
    full, and differ between tokens: they start from one node more per layer, which only
    the token's own node feeds.
    """

    def __init__(self, middle: Tensor, kept: Tensor) -> None:
        n_layers, n_tokens, _ = middle.shape
        self._n_tokens = n_tokens
        self._left_out = middle.masked_fill(kept, 0.0).numpy()
        layer, head, tail = kept.numpy().nonzero()
        partial = self._left_out.any((1, 2)).nonzero()[0]
        self._own_layer = np.repeat(partial, n_tokens)
        self._position = np.tile(np.arange(n_tokens), len(partial))
        layers = np.concatenate([layer, self._own_layer])
        order = np.argsort(layers, kind="stable")
        self._layer = layers[order]
        self._head = np.concatenate([head, self._position])[order]
        self._tail = np.concatenate([tail, np.full(len(self._position), -1)])[order]
        self._own = (self._tail < 0).nonzero()[0]
        self._capacity = middle.numpy()[self._layer, self._head, self._tail]
        self._graph = self._connect(n_layers)

    def _connect(self, n_layers: int) -> Graph:
        n_tokens = self._n_tokens
        every = np.arange(n_tokens)
        below = FIRST + self._layer * n_tokens
        last = FIRST + n_layers * n_tokens
        own_node = last + n_tokens
        from_own = own_node + self._layer
        tails = [
            np.full(n_tokens, SOURCE),
            np.where(self._tail < 0, from_own, below + self._tail),
            FIRST + self._own_layer * n_tokens + self._position,
            last + every,
        ]
        heads = [
            FIRST + every,
            below + n_tokens + self._head,
            own_node + self._own_layer,
            np.full(n_tokens, SINK),
        ]
        return Graph(np.concatenate(tails), np.concatenate(heads), own_node + n_layers)

    @property
    def n_edges(self) -> int:
        return 2 * self._n_tokens + len(self._layer) + len(self._position)

    def solve(
        self, tokens: TokenNetworks, bound: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve tokens whose flows have these bounds.

        Returns:
            tuple: Cut sides ``(M + 1, P, T)``, flow values ``(P,)``, and whether each
            flow is a maximum flow of the whole network.
        """
        token, n_tokens = tokens.token.numpy(), self._n_tokens
        inner = np.tile(self._capacity, (len(token), 1))
        inner[:, self._own] = self._left_out[
            self._own_layer, self._position, token[:, None]
        ]
        join = np.where(self._position == token[:, None], np.inf, 0.0)
        first, last = tokens.first.numpy(), tokens.last.numpy()
        capacity = np.concatenate([first, inner, join, last], axis=1)
        units = in_units(capacity, bound.numpy())
        flow = self._graph.maximum_flows(units)
        residual = units - flow
        middle = slice(n_tokens, n_tokens + len(self._layer))
        saturated, carrying = (
            edge_lists(
                chosen,
                self._layer,
                self._head,
                self._tail,
                token,
                (len(self._left_out), n_tokens),
            )
            for chosen in (
                (inner > 0) & (residual[:, middle] == 0),
                flow[:, middle] > 0,
            )
        )
        side = source_side(
            (tokens.middle > 0).float(),
            torch.from_numpy(residual[:, :n_tokens] > 0),
            saturated,
            carrying,
        )
        goes_on = side[-1] & torch.from_numpy(residual[:, -n_tokens:] > 0)
        value = flow[:, :n_tokens].sum(1, keepdims=True, dtype=np.int64)
        value = from_units(value, bound.numpy())[:, 0]
        return side, torch.from_numpy(value), ~goes_on.any(1)


def token_flows(tokens: TokenNetworks, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Solve one maximum flow per token.

    Args:
        tokens (TokenNetworks): The tokens of one network.
        bound (Tensor): Shape ``(P,)``, positive and finite bounds of their flows.

    Returns:
        tuple[Tensor, Tensor]: Capacities of minimum cuts, and how far each flow found
        stays below; both of shape ``(P,)``.
    """
    ends = torch.minimum(tokens.first.sum(1), tokens.last.sum(1))
    bound = torch.minimum(bound, ends)
    value, gap = bound.clone(), bound.clone()
    unsolved = bound.nonzero()[:, 0]
    for kept in _stages(tokens):
        if not len(unsolved):
            break
        graph = _SparseGraph(tokens.middle, kept)
        is_probe = torch.arange(len(unsolved)) % _PROBE_EVERY == 0
        probes, others = unsolved[is_probe], unsolved[~is_probe]
        unsolved = _solve_in(graph, tokens, probes, bound, value, gap)
        if len(unsolved) <= _MAY_FAIL * len(probes):
            others = _solve_in(graph, tokens, others, bound, value, gap)
        unsolved = torch.cat([unsolved, others])
    return tie(value[None])[0], gap


def _solve_in(
    graph: _SparseGraph,
    tokens: TokenNetworks,
    waiting: Tensor,
    bound: Tensor,
    value: Tensor,
    gap: Tensor,
) -> Tensor:
    """Fill in values and gaps of waiting tokens; return those with more to gain."""
    unsolved = [waiting[:0]]
    at_once = max(1, _MAX_EDGES_AT_ONCE // graph.n_edges)
    while len(waiting):
        part, waiting = waiting[:at_once], waiting[at_once:]
        some = tokens.select(part)
        side, flow, is_maximum = graph.solve(some, bound[part])
        # Among cuts that differ by less than a unit, the one found is not always least.
        cut = torch.minimum(some.cut_capacity(side), bound[part])
        value[part] = cut
        gap[part] = (cut - flow).clamp_min(0)
        loose = is_maximum & (cut * _LOOSE < bound[part])
        bound[part[loose]] = cut[loose]
        waiting = torch.cat([waiting, part[loose]])
        unsolved.append(part[~is_maximum])
    return torch.cat(unsolved)


def _stages(tokens: TokenNetworks) -> Iterator[Tensor]:
    """Mark more and more edges ``(M, T, T)``, at last all."""
    edges = tokens.middle > 0
    n_tokens = tokens.first.shape[1]
    for width in _WIDTHS:
        if 2 * width <= _LARGEST_SHARE * n_tokens and len(tokens.middle):
            yield _widest(tokens, width) & edges
    yield edges


def _widest(tokens: TokenNetworks, width: int) -> Tensor:
    """Mark the widest edges into and out of every node, shape ``(M, T, T)``, bool.

    Residual edges and, where the output is read at few positions, all edges into
    these are among them: minimum cuts often lie around the nodes of a read-out.
    """
    kept = torch.zeros_like(tokens.middle, dtype=torch.bool)
    for dim in (1, 2):
        kept.scatter_(dim, tokens.middle.topk(width, dim).indices, True)
    kept.diagonal(dim1=1, dim2=2).fill_(True)
    if len(tokens.read_out) <= width:
        kept[:, tokens.read_out] = True
    return kept
