"""What mixes positions in a forward pass beside the attention that is captured.

Flows follow attention alone. What a convolution between two layers mixes, or attention
that is written in a way that is not known, counts for the token at whose position it
arrives.

Behind the last layer nothing is missing from scores: the gradients in the last layer's
queries say what each token gave, whether a head pools the tokens or a recurrence mixes
them before the output is read at one. But a head is known to read them all; what mixes
them and keeps them apart nevertheless, such as a layer without a softmax, is a layer
that the network does not have. The graph tells them apart, by the positions that the
output is read at and those that these depend on. What merely moves tokens behind the
last layer mixes nothing.

All this costs backward passes. It is asked where :func:`.graph.suspects` finds, by
names and shapes alone, what may mix tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from captum_attnflow.capture.axes import (
    Product,
    Products,
    TracedAxis,
    axes_of_tokens,
    products_behind,
    shape_at,
    shapes_with_tokens,
)
from captum_attnflow.capture.composed import have_query_of_a_token
from captum_attnflow.capture.gradients import AttentionCall
from captum_attnflow.capture.graph import (
    DependencyGraph,
    Suspect,
    operation,
    where_tokens_are_apart,
    without_attention,
)


class Place(NamedTuple):
    """Where something mixes positions; layers are numbered as they ran, from 1.

    Attributes:
        layer (int): The layer that it is in front of, behind or beside.
        words (str): Where.
    """

    layer: int
    words: str


class _Layers:
    """Numbers the attention calls of each stack, as they ran.

    Args:
        calls (sequence of AttentionCall): The attention that was captured.
    """

    def __init__(self, calls: Sequence[AttentionCall]) -> None:
        self._behind = DependencyGraph([call.probed for call in calls])
        self._before = [self._behind.ancestors(call.values) for call in calls]
        stacks = [{number} for number in range(len(calls))]
        for number, call in enumerate(calls):
            before = self._before[number] | self._behind.ancestors(call.probed)
            joined = {number}.union(*(stacks[other] for other in before))
            for other in joined:
                stacks[other] = joined
        self._number = [
            sorted(stack).index(call) + 1 for call, stack in enumerate(stacks)
        ]
        self.n_layers = max(self._number)

    def behind(self, node: Node) -> set[int]:
        """Return the calls that something depends on."""
        return self._behind.ancestors(node)

    def in_front_of(self, call: int, behind: Iterable[set[int]]) -> Place:
        """Say where that is which mixes what a call has for keys.

        Args:
            call (int): It.
            behind (iterable of set): For each operation the calls that it depends on.
        """
        before, number = self._before[call], self._number[call]
        if not before:
            return Place(number, f"in front of layer {number}")
        last = max(before)
        if all(last not in of for of in behind):
            return self._beside(last)
        return Place(number, f"between layers {self._number[last]} and {number}")

    def behind_all(self, last: int, behind: Iterable[set[int]]) -> Place:
        """Say where that is which mixes tokens behind a last call, or beside it."""
        if all(last not in of for of in behind):
            return self._beside(last)
        return Place(self._number[last] + 1, "behind the last layer")

    def _beside(self, call: int) -> Place:
        number = self._number[call]
        return Place(number, f"beside the attention of layer {number}")


def mixing_beside(
    products: Products,
    suspected: Sequence[Suspect],
    calls: Sequence[AttentionCall],
    tokens: Sequence[Tensor],
    scores: Callable[[], Iterable[Node]],
    selected: Tensor,
) -> str:
    """Say in words what mixes positions beside the captured attention.

    Products of two tensors that depend on the tokens do so anywhere, if they keep the
    positions. Anything else does in front of a layer, and behind all of them if the
    output is read at some of the positions that it has mixed.

    Args:
        products (Products): Of two tensors, none of captured weights and values.
        suspected (sequence of Suspect): Parts of the graph that may mix tokens.
        calls (sequence of AttentionCall): The attention that was captured.
        tokens (sequence of Tensor): What stands for the inputs.
        scores (Callable): Returns where the scores of all softmaxes are in the graph.
        selected (Tensor): One output per row, in the graph.

    Returns:
        str: Sentences; empty if nothing does.
    """
    layers = _Layers(calls)
    found: dict[Place, set[str]] = {}
    for place, name in _products(products, layers, calls, tokens, scores):
        found.setdefault(place, set()).add(name)
    by_product = {place.layer for place in found if "beside" not in place.words}
    for suspect in suspected:
        is_behind = suspect.read is not None
        say = layers.behind_all if is_behind else layers.in_front_of
        if say(suspect.call, [set(range(len(calls)))]).layer in by_product:
            continue
        with _gates_open(suspect.part.nodes):
            if is_behind:
                is_mixed = _is_mixed_where_read(suspect, calls, selected)
            else:
                is_mixed = _is_mixed_for_keys(suspect, layers, calls, tokens)
        if is_mixed:
            mixing = _names(suspect.part.may_mix, suspect.n_tokens)
            behind = [layers.behind(node) for of in mixing.values() for node in of]
            found.setdefault(say(suspect.call, behind), set()).update(mixing)
    return mixing_in_words(found, layers.n_layers) if found else ""


def _products(
    noted: Products,
    layers: _Layers,
    calls: Sequence[AttentionCall],
    tokens: Sequence[Tensor],
    scores: Callable[[], Iterable[Node]],
) -> Iterator[tuple[Place, str]]:
    """Find products that mix tokens, with where."""
    products = noted.over({call.lengths()[1] for call in calls})
    if not products:
        return
    probed = [call.probed for call in calls]
    ahead = DependencyGraph([of.node for of in products])
    ahead_of = [ahead.ancestors(call.probed) for call in calls]
    ahead_of_keys = [ahead.ancestors(call.values) for call in calls]
    of_tokens = DependencyGraph([*tokens, *probed])
    of_scores: set[Node] | None = None
    for number, of in enumerate(products):
        fed, before = [n for n in ahead_of if number in n], layers.behind(of.node)
        depend = (of_tokens.depends(factor.edge.node) for factor in of.factors)
        if not (fed or before) or not all(depend):
            continue
        # As many features as tokens: scores sum over features.
        if of_scores is None:
            of_scores = {node for start in scores() for node in products_behind(start)}
        if set(products_behind(of.node)) <= of_scores:
            continue
        if of.output is not None:
            n_tokens = of.factors[0].size
            apart = where_tokens_are_apart(
                n_tokens, [calls[i] for i in sorted(before)], tokens
            )
            is_found = _mixes(of.output, apart)
        elif fed or _is_queried(of, noted.noted, of_tokens):
            is_found = True  # such as the sums of linear attention
        else:
            is_found = any(
                have_query_of_a_token(factor, [*tokens, *probed])
                for factor in of.factors
            )
        if is_found:
            feeding = [i for i, on in enumerate(ahead_of_keys) if number in on]
            feeding += [i for i, on in enumerate(ahead_of) if number in on]
            if feeding:
                yield layers.in_front_of(feeding[0], [before]), of.name
            else:
                yield layers.behind_all(max(before), [before]), of.name


def _is_queried(
    sums: Product, products: Sequence[Product], of_tokens: DependencyGraph
) -> bool:
    """Whether sums over tokens are of linear attention, not of a pooling head.

    Keys times values, summed, are multiplied by queries, also of one token alone.
    """
    if not sums.is_outer:
        return False
    behind = DependencyGraph([sums.node])
    return any(
        {behind.depends(factor.edge.node) for factor in of.factors} == {False, True}
        and all(of_tokens.depends(factor.edge.node) for factor in of.factors)
        for of in products
        if of.node is not sums.node
    )


@contextmanager
def _gates_open(nodes: Collection[Node]) -> Iterator[None]:
    """While active, gradients pass what rules hold constant, such as a softmax gate.

    It mixes tokens of the model all the same.
    """
    scaled: list[Any] = [node for node in nodes if operation(node) == "_Scaled"]
    closed = [node for node in scaled if node.factor == 0.0]
    for node in closed:
        node.factor = 1.0
    try:
        yield
    finally:
        for node in closed:
            node.factor = 0.0


Layout = tuple[tuple[int, ...], int]
"""How a tensor may have tokens: a shape of it, and an axis."""


def _mixes(of: TracedAxis, sources: Sequence[Tensor]) -> bool:
    """Whether what is at a place of an axis depends on other tokens.

    Args:
        of (TracedAxis): The axis.
        sources (sequence of Tensor): Where tokens are apart, last but one, or first
            where that axis is as long; without any it is taken to.
    """
    if not sources:
        return True
    for source in sources:
        # Both are asked where the sizes leave open which holds the tokens.
        axes = (-2, 0) if source.shape[0] == source.shape[-2] else (-2,)
        if all(
            any(of.others(key, [source], axis) != set() for key in (0, of.size - 1))
            for axis in axes
        ):
            return True
    return False


def _mixes_what_entered(
    of: TracedAxis, entered: Mapping[GradientEdge, Sequence[Layout]]
) -> bool:
    """Whether what is at a place of an axis depends on other tokens.

    Args:
        of (TracedAxis): The axis.
        entered (mapping): Where tokens are apart, with how they may be there.
    """
    for key in (0, of.size - 1):
        gradients = of.gradients(key, list(entered))
        for gradient, layouts in zip(gradients, entered.values(), strict=True):
            if gradient is not None and all(
                tokens - {key} for tokens in _reached(gradient, layouts)
            ):
                return True
    return False


def _reached(gradient: Tensor, layouts: Sequence[Layout]) -> list[set[int]]:
    """Find the tokens of a gradient that are not zero, for each way to have them."""
    found = []
    for shape, axis in layouts:
        is_reached = (gradient != 0).reshape(shape).movedim(axis, 0).flatten(1).any(1)
        found.append(set(is_reached.nonzero()[:, 0].tolist()))
    return found


def _layouts(
    edge: GradientEdge, n_tokens: int, ahead: Sequence[AttentionCall]
) -> list[Layout]:
    """List how a tensor may have tokens, by its sizes and by what depends on what.

    Other axes may be as long by chance. What attention has mixed has its queries in the
    axis along which a place depends on one row of the map. Of hidden states a key of
    the next layer depends on its own token.

    Args:
        edge (GradientEdge): Where the tensor is in the graph.
        n_tokens (int): So many.
        ahead (sequence of AttentionCall): Calls as they ran, of which one may have made
            the tensor, or used it.
    """
    found = shapes_with_tokens(shape_at(edge), n_tokens)
    if len(found) < 2:
        return found
    keys = (0, n_tokens - 1)
    for call in ahead:
        if any(edge[:2] == of[:2] for of in call.mixed):
            if call.fused is not None:  # (..., queries, features)
                return [of for of in found if of[1] == len(of[0]) - 2]
            rows = [((*call.probed.shape,), call.probed.dim() - 2)]
            apart = [
                (shape, axis)
                for shape, axis in found
                if all(
                    _reached(gradient, rows) == [{key}]
                    for key in keys
                    for gradient in TracedAxis.at(edge, axis, shape).gradients(
                        key, [call.probed]
                    )
                    if gradient is not None
                )
            ]
            return apart or found
        if not call.values.requires_grad or call.lengths()[1] != n_tokens:
            continue
        of_keys = TracedAxis.of(call.values, call.values.dim() - 2)
        gradients = [of_keys.gradients(key, [edge])[0] for key in keys]
        if any(of is None or not bool(of.any()) for of in gradients):
            continue
        apart = [
            layout
            for layout in found
            if all(
                gradient is not None and _reached(gradient, [layout]) == [{key}]
                for key, gradient in zip(keys, gradients, strict=True)
            )
        ]
        return apart or found
    return found


def _is_mixed_for_keys(
    suspect: Suspect,
    layers: _Layers,
    calls: Sequence[AttentionCall],
    tokens: Sequence[Tensor],
) -> bool:
    """Whether what a key of a layer hands on depends on other tokens than its own.

    As behind recurrences that are written out, token shifts, or pooling of neighbours.
    """
    part, n_tokens = suspect.part, suspect.n_tokens
    values = calls[suspect.call].values
    of_keys = TracedAxis.of(values, values.dim() - 2)
    before = sorted(layers.behind(get_gradient_edge(values).node))
    ahead = [calls[i] for i in before]
    entered = {edge: _layouts(edge, n_tokens, ahead) for edge in part.entered}
    whole = [call for call in ahead if call.lengths() == (n_tokens, n_tokens)]
    mixed = list(whole[-1].mixed) if whole else []
    if mixed and all(n_tokens in shape_at(edge) for edge in mixed):
        entered |= {edge: _layouts(edge, n_tokens, whole[-1:]) for edge in mixed}
        # One pass for both: a gradient is taken where it is cut off, before that.
        with without_attention(ahead):
            return _mixes_what_entered(of_keys, entered)
    apart = where_tokens_are_apart(n_tokens, ahead, tokens)
    if apart and _mixes(of_keys, apart):
        return True
    if not before or not entered:
        return False
    with without_attention(ahead):  # beside all attention
        return _mixes_what_entered(of_keys, entered)


def _is_mixed_where_read(
    suspect: Suspect, calls: Sequence[AttentionCall], selected: Tensor
) -> bool:
    """Whether what is read of a token, behind the last layer, depends on several.

    Of the last map and of what passes beside it. What depends on one alone has been
    moved. What depends on tokens that are all read, each for itself, may have been
    pooled. But where something passes beside the attention to another position, the
    network has no edge for it. An element of a table of pairs of tokens, such as of all
    starts and ends of answers, depends on the two that it stands for.
    """
    edge, n_tokens, call = suspect.read, suspect.n_tokens, calls[suspect.call]
    assert edge is not None
    is_beside = not suspect.part.nodes  # read of what passes the last layer by
    # Another axis may be as long by chance: tokens are apart along one alone.
    axes = axes_of_tokens(edge, n_tokens, selected)
    rows = [((*call.probed.shape,), call.probed.dim() - 2)]
    of_map = [get_gradient_edge(call.probed)] if call.probed.requires_grad else []
    entered = {
        edge: _layouts(edge, n_tokens, calls[: suspect.call + 1])
        for edge in suspect.part.entered
    }

    def tokens_of(gradient: Tensor) -> tuple[set[int], set[int]]:
        """Those that it reaches through the last map, and beside all attention."""
        by_attention = _tokens_behind(edge, gradient, dict.fromkeys(of_map, rows))
        with without_attention(calls):
            return by_attention, _tokens_behind(edge, gradient, entered, by_attention)

    for row in {0, len(selected) - 1}:  # which are read at positions of their own
        # Of what feeds attention, too, only what passes it by.
        with without_attention(calls if is_beside else ()):
            (gradient,) = torch.autograd.grad(
                [selected[row]], [edge], retain_graph=True, allow_unused=True
            )
        if gradient is None:
            continue
        if is_beside:
            by_attention = _tokens_behind(
                get_gradient_edge(selected[row]), None, dict.fromkeys(of_map, rows)
            )
            read_beside = _reached(gradient, [((*gradient.shape,), a) for a in axes])
            if by_attention and all(of - by_attention for of in read_beside):
                return True
            continue
        if len(axes) > 1 and all(
            set[int]().union(*tokens_of(alone)) <= indices
            for alone, indices in _pairs_and_diagonal(gradient, axes)
        ):
            continue
        have_several, are_missed = [], False
        for axis in axes:
            read = (gradient != 0).movedim(axis, 0).flatten(1).any(1)
            places = read.nonzero()[:, 0].tolist()
            several = False
            for place in {*places[:1], *places[-1:]}:
                of_place = torch.zeros_like(gradient)
                of_place.select(axis, place).copy_(gradient.select(axis, place))
                by_attention, beside = tokens_of(of_place)
                both = by_attention | beside
                several |= len(both) > 1
                is_elsewhere = bool(by_attention) and not beside <= by_attention
                are_missed |= len(both) > 1 and (
                    is_elsewhere or not both <= set(places)
                )
            have_several.append(several)
        if all(have_several) and are_missed:
            return True
    return False


def _pairs_and_diagonal(
    gradient: Tensor, axes: Sequence[int]
) -> Iterator[tuple[Tensor, set[int]]]:
    """Yield elements of a table of pairs of tokens alone, with the tokens they are of.

    The first and the last of a gradient; and of each of their indices the element of
    the diagonal, which is of one token. An axis of classes may be as long as the text,
    and what is mixed into a token be the one of the class's number: on the diagonal it
    is another one.
    """
    places = gradient.nonzero()
    for place in [*places[:1], *places[-1:]]:
        indices = {int(place[axis]) for axis in axes}
        yield _alone(gradient, place), indices
        for index in indices:
            on_diagonal = place.clone()
            on_diagonal[list(axes)] = index
            yield _alone(torch.ones_like(gradient), on_diagonal), {index}


def _alone(gradient: Tensor, place: Tensor) -> Tensor:
    """One element of a gradient, and 0 elsewhere."""
    index = tuple(place.tolist())
    alone = torch.zeros_like(gradient)
    alone[index] = gradient[index]
    return alone


def _tokens_behind(
    edge: GradientEdge,
    gradient: Tensor | None,
    sources: Mapping[GradientEdge, Sequence[Layout]],
    expected: Collection[int] = (),
) -> set[int]:
    """Find the tokens of sources that a gradient at some place reaches.

    Args:
        edge (GradientEdge): The place.
        gradient (Tensor, optional): There, 1 by default.
        sources (mapping): Where tokens are apart, with how they may be there.
        expected (collection of int): Of several ways that one is taken by which fewest
            others are reached.
    """
    if not sources:
        return set()
    found: set[int] = set()
    gradients = torch.autograd.grad(
        [edge], list(sources), [gradient], retain_graph=True, allow_unused=True
    )
    for of, layouts in zip(gradients, sources.values(), strict=True):
        if of is not None and layouts:
            found |= min(
                _reached(of, layouts), key=lambda tokens: len(tokens - set(expected))
            )
    return found


# What most models have anyway: it may be how another operation is computed.
_IN_MOST_MODELS = {
    *("addmm", "baddbmm", "bmm", "mm", "permute", "softmax", "stack", "t"),
    *("transpose", "unsafe_view", "view"),
}


def _names(
    may_mix: Mapping[str, Sequence[Node]], n_tokens: int
) -> Mapping[str, Sequence[Node]]:
    """Name those of some operations, of which one mixes tokens, that do.

    Args:
        may_mix (mapping): Where each is in the graph.
        n_tokens (int): So many.

    Returns:
        dict: Their nodes, by their names.
    """
    found = {
        name: {node: _node_mixes(node, n_tokens) for node in nodes}
        for name, nodes in may_mix.items()
    }
    do = {
        name: [node for node, mixes in nodes.items() if mixes]
        for name, nodes in found.items()
        if True in nodes.values()
    }
    may = {
        name: [node for node, mixes in nodes.items() if mixes is None]
        for name, nodes in found.items()
        if None in nodes.values() and name not in do
    }
    if not do:
        return may or may_mix
    return do | {name: of for name, of in may.items() if name not in _IN_MOST_MODELS}


def _node_mixes(node: Node, n_tokens: int) -> bool | None:
    """Whether one operation mixes tokens; None where its shapes do not tell."""
    given = [
        GradientEdge(parent, number)
        for parent, number in node.next_functions
        if parent is not None and operation(parent) != "AccumulateGrad"
    ]
    known = {
        edge: shapes_with_tokens(shape_at(edge), n_tokens)
        for edge in given
        if n_tokens in shape_at(edge)
    }
    made = GradientEdge(node, 0)
    axes = [axis for axis, size in enumerate(shape_at(made)) if size == n_tokens]
    traced = [TracedAxis.at(made, axis) for axis in axes]
    if not known or not traced:
        return None
    found = {_mixes_what_entered(axis, known) for axis in traced}
    if len(found) > 1 or (found == {False} and len(known) < len(given)):
        return None
    return found.pop()


def mixing_in_words(found: Mapping[Place, set[str]], n_layers: int) -> str:
    """Say what mixes positions, where, and what scores make of it.

    Args:
        found (mapping): For each place the names of what mixes there.
        n_layers (int): Attention layers that were captured.

    Examples::

        >>> front = Place(1, "in front of layer 1")
        >>> behind = Place(2, "behind the last layer")
        >>> words = mixing_in_words({front: {"stack"}, behind: {"mean"}}, 1)
        >>> words.partition(": ")[2].partition(".")[0]
        'stack in front of layer 1, mean behind the last layer'
        >>> mixing_in_words({front: {"roll"}}, 1).partition(" beside")[0]
        'roll mixes positions'
    """
    names = sorted(set[str]().union(*found.values()))
    places = sorted(found)
    where = [
        place.words
        if found[place] == set(names)
        else f"{' and '.join(sorted(found[place]))} {place.words}"
        for place in places
    ]
    sentences = [
        f"{', '.join(names)} {'mixes' if len(names) == 1 else 'mix'} positions beside "
        f"the attention that was captured, which has {n_layers} "
        f"layer{'s' * (n_layers != 1)}: {', '.join(where)}. This is so in hybrids with "
        "convolutions, recurrent layers or state spaces, and where attention has no "
        "softmax. Flows follow softmax attention alone"
    ]
    is_behind = [place.words.startswith("behind") for place in places]
    if not all(is_behind):
        sentences.append(
            "What is mixed in front of a layer or beside it counts for the token at "
            "whose position it arrives, not for the one that it comes from"
        )
    if any(is_behind):
        sentences.append(
            "What is mixed behind the last layer is no layer of theirs: they start at "
            "all positions that the output then depends on, by the gradient at each, "
            "as for a head that pools the tokens"
        )
    return ". ".join([*sentences, "AttnLRP propagates through it by its rules"])
