"""Relevance of inputs and layers: one forward pass, one backward pass by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnflow._captum import TargetType
from captum_attnflow._checks import OneTextError
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture.entries import (
    Entry,
    InputEntries,
    in_this_thread,
    traceable,
)
from captum_attnflow.capture.gradients import (
    find_layouts,
    refuse_tokens_first,
    square_entries,
)
from captum_attnflow.capture.interception import AttentionInterception
from captum_attnflow.capture.record import Propagation
from captum_attnflow.capture.refusals import (
    refuse_kernels_without_gradient,
    warn_of_dropout,
    warn_of_parts,
)
from captum_attnflow.capture.rules import PropagationRules, Rules
from captum_attnflow.capture.torch_calls import eager, refusing_checkpoints
from captum_attnflow.targets import ids_needed, run_forward, select_output


@dataclass(frozen=True)
class TensorGradient:
    """A tensor of a forward pass and the gradient of the selected output in it.

    Attributes:
        value (Tensor): The tensor, detached.
        gradient (Tensor): Of its shape, by the rules.
    """

    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class PropagatedRelevance:
    """What a backward pass by rules found.

    Attributes:
        output (Tensor): Shape ``(B,)``, the selected output.
        tensors (tuple): For each input, or each layer, the tensors that stand for it:
            the input itself, what was looked up for token ids, what the layer emits.
        propagation (Propagation): What rules met what operations.
    """

    output: Tensor
    tensors: tuple[tuple[TensorGradient, ...], ...]
    propagation: Propagation


def propagate(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    targets: Sequence[TargetType],
    additional_forward_args: tuple[Any, ...] | None,
    rules: Rules,
    layers: Sequence[nn.Module] | None = None,
    of_layer_input: bool = False,
    grad_kwargs: dict[str, Any] | None = None,
    baselines: tuple[Tensor, ...] = (),
) -> Iterator[PropagatedRelevance]:
    """Run a forward function once and propagate relevance to its inputs or layers.

    The model needs no attention. It is not touched; see
    :func:`captum_attnflow.capture.capture_attention`.

    Args:
        forward_func (Callable): Any function of tensors.
        inputs (tuple[Tensor, ...]): Its inputs; dimension 0 is the batch.
        targets (sequence): The outputs, as Captum reads them, a backward pass each.
        additional_forward_args (tuple, optional): Passed on behind ``inputs``.
        rules (str): ``"attnlrp"`` or ``"cp-lrp"``.
        layers (sequence of Module, optional): Where to, in place of the inputs.
        of_layer_input (bool): Whether to what the layers take instead of emit.
        grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.
        baselines (tuple[Tensor, ...]): Of each input its baseline, for what ids it may
            not hold.

    Yields:
        PropagatedRelevance: Of each input, or each layer, for each target.

    Raises:
        UnsupportedAttentionError: If operations ran where no rule can change them.
        ValueError: If a layer does not run or runs several times, token ids are not
            looked up, the output does not depend on the inputs, or a gradient is NaN.
    """
    propagation = PropagationRules(rules)
    with torch.enable_grad():
        entries = InputEntries(inputs, baselines)
        entries.watch(additional_forward_args or ())
        interception = AttentionInterception(entries, rules=propagation)
        try:
            with ExitStack() as taps:
                for mode in (
                    refusing_checkpoints(),
                    eager(),
                    propagation,
                    interception,
                ):
                    taps.enter_context(mode)
                found = [
                    taps.enter_context(_tap(layer, of_layer_input, propagation))
                    for layer in layers or ()
                ]
                output = run_forward(
                    forward_func, entries.inputs, None, additional_forward_args
                )
        except Exception as error:
            explained = ids_needed(error, forward_func, inputs, additional_forward_args)
            if explained is None:
                raise
            raise explained from error
        if interception.without_gradient:
            refuse_kernels_without_gradient(interception.without_gradient)
        propagation.check(
            select_output(output, targets[0], len(inputs[0]), len(inputs[0]))
        )
    if layers is None:
        groups = [
            _only_whole(tensor, [e for e in entries.entered() if e.index == index])
            for index, tensor in enumerate(inputs)
        ]
        square = square_entries(entries.entered(), len(inputs[0]))
    else:
        groups = [
            [Entry(index, tensor) for tensor in _only_call(layer, calls)]
            for index, (layer, calls) in enumerate(zip(layers, found, strict=True))
        ]
        square = {}
    tensors = [entry.tensor for group in groups for entry in group]
    placed = list(square)
    for number, target in enumerate(targets):
        is_first, is_last = number == 0, number == len(targets) - 1
        with torch.enable_grad(), refusing_checkpoints():
            selected = select_output(output, target, len(inputs[0]), len(inputs[0]))
            options: dict[str, Any] = {
                **(grad_kwargs or {}),
                "allow_unused": True,
                "materialize_grads": True,
            }
            if (is_first and square) or not is_last:
                options["retain_graph"] = True
            of_all = torch.autograd.grad(
                torch.unbind(selected),
                [*tensors, *(placement.tensor for placement in placed)],
                **options,
            )
            if is_first and square:
                layouts = find_layouts(
                    placed, of_all[len(tensors) :], selected, retain_graph=not is_last
                )
                refuse_tokens_first(square.values(), layouts)
        gradients = iter(of_all)
        relevance = tuple(
            tuple(
                TensorGradient(
                    *(
                        part
                        if layers is not None
                        else entry.of_input(part, inputs[entry.index])
                        for part in (entry.tensor.detach(), next(gradients).detach())
                    )
                )
                for entry in group
            )
            for group in groups
        )
        _refuse_nan(relevance)
        if is_first:
            if interception.dropout:
                warn_of_dropout()
            if interception.attends_in_parts():
                warn_of_parts()
            warn_of_unknown(propagation.summary())
        yield PropagatedRelevance(selected.detach(), relevance, propagation.summary())


def warn_of_unknown(propagation: Propagation) -> None:
    """Name operations that no rule knows."""
    if propagation.unknown:
        warn_caller(
            f"no propagation rule knows {', '.join(propagation.unknown)}, so that they "
            "kept their plain gradients. If one is an activation or mixes tokens, "
            "relevance through it is less faithful: write it in operations that "
            "captum_attnflow.capture.rules lists"
        )


@contextmanager
def _tap(
    layer: nn.Module, of_input: bool, propagation: PropagationRules
) -> Iterator[list[list[Tensor]]]:
    """Give what a layer takes or emits a place of its own in the graph."""
    calls: list[list[Tensor]] = []

    def enter(part: Any) -> Any:
        if not (isinstance(part, Tensor) and part.is_floating_point()):
            return part
        part = traceable(part)
        propagation.add_source(part)
        calls[-1].append(part)
        return part

    def hook(module: nn.Module, taken: tuple[Any, ...], put_out: Any = None) -> Any:
        calls.append([])
        if of_input:
            return tuple(enter(part) for part in taken)
        if isinstance(put_out, (tuple, list)) and type(put_out) in (tuple, list):
            return type(put_out)(enter(part) for part in put_out)
        return enter(put_out)

    guarded = in_this_thread(layer, hook)
    register = layer.register_forward_pre_hook if of_input else None
    handle = register(guarded) if register else layer.register_forward_hook(guarded)
    try:
        yield calls
    finally:
        handle.remove()


def _only_call(layer: nn.Module, calls: list[list[Tensor]]) -> list[Tensor]:
    name = type(layer).__name__
    if not calls:
        raise ValueError(
            f"the layer {name} did not run in the forward function; pass a layer of "
            "the model that forward_func calls"
        )
    if len(calls) > 1:
        raise ValueError(
            f"the layer {name} ran {len(calls)} times in the forward function; "
            "relevance is of one call. Give a layer that runs once, such as the "
            "embeddings module"
        )
    if not calls[0]:
        raise ValueError(
            f"the layer {name} has no tensor of floats to attribute to; give one that "
            "returns a tensor, or a tuple of tensors"
        )
    return calls[0]


def _only_whole(given: Tensor, entries: list[Entry]) -> list[Entry]:
    """Return what stands for an input.

    Raises:
        ValueError: If there is nothing, or it stands for a part.
    """
    if not entries or any(entry.axes == "part" for entry in entries):
        raise ValueError(
            f"an input of dtype {given.dtype} and shape {tuple(given.shape)} was not "
            "seen to be looked up in an embedding as a whole, so that there is nothing "
            "to multiply a gradient by. Pass embeddings as the input, or attribute to "
            "the embeddings module with LayerAttnLRP; other arguments belong in "
            "additional_forward_args"
        )
    return entries


def _refuse_nan(relevance: Sequence[Sequence[TensorGradient]]) -> None:
    for tensor in (tensor for group in relevance for tensor in group):
        for name, part in (("value", tensor.value), ("gradient", tensor.gradient)):
            if not bool(part.isfinite().all()):
                holds = (
                    "holds NaN or infinite entries. Check the input, the model's "
                    "weights and the attention mask (a row that masks every key gives "
                    "NaN), or run the model in float32"
                )
                raise OneTextError(
                    f"the {name} of a tensor of shape {tuple(part.shape)} {holds}",
                    f"the {name} of a tensor {holds}",
                )
