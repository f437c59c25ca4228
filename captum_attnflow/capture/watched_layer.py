"""Records the shapes of what a user's layer takes in or puts out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnflow.capture.entries import sequences_of, traceable
from captum_attnflow.capture.graph import Stack
from captum_attnflow.capture.maps import RowLayout


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
