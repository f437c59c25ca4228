"""The captured attention of one forward and one backward pass, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_attnflow.capture.maps import (
    AttentionLayer,
    JoinedLayer,
)


class UnsupportedAttentionError(ValueError):
    """The model's attention was not found, or is not of a supported kind."""


@dataclass(frozen=True, eq=False)
class InputRelevance:
    """Relevance of what stands for an input: floats, or embeddings of token ids.

    Attributes:
        index (int): Which input.
        relevance (Tensor): Shape ``(B, ...)``, input or displacement times gradient, in
            units of the output.
        tokens (Tensor, optional): The token that each element makes, int64, of the
            relevance's shape, -1 for none; None where dimension 1 is that of the
            tokens.
    """

    index: int
    relevance: Tensor
    tokens: Tensor | None = None

    def select(self, rows: slice) -> InputRelevance:
        """Return the relevance of some examples."""
        return replace(
            self, relevance=self.relevance[rows], tokens=_rows(self.tokens, rows)
        )

    @staticmethod
    def concatenate(parts: Sequence[InputRelevance]) -> InputRelevance:
        """Join what stands for an input in consecutive parts of a batch."""
        return InputRelevance(
            parts[0].index,
            torch.cat([part.relevance for part in parts]),
            _joined([part.tokens for part in parts]),
        )


@dataclass(frozen=True)
class Propagation:
    """What propagation rules did in a forward pass.

    Attributes:
        counts (dict): How often a rule met an operation, by ``"rule: operation"``.
        unknown (tuple of str): Operations on tokens that no rule knows and that are not
            linear; they kept their gradients.
    """

    counts: Mapping[str, int]
    unknown: tuple[str, ...] = ()


class Route(NamedTuple):
    """Which sequence attends to which in a layer, by their order in the record."""

    queries: int
    keys: int


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of tokens that takes part in attention.

    Attributes:
        length (int): Positions, padding included.
        inputs (tuple of int): Which inputs of the forward function hold it.
    """

    length: int
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class AttentionRecord:
    """Attention probabilities of one model and the output's gradient in them.

    Attributes:
        layers (tuple[AttentionLayer, ...]): From the input upwards; each gives the
            attention probabilities ``A`` in [0, 1] and ``dy / dA`` of the selected
            output ``y``, queries in rows and keys in columns, in the model's dtype; of
            fused kernels in float32 at least. The number of heads may differ by layer.
        output (Tensor): Shape ``(B,)``, the selected output ``y``.
        sequences (tuple[TokenSequence, ...]): One, or an encoder's and a decoder's.
            Their positions are counted through, the encoder's first. Left out, it is
            the one of all layers.
        routes (tuple[Route, ...]): Which sequence attends to which, layer by layer: a
            decoder's layer is one of self-attention and one of cross-attention.
        input_relevance (tuple[InputRelevance, ...]): Of what stands for the inputs,
            where propagation rules or a path ask for it.
        read_out_relevance (Tensor, optional): Shape ``(B, Tq)``, in units of ``y``, by
            propagation rules, of the residual stream behind the last attention, at its
            queries; None where the gradient is plain or no stream was found.
        propagation (Propagation, optional): Which rules met what; None where the
            gradient is plain.
        elements (dict): For an input, by its number, the token that each of its
            elements makes, of its shape, int64, -1 for none. Inputs whose elements make
            several have no entry, nor has the only input of a sequence if it is the
            ids of all its tokens.
    """

    layers: tuple[AttentionLayer, ...]
    output: Tensor
    sequences: tuple[TokenSequence, ...] = ()
    routes: tuple[Route, ...] = ()
    input_relevance: tuple[InputRelevance, ...] = ()
    read_out_relevance: Tensor | None = None
    propagation: Propagation | None = None
    elements: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.routes:
            object.__setattr__(self, "routes", (Route(0, 0),) * len(self.layers))
        if not self.sequences:
            alone = TokenSequence(self.layers[0].shape[-1], (0,))
            object.__setattr__(self, "sequences", (alone,))
        for number, layer in enumerate(self.layers):
            if layer.fault is not None:
                raise ValueError(
                    f"the attention {layer.fault} of layer {number} hold NaN or "
                    "infinite entries. Check the input, the model's weights and the "
                    "attention mask (a row that masks every key gives NaN), or run the "
                    "model in float32"
                )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The maps ``A`` of every layer, each of shape ``(B, H, Tq, Tk)``."""
        return tuple(layer.maps().weights for layer in self.layers)

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """The gradients ``dy / dA`` of every layer, of the shapes of the maps."""
        return tuple(layer.maps().gradients for layer in self.layers)

    @property
    def n_tokens(self) -> int:
        """Token positions ``T`` of all sequences, padding included."""
        return sum(sequence.length for sequence in self.sequences)

    def positions(self, sequence: int) -> slice:
        """Return the positions of a sequence among those of all."""
        start = sum(before.length for before in self.sequences[:sequence])
        return slice(start, start + self.sequences[sequence].length)

    def read_out(self) -> Tensor:
        """Find the positions at which the output is read.

        These are the queries of the last layer whose attention the output depends on:
        [CLS] of a sentence classifier, all positions under mean pooling.

        Returns:
            Tensor: Shape ``(B, T)``, bool.
        """
        # Padded queries may keep a gradient of a head that sees nothing of them.
        read = [
            ((gradients != 0) & (weights > 0)).any(-1).any(1)
            for weights, gradients, _ in self.layers[-1].parts()
        ]
        queries = torch.stack(read).any(0)
        read_out = queries.new_zeros(len(queries), self.n_tokens)
        read_out[:, self.positions(self.routes[-1].queries)] = queries
        return read_out

    def attention_received(self) -> Tensor:
        """Mean attention that each token has from the queries that see it.

        A token with many times the others' is an attention sink: heads with nothing to
        look at rest there, on the first token of most language models.

        Returns:
            Tensor: Shape ``(B, T)``, float64, the mean over layers, heads, and queries
            whose weight is above 0; 0 where there is none.
        """
        shape = (len(self.output), self.n_tokens)
        total = torch.zeros(shape, dtype=torch.float64, device=self.output.device)
        n_seen = torch.zeros_like(total)
        for layer, route in zip(self.layers, self.routes, strict=True):
            keys = self.positions(route.keys)
            for heads in layer.head_groups():
                weights = layer.weights_of(heads)
                total[:, keys] += weights.sum((1, 2), dtype=torch.float64)
                n_seen[:, keys] += (weights > 0).sum((1, 2))
        return total / n_seen.clamp(min=1)

    def select(self, rows: slice) -> AttentionRecord:
        """Return the record of some examples."""
        return replace(
            self,
            layers=tuple(layer.select(rows) for layer in self.layers),
            output=self.output[rows],
            input_relevance=tuple(of.select(rows) for of in self.input_relevance),
            read_out_relevance=_rows(self.read_out_relevance, rows),
            elements={index: of[rows] for index, of in self.elements.items()},
        )

    @staticmethod
    def concatenate(records: Sequence[AttentionRecord]) -> AttentionRecord:
        """Join the records of consecutive parts of a batch."""
        if len(records) == 1:
            return records[0]
        layers = zip(*(record.layers for record in records), strict=True)
        return replace(
            records[0],
            layers=tuple(JoinedLayer(parts) for parts in layers),
            output=torch.cat([record.output for record in records]),
            input_relevance=tuple(
                InputRelevance.concatenate(parts)
                for parts in zip(
                    *(record.input_relevance for record in records), strict=True
                )
            ),
            read_out_relevance=_joined(
                [record.read_out_relevance for record in records]
            ),
            elements={
                index: torch.cat([record.elements[index] for record in records])
                for index in records[0].elements
                if all(index in record.elements for record in records)
            },
        )


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join the rows of all parts; None if a part has none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


_SUPPORTED = (
    "Supported is softmax attention that runs as torch operations in the calling "
    "thread (torch.nn.MultiheadAttention, F.scaled_dot_product_attention, or written "
    "out: a softmax, or exponentials divided by their sum, then matmul, einsum, or "
    "multiply and sum). Not seen are TorchScript, flash and flex kernels (load a "
    'transformers model with attn_implementation="sdpa" or "eager"), and models that '
    "run in worker "
    "threads (pass DataParallel's .module). A model without attention, such as a "
    "convolutional network, has nothing that a flow could follow: take SLALOM or "
    "IntegratedGradients"
)
ALL_KEYS_AT_ONCE = (
    "Let one softmax have all keys, such as by a chunk size of the number of tokens or "
    'by attn_implementation="eager" or "sdpa"; SLALOM and IntegratedGradients take the '
    "model as it is"
)
_SCRIPT = (
    "It is TorchScript, whose operations cannot be seen: pass the Python model that it "
    "was traced or scripted from"
)


def why_none_is_found(
    forward_func: Callable[..., Any],
    without_softmax: Sequence[str] = (),
    in_parts: bool = False,
) -> str:
    """Say why a forward function may have shown no attention, and what to do.

    Args:
        forward_func (Callable): The forward function.
        without_softmax (sequence of str): The calls that mix its tokens nevertheless.
        in_parts (bool): Whether a softmax was seen over parts of the keys.
    """
    if in_parts:
        return (
            "Its keys are attended to in parts: exponentials of scores weigh values "
            "before they are divided by their sum, as in attention over chunks of keys "
            f"that are written out like a flash kernel. {ALL_KEYS_AT_ONCE}"
        )
    if without_softmax:
        return (
            f"Its tokens are mixed by {', '.join(without_softmax)} of two tensors that "
            "are made of them, without a softmax, as in linear, sigmoid or retention "
            "attention, or by a softmax that something changes before it weighs the "
            "values, as in differential attention and talking heads. Flows follow "
            "softmax attention alone: take AttnLRP, SLALOM or IntegratedGradients"
        )
    parts = forward_func.modules() if isinstance(forward_func, nn.Module) else ()
    script = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    is_script = any(isinstance(part, script) for part in (forward_func, *parts))
    return _SCRIPT if is_script else _SUPPORTED


def refuse_kernels_without_gradient(kernels: Collection[str]) -> None:
    """Refuse a pass in which integer-quantised kernels cut the gradient off.

    Raises:
        UnsupportedAttentionError: If there are any.
    """
    if kernels:
        raise UnsupportedAttentionError(
            f"integer-quantised kernels have no gradient ({', '.join(sorted(kernels))})"
            ", so that what passes through them would have no score. Load the model in "
            "float32, bfloat16 or float16, or with weights alone in 8 or 4 bits, such "
            "as torchao's Int8WeightOnlyConfig or bitsandbytes' Linear4bit"
        )
