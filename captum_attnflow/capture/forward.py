"""Attention behind an opaque forward function: one forward, one backward pass.

The order of :func:`capture_targets`: run the forward function under the interception;
group its attention calls into a stack, by the graph; find which rows and which inputs
each call belongs to, while the graph is there; then one backward pass per target, whose
gradients and the maps make the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._captum import TargetType
from captum_attnflow._checks import (
    check_additional,
    check_callable,
    check_choice,
    check_dense,
    check_grad_kwargs,
    check_type,
    with_article,
)
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture.composed import LoneQueryLayer, find_lone_query
from captum_attnflow.capture.entries import (
    Entry,
    InputEntries,
    LayerCalls,
    TokensOfElements,
)
from captum_attnflow.capture.gradients import (
    AttentionCall,
    OutputGradients,
    RowLayout,
    WantedGradients,
    rows_of_calls,
    square_entries,
)
from captum_attnflow.capture.graph import DependencyGraph, Stack, find_stacks
from captum_attnflow.capture.interception import AttentionInterception
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.propagation import warn_of_unknown
from captum_attnflow.capture.record import (
    AttentionLayer,
    AttentionRecord,
    InputRelevance,
    Route,
    TokenSequence,
    UnsupportedAttentionError,
)
from captum_attnflow.capture.refusals import (
    refuse_kernels_without_gradient,
    refuse_maps_without_gradient,
    refuse_overwritten_masks,
    warn_of_dropout,
    warn_of_missed_softmaxes,
    warn_of_parts,
    warn_of_unfollowed_scores,
    why_none_is_found,
)
from captum_attnflow.capture.rules import RULES, PropagationRules, Rules
from captum_attnflow.capture.torch_calls import eager, refusing_checkpoints
from captum_attnflow.targets import ids_needed, run_with_layer, select_output


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
        layer_calls (LayerCalls, optional): The calls of a watched layer; each gets the
            sequence that it belongs to.
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
    needs_maps: bool = True,
    baselines: tuple[Tensor, ...] = (),
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
        needs_maps (bool): If not, only sums of messages are wanted, for which fused
            kernels keep the gradients of their operands.
        baselines (tuple[Tensor, ...]): Of each input its baseline, for what ids it may
            not hold; the pass does not see them.

    Yields:
        AttentionRecord: One per target, made when it is asked for.
    """
    accepted = "a list of outputs to explain"
    check_type("targets", targets, (list, tuple, range), accepted)
    _check_arguments(
        forward_func, inputs, additional_forward_args, grad_kwargs, path, layer_calls
    )
    check_choice("rules", rules, RULES)
    n_rows = len(inputs[0])
    n_examples = n_rows if path is None else path.n_examples
    propagation = None if rules == "gradient" else PropagationRules(rules)
    with torch.enable_grad():
        entries = InputEntries(inputs, baselines)
        entries.watch(additional_forward_args or ())
        interception = AttentionInterception(
            entries, path, propagation, keeps_operands=not needs_maps
        )
        if layer_calls is not None and propagation is not None and path is None:
            layer_calls.on_entry = propagation.add_source
        output = _run(
            forward_func, entries.inputs, additional_forward_args, interception, path
        )
        calls = interception.calls
        probed = [call.probed for call in calls]
        stacks = find_stacks(probed, [call.values for call in calls])
    with refusing_checkpoints():
        _check_pass(interception)
    rows = rows_of_calls(stacks, calls, inputs, n_rows)
    held = [entries.held_by(stack, calls) for stack in stacks]
    if layer_calls is not None:
        layer_calls.locate(stacks)
    with refusing_checkpoints():
        sources = _Sources.find(
            entries, stacks, held[0], calls, path, layer_calls, propagation is not None
        )
    if propagation is not None and path is None:
        _warn_of_unseen(sources, inputs, entries.entered())
    wanted = WantedGradients(
        calls,
        rows,
        {} if propagation is None else _streams(propagation, interception, stacks),
        sources.tensors,
        sources.at_layer,
        {} if path else square_entries(entries.entered(), n_rows),
    )
    lone: list[dict[int, Tensor]] = []
    for number, target in enumerate(targets):
        with torch.enable_grad(), refusing_checkpoints():
            selected = select_output(output, target, n_rows, n_examples)
            if propagation is not None and number == 0:
                propagation.check(selected)
                warn_of_unknown(propagation.summary())
                if interception.attends_in_parts():
                    warn_of_parts()
            if number == 0:
                mixing = interception.mixes_beside(selected)
                if mixing:
                    warn_caller(mixing)
            lone = lone or _lone_queries(selected, stacks, calls, entries, rows)
            is_last = number == len(targets) - 1
            gradients = wanted.differentiate(selected, is_last, grad_kwargs or {})
        if layer_calls is not None and number == 0:
            layer_calls.place(
                gradients.layer_layouts, sources.tokens_at_layer, n_examples
            )
            sources.place(gradients.layer_layouts)
        if path is not None:
            _refuse_fault_on_path(gradients.layers, rows, n_examples)
        record = _join(stacks, rows, gradients, held, selected.detach(), lone)
        record = replace(record, elements=sources.elements)
        if propagation is not None:
            record = replace(record, propagation=propagation.summary())
        if path is not None:
            record = record.select(slice(-n_examples, None))
        yield replace(record, input_relevance=sources.relevance(gradients.inputs, path))


def _check_arguments(
    forward_func: Any,
    inputs: Any,
    additional_forward_args: Any,
    grad_kwargs: Any,
    path: Any,
    layer_calls: Any,
) -> None:
    check_callable("forward_func", forward_func)
    check_type("inputs", inputs, tuple, "a tuple of tensors")
    if not inputs:
        raise ValueError("inputs are an empty tuple; give at least one tensor")
    for tensor in inputs:
        check_dense("inputs", tensor, "one row per example")
    check_grad_kwargs(grad_kwargs)
    for name, given, kind in (
        ("path", path, InputPath),
        ("layer_calls", layer_calls, LayerCalls),
        ("additional_forward_args", additional_forward_args, tuple),
    ):
        if given is not None:
            check_type(name, given, kind, f"None or {with_article(kind.__name__)}")
    check_additional(additional_forward_args, len(inputs[0]))


@dataclass
class _Sources:
    """The tensors that relevance is propagated to, with the tokens they make.

    Attributes:
        elements (dict): The token of each element of an input, by its number.
        at_layer (list of Tensor): What a watched layer takes or puts out.
        tokens_at_layer (list of Tensor or None): The token of each element of those.
        embeddings (list of Entry): What stands for the inputs in front of the
            attention, where rules propagate relevance; empty along a path.
        tensors (list of Tensor): Those, or the points of the path.
        tokens (list of Tensor or None): The token of each element of those.
    """

    elements: dict[int, Tensor]
    at_layer: list[Tensor]
    tokens_at_layer: list[Tensor | None]
    embeddings: list[Entry]
    tensors: list[Tensor]
    tokens: list[Tensor | None]

    @staticmethod
    def find(
        entries: InputEntries,
        stacks: list[Stack],
        held: list[tuple[int, ...]],
        calls: list[AttentionCall],
        path: InputPath | None,
        layer_calls: LayerCalls | None,
        propagates: bool,
    ) -> _Sources:
        """Find them before a backward pass frees the graph."""
        of_tokens = TokensOfElements(stacks, calls)
        # Layers of a single input shape attributions themselves.
        is_shaped = layer_calls is not None and len(entries.inputs) == 1
        elements = {} if is_shaped else _elements(entries, held, of_tokens)
        at_layer = [] if layer_calls is None else layer_calls.tensors()
        embeddings: list[Entry] = []
        tensors: list[Tensor] = []
        tokens: list[Tensor | None] = []
        if path is None and propagates:
            embeddings = _embeddings(entries.entered(), at_layer, calls)
            tensors = [entry.tensor for entry in embeddings]
            made = [of_tokens.made_of(tensor) for tensor in tensors]
            tokens = [
                None if of is None else entry.of_batch(of)
                for of, entry in zip(made, embeddings, strict=True)
            ]
        elif path is not None:
            tensors = [path.points_entered()]
            # Points are a copy of the first input.
            is_copy = 0 in elements and elements[0].shape == tensors[0].shape
            tokens = [elements[0] if is_copy else of_tokens.made_of(tensors[0])]
        tokens_at_layer = [of_tokens.made_of(tensor) for tensor in at_layer]
        return _Sources(
            elements, at_layer, tokens_at_layer, embeddings, tensors, tokens
        )

    def place(self, layouts: list[RowLayout | None]) -> None:
        """Lay out what stands for the tokens as the layer that put it out has it."""
        axis_of = {
            id(tensor): layout.axis
            for tensor, layout in zip(self.at_layer, layouts, strict=True)
            if layout is not None
        }
        self.embeddings = [
            replace(entry, axes="swapped") if axis_of.get(id(entry.tensor)) else entry
            for entry in self.embeddings
        ]

    def relevance(
        self, gradients: list[Tensor], path: InputPath | None
    ) -> tuple[InputRelevance, ...]:
        """Multiply what relevance is propagated to by gradients in it, if there are."""
        if path is not None:
            of_all = self.tokens[0]
            tokens = None if of_all is None else of_all[-path.n_examples :]
            return (InputRelevance(0, path.relevance(gradients[0]), tokens),)
        return tuple(
            InputRelevance(
                entry.index, entry.of_batch(entry.tensor.detach() * gradient), tokens
            )
            for entry, gradient, tokens in zip(
                self.embeddings, gradients, self.tokens, strict=False
            )
        )


def _check_pass(interception: AttentionInterception) -> None:
    """Refuse what was not captured rightly, and say what scores will miss.

    Raises:
        UnsupportedAttentionError: If masks were overwritten, or attention or kernels
            have no gradient.
    """
    if interception.overwritten():
        refuse_overwritten_masks()
    if interception.without_gradient:
        refuse_kernels_without_gradient(interception.without_gradient)
    if interception.dropout:
        warn_of_dropout()
    calls, n_missed = interception.calls, interception.missed()
    if n_missed:
        warn_of_missed_softmaxes(n_missed, len(calls))
    n_unfollowed = sum(
        call.fused is None and call.share_of_weights > 0 and call.scores is None
        for call in calls
    )
    if n_unfollowed:
        warn_of_unfollowed_scores(n_unfollowed, len(calls))
    n_without = sum(not call.probed.requires_grad for call in calls)
    if n_without or torch.is_inference_mode_enabled():
        refuse_maps_without_gradient(n_without, len(calls))


def _elements(
    entries: InputEntries, held: list[tuple[int, ...]], of_tokens: TokensOfElements
) -> dict[int, Tensor]:
    """Find the token of each element of the inputs, where it does not go by itself."""
    found = {}
    for entry in entries.entered():
        given, index = entries.inputs[entry.index], entry.index
        sequence = next((i for i, inputs in enumerate(held) if index in inputs), None)
        if sequence is None or index in found:
            continue
        is_ids = not given.is_floating_point()
        goes_by_itself = len(held[sequence]) == 1 and of_tokens.is_whole(
            sequence, entry.of_batch(entry.tensor)
        )
        if is_ids and (goes_by_itself or entry.axes not in ("same", "swapped")):
            continue
        tokens = of_tokens.of_sequence(sequence, entry.tensor)
        if tokens is not None and is_ids:
            tokens = entry.of_batch(tokens).flatten(given.dim()).amax(-1)
        if tokens is not None:
            found[index] = tokens
    return found


def _embeddings(
    entries: list[Entry], at_layer: list[Tensor], calls: list[AttentionCall]
) -> list[Entry]:
    """Choose the tensors that hold the tokens in front of the attention.

    These are the output of the layer that the user names, with the inputs that it is
    not made of; or the inputs themselves. None is chosen if a lookup has only a part of
    the tokens: relevance then ends behind the first attention.
    """
    n_tokens = max(call.probed.shape[-2] for call in calls)
    chosen = []
    if len(at_layer) == 1 and not DependencyGraph(
        [call.probed for call in calls]
    ).depends(at_layer[0]):
        # Position embeddings may be of the same shape, and are made of no token.
        known = DependencyGraph([entry.tensor for entry in entries])
        made_of = known.ancestors(at_layer[0])
        if at_layer[0].dim() == 3 and (made_of or not entries):
            chosen = [Entry(0, at_layer[0])]
            entries = [one for i, one in enumerate(entries) if i not in made_of]
    is_whole = all(
        entry.axes in ("same", "swapped") or entry.tensor.shape[1] == n_tokens
        for entry in entries
    )
    return chosen + (entries if is_whole else [])


def _warn_of_unseen(
    sources: _Sources, inputs: tuple[Tensor, ...], entries: list[Entry]
) -> None:
    """Warn of token ids that no embedding was seen to look up."""
    if sources.at_layer:
        return
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


def _streams(
    propagation: PropagationRules,
    interception: AttentionInterception,
    stacks: list[Stack],
) -> dict[int, Tensor]:
    """Find the residual streams behind the last calls of the stacks, by call."""
    lasts = [stack.calls[-1] for stack in stacks]
    behind = {
        last: propagation.stream_behind(interception.calls[last].probed)
        for last in lasts
    }
    return {
        last: stream
        for last, stream in behind.items()
        if stream is not None and stream.dim() == 3
    }


def _run(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    interception: AttentionInterception,
    path: InputPath | None,
) -> Any:
    rules = interception.rules or nullcontext()
    try:
        followed = nullcontext() if path is None else path.followed()
        with refusing_checkpoints(), eager(), rules, interception, followed:
            _, output = run_with_layer(
                forward_func,
                inputs,
                interception.probe,
                additional_forward_args=additional_forward_args,
                forward_hook_with_return=True,
                require_layer_grads=True,
            )
    except AssertionError as error:
        # Captum asserts that the probe ran. Any other assertion is the model's own.
        if interception.calls or "did not obtain any outputs" not in str(error):
            raise
        why = why_none_is_found(
            forward_func,
            interception.mixes_without_softmax(),
            interception.attends_in_parts(),
        )
        raise UnsupportedAttentionError(
            f"no attention map was found in the forward function. {why}"
        ) from None
    except Exception as error:
        explained = ids_needed(error, forward_func, inputs, additional_forward_args)
        if explained is None:
            raise
        raise explained from error
    return output


def _refuse_fault_on_path(
    layers: list[AttentionLayer], rows: list[slice], n_examples: int
) -> None:
    """Refuse NaN at the points in front of the input, and say that it is there."""
    at_input, end = slice(-n_examples, None), max(part.stop for part in rows)
    last = [layer for layer, part in zip(layers, rows, strict=True) if part.stop == end]
    for number, layer in enumerate(last):
        if layer.fault is not None and layer.select(at_input).fault is None:
            raise ValueError(
                f"the attention {layer.fault} of layer {number} hold NaN or infinite "
                "entries at points between the baselines and the input, but not at the "
                "input itself. Check the baselines, or give none: relevance then takes "
                "no path"
            )


def _lone_queries(
    selected: Tensor,
    stacks: list[Stack],
    calls: list[AttentionCall],
    entries: InputEntries,
    rows: list[slice],
) -> list[dict[int, Tensor]]:
    """Find the position of the last layer's only query, stack by stack and by call.

    Where none is found the map stays as it is, which a flow refuses.
    """
    if all(call.lengths()[0] > 1 for call in calls):
        return [{} for _ in stacks]
    entered = [entry.tensor for entry in entries.entered() if entry.axes == "same"]
    return [
        find_lone_query(selected, stack, calls, entered, part.stop - part.start)
        for stack, part in ((stack, rows[stack.calls[0]]) for stack in stacks)
    ]


def _join(
    stacks: list[Stack],
    rows: list[slice],
    gradients: OutputGradients,
    held: list[list[tuple[int, ...]]],
    output: Tensor,
    lone: list[dict[int, Tensor]],
) -> AttentionRecord:
    """Make one stack, or the stacks of consecutive mini-batches, one record."""
    records = []
    for stack, inputs, positions in zip(stacks, held, lone, strict=True):
        layers = [
            LoneQueryLayer(gradients.layers[call], positions[call])
            if call in positions
            else gradients.layers[call]
            for call in stack.calls
        ]
        last = stack.calls[-1]
        read_out = gradients.streams.get(last)
        if last in positions and read_out is not None:
            read_out = torch.where(positions[last], read_out, 0)
        record = _record(layers, stack.routes, inputs, output[rows[stack.calls[0]]])
        records.append(replace(record, read_out_relevance=read_out))
    return AttentionRecord.concatenate(records)


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
