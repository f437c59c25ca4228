"""The Layer forms: attributions shaped like what a layer emits or takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from captum._utils.common import _format_output
from captum._utils.typing import BaselineType, ModuleOrModuleList, TargetType
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_attnflow._options import check_flags, check_grad_kwargs
from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.attr._base import AttentionAttribution, TensorOrTensors
from captum_attnflow.attr._shape import (
    only_fitting,
    shape_like_layer,
    split_sequences,
)
from captum_attnflow.capture.watched_layer import (
    LayerCall,
    TensorLike,
    record_layer_tensors,
)
from captum_attnflow.explanation import Explanation, warn_of_position, warn_of_zeros


class LayerAttentionAttribution(AttentionAttribution, LayerAttribution):
    """Base of the Layer forms; stands in for LayerIntegratedGradients.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output (or input) the
            attributions are shaped like, usually the embeddings module.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): See :class:`AttentionAttribution`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        AttentionAttribution.__init__(self, forward_func, multiply_by_inputs)

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTensors,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        r"""Attribute the selected output to the tokens at a layer.

        Takes the arguments of ``LayerIntegratedGradients.attribute`` in their order;
        those that :meth:`AttentionAttribution.attribute` has mean the same.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Anything the forward function takes.
            baselines (scalar, Tensor, tuple, optional): See
                :meth:`AttentionAttribution.attribute`.
            target (int, tuple, Tensor or list, optional): Output to attribute.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; if
                ``None``, all, or as many as memory holds.
            return_convergence_delta (bool): Also return the efficiency residual, the
                sum of an example's token scores minus its flow value: 0 in the joint
                game, and no measure of convergence in the independent one.
            attribute_to_layer_input (bool): Shape the attributions like the layer's
                input instead of its output.
            grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor*, *tuple* or *list*): Shaped like the layer's
              output ``(B, T, D)``; a tuple if the layer emits several tensors, a list
              if ``layer`` is a list.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs, target or layer do not fit the model.
        """
        check_flags(
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
        )
        check_grad_kwargs(grad_kwargs)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        layer = single_layer(self.layer)
        with record_layer_tensors(layer, attribute_to_layer_input) as calls:
            explanation = self._explain(
                arguments, internal_batch_size, grad_kwargs, calls
            )
        warn_of_zeros(explanation)
        warn_of_position(explanation)
        attributions: list[Tensor] = []
        for scores, group in _by_sequence(explanation, calls.calls):
            templates = layer_templates(
                layer, group, arguments.n_rows, self._rows_per_example(arguments)
            )
            made = [call.tokens for call in group if call.tokens is not None]
            tokens = torch.cat(made)[-len(scores) :] if made else None
            attributions.extend(shape_like_layer(scores, templates, tokens))
        formatted = _format_output(len(attributions) > 1, tuple(attributions))
        result = [formatted] if isinstance(self.layer, list) else formatted
        if return_convergence_delta:
            return result, explanation.delta.to(attributions[0])
        return result

    def explain(
        self,
        inputs: TensorOrTensors,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Explanation:
        """Return token scores with the network, the flow and the cut behind them.

        Takes the arguments of :meth:`attribute`. Token scores do not depend on the
        layer, only the shape of attributions does, but for Relevance Flow, whose path
        leads through it.
        """
        check_flags(
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
        )
        check_grad_kwargs(grad_kwargs)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        explanation = self._explain(arguments, internal_batch_size, grad_kwargs)
        warn_of_zeros(explanation)
        warn_of_position(explanation)
        return explanation


def _by_sequence(
    explanation: Explanation, calls: list[LayerCall]
) -> Iterator[tuple[Tensor, list[LayerCall]]]:
    """Group a layer's calls by whose tokens they hold, with the scores of those.

    Embeddings may be shared by an encoder and a decoder.
    """
    if len(explanation.sequences) < 2 or not calls:
        yield explanation.scores, calls
        return
    parts = split_sequences(explanation.scores, explanation.sequences)
    groups: dict[int, list[LayerCall]] = {}
    for call in calls:
        sequence = call.sequence
        if sequence is None and call.tensors:
            sequence = only_fitting(parts, call.tensors[0])
        groups.setdefault(sequence or 0, []).append(call)
    for sequence, group in sorted(groups.items()):
        yield parts[sequence], group


def single_layer(given: ModuleOrModuleList) -> nn.Module:
    """Return the one layer that was given, alone or in a list.

    Raises:
        ValueError: If several were given, or something else.
    """
    layers = given if isinstance(given, list) else [given]
    if len(layers) != 1:
        raise ValueError(
            f"{len(layers)} layers were given, but there is one score per token "
            "position, which cannot be split between them (word, position and "
            "type embeddings). Attribute to one layer, such as the whole "
            "embeddings module"
        )
    return check_layer(layers[0])


def check_layer(layer: Any) -> nn.Module:
    """Return a layer.

    Raises:
        ValueError: If it is no module.
    """
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"layer={layer!r} is no module; give a part of the model itself, such as "
            "its embeddings module"
        )
    return layer


def layer_templates(
    layer: nn.Module,
    calls: list[LayerCall],
    n_examples: int,
    rows_per_example: int,
) -> list[TensorLike]:
    """Describe what the layer saw or emitted for the whole batch.

    A layer may run in several parts of the batch, several times (ALBERT), and over
    several rows per example.
    """
    if not calls:
        raise ValueError(
            f"the layer {type(layer).__name__} did not run in the forward function; "
            "pass a layer of the model that forward_func calls"
        )
    templates = []
    for tensors in zip(*(call.tensors for call in calls), strict=True):
        last = tensors[-1]
        rows = sum(tensor.shape[0] if tensor.shape else 1 for tensor in tensors)
        # One call over other rows than the batch is not cut along the batch.
        in_parts = len(calls) > 1 or rows_per_example > 1
        if in_parts and last.shape and rows % (n_examples * rows_per_example) == 0:
            last = replace(last, shape=(n_examples, *last.shape[1:]))
        templates.append(last)
    return templates
