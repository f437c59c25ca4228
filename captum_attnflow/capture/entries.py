"""Which sequence an input, or what a layer puts out, belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.rows import Placement, RowLayout, layouts_of_tokens
from captum_attnflow.capture.streams import DependencyGraph, Stack

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


def square_entries(entries: Iterable[Entry], n_rows: int) -> dict[Placement, Entry]:
    """Return what stands for inputs of as many tokens as rows, and where to look.

    Args:
        entries (iterable of Entry): What stands for the inputs.
        n_rows (int): Rows of the batch.
    """
    placed = {
        Placement(
            entry.tensor,
            slice(0, n_rows),
            layouts_of_tokens(entry.tensor.shape, n_rows),
        ): entry
        for entry in entries
        if entry.axes in ("same", "swapped") and entry.tensor.dim() in (2, 3)
    }
    return {
        placement: entry
        for placement, entry in placed.items()
        if not placement.is_certain
    }


def refuse_tokens_first(
    entries: Iterable[Entry], layouts: Iterable[RowLayout | None]
) -> None:
    """Refuse inputs that turned out to have their rows in dimension 1.

    Args:
        entries (iterable of Entry): What stands for the inputs.
        layouts (iterable of RowLayout): Where the rows are in each, if it shows.

    Raises:
        ValueError: If there is one.
    """
    for entry, layout in zip(entries, layouts, strict=True):
        usual = 1 if entry.axes == "swapped" else 0
        if layout is not None and layout.axis != usual:
            raise ValueError(
                "an input has its tokens in dimension 0 and its examples in dimension "
                "1; the batch comes first: give input.transpose(0, 1), and a "
                "forward_func that transposes it back"
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
