"""SLALOM at a layer: absent is what holds the layer's baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from captum._utils.common import _format_output
from captum._utils.typing import BaselineType, ModuleOrModuleList, TargetType
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor

from captum_attnflow._options import check_flags
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    shape_like_layer,
    single_layer,
)
from captum_attnflow.attr.base import TensorOrTensors
from captum_attnflow.capture.entries import TensorLike
from captum_attnflow.slalom import Link, Score, SlalomExplanation, Strategy
from captum_attnflow.slalom.attribution import SLALOM
from captum_attnflow.slalom.inputs import activations_of, are_texts, check_tokens
from captum_attnflow.texts import PerturbableTexts


class LayerSLALOM(SLALOM, LayerAttribution):
    """SLALOM, in place of ``LayerIntegratedGradients``.

    A query keeps all positions; where a token is absent, the layer's activation is the
    one that it has for ``baselines``, as in Captum's own perturbation methods; where
    the two are the same, a token gets 0, and so do tokens at the end that no answer
    depends on, which six queries more find out. Inputs
    that are real shorter texts are :class:`SLALOM`'s.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        strategy (str): See :class:`SLALOM`; short queries are sets of one to three
            positions.
        score (str, optional): See :class:`SLALOM`.
        n_samples (int, optional): See :class:`SLALOM`.
        sink (bool, optional): See :class:`SLALOM`.
        link (str): See :class:`SLALOM`.
        seed (int or Generator): See :class:`SLALOM`.
        tokenizer (optional): See :class:`SLALOM`.

    Raises:
        ValueError: If an option is unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> def forward(ids):
        ...     return model(ids).logits
        >>> slalom = LayerSLALOM(forward, model.bert.embeddings, tokenizer=tokenizer)
        >>> slalom.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        strategy: Strategy = "eff",
        score: Score | None = None,
        n_samples: int | None = None,
        sink: bool | None = None,
        link: Link | Literal["auto"] = "auto",
        seed: int | torch.Generator = 0,
        tokenizer: object | None = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        SLALOM.__init__(
            self,
            forward_func,
            multiply_by_inputs,
            strategy=strategy,
            score=score,
            n_samples=n_samples,
            sink=sink,
            link=link,
            seed=seed,
            tokenizer=tokenizer,
        )

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTensors | Sequence[str],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        keep: Tensor | None = None,
        show_progress: bool = False,
    ) -> Any:
        r"""Attribute the log-odds of the target to the tokens at a layer.

        Takes the arguments of ``LayerIntegratedGradients.attribute`` in their order;
        those that :meth:`SLALOM.attribute` has mean the same.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Anything the forward function takes.
                Positions that hold the same token id are of one type.
            baselines (scalar, Tensor, tuple, optional): Inputs for which the layer
                gives what stands for an absent token; 0 by default.
            target (int, tuple, Tensor or list, optional): Class to attribute.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass.
            return_convergence_delta (bool): Also return F(text) - f(text).
            attribute_to_layer_input (bool): Take the layer's input instead of its
                output.
            grad_kwargs (dict, optional): Ignored: there are no gradients.
            keep (Tensor, optional): Shape ``(B, T)``, bool, ``True`` at tokens that
                stay in every query.
            show_progress (bool): Show Captum's progress bar.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor*, *tuple* or *list*): Shaped like the layer's
              output ``(B, T, D)``; a tuple if the layer emits several tensors, a list
              if ``layer`` is a list.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            ValueError: If inputs, target or layer do not fit the model.
        """
        check_flags(
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
            show_progress=show_progress,
        )
        arguments = _read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        texts, templates = self._activations(
            arguments, keep, internal_batch_size, attribute_to_layer_input
        )
        explanation = self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=False
        )
        attributions = shape_like_layer(explanation.scores, templates)
        formatted = _format_output(len(attributions) > 1, attributions)
        result = [formatted] if isinstance(self.layer, list) else formatted
        if return_convergence_delta:
            return result, explanation.delta.to(attributions[0])
        return result

    def explain(
        self,
        inputs: TensorOrTensors | Sequence[str],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        keep: Tensor | None = None,
        show_progress: bool = False,
    ) -> SlalomExplanation:
        """Return values, importances, their standard errors and how well they predict.

        Takes the arguments of :meth:`attribute`; see :meth:`SLALOM.explain`.
        """
        check_flags(
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
            show_progress=show_progress,
        )
        arguments = _read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        texts, _ = self._activations(
            arguments, keep, internal_batch_size, attribute_to_layer_input
        )
        return self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=True
        )

    def _activations(
        self,
        arguments: ForwardArguments,
        keep: Tensor | None,
        internal_batch_size: int | None,
        of_input: bool,
    ) -> tuple[PerturbableTexts, list[TensorLike]]:
        """Read the layer's activations, and describe its tensors."""
        return activations_of(
            self.forward_func,
            self.tokenizer,
            single_layer(self.layer),
            of_input,
            arguments,
            keep,
            internal_batch_size,
        )


def _read(
    inputs: TensorOrTensors | Sequence[str],
    baselines: BaselineType,
    target: TargetType,
    *others: Any,
) -> ForwardArguments:
    if are_texts(inputs):
        raise ValueError(
            "inputs are texts, but a layer is attributed to where tensors are given; "
            "use SLALOM for a forward function that takes texts"
        )
    check_tokens(inputs, target)
    return ForwardArguments.read(inputs, baselines, target, *others)
