"""From Captum's inputs to texts of which parts can be taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args, _run_forward
from captum.attr import InterpretableInput
from torch import Tensor, nn
from typing_extensions import TypeIs

from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.attr._layer import layer_templates
from captum_attnflow.attr._shape import refuse_several
from captum_attnflow.capture.watched_layer import TensorLike, record_layer_tensors
from captum_attnflow.perturbation import (
    DeletableColumns,
    DeletableWords,
    PerturbableTexts,
    ReplaceableActivations,
    ReplaceableFeatures,
    find_padding,
    find_special_tokens,
    read_keep,
    replaced_activation,
)


def are_texts(inputs: object) -> TypeIs[Sequence[str]]:
    """Whether the inputs are a list, or another sequence, of str."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, str)
        and len(inputs) > 0
        and all(isinstance(text, str) for text in inputs)
    )


def words_of(
    texts: Sequence[str], additional_forward_args: object, keep: Tensor | None
) -> PerturbableTexts:
    """Read texts for a black box that takes texts."""
    if keep is not None:
        raise ValueError(
            "keep was given with inputs that are texts, whose words are all explained; "
            "put what must stay into forward_func"
        )
    return DeletableWords(
        texts, _format_additional_forward_args(additional_forward_args)
    )


def tokens_of(
    forward_func: Callable[..., Any],
    tokenizer: object | None,
    arguments: ForwardArguments,
    keep: Tensor | None,
) -> PerturbableTexts:
    """Read ids, embeddings or features.

    Raises:
        ValueError: If the inputs have another shape, or there are several.
    """
    refuse_several([TensorLike.of(tensor) for tensor in arguments.inputs])
    (inputs,) = arguments.inputs
    additional = arguments.additional
    wrapped = any(isinstance(item, InterpretableInput) for item in additional or ())
    is_ids = not inputs.is_floating_point() and inputs.dim() == 2
    if wrapped or (inputs.is_floating_point() and inputs.dim() == 2):
        (baseline,) = arguments.baselines
        # Captum's wrapper of language models takes one row at a time.
        return ReplaceableFeatures(inputs, baseline, additional, 1 if wrapped else None)
    if not is_ids and inputs.dim() != 3:
        raise ValueError(
            f"the input has shape {tuple(inputs.shape)} and dtype {inputs.dtype}; give "
            "token ids (B, T), embeddings (B, T, D), features (B, T) of floats, or a "
            "list of texts"
        )
    kept, padding = _kept_and_padding(
        forward_func, tokenizer, arguments, inputs if is_ids else None, keep
    )
    return DeletableColumns(inputs, additional, kept, padding)


def activations_of(
    forward_func: Callable[..., Any],
    tokenizer: object | None,
    layer: nn.Module,
    of_input: bool,
    arguments: ForwardArguments,
    keep: Tensor | None,
    internal_batch_size: int | None,
) -> tuple[PerturbableTexts, list[TensorLike]]:
    """Read a layer's activations at each position, and those for the baselines.

    Returns:
        tuple: The texts, and a description of the layer's tensors.

    Raises:
        ValueError: If the layer did not run, or has no token axis.
    """
    baseline, templates = _at_baselines(
        forward_func, layer, of_input, arguments, internal_batch_size
    )
    ids = _ids_of(arguments.inputs, baseline.shape[1])
    positions = torch.arange(baseline.shape[1]).expand(baseline.shape[:2])
    kept, padding = _kept_and_padding(
        forward_func, tokenizer, arguments, ids, keep, tuple(positions.shape)
    )
    texts = ReplaceableActivations(
        layer,
        of_input,
        baseline,
        arguments.inputs,
        arguments.additional,
        positions if ids is None else ids.cpu(),
        kept,
        padding,
    )
    return texts, templates


def _at_baselines(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    of_input: bool,
    arguments: ForwardArguments,
    internal_batch_size: int | None,
) -> tuple[Tensor, list[TensorLike]]:
    """Run the baselines; take the layer's first tensor, and describe all."""
    seen: list[Tensor] = []

    def record(activation: Tensor) -> Tensor:
        seen.append(activation.detach().clone())
        return activation

    at_baseline = replace(arguments, inputs=arguments.baselines, target=None)
    with (
        torch.no_grad(),
        record_layer_tensors(layer, of_input) as calls,
        replaced_activation(layer, of_input, record),
    ):
        for part in at_baseline.split(internal_batch_size):
            n_before = len(seen)
            _run_forward(forward_func, part.inputs, None, part.additional)
            # Of a layer that runs several times, each time in a row.
            del seen[n_before + 1 :]
    templates = layer_templates(layer, calls.calls, arguments.n_rows, 1)
    baseline = torch.cat(seen)
    least = 3 if baseline.is_floating_point() else 2
    if baseline.dim() < least or len(baseline) != arguments.n_rows:
        raise ValueError(
            f"the layer has a tensor of shape {tuple(baseline.shape)} for "
            f"{arguments.n_rows} texts; its first tensor must be (B, T, D), such as "
            "the output of the embeddings module, or token ids (B, T)"
        )
    return baseline, templates


def _ids_of(inputs: Sequence[Tensor], n_positions: int) -> Tensor | None:
    first = inputs[0]
    is_ids = not first.is_floating_point() and first.shape[1:] == (n_positions,)
    return first if is_ids else None


def _kept_and_padding(
    forward_func: Callable[..., Any],
    tokenizer: object | None,
    arguments: ForwardArguments,
    ids: Tensor | None,
    keep: Tensor | None,
    shape: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Two masks ``(B, T)``: tokens that stay in every query, and padding."""
    n_texts, n_positions = shape or tuple(arguments.inputs[0].shape[:2])
    kept = read_keep(keep, (n_texts, n_positions))
    if kept is None:
        kept = torch.zeros(n_texts, n_positions, dtype=torch.bool)
        if ids is not None:
            kept = find_special_tokens(ids.cpu(), forward_func, tokenizer)
    padding = find_padding(
        forward_func,
        len(arguments.inputs),
        arguments.additional,
        (n_texts, n_positions),
    )
    return kept, padding
