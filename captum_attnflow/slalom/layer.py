"""SLALOM at a layer: an absent token has the layer's activation for the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_attnflow._captum import (
    BaselineType,
    ModuleOrModuleList,
    TargetType,
    format_output,
    log_usage,
)
from captum_attnflow._checks import (
    check_flags,
    counted,
    signature_at_layer,
    type_of,
)
from captum_attnflow._memory import is_out_of_memory
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    TensorOrTensors,
    check_layers,
    layer_templates,
    shape_like_layer,
    single_layer,
)
from captum_attnflow.capture.entries import (
    TensorLike,
    in_this_thread,
    record_layer_tensors,
)
from captum_attnflow.slalom import SlalomExplanation
from captum_attnflow.slalom.attribution import SLALOM
from captum_attnflow.slalom.inputs import (
    are_texts,
    check_tokens,
    equal_positions,
    kept_and_padding,
    without_effect,
)
from captum_attnflow.targets import ids_needed, run_forward
from captum_attnflow.texts import PerturbableTexts, Query, targets_of_texts
from captum_attnflow.texts.absence import ReplaceableTexts
from captum_attnflow.texts.evaluation import baselines_refused
from captum_attnflow.texts.token_axis import rows_of


class LayerSLALOM(SLALOM, LayerAttribution):
    """SLALOM, in place of ``LayerIntegratedGradients``.

    A query keeps all positions. Where a token is absent, the layer's activation is
    replaced by the one for ``baselines``, as in Captum's own perturbation methods. A
    token whose activations are equal for both gets 0. So do tokens at the end on which
    no output depends; six more queries find them. For inputs that are real shorter
    texts take :class:`SLALOM`.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        options (Any): Those of :class:`SLALOM` by name, but for ``absence``. Short
            queries of ``strategy`` are sets of one to three positions.

    Raises:
        ValueError: If an option is unknown, or a layer is no module.

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
        **options: Any,
    ) -> None:
        if "absence" in options:
            raise TypeError(
                "LayerSLALOM takes no absence: an absent token has the layer's "
                "activation for the baselines; leave it out, or take SLALOM"
            )
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        check_layers(layer)
        SLALOM.__init__(self, forward_func, multiply_by_inputs, **options)

    __init__.__signature__ = signature_at_layer(  # type: ignore[attr-defined]
        __init__, SLALOM.__init__, without=("absence",)
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
            inputs (Tensor or tuple[Tensor, ...]): What the forward function takes.
                Positions that hold the same token id are of one type.
            baselines (scalar, Tensor, tuple, optional): Inputs whose activations
                replace those of absent tokens; 0 by default.
            target (int, tuple, Tensor or list, optional): Class to attribute.
            additional_forward_args (Any, optional): Passed on behind ``inputs``.
            n_steps (int): Validated, then ignored.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass.
            return_convergence_delta (bool): Also return F(text) - f(text).
            attribute_to_layer_input (bool): Take the layer's input instead of its
                output.
            grad_kwargs (dict, optional): Ignored: no gradient is computed.
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
        texts, templates = self._texts_of(
            arguments, keep, internal_batch_size, attribute_to_layer_input
        )
        explanation = self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=False
        )
        attributions = shape_like_layer(explanation.scores, templates)
        formatted = format_output(len(attributions) > 1, attributions)
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
        *,
        internal_batch_size: int | None = None,
        attribute_to_layer_input: bool = False,
        keep: Tensor | None = None,
        show_progress: bool = False,
    ) -> SlalomExplanation:
        """Return values, importances, their standard errors and how well they predict.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`attribute`.
            baselines (scalar, Tensor, tuple, optional): As in :meth:`attribute`.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.
            internal_batch_size (int, optional): As in :meth:`attribute`.
            attribute_to_layer_input (bool): As in :meth:`attribute`.
            keep (Tensor, optional): As in :meth:`attribute`.
            show_progress (bool): As in :meth:`attribute`.

        Returns:
            SlalomExplanation: See :meth:`SLALOM.explain`.

        Raises:
            ValueError: If inputs, target or layer do not fit the model.
        """
        check_flags(
            attribute_to_layer_input=attribute_to_layer_input,
            show_progress=show_progress,
        )
        arguments = _read(inputs, baselines, target, additional_forward_args)
        texts, _ = self._texts_of(
            arguments, keep, internal_batch_size, attribute_to_layer_input
        )
        return self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=True
        )

    def _texts_of(
        self,
        arguments: ForwardArguments,
        keep: Tensor | None,
        internal_batch_size: int | None,
        of_input: bool,
    ) -> tuple[PerturbableTexts, list[TensorLike]]:
        """Read the activations at each position, and describe the layer's tensors.

        Raises:
            ValueError: If the layer did not run, or has no token axis.
        """
        layer, forward_func = single_layer(self.layer), self.forward_func
        present, templates = _run_layer(
            forward_func, layer, of_input, arguments, internal_batch_size
        )
        at_baselines = replace(arguments, inputs=arguments.baselines)
        try:
            baseline, _ = _run_layer(
                forward_func, layer, of_input, at_baselines, internal_batch_size
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise baselines_refused(error) from error
        ids = _ids_of(arguments.inputs, baseline.shape[1])
        positions = torch.arange(baseline.shape[1]).expand(baseline.shape[:2])
        unchanged = equal_positions(present, baseline)
        kept, padding = kept_and_padding(
            forward_func, self.tokenizer, arguments, ids, keep, unchanged
        )

        def activations(kept: Tensor) -> ReplaceableActivations:
            return ReplaceableActivations(
                layer,
                of_input,
                baseline,
                arguments.inputs,
                arguments.additional,
                positions if ids is None else ids.cpu(),
                kept,
                padding,
            )

        targets = targets_of_texts(arguments.target, arguments.n_rows)
        behind = without_effect(
            forward_func, activations(kept), targets, None, internal_batch_size
        )
        return activations(kept | behind), templates


class ReplaceableActivations(ReplaceableTexts):
    """A layer's output or input ``(B, T, ...)``, with one activation per position.

    Where a token is absent, the activation is that for the baseline inputs.

    Args:
        layer (Module): The layer.
        of_input (bool): Replace the layer's input instead of its output.
        baseline (Tensor): Shape ``(B, T, ...)`` or ``(1, T, ...)``, activations for the
            baseline inputs.
        inputs (tuple[Tensor, ...]): The forward function's inputs.
        additional (tuple, optional): The forward function's further arguments.
        tokens (Tensor): Shape ``(B, T)``, equal where tokens are of one type.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.

    Raises:
        ValueError: If a text has no token to explain.
    """

    def __init__(
        self,
        layer: nn.Module,
        of_input: bool,
        baseline: Tensor,
        inputs: tuple[Tensor, ...],
        additional: tuple[Any, ...] | None,
        tokens: Tensor,
        keep: Tensor,
        padding: Tensor,
    ) -> None:
        super().__init__(tokens, keep, padding)
        self._layer, self._of_input = layer, of_input
        self._baseline = baseline.expand(len(tokens), *baseline.shape[1:])
        self._inputs, self._additional = inputs, additional

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function while the layer's activations are replaced."""
        rows = torch.tensor(texts)
        n_texts = len(self._inputs[0])
        inputs = tuple(rows_of(tensor, n_texts, rows) for tensor in self._inputs)
        additional = self._additional and tuple(
            rows_of(argument, n_texts, rows) for argument in self._additional
        )
        present = self.present(texts, queries)

        def substitute(activation: Tensor) -> Tensor:
            here = present.to(activation.device)
            here = here.view(*here.shape, *(1,) * (activation.dim() - 2))
            baseline = self._baseline[rows.to(self._baseline.device)]
            return torch.where(here, activation, baseline.to(activation))

        with _replaced_activation(self._layer, self._of_input, substitute):
            return run_forward(forward_func, inputs, None, additional)


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


@contextmanager
def _replaced_activation(
    layer: nn.Module, of_input: bool, substitute: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the first positional input tensor of a layer, or its first output.

    Calls of the layer in other threads are left alone.

    Raises:
        ValueError: When the layer runs, if its first positional input is not a tensor,
            or its output neither a tensor nor a tuple or list that starts with one.
    """

    def before(module: nn.Module, taken: tuple[Any, ...]) -> Any:
        if not taken or not isinstance(taken[0], Tensor):
            raise ValueError(
                f"the layer {type(module).__name__} takes no tensor first by position, "
                "so that its input cannot be replaced; attribute to its output, or to "
                "the output of the layer before it, by attribute_to_layer_input=False"
            )
        return (substitute(taken[0]), *taken[1:])

    def after(module: nn.Module, taken: tuple[Any, ...], put_out: Any) -> Any:
        if isinstance(put_out, Tensor):
            return substitute(put_out)
        # Other sequences, such as a ModelOutput, have names that must be kept, too.
        if (
            type(put_out) in (tuple, list)
            and put_out
            and isinstance(put_out[0], Tensor)
        ):
            return type(put_out)((substitute(put_out[0]), *put_out[1:]))
        raise ValueError(
            f"the layer {type(module).__name__} puts out {type_of(put_out)}, "
            "in which no tensor can be replaced; give a layer inside it that puts out "
            "a tensor, or a tuple that starts with one, such as its embeddings module"
        )

    if of_input:
        handle = layer.register_forward_pre_hook(in_this_thread(layer, before))
    else:
        handle = layer.register_forward_hook(in_this_thread(layer, after))
    try:
        yield
    finally:
        handle.remove()


def _run_layer(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    of_input: bool,
    arguments: ForwardArguments,
    internal_batch_size: int | None,
) -> tuple[Tensor, list[TensorLike]]:
    """Run the inputs; return the layer's first tensor, and describe all its tensors."""
    seen: list[Tensor] = []

    def record(activation: Tensor) -> Tensor:
        seen.append(activation.detach().clone())
        return activation

    with (
        torch.no_grad(),
        record_layer_tensors(layer, of_input) as calls,
        _replaced_activation(layer, of_input, record),
    ):
        for part in arguments.split(internal_batch_size):
            n_before = len(seen)
            try:
                run_forward(forward_func, part.inputs, None, part.additional)
            except Exception as error:
                explained = ids_needed(
                    error, forward_func, part.inputs, part.additional
                )
                if explained is None:
                    raise
                raise explained from error
            # A layer may run several times in one pass; the first run counts.
            del seen[n_before + 1 :]
    templates = layer_templates(layer, calls.calls, arguments.n_rows, 1)
    found = torch.cat(seen)
    least = 3 if found.is_floating_point() else 2
    if found.dim() < least or len(found) != arguments.n_rows:
        raise ValueError(
            f"the layer has a tensor of shape {tuple(found.shape)} for "
            f"{counted(arguments.n_rows, 'text')}; its first tensor must be (B, T, D), "
            "such as the output of the embeddings module, or token ids (B, T)"
        )
    return found, templates


def _ids_of(inputs: Sequence[Tensor], n_positions: int) -> Tensor | None:
    first = inputs[0]
    is_ids = not first.is_floating_point() and first.shape[1:] == (n_positions,)
    return first if is_ids else None
