"""Attention behind an opaque forward function: one forward, one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum._utils.gradient import _forward_layer_distributed_eval
from captum._utils.typing import TargetType
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture.attention_call import AttentionCall
from captum_attnflow.capture.attention_layer import AttentionLayer
from captum_attnflow.capture.entries import Entry, InputEntries
from captum_attnflow.capture.interception import AttentionInterception
from captum_attnflow.capture.output import select_output
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.propagation import warn_of_unknown
from captum_attnflow.capture.record import (
    AttentionRecord,
    InputRelevance,
    Route,
    TokenSequence,
    UnsupportedAttentionError,
)
from captum_attnflow.capture.rules import PropagationRules, Rules
from captum_attnflow.capture.streams import DependencyGraph, Stack, find_stacks
from captum_attnflow.capture.support import why_none_is_found
from captum_attnflow.capture.watched_layer import LayerCalls


def capture_attention(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: tuple[Any, ...] | None = None,
    grad_kwargs: dict[str, Any] | None = None,
    path: InputPath | None = None,
    layer_calls: LayerCalls | None = None,
    rules: Rules = "gradient",
) -> AttentionRecord:
    """Run a forward function once and read its attention and gradients.

    The model is not touched: no attention implementation is switched, parameters may
    be frozen and get no ``.grad``, and hooks are removed also after an error.

    Args:
        forward_func (Callable): Any function of tensors that runs a transformer.
        inputs (tuple[Tensor, ...]): Its inputs; dimension 0 is the batch.
        target (int, tuple, Tensor or list, optional): The output to differentiate, as
            Captum reads it.
        additional_forward_args (tuple, optional): Passed on behind ``inputs``.
        grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.
        path (InputPath, optional): A path whose points are the rows of ``inputs``.
        layer_calls (LayerCalls, optional): The calls of a watched layer, which are told
            the sequence that they belong to.
        rules (str): How the backward pass goes: by the plain ``"gradient"``, or by
            propagation rules, ``"attnlrp"`` or ``"cp-lrp"``; see
            :mod:`captum_attnflow.capture.rules`.

    Returns:
        AttentionRecord: Detached maps and gradients, layer by layer; along a path those
        of its last point, with the relevance of the input.

    Raises:
        UnsupportedAttentionError: If no supported attention was found.
        ValueError: If the output is no tensor with one row per example, does not
            depend on the attention, or has no such target.
    """
    (record,) = capture_targets(
        forward_func,
        inputs,
        [target],
        additional_forward_args,
        grad_kwargs,
        path,
        layer_calls,
        rules,
    )
    return record


def capture_targets(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType],
    additional_forward_args: tuple[Any, ...] | None = None,
    grad_kwargs: dict[str, Any] | None = None,
    path: InputPath | None = None,
    layer_calls: LayerCalls | None = None,
    rules: Rules = "gradient",
) -> Iterator[AttentionRecord]:
    """Run a forward function once and read the gradients of several outputs.

    Args:
        forward_func (Callable): As in :func:`capture_attention`, like the others.
        inputs (tuple[Tensor, ...]): Its inputs.
        targets (sequence): The outputs to differentiate, one backward pass each.
        additional_forward_args (tuple, optional): Passed on behind ``inputs``.
        grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.
        path (InputPath, optional): A path whose points are the rows of ``inputs``.
        layer_calls (LayerCalls, optional): The calls of a watched layer.
        rules (str): How the backward pass goes.

    Yields:
        AttentionRecord: One per target, made when it is asked for.
    """
    with torch.enable_grad():
        entries = InputEntries(inputs)
        entries.watch(additional_forward_args or ())
        propagation = None if rules == "gradient" else PropagationRules(rules)
        interception = AttentionInterception(entries, path, propagation)
        if layer_calls is not None and propagation is not None:
            layer_calls.on_entry = propagation.add_source
        output = _run(
            forward_func, entries.inputs, additional_forward_args, interception, path
        )
        probed = [call.probed for call in interception.calls]
        stacks = find_stacks(probed, [call.values for call in interception.calls])
    if interception.overwritten():
        raise UnsupportedAttentionError(
            "an attention mask was changed in place after a fused kernel had used it, "
            "but the attention map is formed of it afterwards. Let the model make a "
            'copy of the mask, or load it with attn_implementation="eager"'
        )
    n_missed = interception.missed()
    if n_missed:
        warn_caller(
            f"{n_missed} softmaxes of the shape of an attention map were "
            f"not seen to weigh values, {len(probed)} were. If these are attention "
            "layers, they are missing from the scores: write them as softmax(...) "
            "followed by matmul or einsum, or as F.scaled_dot_product_attention"
        )
    _warn_of_unfollowed(interception.calls)
    held = [entries.held_by(stack) for stack in stacks]
    embeddings: list[Entry] = []
    if propagation is not None and path is None:
        at_layer = [] if layer_calls is None else layer_calls.tensors()
        embeddings = _embeddings(
            entries.entered(), at_layer, interception.calls, len(inputs[0])
        )
        if not at_layer:
            _warn_of_unseen(inputs, entries.entered())
    if layer_calls is not None:
        layer_calls.locate(stacks)
    points = [] if path is None else [path.points_entered()]
    wanted = _Wanted(
        interception.calls,
        stacks,
        propagation,
        points + [entry.tensor for entry in embeddings],
    )
    for number, target in enumerate(targets):
        with torch.enable_grad():
            selected = select_output(
                output,
                target,
                n_rows=len(inputs[0]),
                n_examples=len(inputs[0]) if path is None else path.n_examples,
            )
            _refuse_maps_without_gradient(probed)
            if propagation is not None and number == 0:
                propagation.check(selected)
                warn_of_unknown(propagation.summary())
            is_last = number == len(targets) - 1
            gradients = wanted.differentiate(selected, is_last, grad_kwargs or {})
        record = _join(stacks, interception.calls, gradients, held, selected.detach())
        if propagation is not None:
            record = replace(
                record,
                propagation=propagation.summary(),
                input_relevance=tuple(
                    InputRelevance(
                        entry.index,
                        entry.of_batch(entry.tensor.detach() * gradient),
                    )
                    for entry, gradient in zip(
                        embeddings, gradients.inputs, strict=False
                    )
                ),
            )
        if path is not None:
            record = replace(
                record.select(slice(-path.n_examples, None)),
                input_relevance=(
                    InputRelevance(0, path.relevance(gradients.inputs[0])),
                ),
            )
        yield record


def _embeddings(
    entries: list[Entry],
    at_layer: list[Tensor],
    calls: list[AttentionCall],
    n_rows: int,
) -> list[Entry]:
    """Choose what stands for the tokens in front of the attention.

    That is the output of the layer that the user names, or the inputs themselves.
    Nothing does where the model makes tokens of a part of an input.
    """
    n_tokens = max(call.probed.shape[-2] for call in calls)
    if len(at_layer) == 1 and not DependencyGraph(
        [call.probed for call in calls]
    ).depends(at_layer[0]):
        (tensor,) = at_layer
        fits = tensor.dim() == 3 and tensor.shape[:2] == (n_rows, n_tokens)
        # Position embeddings are of the same shape, and made of no token.
        known = DependencyGraph([entry.tensor for entry in entries])
        if fits and (not entries or known.ancestors(tensor)):
            return [Entry(0, tensor)]
    is_whole = all(
        entry.axes in ("same", "swapped") or entry.tensor.shape[1] == n_tokens
        for entry in entries
    )
    return entries if is_whole else []


def _warn_of_unseen(inputs: tuple[Tensor, ...], entries: list[Entry]) -> None:
    """Say what rules miss where token ids are not seen to become embeddings."""
    entered = {entry.index for entry in entries}
    unseen = [
        index
        for index, tensor in enumerate(inputs)
        if not tensor.is_floating_point() and index not in entered
    ]
    if unseen:
        warn_caller(
            f"the token ids of the inputs {unseen} were not seen to be looked up in "
            "an embedding, so that propagation rules begin behind the first attention "
            "and tokens have no direct edges. Pass embeddings as the input, or name "
            "the embeddings module with the Layer... class"
        )


def _warn_of_unfollowed(calls: list[AttentionCall]) -> None:
    """Say where keys miss their part of the relevance of scores."""
    n_unfollowed = sum(
        call.fused is None and call.share_of_weights > 0 and call.scores is None
        for call in calls
    )
    if n_unfollowed:
        warn_caller(
            f"in {n_unfollowed} of {len(calls)} attention layers the scores were not "
            "seen to be one product of queries and keys, so that keys get no share of "
            "their relevance there: flows over relevance give it to the queries. Write "
            "scores as a matmul or an einsum of queries and keys, or as "
            "F.scaled_dot_product_attention"
        )


@dataclass(frozen=True)
class _Gradients:
    """Gradients of one output per row.

    Attributes:
        maps (list of Tensor): In what ran through the probe, call by call.
        scores (dict): In the products of queries and keys, by call.
        streams (dict): Relevance ``(rows, Tq)`` of the residual stream behind the last
            call of a stack, by call.
        inputs (list of Tensor): In what stands for the inputs, or in the points of a
            path.
    """

    maps: list[Tensor]
    scores: dict[int, Tensor]
    streams: dict[int, Tensor]
    inputs: list[Tensor]


class _Wanted:
    """What an output is differentiated in."""

    def __init__(
        self,
        calls: list[AttentionCall],
        stacks: list[Stack],
        propagation: PropagationRules | None,
        inputs: list[Tensor],
    ) -> None:
        self._calls = calls
        self._inputs = inputs
        self._scores = {
            i: call.scores for i, call in enumerate(calls) if call.scores is not None
        }
        self._streams: dict[int, Tensor] = {}
        if propagation is not None:
            behind = {
                last: propagation.stream_behind(calls[last].probed)
                for last in (stack.calls[-1] for stack in stacks)
            }
            self._streams = {
                last: stream for last, stream in behind.items() if stream is not None
            }

    def differentiate(
        self, selected: Tensor, is_last: bool, grad_kwargs: dict[str, Any]
    ) -> _Gradients:
        """Run one backward pass from one output per row."""
        maps = [call.probed for call in self._calls]
        tensors = [*maps, *self._scores.values(), *self._streams.values()]
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        layouts = {call: self._is_batch_first(call, selected) for call in self._streams}
        try:
            of_all = torch.autograd.grad(
                torch.unbind(selected),
                tensors + self._inputs,
                **{**options, "retain_graph": not is_last, **grad_kwargs},
            )
        except CheckpointError as error:
            raise UnsupportedAttentionError(
                "gradient checkpointing runs parts of the model again in the backward "
                "pass, where propagation rules do not see them; turn it off, such as "
                "by model.gradient_checkpointing_disable()"
            ) from error
        left = iter([gradient.detach() for gradient in of_all])
        of_maps = [next(left) for _ in maps]
        of_scores = {call: next(left) for call in self._scores}
        of_streams = {
            call: stream.detach() * next(left) for call, stream in self._streams.items()
        }
        return _Gradients(
            maps=of_maps,
            scores=of_scores,
            streams={
                call: _relevance_of_positions(relevance, is_batch_first)
                for call, relevance in of_streams.items()
                if (is_batch_first := layouts[call]) is not None
            },
            inputs=list(left),
        )

    def _is_batch_first(self, call: int, selected: Tensor) -> bool | None:
        """Tell ``(rows, Tq, D)`` from ``(Tq, rows, D)``; None if it is neither.

        Where sizes do not tell, the first row's output does: it depends on that row
        alone.
        """
        shape = self._streams[call].shape
        n_queries = self._calls[call].probed.shape[-2]
        expected = (len(selected), n_queries)
        first, second = shape[:2] == expected, shape[:2] == expected[::-1]
        if len(shape) != 3 or not (first or second):
            return None
        if not (first and second) or len(selected) == 1:
            return first
        (alone,) = torch.autograd.grad(
            selected[0], self._streams[call], retain_graph=True, allow_unused=True
        )
        if alone is None or not bool(alone.any()):
            return None
        return not bool(alone[1:].any())


def _relevance_of_positions(relevance: Tensor, is_batch_first: bool) -> Tensor:
    by_position = relevance.double().sum(-1)
    return by_position if is_batch_first else by_position.mT


def _run(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    interception: AttentionInterception,
    path: InputPath | None,
) -> Any:
    rules = interception.rules or nullcontext()
    try:
        with rules, interception, nullcontext() if path is None else path.followed():
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
            "no attention map was found in the forward function. "
            f"{why_none_is_found(forward_func)}"
        ) from None
    return output


def _refuse_maps_without_gradient(maps: Sequence[Tensor]) -> None:
    n_without = sum(not tensor.requires_grad for tensor in maps)
    if n_without:
        raise UnsupportedAttentionError(
            f"{n_without} of {len(maps)} attention calls ran under torch.no_grad() "
            "inside forward_func, such as those of a frozen backbone or of reentrant "
            "gradient checkpointing, so that the output has no gradient in them. "
            "Freeze a backbone by requires_grad_(False) on its parameters instead, "
            "which leaves nothing in .grad; checkpoint with use_reentrant=False"
        )


def _join(
    stacks: list[Stack],
    calls: list[AttentionCall],
    gradients: _Gradients,
    held: list[list[tuple[int, ...]]],
    output: Tensor,
) -> AttentionRecord:
    """Make one stack, or the stacks of consecutive mini-batches, one record."""
    depths = sorted({len(stack.calls) for stack in stacks})
    if len({stack.routes for stack in stacks}) > 1:
        raise UnsupportedAttentionError(
            f"the attention calls form {len(stacks)} stacks, of {depths} layers, that "
            "do not feed on each other, such as two models. One stack, or an encoder "
            "and a decoder that attends to it, is supported: attribute to one of them "
            "at a time"
        )
    expected = len(output) if len(stacks) == 1 else None
    rows = [calls[stack.calls[0]].n_rows(expected) for stack in stacks]
    if sum(rows) != len(output):
        raise UnsupportedAttentionError(
            f"{len(stacks)} stacks of attention ran over {sum(rows)} rows in all for "
            f"{len(output)} inputs: windowed attention (Swin), or several passes per "
            "input (siamese models, reentrant gradient checkpointing). It is not known "
            "which pass a token's score belongs to: attribute to one pass at a time"
        )
    chunks = zip(stacks, rows, held, output.split(rows), strict=True)
    return AttentionRecord.concatenate(
        [
            replace(
                _record(
                    [
                        calls[i].layer(
                            gradients.maps[i], n_rows, gradients.scores.get(i)
                        )
                        for i in stack.calls
                    ],
                    stack.routes,
                    inputs,
                    chunk_output,
                ),
                read_out_relevance=gradients.streams.get(stack.calls[-1]),
            )
            for stack, n_rows, inputs, chunk_output in chunks
        ]
    )


def _record(
    layers: list[AttentionLayer],
    routes: tuple[Route, ...],
    inputs: list[tuple[int, ...]],
    output: Tensor,
) -> AttentionRecord:
    lengths: dict[int, int] = {}
    for layer, route in zip(layers, routes, strict=True):
        lengths.setdefault(route.queries, layer.shape[-2])
    for layer, route in zip(layers, routes, strict=True):
        lengths[route.keys] = layer.shape[-1]
    return AttentionRecord(
        layers=tuple(layers),
        output=output,
        sequences=tuple(
            TokenSequence(lengths[sequence], holders)
            for sequence, holders in enumerate(inputs)
        ),
        routes=routes,
    )
