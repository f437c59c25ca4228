r"""AttnLRP: input times a gradient by propagation rules, behind any forward function.

Achtibat et al., *AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers* (ICML 2024), and its variant that holds attention constant, CP-LRP (Ali et
al., *XAI for Transformers*, ICML 2022). Both are a forward pass and a backward pass in
which some operations are differentiated as if they were others; which, and how, stands
in :mod:`captum_attnflow.capture.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_attnflow._captum import BaselineType, TargetType
from captum_attnflow._checks import check_choice, counted, names_its_class
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    TensorOrTensors,
    check_layers,
    run_in_parts,
    sum_over_features,
)
from captum_attnflow.attr.base import (
    InPlaceOfIntegratedGradients,
    InPlaceOfLayerIntegratedGradients,
)
from captum_attnflow.capture import TokenSequence
from captum_attnflow.capture.propagation import (
    PropagatedRelevance,
    TensorGradient,
    propagate,
)
from captum_attnflow.explanation import TokenScores

PropagationRule = Literal["attnlrp", "cp-lrp"]


class AttnLRP(InPlaceOfIntegratedGradients):
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
        super().__init__(forward_func, multiply_by_inputs)
        check_choice("rules", rules, get_args(PropagationRule))
        self.rules = rules

    @names_its_class
    def score_targets(
        self,
        inputs: TensorOrTensors,
        targets: Sequence[TargetType],
        baselines: BaselineType = None,
        additional_forward_args: object = None,
    ) -> Iterator[TokenScores]:
        """Score tokens for several outputs of one forward pass.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Token ids ``(B, T)``, or embeddings
                ``(B, T, D)``, over whose features scores are summed; of an encoder and
                a decoder both, whose scores follow each other.
            targets (sequence): Outputs, each as ``target`` in :meth:`attribute`.
            baselines (scalar, Tensor, tuple, optional): Validated, then ignored.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Yields:
            TokenScores: One per target.

        Raises:
            ValueError: If inputs or targets do not fit the model.
        """
        arguments = ForwardArguments.read(
            inputs, baselines, None, additional_forward_args
        )
        sequences = tuple(
            TokenSequence(given.shape[1], (index,))
            for index, given in enumerate(arguments.inputs)
        )
        for relevance in propagate(
            self.forward_func,
            arguments.inputs,
            targets,
            arguments.additional,
            self.rules,
            baselines=arguments.given_baselines,
        ):
            of_inputs = [
                self._of_input(tensors, like).double()
                for tensors, like in zip(
                    relevance.tensors, arguments.inputs, strict=True
                )
            ]
            of_inputs = [of if of.dim() == 2 else of.sum(-1) for of in of_inputs]
            yield TokenScores(
                torch.cat(of_inputs, 1), relevance.output, sequences, elements={}
            )

    def _attribute(
        self, arguments: ForwardArguments, internal_batch_size: int | None
    ) -> tuple[tuple[Tensor, ...], Callable[[], Tensor]]:
        parts = self._propagate(arguments, internal_batch_size)
        attributions = tuple(
            torch.cat([self._of_input(part.tensors[index], like) for part in parts]).to(
                _result_dtype(like.dtype)
            )
            for index, like in enumerate(arguments.inputs)
        )
        return attributions, lambda: _delta(attributions, parts)

    def _sum(self, arguments: ForwardArguments) -> Tensor:
        return _output(self._propagate(arguments, None))

    def _propagate(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        layers: Sequence[nn.Module] | None = None,
        of_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> list[PropagatedRelevance]:
        return run_in_parts(
            lambda part, rows: propagate(
                self.forward_func,
                part.inputs,
                [part.target],
                part.additional,
                self.rules,
                layers,
                of_layer_input,
                grad_kwargs,
                part.given_baselines,
            ),
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


class LayerAttnLRP(InPlaceOfLayerIntegratedGradients, AttnLRP, LayerAttribution):
    """AttnLRP or CP-LRP, in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): Where relevance is propagated to, usually the
            embeddings module. Each must run once in the forward function.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): See :class:`AttnLRP`; here the layer's output.
        rules (str): See :class:`AttnLRP`.

    Raises:
        ValueError: If the rules are unknown, or a layer is no module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
        >>> lrp = LayerAttnLRP(lambda ids: model(ids).logits, model.bert.embeddings)
        >>> lrp.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """

    def _attribute_to_layer(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        of_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
        with_delta: bool,
    ) -> tuple[list[tuple[Tensor, ...]], Callable[[], Tensor]]:
        layers = check_layers(self.layer)
        parts = self._propagate(
            arguments, internal_batch_size, layers, of_layer_input, grad_kwargs
        )
        for part in parts if len(parts) > 1 or with_delta else ():
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
        every = [one for of in attributions for one in of]
        return attributions, lambda: _delta(every, parts)


def _refuse_other_rows(part: PropagatedRelevance) -> None:
    """Refuse tensors of a layer that do not begin with the rows of the batch."""
    n_rows = len(part.output)
    for tensor in (tensor for of_layer in part.tensors for tensor in of_layer):
        shape = tuple(tensor.value.shape)
        if not shape or shape[0] != n_rows:
            raise ValueError(
                f"the layer has a tensor of shape {shape} for "
                f"{counted(n_rows, 'example')}; parts of a batch and the delta need "
                "the batch in dimension 0. Attribute to a layer that has it there, or "
                "in one part and without the delta"
            )


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _output(parts: Sequence[PropagatedRelevance]) -> Tensor:
    return torch.cat([part.output for part in parts])


def _delta(
    attributions: Sequence[Tensor], parts: Sequence[PropagatedRelevance]
) -> Tensor:
    return sum_over_features(attributions) - _output(parts).to(attributions[0])
