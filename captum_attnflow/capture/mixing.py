"""What mixes positions beside the attention that is captured.

Flows follow attention alone. A convolution between two layers, or attention that is
written in a way that is not known, carries from token to token what scores then miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from captum_attnflow.capture.attention_call import AttentionCall
from captum_attnflow.capture.streams import DependencyGraph

# Calls that mix positions, if not along the features: of convolutional and recurrent
# layers, state spaces, shifts and Fourier transforms.
_MIXES = {
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cumprod",
    "cumsum",
    "fft_fft",
    "fft_fft2",
    "fft_fftn",
    "fft_rfft",
    "flip",
    "gru",
    "lstm",
    "rnn_relu",
    "rnn_tanh",
    "roll",
}


@dataclass(frozen=True)
class _Mixed:
    """A call that may have mixed positions.

    Attributes:
        name (str): Of the call.
        node (Node): Where in the graph its output is.
        factors (tuple of Node): Of a product, its factors.
        summed (int): Of a product, the size of the axis that it sums over.
        keeps_positions (bool): Of a product, whether its output has an axis as long.
    """

    name: str
    node: Node
    factors: tuple[Node, ...] = ()
    summed: int = 0
    keeps_positions: bool = False


class PositionMixing:
    """Notes what mixes positions in a forward pass, without holding tensors."""

    def __init__(self) -> None:
        self._mixed: list[_Mixed] = []

    def note(
        self, name: str, output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Note a call, if it is one of a convolution, a recurrent layer or the like."""
        if name not in _MIXES:
            return
        mixed = output[0] if isinstance(output, tuple) else output
        is_seen = mixed.grad_fn is not None and mixed.dim() > 2
        if is_seen and _mixes(name, args, kwargs):
            self._mixed.append(_Mixed(name, mixed.grad_fn))

    def note_product(
        self, name: str, factors: Sequence[Any], summed: int, output: Any
    ) -> None:
        """Note a product that is none of captured weights and values.

        Args:
            name (str): Of the call.
            factors (sequence): What is multiplied.
            summed (int): The size of the axis that is summed over.
            output (Any): What it returned.
        """
        nodes = tuple(
            factor.grad_fn
            for factor in factors
            if isinstance(factor, Tensor) and factor.grad_fn is not None
        )
        if len(nodes) > 1 and output.dim() > 2:
            keeps = summed in output.shape[-2:]
            self._mixed.append(_Mixed(name, output.grad_fn, nodes, summed, keeps))

    def beside(
        self,
        calls: Sequence[AttentionCall],
        tokens: Sequence[Tensor],
        scores: Callable[[], Iterable[Node]],
    ) -> list[str]:
        """Return the names of what mixes positions beside the captured attention.

        Convolutions and the like do so between two layers; in front of all of them
        they make the tokens. Products of two tensors that depend on the tokens do so
        anywhere, if they keep the positions.

        Args:
            calls (sequence of AttentionCall): The attention that was captured.
            tokens (sequence of Tensor): What stands for the inputs.
            scores (Callable): Returns where the scores of all softmaxes are in the
                graph.
        """
        lengths = {call.lengths()[1] for call in calls}
        mixed = [of for of in self._mixed if not of.factors or of.summed in lengths]
        if not mixed:
            return []
        probed = [call.probed for call in calls]
        behind = DependencyGraph(probed)
        ahead = DependencyGraph([of.node for of in mixed])
        ahead_of_some = {i for tensor in probed for i in ahead.ancestors(tensor)}
        of_tokens = DependencyGraph([*tokens, *probed])
        of_scores: set[Node] | None = None
        found = set()
        for number, of in enumerate(mixed):
            is_ahead, is_behind = number in ahead_of_some, behind.depends(of.node)
            if not of.factors:
                if is_ahead and is_behind:
                    found.add(of.name)
                continue
            if not (is_ahead or (is_behind and of.keeps_positions)):
                continue
            if not all(map(of_tokens.depends, of.factors)):
                continue
            # As many features as tokens: scores sum over features.
            if of_scores is None:
                of_scores = {node for start in scores() for node in _products(start)}
            if not set(_products(of.node)) <= of_scores:
                found.add(of.name)
        return sorted(found)


def _products(start: Node) -> Iterator[Node]:
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


def _mixes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call mixes more than features."""
    if name.startswith("conv"):
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        return bool(max(weight.shape[2:]) > 1)
    if name in ("gru", "lstm", "rnn_relu", "rnn_tanh"):
        return True
    x = args[0] if args else kwargs["input"]
    place = 2 if name == "roll" else 1
    named = next((kwargs[key] for key in ("dim", "dims") if key in kwargs), -1)
    dims = args[place] if len(args) > place else named
    if dims is None or dims == ():
        return True
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    return any(dim % x.dim() != x.dim() - 1 for dim in dims)
