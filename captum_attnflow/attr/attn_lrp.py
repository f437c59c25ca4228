r"""AttnLRP: input times a gradient by propagation rules, behind any forward function.

Achtibat et al., *AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers* (ICML 2024), and its variant that holds attention constant, CP-LRP (Ali et
al., *XAI for Transformers*, ICML 2022). Both are a forward pass and a backward pass in
which some operations are differentiated as if they were others; which, and how, stands
in :mod:`captum_attnflow.capture.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from captum._utils.common import _format_output, _is_tuple
from captum._utils.typing import BaselineType, ModuleOrModuleList, TargetType
from captum.attr import GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_attnflow._options import (
    check_callable,
    check_choice,
    check_flags,
    check_grad_kwargs,
)
from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.attr._base import TensorOrTensors
from captum_attnflow.attr._layer import check_layer
from captum_attnflow.attr._parts import run_in_parts
from captum_attnflow.capture.propagation import (
    PropagatedRelevance,
    TensorGradient,
    propagate,
)

PropagationRule = Literal["attnlrp", "cp-lrp"]


class AttnLRP(GradientAttribution):
    r"""AttnLRP or CP-LRP, in place of ``IntegratedGradients``.

    Works with attention and without, in any model whose operations run as Python calls
    of torch in the calling thread. One forward and one backward pass.

    Scores are :math:`x \odot g`, the input times the gradient :math:`g` by the rules.
    For token ids :math:`x` are the embeddings that the model looks up, summed over
    features. They do not sum to the output: biases absorb some of it, and so does the
    softmax. :class:`captum_attnflow.RelevanceFlow` counts these.

    Args:
        forward_func (Callable or Module): The forward function, as Captum takes it.
        multiply_by_inputs (bool): If False, the scores are :math:`g` alone.
        rules (str): ``"attnlrp"``, or ``"cp-lrp"``: attention is held constant.

    Raises:
        ValueError: If the rules are unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
        >>> scores = AttnLRP(lambda ids: model(ids).logits).attribute(ids, target=1)[0]
        >>> bool(scores[1] > 0 > scores[3])  # funny, dull
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        rules: PropagationRule = "attnlrp",
    ) -> None:
        check_callable("forward_func", forward_func)
        super().__init__(forward_func)
        check_choice("rules", rules, get_args(PropagationRule))
        self.rules = rules
        self._multiply_by_inputs = multiply_by_inputs

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
    ) -> Any:
        r"""Attribute the selected output to the inputs.

        Takes the arguments of ``IntegratedGradients.attribute`` in their order.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Floats of any shape, or token ids
                ``(B, T)``; dimension 0 is the batch.
            baselines (scalar, Tensor, tuple, optional): Validated, then ignored: there
                is no reference point.
            target (int, tuple, Tensor or list, optional): Output to attribute, as
                Captum selects it.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored: there is no path.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; if
                ``None``, all, or as many as memory holds.
            return_convergence_delta (bool): Also return the sum of an example's scores
                minus its output.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Shaped like
              ``inputs``, a tuple if ``inputs`` is one; float64 for float64 inputs,
              float32 otherwise.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            UnsupportedAttentionError: If operations ran where no rule can change them.
            ValueError: If inputs or target do not fit the model.
        """
        check_flags(return_convergence_delta=return_convergence_delta)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        parts = self._propagate(arguments, internal_batch_size)
        dtypes = [tensor.dtype for tensor in arguments.inputs]
        attributions = tuple(
            torch.cat([self._of_input(part.tensors[index], tensor) for part in parts])
            for index, tensor in enumerate(arguments.inputs)
        )
        attributions = tuple(
            attribution.to(_result_dtype(dtype))
            for attribution, dtype in zip(attributions, dtypes, strict=True)
        )
        formatted = _format_output(_is_tuple(inputs), attributions)
        if return_convergence_delta:
            return formatted, _delta(attributions, parts)
        return formatted

    def has_convergence_delta(self) -> bool:
        """Return True: sum of scores minus output."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """The flag given to the constructor."""
        return self._multiply_by_inputs

    @log_usage()
    def compute_convergence_delta(
        self,
        attributions: TensorOrTensors,
        start_point: BaselineType,
        end_point: TensorOrTensors,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Sum of given attributions minus the output at ``end_point``.

        Args:
            attributions (Tensor or tuple[Tensor, ...]): Attributions of ``end_point``.
            start_point (scalar, Tensor or tuple, optional): The baselines; ignored.
            end_point (Tensor or tuple[Tensor, ...]): The inputs.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Returns:
            Tensor: Shape ``(B,)``.
        """
        arguments = ForwardArguments.read(
            end_point, start_point, target, additional_forward_args, 1, "gausslegendre"
        )
        single = isinstance(attributions, Tensor)
        given = (attributions,) if single else tuple(attributions)
        return _delta(given, self._propagate(arguments, None))

    def _propagate(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        layers: Sequence[nn.Module] | None = None,
        of_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> list[PropagatedRelevance]:
        return run_in_parts(
            lambda part, rows: [
                propagate(
                    self.forward_func,
                    part.inputs,
                    part.target,
                    part.additional,
                    self.rules,
                    layers,
                    of_layer_input,
                    grad_kwargs,
                )
            ],
            arguments,
            internal_batch_size,
        )

    def _score(self, tensor: TensorGradient) -> Tensor:
        if not self._multiply_by_inputs:
            return tensor.gradient
        # In float32 at least: products of halves underflow.
        precise = torch.promote_types(tensor.value.dtype, torch.float32)
        return tensor.value.to(precise) * tensor.gradient.to(precise)

    def _of_input(self, tensors: Sequence[TensorGradient], like: Tensor) -> Tensor:
        """Score an input; ids have what was looked up, maybe in several tables."""
        scores = [self._score(tensor) for tensor in tensors]
        if like.is_floating_point():
            return scores[0]
        return torch.stack([score.flatten(like.dim()).sum(-1) for score in scores]).sum(
            0
        )


class LayerAttnLRP(AttnLRP, LayerAttribution):
    """AttnLRP or CP-LRP, in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): Where relevance is propagated to, usually the
            embeddings module. Each must run once in the forward function.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): See :class:`AttnLRP`; here the layer's output.
        rules (str): See :class:`AttnLRP`.

    Raises:
        ValueError: If the rules are unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
        >>> lrp = LayerAttnLRP(lambda ids: model(ids).logits, model.bert.embeddings)
        >>> lrp.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        rules: PropagationRule = "attnlrp",
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        AttnLRP.__init__(self, forward_func, multiply_by_inputs, rules=rules)

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
        r"""Attribute the selected output to what a layer emits or takes.

        Takes the arguments of ``LayerIntegratedGradients.attribute`` in their order;
        those that :meth:`AttnLRP.attribute` has mean the same.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Anything the forward function takes.
            baselines (scalar, Tensor, tuple, optional): Validated, then ignored.
            target (int, tuple, Tensor or list, optional): Output to attribute.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass.
            return_convergence_delta (bool): Also return the sum of an example's scores
                minus its output; over all layers, if there are several.
            attribute_to_layer_input (bool): Attribute to what the layer takes by
                position instead of what it emits.
            grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor*, *tuple* or *list*): Shaped like the layer's
              tensors of floats; a tuple if there are several, a list if ``layer`` is a
              list.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            UnsupportedAttentionError: If operations ran where no rule can change them.
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
        given = self.layer if isinstance(self.layer, list) else [self.layer]
        layers = [check_layer(layer) for layer in given]
        parts = self._propagate(
            arguments,
            internal_batch_size,
            layers,
            attribute_to_layer_input,
            grad_kwargs,
        )
        joins = len(parts) > 1 or return_convergence_delta
        for part in parts if joins else ():
            _refuse_other_rows(part)
        attributions = [
            tuple(
                torch.cat([self._score(tensor) for tensor in tensors]).to(
                    _result_dtype(tensors[0].value.dtype)
                )
                for tensors in zip(*(part.tensors[i] for part in parts), strict=True)
            )
            for i in range(len(layers))
        ]
        formatted = [_format_output(len(of) > 1, of) for of in attributions]
        result = formatted if isinstance(self.layer, list) else formatted[0]
        if return_convergence_delta:
            return result, _delta([one for of in attributions for one in of], parts)
        return result


def _refuse_other_rows(part: PropagatedRelevance) -> None:
    """Refuse tensors of a layer that do not begin with the rows of the batch."""
    n_rows = len(part.output)
    for tensor in (tensor for of_layer in part.tensors for tensor in of_layer):
        shape = tuple(tensor.value.shape)
        if not shape or shape[0] != n_rows:
            raise ValueError(
                f"the layer has a tensor of shape {shape} for {n_rows} examples; parts "
                "of a batch and the delta need the batch in dimension 0. Attribute to "
                "a layer that has it there, or in one part and without the delta"
            )


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _delta(
    attributions: Sequence[Tensor], parts: Sequence[PropagatedRelevance]
) -> Tensor:
    output = torch.cat([part.output for part in parts])
    totals = [one.double().flatten(1).sum(1) for one in attributions]
    return (torch.stack(totals).sum(0) - output.double()).to(attributions[0])
