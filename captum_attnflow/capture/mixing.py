"""What mixes positions in a forward pass beside the attention that is captured.

Flows follow attention alone. A convolution between two layers, or attention that is
written in a way that is not known, mixes positions, which scores then miss.

Behind the last layer two things look alike. A head that pools, by a mean, a maximum or
weights of its own, makes one vector of all tokens: the gradients in the last layer's
queries say what each token gave, so nothing is missing. A recurrence, a convolution or
a shift keeps the tokens and mixes them, and the output is then read at one of them:
what it has of the others is missing. The graph tells them apart, by the positions that
the output is read at and those that these depend on.
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
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from captum_attnflow.capture.graph import DependencyGraph, without_attention
from captum_attnflow.capture.maps import AttentionCall


@dataclass(frozen=True)
class TracedAxis:
    """An axis of a tensor that may be that of tokens, without holding the tensor.

    Attributes:
        edge (GradientEdge): Where the tensor is in the graph.
        shape (Size): Its shape.
        axis (int): The axis.
        zero (Tensor): Of its dtype, on its device.
    """

    edge: GradientEdge
    shape: torch.Size
    axis: int
    zero: Tensor

    @staticmethod
    def of(tensor: Tensor, axis: int) -> TracedAxis:
        """Note an axis of a tensor, which requires a gradient."""
        return TracedAxis.at(get_gradient_edge(tensor), axis)

    @staticmethod
    def at(edge: GradientEdge, axis: int) -> TracedAxis:
        """Note an axis of what is at a place in the graph."""
        like = edge.node._input_metadata[edge.output_nr]
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return TracedAxis(edge, _shape(edge), axis, zero)

    @property
    def size(self) -> int:
        """Its size."""
        return self.shape[self.axis]

    def mixes(self, sources: Sequence[Tensor]) -> bool:
        """Whether what is at a place of the axis depends on other tokens.

        Args:
            sources (sequence of Tensor): As below; without any it is taken to.
        """
        if not sources:
            return True
        return any(self._others(key, sources) != set() for key in (0, self.size - 1))

    def mixes_what_entered(self, edges: Sequence[GradientEdge]) -> bool:
        """Whether what is at a place of the axis depends on other tokens.

        Args:
            edges (sequence of GradientEdge): Where tokens are apart, in any axis.
        """
        for key in (0, self.size - 1):
            others = torch.arange(self.size, device=self.zero.device) != key
            for gradient in self._gradients(key, edges):
                if gradient is not None and all(
                    bool((of & others).any()) for of in _reached(gradient, self.size)
                ):
                    return True
        return False

    def have_query_of_a_token(self, tokens: Sequence[Tensor]) -> bool:
        """Whether scores, one for each key, are those of one token's query.

        The score of a key depends on the key's own token. Of a head that pools by a
        learned query it depends on no other; here on one more, the same for all keys.
        Tokens are those of the hidden states at which keys and query part, since layers
        before them mix tokens.

        Args:
            tokens (sequence of Tensor): What stands for the inputs, and maps.
        """
        keys = sorted({0, self.size // 2, self.size - 1})
        for fork in DependencyGraph(tokens).forks(self.edge.node):
            shape = _shape(fork)
            others = [
                {key: self._others(key, [fork], axis) for key in keys}
                for axis, size in enumerate(shape)
                if size == self.size and len(shape) > 1
            ]
            apart = [of for of in others if None not in of.values()]
            if others and not apart:
                return False
            for of in apart:
                found = {key: on or set() for key, on in of.items()}
                if any(found.values()):
                    # The query may itself be one of these keys, and some rows have
                    # padding there.
                    return all(
                        found[one] - {other} <= found[other]
                        or found[other] - {one} <= found[one]
                        for one, other in combinations(keys, 2)
                    )
        return False

    def _others(
        self,
        key: int,
        sources: Sequence[Tensor] | Sequence[GradientEdge],
        axis: int = -2,
    ) -> set[int] | None:
        """Find on which other tokens depends what a key has; None if on several.

        Args:
            key (int): It.
            sources (sequence): Where tokens are apart.
            axis (int): The axis of the tokens there.
        """
        others: set[int] = set()
        for gradient in self._gradients(key, sources):
            if gradient is not None:
                found = (gradient != 0).movedim(axis, -2).any(-1).flatten(0, -2)
                found[:, key] = False
                if bool((found.sum(1) > 1).any()):
                    return None
                others.update(found.any(0).nonzero()[:, 0].tolist())
        return others

    def _gradients(
        self, key: int, sources: Sequence[Tensor] | Sequence[GradientEdge]
    ) -> tuple[Tensor | None, ...]:
        of_key = self.zero.repeat(self.shape)
        of_key.select(self.axis, key).fill_(1)
        return torch.autograd.grad(
            [self.edge], sources, [of_key], retain_graph=True, allow_unused=True
        )


@dataclass(frozen=True)
class _Mixed:
    """A product of two tensors, which may have mixed positions.

    Attributes:
        name (str): Of the call.
        node (Node): Where in the graph its output is.
        factors (tuple of TracedAxis): Its factors, by the axis that it sums over.
        output (TracedAxis, optional): What it is, by another axis as long.
        is_outer (bool): Whether it has features of both its factors, as that of keys
            and values in linear attention.
        sums_features (bool): Whether it sums over the last axis of both.
    """

    name: str
    node: Node
    factors: tuple[TracedAxis, ...]
    output: TracedAxis | None
    is_outer: bool
    sums_features: bool


class PositionMixing:
    """Notes what mixes positions in a forward pass, without holding tensors."""

    def __init__(self) -> None:
        self._mixed: list[_Mixed] = []

    def note_product(
        self, name: str, factors: Sequence[tuple[Any, int]], output: Any
    ) -> None:
        """Note a product that is none of captured weights and values.

        Args:
            name (str): Of the call.
            factors (sequence of tuple): What is multiplied, with the axis that is
                summed over.
            output (Any): What it returned.
        """
        parts = tuple(
            TracedAxis.of(factor, axis)
            for factor, axis in factors
            if isinstance(factor, Tensor) and factor.grad_fn is not None
        )
        if len(parts) > 1:
            self._note(name, parts, output)

    def note_sum(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Note a sum of an elementwise product."""
        x = args[0] if args else kwargs["input"]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(dim, (tuple, list)) and len(dim) == 1:
            (dim,) = dim
        node = x.grad_fn if isinstance(dim, int) else None
        if node is None or node.name() != "MulBackward0":
            return
        behind_last = dim % x.dim() - x.dim()  # factors are broadcast from the last
        parts = []
        for factor, number in node.next_functions:
            if factor is None:
                return
            edge = GradientEdge(factor, number)
            n_axes = len(_shape(edge))
            if n_axes >= -behind_last:
                parts.append(TracedAxis.at(edge, behind_last % n_axes))
        if len(parts) > 1:
            self._note("sum", tuple(parts), output, behind_last == -1)

    def _note(
        self,
        name: str,
        factors: tuple[TracedAxis, ...],
        output: Tensor,
        sums_features: bool = False,
    ) -> None:
        if output.grad_fn is None:
            return
        summed = factors[0].size
        as_long = [axis for axis in (-2, -1) if summed in output.shape[axis:][:1]]
        kept = TracedAxis.of(output, as_long[0] % output.dim()) if as_long else None
        features = [factor.shape.numel() // max(1, factor.size) for factor in factors]
        is_outer = output.numel() > max(features)
        self._mixed.append(
            _Mixed(name, output.grad_fn, factors, kept, is_outer, sums_features)
        )

    def beside(
        self,
        calls: Sequence[AttentionCall],
        tokens: Sequence[Tensor],
        scores: Callable[[], Iterable[Node]],
        selected: Tensor,
    ) -> dict[str, set[int]]:
        """Return the names of what mixes positions beside the captured attention.

        Products of two tensors that depend on the tokens do so anywhere, if they keep
        the positions. Anything else does in front of a layer, and behind all of them
        if the output is read at some of the positions that it has mixed.

        Args:
            calls (sequence of AttentionCall): The attention that was captured.
            tokens (sequence of Tensor): What stands for the inputs.
            scores (Callable): Returns where the scores of all softmaxes are in the
                graph.
            selected (Tensor): One output per row, in the graph.

        Returns:
            dict: For each name behind how many of the calls it is.
        """
        found = self._noted(calls, tokens, scores)
        seen = _Seen(calls, tokens)
        for name, n_before in _between(calls, tokens, seen, found):
            found.setdefault(name, set()).add(n_before)
        for name, n_before in _behind_all(calls, selected, seen, found):
            found.setdefault(name, set()).add(n_before)
        return found

    def _noted(
        self,
        calls: Sequence[AttentionCall],
        tokens: Sequence[Tensor],
        scores: Callable[[], Iterable[Node]],
    ) -> dict[str, set[int]]:
        """Find those among the calls that were noted."""
        lengths = {call.lengths()[1] for call in calls}
        mixed = [
            of
            for of in self._mixed
            if of.factors[0].size in lengths and not of.sums_features
        ]
        found: dict[str, set[int]] = {}
        if not mixed:
            return found
        probed = [call.probed for call in calls]
        behind = DependencyGraph(probed)
        ahead = DependencyGraph([of.node for of in mixed])
        ahead_of_some = {i for tensor in probed for i in ahead.ancestors(tensor)}
        of_tokens = DependencyGraph([*tokens, *probed])
        of_scores: set[Node] | None = None
        for number, of in enumerate(mixed):
            is_ahead, before = number in ahead_of_some, behind.ancestors(of.node)
            depend = (of_tokens.depends(factor.edge.node) for factor in of.factors)
            if not (is_ahead or before) or not all(depend):
                continue
            # As many features as tokens: scores sum over features.
            if of_scores is None:
                of_scores = {
                    node for start in scores() for node in products_behind(start)
                }
            if set(products_behind(of.node)) <= of_scores:
                continue
            sources = where_tokens_are_apart(
                of.factors[0].size, [calls[i] for i in sorted(before)], tokens
            )
            if of.output is None and (is_ahead or self._is_queried(of, of_tokens)):
                is_found = True  # such as the sums of linear attention
            elif of.output is not None:
                is_found = of.output.mixes(sources)
            else:
                is_found = any(
                    factor.have_query_of_a_token([*tokens, *probed])
                    for factor in of.factors
                )
            if is_found:
                found.setdefault(of.name, set()).add(len(before))
        return found

    def without_softmax(
        self, tokens: Sequence[Tensor], lengths: Collection[int]
    ) -> list[str]:
        """Return the names of products that sum over tokens, where none is captured.

        Args:
            tokens (sequence of Tensor): What stands for the inputs.
            lengths (collection of int): How many tokens there may be.
        """
        of_tokens = DependencyGraph(tokens)
        return sorted(
            {
                of.name
                for of in self._mixed
                if of.factors[0].size in lengths
                and not of.sums_features
                and (of.is_outer or of.output is not None)  # gates that pool are not
                and all(of_tokens.depends(part.edge.node) for part in of.factors)
            }
        )

    def _is_queried(self, sums: _Mixed, of_tokens: DependencyGraph) -> bool:
        """Whether sums over tokens are of linear attention, not of a pooling head.

        Keys times values, summed, are multiplied by queries, also of one token alone.
        """
        if not sums.is_outer:
            return False
        behind = DependencyGraph([sums.node])
        return any(
            {behind.depends(factor.edge.node) for factor in of.factors} == {False, True}
            and all(of_tokens.depends(factor.edge.node) for factor in of.factors)
            for of in self._mixed
            if of.node is not sums.node
        )


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


def products_behind(start: Node) -> Iterator[Node]:
    """Go back to the products of matrices that something is made of."""
    pending, seen = [start], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if "mm" in node.name().lower():
            yield node
        else:
            pending.extend(parent for parent, _ in node.next_functions if parent)


# Operations behind which each token is a function of itself alone, by their names in
# the graph. Of any other it is computed whether it mixes tokens.
_KEEPS_APART = {
    "Abs",
    "AccumulateGrad",
    "Add",
    "Alias",
    "Clamp",
    "ClampMax",
    "ClampMin",
    "Clone",
    "Cos",
    "Div",
    "Elu",
    "Embedding",
    "Erf",
    "Exp",
    "Expand",
    "Gelu",
    "Log",
    "MaskedFill",
    "Mul",
    "NativeDropout",
    "Neg",
    "Permute",
    "Pow",
    "Relu",
    "ReshapeAlias",
    "Rsqrt",
    "Rsub",
    "Sigmoid",
    "Silu",
    "Sin",
    "Softplus",
    "Sqrt",
    "Squeeze",
    "Sub",
    "T",
    "Tanh",
    "ToCopy",
    "Transpose",
    "UnsafeView",
    "Unsqueeze",
    "View",
    "Where",
    "_Scaled",  # of propagation rules, as the next
    "_Substituted",
}
# Those that keep tokens apart along the features.
_ALONG_FEATURES = {"Cat", "Mean", "Slice", "Split", "SplitWithSizes", "Sum"}


@dataclass
class _Part:
    """A part of the graph, between what was seen before and a tensor.

    Attributes:
        nodes (set of Node): It.
        may_mix (dict): The nodes that may mix tokens, by the names of their operations.
        entered (list of GradientEdge): What enters the part beside attention.
    """

    nodes: set[Node]
    may_mix: dict[str, list[Node]]
    entered: list[GradientEdge]


class _Seen:
    """Goes back over a graph part by part, so that each is looked at once.

    What passes beside attention is followed to where a part begins, not to the inputs:
    the work then grows with the layers, not with their square.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
        tokens (sequence of Tensor): What stands for the inputs.
    """

    def __init__(
        self, calls: Sequence[AttentionCall], tokens: Sequence[Tensor]
    ) -> None:
        self._tokens = tokens
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

    def part_behind(self, start: Node, n_tokens: int) -> _Part:
        """Go back to what was seen before."""
        may_mix: dict[str, list[Node]] = {}
        pending, part = [start], set[Node]()
        while pending:
            node = pending.pop()
            if node in self._seen or node in self._attention or node in part:
                continue
            part.add(node)
            name = _operation(node)
            if not _keeps_apart(name, node, n_tokens):
                # AvgPool2D as avg_pool2d
                name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
                may_mix.setdefault(name, []).append(node)
            pending.extend(parent for parent, _ in node.next_functions if parent)
        entered: list[GradientEdge] = []
        if may_mix:  # else nothing is asked of it
            edges = {edge for node in part for edge in node.next_functions}
            entered = self._entered(edges, n_tokens)
        return _Part(part, may_mix, entered)

    def note(self, part: _Part) -> None:
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
        if all(_reached_shapes(_shape(edge), n_tokens) for edge in found):
            return found
        apart = where_tokens_are_apart(n_tokens, (), self._tokens)
        return [get_gradient_edge(part) for part in apart]


def _shape(edge: GradientEdge) -> torch.Size:
    return torch.Size(edge.node._input_metadata[edge.output_nr].shape)


def _reached_shapes(
    shape: Sequence[int], n_tokens: int
) -> list[tuple[tuple[int, ...], int]]:
    """List how a tensor may have tokens, as shapes with an axis.

    Where no size is that of the tokens, rows and tokens may be one axis.
    """
    axes = [axis for axis, size in enumerate(shape) if size == n_tokens]
    if axes or not shape or shape[0] % n_tokens:
        return [(tuple(shape), axis) for axis in axes]
    n_rows, features = shape[0] // n_tokens, shape[1:]
    return [((n_rows, n_tokens, *features), 1), ((n_tokens, n_rows, *features), 0)]


def _reached(gradient: Tensor, n_tokens: int) -> list[Tensor]:
    """Find the tokens of a gradient that are not zero, for each way to have them."""
    return [
        (gradient != 0).reshape(shape).movedim(axis, 0).flatten(1).any(1)
        for shape, axis in _reached_shapes(gradient.shape, n_tokens)
    ]


def _between(
    calls: Sequence[AttentionCall],
    tokens: Sequence[Tensor],
    seen: _Seen,
    known: Mapping[str, set[int]],
) -> Iterator[tuple[str, int]]:
    """Find what mixes tokens between a layer and the one before it, in any way.

    Such as recurrences that are written out, token shifts, or pooling over neighbours:
    what a key has to hand on then depends on other tokens than its own.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
        tokens (sequence of Tensor): What stands for the inputs.
        seen (_Seen): What was looked at before.
        known (mapping): What is known to mix behind how many of the calls.

    Yields:
        tuple[str, int]: Its name, and behind how many of the calls it is.
    """
    behind = DependencyGraph([call.probed for call in calls])
    for call in calls:
        values, n_tokens = call.values, call.values.shape[-2]
        if not values.requires_grad:
            continue
        part = seen.part_behind(get_gradient_edge(values).node, n_tokens)
        seen.note(part)
        before = sorted(behind.ancestors(values))
        if not part.may_mix or len(before) in set[int]().union(*known.values()):
            continue
        of_keys = TracedAxis.of(values, values.dim() - 2)
        ahead = [calls[i] for i in before]
        whole = [call for call in ahead if call.lengths() == (n_tokens, n_tokens)]
        mixed = list(whole[-1].mixed) if whole else []
        if mixed and all(n_tokens in _shape(edge) for edge in mixed):
            # One pass for both: a gradient is taken where it is cut off, before that.
            with without_attention(ahead):
                is_mixed = of_keys.mixes_what_entered([*mixed, *part.entered])
        else:
            apart = where_tokens_are_apart(n_tokens, ahead, tokens)
            is_mixed = bool(apart) and of_keys.mixes(apart)
            if before and part.entered and not is_mixed:  # beside all attention
                with without_attention(ahead):
                    is_mixed = of_keys.mixes_what_entered(part.entered)
        if is_mixed:
            yield from ((name, len(before)) for name in _names(part.may_mix, n_tokens))


def _behind_all(
    calls: Sequence[AttentionCall],
    selected: Tensor,
    seen: _Seen,
    known: Mapping[str, set[int]],
) -> Iterator[tuple[str, int]]:
    """Find what mixes tokens behind the last layer, before the output is read at some.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
        selected (Tensor): One output per row, in the graph.
        seen (_Seen): What was looked at before.
        known (mapping): What is known to mix behind how many of the calls.

    Yields:
        tuple[str, int]: Its name, and behind how many of the calls it is.
    """
    behind = DependencyGraph([call.probed for call in calls])
    used = {
        i for n, call in enumerate(calls) for i in behind.ancestors(call.probed) - {n}
    }
    for last in set(range(len(calls))) - used:
        call, n_before = calls[last], len(behind.ancestors(calls[last].probed))
        n_tokens = call.lengths()[0]
        if n_tokens == 1 or n_before in set[int]().union(*known.values()):
            continue
        of_map = [get_gradient_edge(call.probed)] if call.probed.requires_grad else []
        for edge in _read_from(selected, n_tokens, seen.attention):
            # Of most heads nothing may, which costs no backward pass.
            part = seen.part_behind(edge.node, n_tokens)
            if not part.may_mix:
                continue
            is_mixed = bool(of_map) and _is_mixed_where_read(
                edge, selected, of_map, n_tokens
            )
            if part.entered and not is_mixed:
                with without_attention(calls):  # what passes beside all of it
                    is_mixed = _is_mixed_where_read(
                        edge, selected, part.entered, n_tokens
                    )
            if is_mixed:
                yield from ((name, n_before) for name in _names(part.may_mix, n_tokens))


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
        takes = not _keeps_apart(_operation(node), node, n_tokens)
        for parent, number in node.next_functions:
            if parent is None:
                continue
            edge = GradientEdge(parent, number)
            if takes and _axes_of_tokens(edge, n_tokens):
                found[parent, number] = edge
            else:
                pending.append(parent)
    return list(found.values())


def _axes_of_tokens(edge: GradientEdge, n_tokens: int) -> list[int]:
    """List the axes of a tensor that may be those of the tokens, by their sizes.

    Beside the rows and the features it has one: (rows, classes) have none.
    """
    shape = _shape(edge)
    if len(shape) < 3:
        return []
    return [axis for axis, size in enumerate(shape) if size == n_tokens]


def _is_mixed_where_read(
    edge: GradientEdge,
    selected: Tensor,
    sources: Sequence[GradientEdge],
    n_tokens: int,
) -> bool:
    """Whether what is read of some tokens depends on others of a source.

    Args:
        edge (GradientEdge): Where what is read is in the graph.
        selected (Tensor): One output per row, in the graph.
        sources (sequence of GradientEdge): The map of the last layer, or what passes
            beside it.
        n_tokens (int): So many.
    """
    axes = _axes_of_tokens(edge, n_tokens)
    # Another axis may be as long by chance: tokens are apart along one alone.
    if not all(TracedAxis.at(edge, axis).mixes_what_entered(sources) for axis in axes):
        return False
    for row in {0, len(selected) - 1}:  # which are read at positions of their own
        (gradient,) = torch.autograd.grad(
            [selected[row]], [edge], retain_graph=True, allow_unused=True
        )
        if gradient is None:
            continue
        reads = [(gradient != 0).movedim(axis, 0).flatten(1).any(1) for axis in axes]
        for of_source in torch.autograd.grad(
            [edge], sources, [gradient], retain_graph=True, allow_unused=True
        ):
            if of_source is not None and any(
                all(bool((of & ~read).any()) for of in _reached(of_source, n_tokens))
                for read in reads
            ):
                return True
    return False


# What most models have anyway: it may be how another operation is computed.
_IN_MOST_MODELS = {"addmm", "baddbmm", "bmm", "mm", "softmax", "stack"}


def _names(may_mix: Mapping[str, Sequence[Node]], n_tokens: int) -> list[str]:
    """Name those of some operations, of which one mixes tokens, that do.

    Args:
        may_mix (mapping): Where each is in the graph.
        n_tokens (int): So many.
    """
    found = {
        name: {_node_mixes(node, n_tokens) for node in nodes}
        for name, nodes in may_mix.items()
    }
    do = {name for name, mixes in found.items() if True in mixes}
    may = {name for name, mixes in found.items() if None in mixes}
    return sorted(do | (may - _IN_MOST_MODELS if do else may) or may_mix)


def _node_mixes(node: Node, n_tokens: int) -> bool | None:
    """Whether one operation mixes tokens; None where its shapes do not tell."""
    given = [
        GradientEdge(parent, number)
        for parent, number in node.next_functions
        if parent is not None and _operation(parent) != "AccumulateGrad"
    ]
    known = [edge for edge in given if n_tokens in _shape(edge)]
    made = GradientEdge(node, 0)
    axes = [axis for axis, size in enumerate(_shape(made)) if size == n_tokens]
    traced = [TracedAxis.at(made, axis) for axis in axes]
    if not known or not traced:
        return None
    found = {axis.mixes_what_entered(known) for axis in traced}
    if len(found) > 1 or (found == {False} and len(known) < len(given)):
        return None
    return found.pop()


def _operation(node: Node) -> str:
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
    given = getattr(node, "_saved_dim", None)
    dims = [given] if isinstance(given, int) else list(given or ())
    if not shape:  # of a single number, such as one row's output
        return name in _ALONG_FEATURES
    # They are kept as unsigned numbers.
    dims = [(dim if dim < 1 << 63 else dim - (1 << 64)) % len(shape) for dim in dims]
    if name == "Select":  # of queries, keys and values in one tensor
        return all(shape[dim] == 3 != n_tokens for dim in dims)
    return name in _ALONG_FEATURES and dims == [len(shape) - 1]


def mixing_in_words(found: Mapping[str, set[int]], n_layers: int) -> str:
    """Say what mixes positions, and where.

    Args:
        found (mapping): For each name behind how many of the layers it is.
        n_layers (int): Attention layers that were captured.

    Examples::

        >>> mixing_in_words({"stack": {0, 3}, "matmul": {2}}, 3).partition(": ")[2]
        'in front of layer 1, between layers 2 and 3, behind the last layer'
        >>> mixing_in_words({"roll": {1}}, 1).partition(" beside")[0]
        'roll mixes positions'
    """

    def place(before: int) -> str:
        if before == n_layers:
            return "behind the last layer"
        if before == 0:
            return "in front of layer 1"
        return f"between layers {before} and {before + 1}"

    places = map(place, sorted(set[int]().union(*found.values())))
    return (
        f"{', '.join(sorted(found))} {'mixes' if len(found) == 1 else 'mix'} positions "
        f"beside the attention that was captured, which has {n_layers} "
        f"layer{'s' * (n_layers != 1)}: {', '.join(places)}"
    )
