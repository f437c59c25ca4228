"""What stands for the inputs: whose sequence it is, and which tokens it makes.

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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.graph import DependencyGraph, Stack, sequence_lengths
from captum_attnflow.capture.maps import AttentionCall

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

    Attributes:
        inputs (tuple[Tensor, ...]): The inputs to pass on.
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
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

    def enter_lookup(self, ids: Tensor, found: Tensor) -> Tensor:
        """Return what an embedding found, traceable where the ids are an input.

        Args:
            ids (Tensor): What was looked up. A view of an input, or of a part, is it.
            found (Tensor): What the embedding returned.
        """
        index = self._holding(ids)
        # Under no_grad nothing leads from what is found to the output.
        if index is None or index == FURTHER or not torch.is_grad_enabled():
            return found
        found = traceable(found)
        self._entries.append(Entry(index, found, _axes(ids, self.inputs[index])))
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

    def held_by(self, stack: Stack) -> list[tuple[int, ...]]:
        """Tell which inputs hold each sequence of a stack."""
        sequences = sequences_of([entry.tensor for entry in self._entries], stack)
        holders: list[set[int]] = [set() for _ in stack.values]
        for entry, sequence in zip(self._entries, sequences, strict=True):
            if sequence is not None:
                holders[sequence].add(entry.index)
        return [tuple(sorted(indices)) for indices in holders]


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
