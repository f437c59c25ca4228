"""The visible path of ``attribute()``: Captum's call in, Captum's shapes out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from captum._utils.common import _format_output, _is_tuple
from captum._utils.typing import BaselineType, TargetType
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_attnflow._options import check_callable, check_flags
from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.attr._parts import run_in_parts
from captum_attnflow.attr._shape import shape_like_inputs
from captum_attnflow.capture import (
    AttentionRecord,
    Rules,
    capture_targets,
)
from captum_attnflow.capture.watched_layer import LayerCalls, TensorLike
from captum_attnflow.explanation import Explanation, warn_of_position, warn_of_zeros

TensorOrTensors = Tensor | tuple[Tensor, ...]

_MAX_CAPACITIES_AT_ONCE = 1 << 22


class AttentionAttribution(GradientAttribution):
    """Base of the methods that read attention; stands in for IntegratedGradients.

    Deriving classes implement :meth:`_score`. Nothing is derived from
    ``forward_func`` before a call, so Captum may copy the object and reassign it.

    Args:
        forward_func (Callable or Module): The forward function, as Captum takes it:
            a module or any function that runs one.
        multiply_by_inputs (bool): Kept for the signature of IntegratedGradients;
            attention has no such factor and the scores do not depend on it.
    """

    def __init__(
        self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True
    ) -> None:
        check_callable("forward_func", forward_func)
        super().__init__(forward_func)
        self._multiply_by_inputs = multiply_by_inputs

    @property
    def _rules(self) -> Rules:
        """How gradients propagate."""
        return "gradient"

    def _rows_per_example(self, arguments: ForwardArguments) -> int:
        """Rows of a forward pass."""
        return 1

    @abstractmethod
    def _score(self, record: AttentionRecord) -> Explanation:
        """Turn captured attention into token scores."""

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
        r"""Attribute the selected output to the tokens of the input.

        Takes the arguments of ``IntegratedGradients.attribute`` in their order and
        makes one forward and one backward pass; for pixels, it also runs an example up
        to its first attention, to see which token a pixel makes, and further examples
        while pixels are left that make none.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): One tensor that holds the tokens:
                ids ``(B, T)``, embeddings ``(B, T, D)``, or what the model makes
                tokens of, each element one token, such as pixels ``(B, C, H, W)`` of
                patches that do not overlap. For an encoder and a decoder one for each,
                or the encoder's alone.
            baselines (scalar, Tensor, tuple, optional): Where the path of Relevance
                Flow begins, as for ``IntegratedGradients``. The other methods ignore
                them: attention has no reference point.
            target (int, tuple, Tensor or list, optional): Output to attribute, as
                Captum selects it.
            additional_forward_args (Any, optional): Passed on behind ``inputs``;
                attention masks and the like belong here.
            n_steps (int): Validated, then ignored: there is no path to integrate.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; more
                make several passes. If ``None``, all rows at once, or half as many as
                often as memory is short, with a warning.
            return_convergence_delta (bool): Also return the efficiency residual, the
                sum of an example's token scores minus its flow value.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Shaped like
              ``inputs``, a tuple if ``inputs`` is one; float64 for float64 inputs,
              float32 otherwise. Every feature of a token holds an equal share, so that
              ``.sum(-1)`` over embeddings is the token's score; pixels of no patch get
              0, and tokens of no pixels, such as [CLS], are left out.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs or target do not fit the model.
        """
        check_flags(return_convergence_delta=return_convergence_delta)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        explanation = self._explain(arguments, internal_batch_size)
        warn_of_zeros(explanation)
        warn_of_position(explanation)
        templates = [TensorLike.of(tensor) for tensor in arguments.inputs]
        attributions = shape_like_inputs(
            explanation.scores,
            templates,
            explanation.sequences,
            explanation.elements,
        )
        formatted = _format_output(_is_tuple(inputs), attributions)
        if return_convergence_delta:
            return formatted, explanation.delta.to(attributions[0])
        return formatted

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
    ) -> Explanation:
        """Return token scores with the network, the flow and the cut behind them.

        Takes the arguments of :meth:`attribute`; the delta is there in any case, as
        :attr:`Explanation.delta`.
        """
        check_flags(return_convergence_delta=return_convergence_delta)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        explanation = self._explain(arguments, internal_batch_size)
        warn_of_zeros(explanation)
        warn_of_position(explanation)
        return explanation

    def explain_targets(
        self,
        inputs: TensorOrTensors,
        targets: Sequence[TargetType],
        baselines: BaselineType = None,
        additional_forward_args: object = None,
    ) -> Iterator[Explanation]:
        """Explain several outputs from one forward pass, a backward pass for each.

        The flows of several targets are solved together. The pass is over all rows,
        also where memory is short: give fewer.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`attribute`.
            targets (sequence): Outputs, each as ``target`` in :meth:`attribute`.
            baselines (scalar, Tensor, tuple, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Yields:
            Explanation: One per target.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs or targets do not fit the model.

        Examples::

            >>> from captum_attnflow import GeneralizedAttentionFlow
            >>> from captum_attnflow.demo import load_demo_model
            >>> model, tokenizer = load_demo_model()
            >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
            >>> gaf = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
            >>> against, favour = gaf.explain_targets(ids, targets=[0, 1])
            >>> against.scores.shape == favour.scores.shape == ids.shape
            True
        """
        arguments = ForwardArguments.read(
            inputs, baselines, None, additional_forward_args, 1, "riemann_trapezoid"
        )
        records = self._capture(arguments, targets)
        for first in records:
            capacities = len(first.layers) * first.n_tokens**2 * arguments.n_rows
            n_more = max(0, _MAX_CAPACITIES_AT_ONCE // capacities - 1)
            group = [first, *islice(records, n_more)]
            explanation = self._explain_record(AttentionRecord.concatenate(group))
            for start in range(0, len(explanation.scores), arguments.n_rows):
                one = explanation.select(slice(start, start + arguments.n_rows))
                warn_of_zeros(one)
                warn_of_position(one)
                yield one

    def has_convergence_delta(self) -> bool:
        """Return True: the efficiency residual."""
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
        """Sum of given attributions minus the flow value at ``end_point``.

        Args:
            attributions (Tensor or tuple[Tensor, ...]): Attributions of ``end_point``.
            start_point (scalar, Tensor or tuple, optional): The baselines.
            end_point (Tensor or tuple[Tensor, ...]): The inputs.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Returns:
            Tensor: Shape ``(B,)``.
        """
        explanation = self.explain(
            end_point, start_point, target, additional_forward_args
        )
        single = isinstance(attributions, Tensor)
        parts = (attributions,) if single else tuple(attributions)
        total = torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)
        return total - explanation.flow_value.to(total)

    def _explain(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
    ) -> Explanation:
        calls = LayerCalls() if layer_calls is None else layer_calls
        records = run_in_parts(
            lambda part, rows: self._capture(
                part, [part.target], rows, grad_kwargs, layer_calls
            ),
            arguments,
            internal_batch_size,
            self._rows_per_example(arguments),
            before_retry=calls.forget,
        )
        return self._explain_record(AttentionRecord.concatenate(records))

    def _explain_record(self, record: AttentionRecord) -> Explanation:
        return replace(
            self._score(record),
            output=record.output,
            sequences=record.sequences,
            elements=record.elements,
        )

    def _capture(
        self,
        arguments: ForwardArguments,
        targets: Sequence[TargetType],
        internal_batch_size: int | None = None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
    ) -> Iterator[AttentionRecord]:
        """Capture the attention of a pass with the gradients of each target."""
        return capture_targets(
            self.forward_func,
            arguments.inputs,
            targets,
            arguments.additional,
            grad_kwargs,
            layer_calls=layer_calls,
            rules=self._rules,
        )
