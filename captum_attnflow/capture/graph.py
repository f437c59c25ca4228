"""The structure of a forward pass: what depends on what, and what may mix tokens.

The autograd graph tells, not the shapes: the keys of an attention call belong to the
sequence whose last call its values feed on, the queries to the sequence whose last call
the map depends on beside that. An encoder and a decoder over as many tokens are told
apart like any others.

Attention is all that a flow follows. Most of what lies between two layers is known to
keep tokens apart, by its name in the graph and by shapes. Of the rest
:mod:`captum_attnflow.capture.mixing` computes whether it does.
"""

from __future__ import annotations

import re
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from captum_attnflow.capture.axes import axes_of_tokens, shape_at, shapes_with_tokens
from captum_attnflow.capture.record import Route, UnsupportedAttentionError

if TYPE_CHECKING:
    from captum_attnflow.capture.gradients import AttentionCall


@dataclass
class _Stream:
    """A sequence of tokens, with the calls whose queries it makes."""

    calls: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Stack:
    """Attention calls that feed on each other: one pass over a model.

    Attributes:
        calls (tuple of int): Which attention calls, in the order they ran.
        routes (tuple of Route): Which sequence attends to which, call by call.
        values (tuple): For each sequence all that is weighed of it, tensors of the
            graph.
    """

    calls: tuple[int, ...]
    routes: tuple[Route, ...]
    values: tuple[tuple[Tensor, ...], ...]


def find_stacks(maps: Sequence[Tensor], values: Sequence[Tensor]) -> list[Stack]:
    """Group the attention calls of a forward pass into stacks.

    Args:
        maps (sequence of Tensor): The attention maps, in the order they ran.
        values (sequence of Tensor): What each of them weighs.

    Raises:
        UnsupportedAttentionError: If sequences attend to each other in another way
            than a decoder does to the last layer of one encoder.
    """
    graph = DependencyGraph(maps)
    maps_on = [graph.ancestors(tensor) - {i} for i, tensor in enumerate(maps)]
    values_on = [graph.ancestors(tensor) for tensor in values]
    streams: list[_Stream] = []
    ends: list[tuple[_Stream, _Stream]] = []  # of every call, (queries, keys)
    for index, (on, fed) in enumerate(zip(maps_on, values_on, strict=True)):
        keys = ends[max(fed)][0] if fed else None
        beside = on - fed
        queries = ends[max(beside)][0] if beside else keys
        if queries is not None and queries.calls[-1] not in on:
            queries = keys = None  # beside the calls before it, not behind them
        if keys is None and queries is not None:
            keys = next(
                (end[1] for end in ends if end[0] is queries and not end[1].calls), None
            )
        if keys is None:
            keys = _Stream()
            streams.append(keys)
        queries = queries or keys
        queries.calls.append(index)
        ends.append((queries, keys))
    return [
        _stack(group, ends, values, values_on) for group in _connected(streams, ends)
    ]


class DependencyGraph:
    """Tells on which of some tensors another one depends, by the autograd graph.

    Args:
        sources (sequence of Tensor or Node): Tensors that require a gradient, or where
            they are in the graph.
    """

    def __init__(self, sources: Sequence[Tensor | Node]) -> None:
        self._n_sources = 0
        self._bit: dict[Node, int] = {}
        self._found: dict[Node | None, int] = {None: 0}
        self._leaves: dict[int, Tensor] = {}  # by identity, which holding them keeps
        for tensor in sources:
            self.add(tensor)

    def add(self, tensor: Tensor | Node) -> None:
        """Add a source, before anything is asked of what is computed from it."""
        node = _node(tensor)
        if node is not None:
            self._bit[node] = self._bit.get(node, 0) | 1 << self._n_sources
            self._found.pop(node, None)
        self._n_sources += 1
        if isinstance(tensor, Tensor) and node is not None and tensor.grad_fn is None:
            self._leaves[id(tensor)] = tensor

    def depends(self, tensor: Tensor | Node) -> bool:
        """Whether a tensor is computed from any source, or is one.

        Asked at every call of a forward pass, mostly of parameters, whose nodes are
        slow to get: leaves are known by themselves.
        """
        node = tensor.grad_fn if isinstance(tensor, Tensor) else tensor
        if node is None:
            return id(tensor) in self._leaves
        found = self._found.get(node)
        return (self._ancestors_of(node) if found is None else found) != 0

    def dependent_nodes(self, tensor: Tensor | Node) -> Iterator[Node]:
        """Go through the nodes between the sources and a tensor."""
        pending, seen = [_node(tensor)], set()
        while pending:
            node = pending.pop()
            if node is None or node in seen or not self._ancestors_of(node):
                continue
            seen.add(node)
            yield node
            pending.extend(parent for parent, _ in node.next_functions)

    def forks(self, tensor: Tensor | Node) -> Iterator[GradientEdge]:
        """Go back over what is used several times and makes all of a tensor.

        All that a tensor has of the sources passed there: at the hidden states of a
        layer, where its queries and its keys part. What lies before mixes the tokens
        in any way.

        Yields:
            GradientEdge: From the tensor to the sources.
        """
        start = _node(tensor)
        if start is None or not self._ancestors_of(start):
            return
        uses: dict[Node, list[int]] = {start: []}  # by number of a node's output
        waiting = dict.fromkeys([start], 0)
        nodes = list(self.dependent_nodes(start))
        for node in nodes:
            for parent, _ in node.next_functions:
                if parent is not None and self._ancestors_of(parent):
                    waiting[parent] = waiting.get(parent, 0) + 1
        ready, n_open, is_fork = [start], 0, False
        while ready:
            node = ready.pop()
            own = uses[node]
            n_open -= len(own)
            if n_open == 0:
                is_fork |= len(own) > 1
                if is_fork and len(set(own)) == 1:  # else made of one, such as chunks
                    yield GradientEdge(node, own[0])
                    is_fork = False
            for parent, number in node.next_functions:
                if parent is None or not self._ancestors_of(parent):
                    continue
                uses.setdefault(parent, []).append(number)
                n_open += 1
                waiting[parent] -= 1
                if waiting[parent] == 0:
                    ready.append(parent)

    @property
    def n_sources(self) -> int:
        """Sources so far; they are numbered from 0."""
        return self._n_sources

    def depends_on(self, tensor: Tensor, source: int) -> bool:
        """Whether a tensor is computed from the source of a number."""
        return bool(self._ancestors_of(_node(tensor)) >> source & 1)

    def ancestors(self, tensor: Tensor | Node) -> set[int]:
        """Return which sources a tensor is computed from, or is."""
        found = self._ancestors_of(_node(tensor))
        return {i for i in range(self._n_sources) if found >> i & 1}

    def _ancestors_of(self, start: Node | None) -> int:
        # Depth first without recursion, which deep models would exhaust.
        pending = [start]
        while pending:
            node = pending[-1]
            if node is None or node in self._found:
                pending.pop()
                continue
            parents = [parent for parent, _ in node.next_functions]
            missing = [parent for parent in parents if parent not in self._found]
            if missing:
                pending.extend(missing)
                continue
            found = self._bit.get(node, 0)
            for parent in parents:
                found |= self._found[parent]
            self._found[node] = found
        return self._found[start]


def _node(tensor: Tensor | Node) -> Node | None:
    if isinstance(tensor, Node):
        return tensor
    if not tensor.requires_grad:
        return None
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _connected(
    streams: list[_Stream], ends: list[tuple[_Stream, _Stream]]
) -> Iterator[list[_Stream]]:
    """Group streams that attend to each other."""
    group = {id(stream): {id(stream)} for stream in streams}
    for queries, keys in ends:
        joined = group[id(queries)] | group[id(keys)]
        for member in joined:
            group[member] = joined
    done: set[int] = set()
    for stream in streams:
        if id(stream) not in done:
            done |= group[id(stream)]
            yield [other for other in streams if id(other) in group[id(stream)]]


def _stack(
    streams: list[_Stream],
    ends: list[tuple[_Stream, _Stream]],
    values: Sequence[Tensor],
    values_on: list[set[int]],
) -> Stack:
    calls = sorted(index for stream in streams for index in stream.calls)
    crossing = {
        (id(ends[call][0]), id(ends[call][1]))
        for call in calls
        if ends[call][0] is not ends[call][1]
    }
    if len(streams) > 2 or len(crossing) > 1:
        raise UnsupportedAttentionError(
            f"{len(streams)} sequences attend to each other; supported is one, or a "
            "decoder that attends to one encoder, and not the reverse (co-attention). "
            "Attribute to a part of the model that is such a one"
        )
    if crossing:  # the encoder first
        streams = sorted(
            streams, key=lambda stream: id(stream) == next(iter(crossing))[0]
        )
    for call in calls:
        queries, keys = ends[call]
        if queries is not keys and not values_on[call].issuperset(keys.calls):
            raise UnsupportedAttentionError(
                "a decoder attends to an inner layer of its encoder; supported is "
                "cross-attention to the encoder's last layer"
            )
    position = {id(stream): index for index, stream in enumerate(streams)}
    return Stack(
        calls=tuple(calls),
        routes=tuple(
            Route(position[id(ends[call][0])], position[id(ends[call][1])])
            for call in calls
        ),
        values=tuple(
            tuple(values[call] for call in calls if ends[call][1] is stream)
            for stream in streams
        ),
    )


@contextmanager
def without_attention(calls: Sequence[AttentionCall]) -> Iterator[None]:
    """While active, no gradient passes through what some calls have mixed."""
    with ExitStack() as cuts:
        for edge in (edge for call in calls for edge in call.mixed):
            handle = edge.node.register_prehook(_cutting(edge))
            cuts.callback(handle.remove)
        yield


def _cutting(edge: GradientEdge) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def cut(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros_like(gradient)
            if number == edge.output_nr and gradient is not None
            else gradient
            for number, gradient in enumerate(gradients)
        )

    return cut


def sequence_lengths(stack: Stack, calls: Sequence[AttentionCall]) -> dict[int, int]:
    """Return the tokens of each sequence of a stack that has keys."""
    return {
        route.keys: calls[call].lengths()[1]
        for call, route in zip(stack.calls, stack.routes, strict=True)
    }


# Operations behind which each token is a function of itself alone, by their names in
# the graph. Of any other it is computed whether it mixes tokens.
_KEEPS_APART = {
    *("Abs", "AccumulateGrad", "Add", "Alias", "Clamp", "ClampMax", "ClampMin"),
    *("Clone", "Cos", "Div", "Elu", "Embedding", "Erf", "Exp", "Expand", "Gelu"),
    *("Log", "MaskedFill", "Mul", "NativeDropout", "Neg", "Pow", "Relu", "Rsqrt"),
    *("Rsub", "Sigmoid", "Silu", "Sin", "Softplus", "Sqrt", "Squeeze", "Sub"),
    *("Tanh", "ToCopy", "Unsqueeze", "Where"),
    *("_Scaled", "_Substituted"),  # of propagation rules
}
# Those that keep tokens apart along the features.
_ALONG_FEATURES = {
    *("Cat", "LogSoftmax", "Mean", "Slice", "Softmax", "Split", "SplitWithSizes"),
    "Sum",
}
_VIEWS = {"ReshapeAlias", "UnsafeView", "View"}
_TRANSPOSITIONS = {"Permute", "T", "Transpose"}


@dataclass
class Part:
    """A part of the graph, between what was seen before and a tensor.

    Attributes:
        nodes (set of Node): It.
        may_mix (dict): The nodes that may mix tokens, by the names of their operations.
        entered (list of GradientEdge): What enters the part beside attention.
    """

    nodes: set[Node]
    may_mix: dict[str, list[Node]]
    entered: list[GradientEdge]


class _Parts:
    """Goes back over a graph part by part, so that each is looked at once.

    What passes beside attention is followed to where a part begins, not to the inputs:
    the work then grows with the layers, not with their square.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
        tokens (sequence of Tensor): What stands for the inputs.
        named (mapping): Names of what several nodes compute together.
    """

    def __init__(
        self,
        calls: Sequence[AttentionCall],
        tokens: Sequence[Tensor],
        named: Mapping[Node, str],
    ) -> None:
        self._tokens, self._named = tokens, named
        probed = [call.probed for call in calls]
        self._of_tokens = DependencyGraph([*tokens, *probed])
        self._attention = {
            get_gradient_edge(part).node for part in probed if part.requires_grad
        }
        self._attention |= {edge.node for call in calls for edge in call.mixed}
        self._seen = {
            get_gradient_edge(part).node for part in tokens if part.requires_grad
        }

    @property
    def attention(self) -> Collection[Node]:
        """Where maps, and what was mixed by them, are in the graph."""
        return self._attention

    def behind(self, start: Node, n_tokens: int) -> Part:
        """Go back to what was seen before."""
        may_mix: dict[str, list[Node]] = {}
        pending, part = [start], set[Node]()
        while pending:
            node = pending.pop()
            if node in self._seen or node in self._attention or node in part:
                continue
            part.add(node)
            name = operation(node)
            if not _keeps_apart(name, node, n_tokens):
                # AvgPool2D as avg_pool2d
                words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
                may_mix.setdefault(self._named.get(node, words), []).append(node)
            pending.extend(parent for parent, _ in node.next_functions if parent)
        entered: list[GradientEdge] = []
        if may_mix:  # else nothing is asked of it
            edges = {edge for node in part for edge in node.next_functions}
            entered = self._entered(edges, n_tokens)
        return Part(part, may_mix, entered)

    def note(self, part: Part) -> None:
        """Note a part as seen."""
        self._seen |= part.nodes

    def _entered(
        self, edges: Iterable[tuple[Node | None, int]], n_tokens: int
    ) -> list[GradientEdge]:
        found = [
            GradientEdge(node, number)
            for node, number in edges
            if node is not None and node in self._seen and self._of_tokens.depends(node)
        ]
        if all(shapes_with_tokens(shape_at(edge), n_tokens) for edge in found):
            return found
        apart = where_tokens_are_apart(n_tokens, (), self._tokens)
        return [get_gradient_edge(part) for part in apart]


@dataclass(frozen=True)
class Suspect:
    """A part of the graph that may mix tokens.

    Attributes:
        call (int): The attention call that it is in front of, or the last one, behind
            which it is.
        n_tokens (int): So many.
        part (Part): It.
        read (GradientEdge, optional): Of which the output reads some tokens, behind a
            last call.
    """

    call: int
    n_tokens: int
    part: Part
    read: GradientEdge | None = None


def suspects(
    calls: Sequence[AttentionCall],
    tokens: Sequence[Tensor],
    selected: Tensor,
    named: Mapping[Node, str],
) -> list[Suspect]:
    """Find the parts of the graph that may mix tokens, without a backward pass.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
        tokens (sequence of Tensor): What stands for the inputs.
        selected (Tensor): One output per row, in the graph.
        named (mapping): Names of what several nodes compute together, such as a
            recurrent layer; others are named as the graph names them.
    """
    parts, found = _Parts(calls, tokens, named), []
    behind = DependencyGraph([call.probed for call in calls])
    used: set[int] = set()
    for number, call in enumerate(calls):
        used |= behind.ancestors(call.probed) - {number}
        if call.values.requires_grad:
            n_tokens = call.values.shape[-2]
            part = parts.behind(get_gradient_edge(call.values).node, n_tokens)
            parts.note(part)
            found.append(Suspect(number, n_tokens, part))
    for last in set(range(len(calls))) - used:
        n_tokens = calls[last].lengths()[0]
        if n_tokens == 1:
            continue
        for edge in _read_from(selected, n_tokens, parts.attention):
            if last in behind.ancestors(edge.node):
                part = parts.behind(edge.node, n_tokens)
            else:  # what is read passes beside the last layer
                part = Part(set(), {"select": [edge.node]}, [edge])
            found.append(Suspect(last, n_tokens, part, edge))
    return [suspect for suspect in found if suspect.part.may_mix]


def where_tokens_are_apart(
    n_tokens: int, before: Sequence[AttentionCall], tokens: Sequence[Tensor]
) -> list[Tensor]:
    """Find where tokens are apart in front of a call, last but one.

    Args:
        n_tokens (int): So many.
        before (sequence of AttentionCall): The attention that the call depends on.
        tokens (sequence of Tensor): What stands for the inputs.
    """
    maps = [call.probed for call in before if call.lengths() == (n_tokens, n_tokens)]
    # With no layer before it, the tokens themselves.
    return maps[-1:] or [
        tensor for tensor in tokens if tensor.dim() == 3 and tensor.shape[1] == n_tokens
    ]


def _read_from(
    selected: Tensor, n_tokens: int, attention: Collection[Node]
) -> list[GradientEdge]:
    """Find the tensors of tokens that the output is read from.

    Going back from the output, these are the first that have the tokens in an axis and
    of which an operation takes some or sums over all.
    """
    found: dict[tuple[Node, int], GradientEdge] = {}
    seen, pending = set(attention), [selected.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        takes = not _keeps_apart(operation(node), node, n_tokens)
        for parent, number in node.next_functions:
            if parent is None:
                continue
            edge = GradientEdge(parent, number)
            if takes and axes_of_tokens(edge, n_tokens, selected):
                found[parent, number] = edge
            else:
                pending.append(parent)
    return list(found.values())


def operation(node: Node) -> str:
    """Name the operation that a node of the graph is of, such as ``AvgPool2D``."""
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def _keeps_apart(name: str, node: Node, n_tokens: int) -> bool:
    """Whether an operation is known to keep tokens apart."""
    if name in _KEEPS_APART:
        return True
    if name in ("NativeLayerNorm", "FusedRmsNorm"):
        return len(getattr(node, "_saved_normalized_shape", (0, 0))) == 1
    if name in ("Addmm", "Mm"):  # of a linear layer, along the features
        left = "mat1" if name == "Addmm" else "self"
        sizes = getattr(node, f"_saved_{left}_sym_sizes", (n_tokens,))
        return bool(sizes[-1] != n_tokens)
    taken = [(parent, place) for parent, place in node.next_functions if parent]
    if name == "Cat" and len(taken) == 1:  # to an empty cache
        return True
    shape = taken[0][0]._input_metadata[taken[0][1]].shape if taken else ()
    if name == "Slice" and shape_at(GradientEdge(node, 0)) == torch.Size(shape):
        return True  # x[:], as torch 2.6 notes it
    if name in _VIEWS:
        return _keeps_axis(shape, shape_at(GradientEdge(node, 0)), n_tokens)
    if not shape:  # of a single number, such as one row's output
        return name in _ALONG_FEATURES | _TRANSPOSITIONS
    if name in _TRANSPOSITIONS:  # of axes as long by chance, either may be the tokens'
        moved = list(range(len(shape)))
        if name == "Permute":
            moved = _dims(node._saved_dims, len(shape))  # type: ignore[attr-defined]
        elif name == "Transpose":
            pair = [getattr(node, f"_saved_dim{i}") for i in range(2)]
            one, other = _dims(pair, len(shape))
            moved[one], moved[other] = other, one
        else:
            moved.reverse()
        as_long = [axis for axis in moved if shape[axis] == n_tokens]
        return as_long == sorted(as_long)
    given = getattr(node, "_saved_dim", None)
    dims = _dims([given] if isinstance(given, int) else given or (), len(shape))
    if name == "Select":  # of queries, keys and values in one tensor
        return all(shape[dim] == 3 != n_tokens for dim in dims)
    return name in _ALONG_FEATURES and dims == [len(shape) - 1]


def _dims(saved: Iterable[int], n_axes: int) -> list[int]:
    """Count dimensions from 0, which the graph keeps as unsigned numbers."""
    return [(dim if dim < 1 << 63 else dim - (1 << 64)) % n_axes for dim in saved]


def _keeps_axis(before: Sequence[int], after: Sequence[int], n_tokens: int) -> bool:
    """Whether a view leaves tokens apart from what is no row.

    Args:
        before (sequence of int): The shape that is viewed.
        after (sequence of int): The shape that it is viewed in.
        n_tokens (int): So many.

    Examples::

        >>> _keeps_axis((2, 7, 8), (2, 7, 4, 2), 7), _keeps_axis((2, 7, 8), (14, 8), 7)
        (True, True)
        >>> _keeps_axis((2, 7, 8), (2, 8, 7), 7), _keeps_axis((2, 8, 7), (2, 7, 8), 7)
        (False, False)
    """
    ends, ends_after = ([1, *accumulate(of, mul)] for of in (before, after))
    axes, made = (_axes_as_long(of, n_tokens) for of in (before, after))
    if axes:
        # Tokens may be joined with the rows in front of them, in dimension 0. Of
        # several axes it does not show which is theirs afterwards.
        return len(made) < 2 and all(
            ends[axis + 1] in ends_after
            and (ends[axis] in ends_after or (axis == 1 and len(before) > 2))
            for axis in axes
        )
    # Rows and tokens may be one axis, the first.
    return all(
        before and (ends_after[axis + 1] == before[0] or ends_after[axis] == 1)
        for axis in made
    )


def _axes_as_long(shape: Sequence[int], n_tokens: int) -> list[int]:
    """List the axes that may be the tokens'; the last one, of features, if no other."""
    axes = [axis for axis, size in enumerate(shape) if size == n_tokens]
    return axes if len(axes) < 2 else [axis for axis in axes if axis < len(shape) - 1]
