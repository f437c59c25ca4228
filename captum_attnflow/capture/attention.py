"""Attention behind an opaque forward function: one forward, one backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum._utils.common import _select_targets
from captum._utils.gradient import _forward_layer_distributed_eval
from captum._utils.typing import TargetType
from torch import Tensor

from captum_attnflow.capture.interception import AttentionInterception
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.record import AttentionRecord, UnsupportedAttentionError

_SUPPORTED = (
    "Supported is softmax attention with as many queries as keys that runs as torch "
    "operations in the calling thread (torch.nn.MultiheadAttention, "
    "F.scaled_dot_product_attention, or softmax and matmul written out). Not seen are "
    "TorchScript, flash and flex kernels and torch.compile (load a transformers model "
    'with attn_implementation="sdpa" or "eager"), and models that run in worker '
    "threads (pass DataParallel's .module); windowed attention (Longformer) has no map "
    "of all tokens."
)


def capture_attention(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: tuple[Any, ...] | None = None,
    grad_kwargs: dict[str, Any] | None = None,
    path: InputPath | None = None,
) -> AttentionRecord:
    """Run a forward function once and read its attention and gradients.

    The model is not touched: no attention implementation is switched, parameters may
    be frozen and get no ``.grad``, and hooks are removed also after an error.

    Args:
        forward_func (Callable): Any function of tensors that runs an encoder.
        inputs (tuple[Tensor, ...]): Its inputs; dimension 0 is the batch.
        target (int, tuple, Tensor or list, optional): The output to differentiate, as
            Captum reads it.
        additional_forward_args (tuple, optional): Passed on behind ``inputs``.
        grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.
        path (InputPath, optional): A path whose points are the rows of ``inputs``.

    Returns:
        AttentionRecord: Detached maps and gradients, layer by layer; along a path those
        of its last point, with the relevance of the input.

    Raises:
        UnsupportedAttentionError: If no supported attention was found.
        ValueError: If the output is no tensor with one row per example, does not
            depend on the attention, or has no such target.
    """
    with torch.enable_grad():
        interception = AttentionInterception(path)
        raw_output = _run(
            forward_func, inputs, additional_forward_args, interception, path
        )
        output = _select_output(raw_output, target, inputs[0].shape[0])
        maps = [call.weights for call in interception.calls]
        options = {"allow_unused": True, "materialize_grads": True}
        points = [] if path is None else [path.points_entered()]
        gradients = torch.autograd.grad(
            torch.unbind(output), maps + points, **{**options, **(grad_kwargs or {})}
        )
    calls = [
        _CapturedCall(weights.detach(), gradient, call.n_heads)
        for weights, gradient, call in zip(
            maps, gradients[: len(maps)], interception.calls, strict=True
        )
    ]
    n_missed = interception.missed()
    if n_missed:
        warnings.warn(
            f"{n_missed} softmaxes of the shape of an attention map were "
            f"not seen to weigh values, {len(calls)} were. If these are attention "
            "layers, they are missing from the scores: write them as softmax(...) "
            "followed by matmul or einsum, or as F.scaled_dot_product_attention",
            stacklevel=5,
        )
    stacks = [[calls[index] for index in chain] for chain in _chains(maps)]
    record = _join(stacks, output.detach())
    if path is None:
        return record
    return replace(
        record.select(slice(-path.n_examples, None)),
        input_relevance=path.relevance(gradients[-1]),
    )


@dataclass(frozen=True)
class _CapturedCall:
    weights: Tensor
    gradient: Tensor
    n_heads: int | None  # known where batch and heads may share dimension 0

    def n_rows(self, expected: int | None) -> int:
        """Rows of the batch; ``expected`` settles heads folded in unknown number."""
        folded = len(self.weights)
        if self.weights.dim() > 3:
            return folded
        if self.n_heads is not None:
            return folded // self.n_heads
        return expected if expected and folded % expected == 0 else folded


def _run(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    interception: AttentionInterception,
    path: InputPath | None,
) -> Any:
    try:
        with interception, nullcontext() if path is None else path.followed():
            _, output = _forward_layer_distributed_eval(
                forward_func,
                inputs,
                interception.probe,
                additional_forward_args=additional_forward_args,
                forward_hook_with_return=True,
                require_layer_grads=True,
            )
    except AssertionError as error:
        # Captum's words for "no probe ran"; an assertion of the model passes on.
        if interception.calls or "did not obtain any outputs" not in str(error):
            raise
        raise UnsupportedAttentionError(
            f"no attention map was found in the forward function. {_SUPPORTED}"
        ) from None
    return output


def _select_output(output: Any, target: TargetType, n_rows: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"forward_func returned a {type(output).__name__}; Captum needs a tensor. "
            "Wrap the model, for example: lambda ids: model(ids).logits"
        )
    shape = tuple(output.shape)
    if output.dim() == 0 or shape[0] != n_rows:
        raise ValueError(
            f"forward_func returned shape {shape} for {n_rows} inputs; the first "
            "dimension must be the batch, one row per input"
        )
    try:
        selected = _select_targets(output, target)
    except (AssertionError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"target={target!r} does not select from an output of shape {shape}: "
            f"{error}. Give one index per example into the dimensions after the first "
            f"(for classes: 0 to {shape[-1] - 1})"
        ) from error
    if selected[0].numel() != 1:
        raise ValueError(
            f"target={target!r} leaves shape {tuple(selected.shape)} of the output "
            f"{shape}; one number per example is needed. Pass target, for example the "
            "predicted class: output.argmax(-1)"
        )
    if not selected.requires_grad:
        raise ValueError(
            "the output does not depend on the attention maps through autograd; "
            "forward_func must not run under torch.no_grad() or detach its output, and "
            "attribute() must not be called under torch.inference_mode()"
        )
    per_example: Tensor = selected.reshape(n_rows)
    return per_example


def _chains(maps: list[Tensor]) -> list[list[int]]:
    """Group attention calls into stacks in which each feeds on the one before.

    The autograd graph tells, not the shapes: a second stack begins at a map that does
    not depend on the map before it.
    """
    chains: list[list[int]] = []
    for index, tensor in enumerate(maps):
        if index and _depends_on(tensor, maps[index - 1]):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _depends_on(later: Tensor, earlier: Tensor) -> bool:
    """Breadth first: the layer before is near, so only a miss walks the whole graph."""
    wanted = earlier.grad_fn
    level = [] if later.grad_fn is None else [later.grad_fn]
    seen = set(level)
    while level:
        following = []
        for node in level:
            if node is wanted or getattr(node, "variable", None) is earlier:
                return True
            for parent, _ in node.next_functions:
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    following.append(parent)
        level = following
    return False


def _join(stacks: list[list[_CapturedCall]], output: Tensor) -> AttentionRecord:
    """Make one stack, or the stacks of consecutive mini-batches, one record."""
    depths = sorted({len(stack) for stack in stacks})
    if len(depths) > 1:
        raise UnsupportedAttentionError(
            f"the attention calls form {len(stacks)} stacks, of {depths} layers, that "
            "do not feed on each other, such as an encoder and a decoder, or two "
            "models. One stack is supported: attribute to one of them at a time"
        )
    expected = len(output) if len(stacks) == 1 else None
    rows = [stack[0].n_rows(expected) for stack in stacks]
    if sum(rows) != len(output):
        raise UnsupportedAttentionError(
            f"{len(stacks)} stacks of attention ran over {sum(rows)} rows in all for "
            f"{len(output)} inputs: windowed attention (Swin), or several passes per "
            "input (siamese models, an encoder and a decoder, reentrant gradient "
            "checkpointing). It is not known which "
            "pass a token's score belongs to: attribute to one pass at a time"
        )
    chunks = zip(stacks, rows, output.split(rows), strict=True)
    return AttentionRecord.concatenate(
        [
            AttentionRecord(
                weights=tuple(_by_head(call.weights, n_rows) for call in stack),
                gradients=tuple(_by_head(call.gradient, n_rows) for call in stack),
                output=chunk_output,
            )
            for stack, n_rows, chunk_output in chunks
        ]
    )


def _by_head(tensor: Tensor, n_rows: int) -> Tensor:
    """Bring heads, in however many dimensions they come, to ``(B, H, Tq, Tk)``."""
    return tensor.reshape(n_rows, -1, *tensor.shape[-2:])
