"""Captum's call in, Captum's shapes out: what the attribution methods share.

:class:`InPlaceOfIntegratedGradients` and :class:`InPlaceOfLayerIntegratedGradients`
hold the arguments of the classes that they stand in for. The methods that read
attention derive from :class:`AttentionAttribution`; its way is ``_capture()``,
``_score()`` and the shapes of :mod:`captum_attnflow.attr.arguments`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import torch
from captum.attr import GradientAttribution, LayerAttribution, LLMGradientAttribution
from torch import Tensor

from captum_attnflow._captum import (
    BaselineType,
    ModuleOrModuleList,
    TargetType,
    format_output,
    log_usage,
)
from captum_attnflow._checks import (
    check_callable,
    check_flags,
    check_grad_kwargs,
    constructor_at_layer,
    names_its_class,
)
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    TensorOrTensors,
    check_attributions,
    check_layers,
    layer_templates,
    only_fitting,
    run_in_parts,
    shape_like_inputs,
    shape_like_layer,
    single_layer,
    split_sequences,
    sum_over_features,
)
from captum_attnflow.capture import AttentionRecord, Rules, capture_targets
from captum_attnflow.capture.entries import (
    LayerCall,
    LayerCalls,
    TensorLike,
    record_layer_tensors,
)
from captum_attnflow.explanation import (
    Explanation,
    TokenScores,
    warn_of_position,
    warn_of_zeros,
)

_MAX_CAPACITIES_AT_ONCE = 1 << 22

Scored = TypeVar("Scored", bound=Explanation | TokenScores)


class InPlaceOfIntegratedGradients(GradientAttribution):
    """What takes the arguments of ``IntegratedGradients``, in their order.

    Nothing is derived from ``forward_func`` before a call, so Captum may copy the
    object and reassign it.

    Args:
        forward_func (Callable or Module): The forward function, as Captum takes it:
            a module or any function that runs one.
        multiply_by_inputs (bool): As the deriving class says.

    Raises:
        ValueError: If ``forward_func`` cannot be called.
    """

    def __init__(
        self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True
    ) -> None:
        check_callable("forward_func", forward_func)
        super().__init__(forward_func)
        self._multiply_by_inputs = multiply_by_inputs

    @abstractmethod
    def _attribute(
        self, arguments: ForwardArguments, internal_batch_size: int | None
    ) -> tuple[tuple[Tensor, ...], Callable[[], Tensor]]:
        """Return one attribution per input, and what computes their delta."""

    @abstractmethod
    def _sum(self, arguments: ForwardArguments) -> Tensor:
        """Return what attributions are to sum to, shape ``(B,)``."""

    @log_usage()
    @names_its_class
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

        Takes the arguments of ``IntegratedGradients.attribute`` in their order and
        makes one forward and one backward pass. The class says what scores are.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Token ids ``(B, T)``, embeddings
                ``(B, T, D)``, or what the model makes tokens of, each element one
                token, such as pixels ``(B, C, H, W)`` of patches that do not overlap;
                for :class:`~captum_attnflow.AttnLRP` floats of any shape. Several
                where each makes tokens of its own, such as an encoder's and a
                decoder's; of these two the encoder's alone, too.
            baselines (scalar, Tensor, tuple, optional): Where the path of
                :class:`~captum_attnflow.RelevanceFlow` begins, as for
                ``IntegratedGradients``. Other methods validate and ignore them:
                attention has no reference point.
            target (int, tuple, Tensor or list, optional): Output to attribute, as
                Captum selects it.
            additional_forward_args (Any, optional): Passed on behind ``inputs``;
                attention masks and the like belong here.
            n_steps (int): Validated, then ignored: there is no path to integrate.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; more
                make several passes. If ``None``, all rows at once, or half as many as
                often as memory is short, with a warning.
            return_convergence_delta (bool): Also return the sum of an example's scores
                minus its flow value, or minus the output for
                :class:`~captum_attnflow.AttnLRP`.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Shaped like
              ``inputs``, a tuple if ``inputs`` is one; float64 for float64 inputs,
              float32 otherwise. Of methods that read attention every feature of a token
              holds an equal share, so that ``.sum(-1)`` over embeddings is the token's
              score; pixels of no patch get 0, and tokens of no pixels, such as [CLS],
              are left out.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs or target do not fit the model.
        """
        check_flags(return_convergence_delta=return_convergence_delta)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        attributions, delta = self._attribute(arguments, internal_batch_size)
        formatted = format_output(isinstance(inputs, tuple), attributions)
        return (formatted, delta()) if return_convergence_delta else formatted

    def has_convergence_delta(self) -> bool:
        """Return True: how far scores are from the sum that they are to have."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """The flag given to the constructor."""
        return self._multiply_by_inputs

    @log_usage()
    @names_its_class
    def compute_convergence_delta(
        self,
        attributions: TensorOrTensors,
        start_point: BaselineType,
        end_point: TensorOrTensors,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Sum of given attributions minus what they are to sum to at ``end_point``.

        Args:
            attributions (Tensor or tuple[Tensor, ...]): Attributions of ``end_point``.
            start_point (scalar, Tensor or tuple, optional): The baselines.
            end_point (Tensor or tuple[Tensor, ...]): The inputs.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Returns:
            Tensor: Shape ``(B,)``.
        """
        arguments = ForwardArguments.read(
            end_point, start_point, target, additional_forward_args
        )
        given = check_attributions(attributions, arguments.n_rows)
        return sum_over_features(given) - self._sum(arguments).to(given[0])


class InPlaceOfLayerIntegratedGradients:
    """What takes the arguments of ``LayerIntegratedGradients``, in their order.

    Stands before the method's own class and ``LayerAttribution`` among the bases of a
    Layer form; its constructor passes the method's options on.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output (or input) the
            attributions are shaped like, usually the embeddings module.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): As for the method itself.
        options (Any): Those of the method itself, by name.
    """

    layer: ModuleOrModuleList

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        **options: Any,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        check_layers(layer)
        # The method itself is next.
        super().__init__(forward_func, multiply_by_inputs, **options)  # type: ignore[call-arg]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the method's options in the constructor's signature."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            method: Any = super()
            own = InPlaceOfLayerIntegratedGradients.__init__
            made = constructor_at_layer(cls, own, method.__init__)
            cls.__init__ = made  # type: ignore[method-assign]

    @abstractmethod
    def _attribute_to_layer(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        of_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
        with_delta: bool,
    ) -> tuple[list[tuple[Tensor, ...]], Callable[[], Tensor]]:
        """Return the attributions of each layer, and what computes their delta."""

    @log_usage()
    @names_its_class
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

        Takes the arguments of ``LayerIntegratedGradients.attribute`` in their order.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Anything the forward function takes.
            baselines (scalar, Tensor, tuple, optional): See
                :meth:`InPlaceOfIntegratedGradients.attribute`, as for what follows.
            target (int, tuple, Tensor or list, optional): Output to attribute.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; if
                ``None``, all, or as many as memory holds.
            return_convergence_delta (bool): Also return the delta; over all layers, if
                there are several.
            attribute_to_layer_input (bool): Shape the attributions like what the layer
                takes by position, instead of what it emits.
            grad_kwargs (dict, optional): Further arguments of ``torch.autograd.grad``.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor*, *tuple* or *list*): Shaped like the layer's
              output, such as ``(B, T, D)``; a tuple if the layer emits several tensors,
              a list if ``layer`` is a list.
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
        attributions, delta = self._attribute_to_layer(
            arguments,
            internal_batch_size,
            attribute_to_layer_input,
            grad_kwargs,
            return_convergence_delta,
        )
        formatted = [format_output(len(of) > 1, of) for of in attributions]
        result = formatted if isinstance(self.layer, list) else formatted[0]
        return (result, delta()) if return_convergence_delta else result


# Captum admits methods to its wrapper for language models by this list.
LLMGradientAttribution.SUPPORTED_METHODS += (InPlaceOfLayerIntegratedGradients,)


class AttentionAttribution(InPlaceOfIntegratedGradients):
    """Base of the methods that read attention; stands in for IntegratedGradients.

    Deriving classes implement :meth:`_score`. For pixels, an example also runs up to
    its first attention, to see which token a pixel makes, and further examples while
    pixels are left that make none.

    Args:
        forward_func (Callable or Module): The forward function, as Captum takes it.
        multiply_by_inputs (bool): Kept for the signature of IntegratedGradients;
            attention has no such factor and the scores do not depend on it.

    Attributes:
        reads_attention_alone (bool): Whether scores are the same for all outputs that
            are read at one place.
    """

    reads_attention_alone = False

    @property
    def _rules(self) -> Rules:
        """How gradients propagate."""
        return "gradient"

    def _rows_per_example(self, arguments: ForwardArguments) -> int:
        """Rows of a forward pass."""
        return 1

    @property
    def _needs_maps(self) -> bool:
        """Whether token scores alone need attention maps, and not only their sums."""
        return True

    @abstractmethod
    def _score(self, record: AttentionRecord) -> Explanation:
        """Turn captured attention into token scores."""

    def _score_tokens(self, record: AttentionRecord) -> Explanation | TokenScores:
        """Turn captured attention into token scores alone."""
        return self._explain_record(record)

    @names_its_class
    def explain(
        self,
        inputs: TensorOrTensors,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        internal_batch_size: int | None = None,
    ) -> Explanation:
        """Return token scores with the network, the flow and the cut behind them.

        Takes the arguments of :meth:`attribute`.

        Returns:
            Explanation: The same of the Layer form, since token scores do not depend on
            the layer, but for Relevance Flow, whose path leads through it.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs or target do not fit the model.
        """
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args
        )
        record = self._record(arguments, internal_batch_size)
        return _with_warnings(self._explain_record(record))

    @names_its_class
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
            inputs, baselines, None, additional_forward_args
        )
        records = self._capture(arguments, targets)
        attention = None  # is the same for all targets
        for first in records:
            if attention is None:
                attention = first.attention_received()
            capacities = len(first.layers) * first.n_tokens**2 * arguments.n_rows
            n_more = max(0, _MAX_CAPACITIES_AT_ONCE // capacities - 1)
            group = [first, *islice(records, n_more)]
            explanation = self._explain_record(AttentionRecord.concatenate(group))
            for start in range(0, len(explanation.scores), arguments.n_rows):
                rows = slice(start, start + arguments.n_rows)
                yield _with_warnings(
                    replace(explanation.select(rows), attention_received=attention)
                )

    @names_its_class
    def score_targets(
        self,
        inputs: TensorOrTensors,
        targets: Sequence[TargetType],
        baselines: BaselineType = None,
        additional_forward_args: object = None,
    ) -> Iterator[Explanation | TokenScores]:
        """Score tokens for several outputs, as :meth:`explain_targets` does.

        Methods that need no network for their scores form none: memory then grows
        with the tokens, not with their square. Takes the arguments of
        :meth:`explain_targets`.

        Yields:
            Explanation or TokenScores: One per target.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If inputs or targets do not fit the model.
        """
        if self._needs_maps:
            yield from self.explain_targets(
                inputs, targets, baselines, additional_forward_args
            )
            return
        arguments = ForwardArguments.read(
            inputs, baselines, None, additional_forward_args
        )
        attention = None
        for record in self._capture(arguments, targets, needs_maps=False):
            if attention is None:
                attention = record.attention_received()
            scored = self._score_tokens(record)
            yield _with_warnings(replace(scored, attention_received=attention))

    def _attribute(
        self, arguments: ForwardArguments, internal_batch_size: int | None
    ) -> tuple[tuple[Tensor, ...], Callable[[], Tensor]]:
        scored = self._scores(arguments, internal_batch_size)
        attributions = shape_like_inputs(
            scored.scores,
            [TensorLike.of(tensor) for tensor in arguments.inputs],
            scored.sequences,
            scored.elements,
        )
        return attributions, lambda: scored.delta.to(attributions[0])

    def _sum(self, arguments: ForwardArguments) -> Tensor:
        return self._scores(arguments, None).flow_value

    def _scores(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
    ) -> Explanation | TokenScores:
        record = self._record(
            arguments, internal_batch_size, grad_kwargs, layer_calls, self._needs_maps
        )
        return _with_warnings(self._score_tokens(record))

    def _record(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
        needs_maps: bool = True,
    ) -> AttentionRecord:
        """Capture the attention of a batch, in parts if need be."""
        calls = LayerCalls() if layer_calls is None else layer_calls
        records = run_in_parts(
            lambda part, rows: self._capture(
                part, [part.target], rows, grad_kwargs, layer_calls, needs_maps
            ),
            arguments,
            internal_batch_size,
            self._rows_per_example(arguments),
            before_retry=calls.forget,
        )
        return AttentionRecord.concatenate(records)

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
        needs_maps: bool = True,
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
            needs_maps=needs_maps,
            baselines=arguments.given_baselines,
        )


class LayerAttentionAttribution(
    InPlaceOfLayerIntegratedGradients, AttentionAttribution, LayerAttribution
):
    """Base of the Layer forms of what reads attention.

    Token scores are those of the method itself; they are shaped like the layer's
    output or input, every feature of a token an equal share.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): One layer, alone or in a list.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): See :class:`AttentionAttribution`.
    """

    def _attribute_to_layer(
        self,
        arguments: ForwardArguments,
        internal_batch_size: int | None,
        of_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
        with_delta: bool,
    ) -> tuple[list[tuple[Tensor, ...]], Callable[[], Tensor]]:
        layer = single_layer(self.layer)
        with record_layer_tensors(layer, of_layer_input) as calls:
            scored = self._scores(arguments, internal_batch_size, grad_kwargs, calls)
        attributions: list[Tensor] = []
        for scores, group in _by_sequence(scored, calls.calls):
            templates = layer_templates(
                layer, group, arguments.n_rows, self._rows_per_example(arguments)
            )
            made = [call.tokens for call in group if call.tokens is not None]
            tokens = torch.cat(made)[-len(scores) :] if made else None
            attributions.extend(shape_like_layer(scores, templates, tokens, len(group)))
        return [tuple(attributions)], lambda: scored.delta.to(attributions[0])


def _with_warnings(scored: Scored) -> Scored:
    warn_of_zeros(scored)
    if isinstance(scored, Explanation):
        warn_of_position(scored)
    return scored


def _by_sequence(
    explanation: Explanation | TokenScores, calls: list[LayerCall]
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
