"""What stands for the inputs or for a watched layer: whose tokens it makes.

An input may make some of a sequence's tokens and another one the others, as words and
pixels do. Counts and shapes do not tell: [CLS], distillation tokens and registers stand
before the patches, detection tokens behind them, patches need not be square, pixels at
a border may belong to none, and models may shuffle, sort or drop tokens in each pass
anew. The graph of the pass itself tells. Up to its first attention a token depends on
its own elements alone, so the gradient of some of the tokens reaches just the elements
that make them. The bits of a token's index are read one by one, from the tokens in
whose index the bit is set, and from the others: an element that both reach makes
several tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow._checks import counted
from captum_attnflow.capture.graph import DependencyGraph, Stack, sequence_lengths
from captum_attnflow.capture.record import UnsupportedAttentionError
from captum_attnflow.targets import check_baseline_ids

if TYPE_CHECKING:
    from captum_attnflow.capture.gradients import AttentionCall, RowLayout

FURTHER = -1  # in place of an input's index: an argument behind the inputs


@dataclass(frozen=True, eq=False)
class Entry:
    """What stands for an input in the autograd graph.

    Attributes:
        index (int): Which input.
        tensor (Tensor): The input, or for token ids what was looked up.
        axes (str): ``"same"`` where its first dimensions are those of the input,
            ``"swapped"`` where the model puts the tokens before the batch,
            ``"longer"`` where more tokens follow behind those of the input, such as
            generated ones, ``"part"`` where it was looked up for anything else.
    """

    index: int
    tensor: Tensor
    axes: str = "same"

    def of_batch(self, tensor: Tensor) -> Tensor:
        """Lay out a tensor of the entry's shape with the batch in dimension 0."""
        return tensor.transpose(0, 1) if self.axes == "swapped" else tensor

    def of_input(self, tensor: Tensor, given: Tensor) -> Tensor:
        """Lay out a tensor of the entry's shape as the input is."""
        if self.axes == "longer":
            return tensor[:, : given.shape[1]]
        return self.of_batch(tensor)


class InputEntries:
    """Makes the ways of the inputs through a forward pass visible to autograd.

    Frozen parameters and token ids leave no trace in the graph by themselves.

    Args:
        inputs (tuple[Tensor, ...]): The inputs of the forward function.
        baselines (tuple[Tensor, ...]): Of each input its baseline, which no pass sees:
            ids that the embedding has no row for are refused all the same.

    Attributes:
        inputs (tuple[Tensor, ...]): The inputs to pass on.
    """

    def __init__(
        self, inputs: tuple[Tensor, ...], baselines: tuple[Tensor, ...] = ()
    ) -> None:
        self._baselines = baselines
        # Copies: a tensor that is given twice, and views of one, are told apart.
        self.inputs = tuple(
            traceable(tensor) if tensor.is_floating_point() else tensor.clone()
            for tensor in inputs
        )
        self._derived = WeakTensorKeyDictionary()
        self._holder = {
            tensor.untyped_storage().data_ptr(): index
            for index, tensor in enumerate(self.inputs)
            if not tensor.is_floating_point()
        }
        self._entries = [
            Entry(index, tensor)
            for index, tensor in enumerate(self.inputs)
            if tensor.is_floating_point()
        ]

    def enter_lookup(self, ids: Tensor, found: Tensor, n_ids: int) -> Tensor:
        """Return what an embedding found, traceable where the ids are an input.

        Args:
            ids (Tensor): What was looked up. A view of an input, or of a part, is it.
            found (Tensor): What the embedding returned.
            n_ids (int): Rows of the embedding.

        Raises:
            ValueError: If the baseline of the input holds other ids.
        """
        index = self._holding(ids)
        if index is None or index == FURTHER:
            return found
        axes = _axes(ids, self.inputs[index])
        if self._baselines and axes in ("same", "swapped"):
            check_baseline_ids(self._baselines[index], n_ids)
        # Under no_grad nothing leads from what is found to the output.
        if not torch.is_grad_enabled():
            return found
        found = traceable(found)
        self._entries.append(Entry(index, found, axes))
        return found

    def watch(self, further: Iterable[Any]) -> None:
        """Let ids among further arguments be known as tokens, though no inputs."""
        for tensor in further:
            if isinstance(tensor, Tensor) and not tensor.is_floating_point():
                place = tensor.untyped_storage().data_ptr()
                self._holder.setdefault(place, FURTHER)

    def is_of_further(self, ids: Tensor) -> bool:
        """Whether ids are those of a further argument, or made of them."""
        return self._holding(ids) == FURTHER

    def follow(self, made: Tensor, of: Sequence[Any]) -> None:
        """Note token ids that were joined or moved: ``made`` of ``of``."""
        if made.dtype.is_floating_point or made.dtype == torch.bool:
            return
        for tensor in of:
            parts = tensor if isinstance(tensor, (tuple, list)) else (tensor,)
            for part in parts:
                index = self._holding(part) if isinstance(part, Tensor) else None
                # What is made of an input and of a further argument is the input's.
                if index is not None and self._derived.get(made, FURTHER) == FURTHER:
                    self._derived[made] = index

    def _holding(self, ids: Tensor) -> int | None:
        index: int | None = self._derived.get(ids)
        if index is None:
            index = self._holder.get(ids.untyped_storage().data_ptr())
        return index

    def entered(self) -> list[Entry]:
        """Return what stands for the inputs in the graph, in the order it entered."""
        return list(self._entries)

    def held_by(
        self, stack: Stack, calls: Sequence[AttentionCall]
    ) -> list[tuple[int, ...]]:
        """Tell which inputs hold each sequence of a stack.

        Raises:
            UnsupportedAttentionError: If one tensor makes the tokens of two.
        """
        self._refuse_one_for_two(stack, calls)
        sequences = sequences_of([entry.tensor for entry in self._entries], stack)
        holders: list[set[int]] = [set() for _ in stack.values]
        for entry, sequence in zip(self._entries, sequences, strict=True):
            if sequence is not None:
                holders[sequence].add(entry.index)
        return [tuple(sorted(indices)) for indices in holders]

    def _refuse_one_for_two(self, stack: Stack, calls: Sequence[AttentionCall]) -> None:
        """Refuse two sequences that are made of one tensor, with no attention between.

        The scores of one of them would be those of no input.
        """
        if len(stack.values) < 2:
            return
        graph = DependencyGraph([entry.tensor for entry in self._entries])
        crossing = DependencyGraph(
            [
                calls[call].probed
                for call, route in zip(stack.calls, stack.routes, strict=True)
                if route.queries != route.keys
            ]
        )
        made_of = [
            graph.ancestors(values[0])
            for values in stack.values
            if values and not crossing.depends(values[0])
        ]
        if len(made_of) > 1 and made_of[0] & made_of[1]:
            raise UnsupportedAttentionError(
                "one tensor makes the tokens of two sequences, of which one attends to "
                "the other: a layer has its queries of one layer and its keys of an "
                "earlier one, or of the embeddings, or an encoder and a decoder are "
                "given the same tensor. Flows support keys of the layer before, or "
                "those of an encoder. Give the decoder an input of its own, also with "
                "the same values, or take AttnLRP, SLALOM or IntegratedGradients"
            )


def _axes(ids: Tensor, given: Tensor) -> str:
    """Tell by the ids themselves how what is looked up is laid out."""
    if ids.shape == given.shape and torch.equal(ids, given):
        return "same"
    if ids.dim() != 2 or given.dim() != 2:
        return "part"
    if ids.shape == given.mT.shape and torch.equal(ids, given.mT):
        return "swapped"
    longer = len(ids) == len(given) and ids.shape[1] > given.shape[1]
    return (
        "longer" if longer and torch.equal(ids[:, : given.shape[1]], given) else "part"
    )


def sequences_of(tensors: Sequence[Tensor], stack: Stack) -> list[int | None]:
    """Tell for each tensor the first sequence of a stack that is computed from it.

    A decoder's tokens depend on the encoder's, too, but never the reverse.

    Args:
        tensors (sequence of Tensor): Tensors of the graph.
        stack (Stack): Of the same graph.

    Returns:
        list: The number of a sequence; None for a tensor that none depends on.
    """
    graph = DependencyGraph(tensors)
    sources = [
        set().union(*(graph.ancestors(tensor) for tensor in values))
        for values in stack.values
    ]
    return [
        next((s for s, indices in enumerate(sources) if index in indices), None)
        for index in range(len(tensors))
    ]


def traceable(tensor: Tensor) -> Tensor:
    """Return a tensor with a place of its own in the autograd graph, if it can.

    A clone, since models add to their embeddings in place, which a leaf forbids and a
    user's tensor must not see; and the parts of a split tensor share their place.
    """
    if not tensor.is_floating_point():
        return tensor
    if tensor.is_inference():
        tensor = tensor.clone()  # which autograd may track, outside inference mode
    if not tensor.requires_grad:
        tensor = tensor.detach().requires_grad_()
    return tensor.clone()


# Some kernels leave rounding errors where nothing was sent: relative to an element's
# own gradient, and to the largest, of which a small one may be the difference.
_NOISE, _NOISE_OF_LARGEST = 1e-4, 1e-6


def tokens_of_elements(values: Sequence[Tensor], entered: Tensor) -> Tensor | None:
    """Find the token that each element of an input makes.

    Args:
        values (sequence of Tensor): What the first attention weighs, of shape
            ``(..., T, D)`` each, in the graph: one, or those of mini-batches.
        entered (Tensor): The input as it enters the graph, ``(B, ...)``.

    Returns:
        Tensor or None: Shape of the input, int64 in ``[-1, T)``; -1 where an element
        makes no token. None if an element makes several, or none makes any.

    Examples::

        >>> pixels = torch.rand(1, 1, 2, 4, requires_grad=True)
        >>> patches = pixels.reshape(1, -1, 2)  # of 1 x 2 pixels
        >>> tokens = torch.cat([torch.ones(1, 1, 2), patches], 1)
        >>> tokens_of_elements([tokens], pixels)
        tensor([[[[1, 1, 2, 2],
                  [3, 3, 4, 4]]]])
    """
    if not all(part.requires_grad for part in values):
        return None
    tokens = torch.stack([_mixed(part).flatten(0, -2).sum(0) for part in values]).sum(0)

    def gradient(weights: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            tokens,
            entered,
            weights.to(tokens),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return found

    index = torch.arange(len(tokens), device=tokens.device)
    if entered.dim() in (2, 3) and entered.shape[1] == len(tokens):
        # Embeddings, most likely, which two passes confirm.
        plain, weighted = gradient(torch.ones_like(index)), gradient(index + 1)
        features = entered.shape[2:]
        of_axis = index.view(1, -1, *(1 for _ in features))
        left = weighted - (of_axis + 1) * plain
        if bool(plain.any()) and left.norm() <= 1e-3 * weighted.norm():
            # Of some positions another input may make the tokens.
            makes_none = (plain == 0).reshape(*entered.shape[:2], -1).all(-1)
            makes_none = makes_none.view(*entered.shape[:2], *(1 for _ in features))
            return of_axis.expand_as(entered).masked_fill(makes_none, -1)
    found = torch.zeros_like(entered, dtype=torch.long)
    makes_none = torch.ones_like(entered, dtype=torch.bool)
    for bit in range(max(1, (len(tokens) - 1).bit_length())):
        is_set = (index >> bit) & 1
        reached, missed = gradient(is_set).abs(), gradient(1 - is_set).abs()
        weaker, stronger = (
            torch.minimum(reached, missed),
            torch.maximum(reached, missed),
        )
        noise = torch.maximum(_NOISE * stronger, _NOISE_OF_LARGEST * stronger.amax())
        if bool((weaker > noise).any()):
            return None
        found |= (reached > missed).long() << bit
        makes_none &= stronger == 0
    if bool(makes_none.all()):
        return None
    return _completed(found.masked_fill(makes_none, -1))


def _refuse_windows(values: Tensor, entered: Tensor) -> None:
    """Refuse attention in windows that stand beside the heads.

    At one position every head has the same token. Windows have tokens of their own
    there, which would be counted as the same few. The bits of a head's number are read
    one by one: in none are those that have it and those that lack it without a token in
    common, unless they are windows.

    Args:
        values (Tensor): What the first attention weighs, ``(..., T, D)``.
        entered (Tensor): The input as it enters the graph, ``(B, ...)``.

    Raises:
        UnsupportedAttentionError: If heads have different tokens at a position.
    """
    by_head = _mixed(values.flatten(0, -3))  # (rows and heads and windows, T)
    number = torch.arange(len(by_head), device=by_head.device)

    def reached(weights: Tensor) -> Tensor:
        """Which positions ``(B, T)`` of the input some heads have something of."""
        (gradient,) = torch.autograd.grad(
            by_head, entered, weights, retain_graph=True, materialize_grads=True
        )
        of_tokens = gradient.abs().reshape(*entered.shape[:2], -1).sum(-1)
        return of_tokens > _NOISE_OF_LARGEST * of_tokens.amax()

    for place in {0, by_head.shape[1] // 2, by_head.shape[1] - 1}:
        at_place = torch.zeros_like(by_head)
        at_place[:, place] = 1
        for bit in range((len(by_head) - 1).bit_length()):
            has_bit = ((number >> bit) & 1 == 1)[:, None]
            ones, others = (reached(at_place * of) for of in (has_bit, ~has_bit))
            of_both = ones.any(1) & others.any(1)  # rows; else the bit tells rows apart
            if bool((of_both & ~(ones & others).any(1)).any()):
                raise UnsupportedAttentionError(
                    "attention runs in windows of "
                    f"{counted(values.shape[-2], 'token')}: the heads of a map have "
                    "different tokens of the input, as in windowed attention (Swin) "
                    "and local attention in blocks. Flows need a map of all tokens: "
                    "take AttnLRP, SLALOM or IntegratedGradients, or let a window have "
                    "all tokens"
                )


def _completed(tokens: Tensor) -> Tensor:
    """Fill in from other examples, where all have the same layout.

    An example may hide a part of it: features that a ReLU cuts off have no gradient.
    Layouts are the same where every token that two examples show shares elements.
    """
    rows = tokens.flatten(1)
    layout = rows[0]
    for row in rows[1:]:
        shown = (row >= 0) & (layout >= 0)
        of_both = row[torch.isin(row, layout) & (row >= 0)]
        differ = bool((row != layout)[shown].any())
        if differ or not bool(torch.isin(of_both, row[shown]).all()):
            return tokens
        layout = torch.maximum(layout, row)
    return layout.view(tokens.shape[1:]).expand_as(tokens).contiguous()


def _mixed(values: Tensor) -> Tensor:
    """Weigh features unevenly: the sum of normalised ones is constant."""
    return values @ torch.arange(values.shape[-1]).to(values).cos()


class TokensOfElements:
    """Tells which tokens of a sequence what enters the model makes."""

    def __init__(self, stacks: list[Stack], calls: list[AttentionCall]) -> None:
        self._stacks = stacks
        self._lengths = sequence_lengths(stacks[0], calls)
        self._found: list[tuple[Tensor, int, Tensor | None]] = []

    def is_whole(self, sequence: int, entered: Tensor) -> bool:
        """Whether a tensor ``(B, T, ...)`` has as many tokens as the sequence."""
        return entered.dim() > 1 and entered.shape[1] == self._lengths[sequence]

    def of_sequence(self, sequence: int, entered: Tensor) -> Tensor | None:
        """Return the token of each element of a tensor ``(B, ...)`` of the graph.

        Inputs and layers are asked for more than once; passes run for the first time.
        """
        for known, of, tokens in self._found:
            if known is entered and of == sequence:
                return tokens
        with torch.enable_grad():
            values = [stack.values[sequence][0] for stack in self._stacks]
            tokens = tokens_of_elements(values, entered)
            # Positions in dimension 1. Of windows that overlap no token is known.
            if entered.dim() in (2, 3) and values[0].requires_grad:
                _refuse_windows(values[0], entered)
        self._found.append((entered, sequence, tokens))
        return tokens

    def made_of(self, entered: Tensor) -> Tensor | None:
        """Return the token of each element, where dimensions do not tell.

        They do where there are as many tokens, in features ``(B, T, D)``.
        """
        shape = entered.shape
        if len(self._stacks[0].values) > 1 or len(shape) < 2:
            return None
        if len(shape) <= 3 and self._lengths[0] in shape[:2]:
            return None
        return self.of_sequence(0, entered)


@dataclass(frozen=True)
class TensorLike:
    """Shape, dtype and device of a tensor, without its data.

    Attributes:
        shape (tuple of int): With the batch in dimension 0.
        dtype (dtype): Its dtype.
        device (device): Its device.
        is_sequence_first (bool, optional): Whether the tensor itself has the tokens in
            dimension 0 and the batch in dimension 1; None where that is not known.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_sequence_first: bool | None = False

    @staticmethod
    def of(tensor: Tensor) -> TensorLike:
        """Describe a tensor."""
        return TensorLike(tuple(tensor.shape), tensor.dtype, tensor.device)


@dataclass
class LayerCall:
    """One call of a layer.

    Attributes:
        tensors (tuple[TensorLike, ...]): What it took in or put out.
        sequence (int, optional): Which sequence of the attention it is of; None where
            that is not known.
        tokens (Tensor, optional): The token that each element of the first tensor
            makes, int64, of its shape, -1 for none; None where dimensions tell.
    """

    tensors: tuple[TensorLike, ...]
    sequence: int | None = None
    tokens: Tensor | None = None


class LayerCalls:
    """The calls of a layer, in their order.

    Attributes:
        calls (list[LayerCall]): Empty while the layer has not run.
        on_entry (Callable, optional): Called with the first tensor of a call, where it
            is in the graph.
    """

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []
        self.on_entry: Callable[[Tensor], None] | None = None
        self._entries: list[tuple[LayerCall, Tensor]] = []  # not yet placed

    def add(self, tensors: Sequence[Any]) -> None:
        """Note a call."""
        found = [item for item in tensors if isinstance(item, Tensor)]
        described = [TensorLike.of(tensor) for tensor in found]
        described[:1] = [replace(of, is_sequence_first=None) for of in described[:1]]
        call = LayerCall(tuple(described))
        self.calls.append(call)
        if found and found[0].requires_grad:
            if self.on_entry is not None:
                self.on_entry(found[0])
            self._entries.append((call, found[0]))

    def tensors(self) -> list[Tensor]:
        """Return the first tensor, in the graph, of each call not yet placed."""
        return [tensor for _, tensor in self._entries]

    def forget(self) -> None:
        """Drop all calls, as of a pass that failed."""
        self.calls.clear()
        self._entries.clear()

    def locate(self, stacks: Sequence[Stack]) -> None:
        """Note which sequences the calls not yet placed belong to."""
        for stack in stacks:
            found = sequences_of([tensor for _, tensor in self._entries], stack)
            for (call, _), sequence in zip(self._entries, found, strict=True):
                call.sequence = call.sequence if sequence is None else sequence
        for call, _ in self._entries:
            if call.sequence is None:  # behind the last attention
                call.sequence = stacks[-1].routes[-1].queries

    def place(
        self,
        layouts: Sequence[RowLayout | None],
        tokens: Sequence[Tensor | None],
        n_examples: int,
    ) -> None:
        """Note where the rows are in the tensors not yet placed, and what they make.

        Args:
            layouts (sequence of RowLayout): Of each tensor.
            tokens (sequence of Tensor): The token of each element of each tensor.
            n_examples (int): The last rows of a pass, which are the examples.
        """
        for (call, _), layout, made in zip(self._entries, layouts, tokens, strict=True):
            if layout is not None:
                first, *others = call.tensors
                batch_first = layout.axis == 0
                shape = first.shape
                if not batch_first:
                    shape = (shape[1], shape[0], *shape[2:])
                first = replace(first, shape=shape, is_sequence_first=not batch_first)
                call.tensors = (first, *others)
                if made is not None:
                    call.tokens = layout.rows_first(made)[-n_examples:]
        self._entries.clear()


@contextmanager
def record_layer_tensors(layer: nn.Module, of_input: bool) -> Iterator[LayerCalls]:
    """Describe, call by call, the tensors at a layer while active.

    Args:
        layer (Module): The layer to watch.
        of_input (bool): Watch the positional inputs instead of the outputs.

    Yields:
        LayerCalls: Filled as the layer runs.
    """
    calls = LayerCalls()

    def hook(module: nn.Module, taken: tuple[Any, ...], put_out: Any = None) -> Any:
        tensors = taken if of_input else put_out
        parts = list(tensors) if isinstance(tensors, (tuple, list)) else [tensors]
        can_replace = isinstance(tensors, Tensor) or type(tensors) in (tuple, list)
        if can_replace and parts and torch.is_grad_enabled():
            first = parts[0]
            parts[0] = traceable(first) if isinstance(first, Tensor) else first
        calls.add(parts)
        if not can_replace:
            return None
        return parts[0] if isinstance(tensors, Tensor) else type(tensors)(parts)

    if of_input:
        handle = layer.register_forward_pre_hook(in_this_thread(layer, hook))
    else:
        handle = layer.register_forward_hook(in_this_thread(layer, hook))
    try:
        yield calls
    finally:
        handle.remove()


def in_this_thread(layer: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a hook from calls that other threads make of a layer.

    A hook belongs to the module, and other threads may run it meanwhile. Replicas of
    the layer, which ``DataParallel`` runs in threads of its own, are modules of their
    own: their calls count.

    Args:
        layer (Module): The layer that the hook is registered on.
        hook (Callable): Of the module and what it takes or puts out.

    Returns:
        Callable: Does nothing where another thread calls ``layer``.
    """
    owner = threading.get_ident()

    @wraps(hook)
    def own(module: nn.Module, *arguments: Any) -> Any:
        if module is layer and threading.get_ident() != owner:
            return None
        return hook(module, *arguments)

    return own
