"""Captum's arguments in, one score per token to Captum's shapes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from captum_attnflow._captum import (
    BaselineType,
    ModuleOrModuleList,
    TargetType,
    format_additional_forward_args,
    format_input_baseline,
    format_tensor_into_tuples,
    tensorize_baseline,
    validate_input,
)
from captum_attnflow._checks import (
    check_additional,
    check_batch_size,
    check_dense,
    check_integer,
    check_type,
    counted,
    described,
    type_of,
)
from captum_attnflow._memory import is_out_of_memory
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture import TokenSequence, UnsupportedAttentionError
from captum_attnflow.capture.entries import LayerCall, TensorLike
from captum_attnflow.targets import check_target, repeat_target, target_of_rows
from captum_attnflow.texts.token_axis import has_rows, rows_of

TensorOrTensors = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class ForwardArguments:
    """What one forward pass of the user's function takes.

    Attributes:
        inputs (tuple[Tensor, ...]): Inputs; dimension 0 is the batch.
        baselines (tuple[Tensor, ...]): One per input, of its shape.
        target (int, tuple, Tensor or list, optional): Output to attribute.
        additional (tuple, optional): Further arguments.
        has_baselines (bool): Whether baselines were given; otherwise they are 0.
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    target: TargetType
    additional: tuple[Any, ...] | None
    has_baselines: bool

    @staticmethod
    def read(
        inputs: Tensor | tuple[Tensor, ...],
        baselines: BaselineType,
        target: TargetType,
        additional_forward_args: object,
        n_steps: int = 1,
        method: str = "gausslegendre",
    ) -> ForwardArguments:
        """Validate as ``IntegratedGradients`` does and drop its steps and its method.

        Raises:
            AssertionError: As Captum raises it, for baselines, steps or method.
            ValueError: For inputs or a target that no forward pass can have.
        """
        check_inputs(inputs)
        baselines = _with_numbers_of_python(baselines)
        _check_baselines(baselines, inputs)
        check_integer("n_steps", n_steps)
        check_type("method", method, str, "a name, as IntegratedGradients takes it")
        tensors, formatted_baselines = format_input_baseline(inputs, baselines)
        validate_input(tensors, formatted_baselines, n_steps, method)
        check_target(target, len(tensors[0]))
        additional = format_additional_forward_args(additional_forward_args)
        check_additional(additional, len(tensors[0]))
        return ForwardArguments(
            inputs=format_tensor_into_tuples(tensors),
            baselines=tensorize_baseline(tensors, formatted_baselines),
            target=target,
            additional=additional,
            has_baselines=baselines is not None,
        )

    @property
    def given_baselines(self) -> tuple[Tensor, ...]:
        """The baselines, if there were given any."""
        return self.baselines if self.has_baselines else ()

    @property
    def n_rows(self) -> int:
        """Examples in the batch."""
        return len(self.inputs[0])

    def split(
        self, batch_size: int | None, rows_per_example: int = 1
    ) -> Iterator[ForwardArguments]:
        """Cut the batch into parts of at most ``batch_size`` rows, or one example.

        Arguments that do not have one row per example pass through whole.

        Raises:
            ValueError: If ``batch_size`` is not a positive integer.
        """
        check_batch_size(batch_size)
        if batch_size is None:
            yield self
            return
        examples = max(1, batch_size // rows_per_example)
        for start in range(0, self.n_rows, examples):
            rows = slice(start, min(start + examples, self.n_rows))
            yield replace(
                self,
                inputs=tuple(tensor[rows] for tensor in self.inputs),
                baselines=tuple(baseline[rows] for baseline in self.baselines),
                target=target_of_rows(self.target, rows),
                additional=None
                if self.additional is None
                else tuple(
                    rows_of(argument, self.n_rows, rows) for argument in self.additional
                ),
            )

    def repeat(self, times: int) -> ForwardArguments:
        """Repeat the batch as a whole, block after block.

        Arguments that do not have one row per example pass through.

        Raises:
            UnsupportedAttentionError: If a key-value cache is among them.
        """
        if any(hasattr(item, "get_seq_length") for item in self.additional or ()):
            raise UnsupportedAttentionError(
                "a key-value cache was passed in additional_forward_args, but its "
                "tokens are not among the inputs: pass the whole sequence and no "
                "past_key_values"
            )
        return replace(
            self,
            inputs=tuple(_repeat_rows(tensor, times) for tensor in self.inputs),
            target=repeat_target(self.target, times),
            additional=None
            if self.additional is None
            else tuple(
                _repeat_rows(argument, times)
                if has_rows(argument, self.n_rows)
                else argument
                for argument in self.additional
            ),
        )


def _repeat_rows(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *(1 for _ in tensor.shape[1:]))


def check_inputs(inputs: Any) -> None:
    """Refuse what is no batch of numbers.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    wanted = "a tensor, or a tuple of tensors, with one row per example"
    for tensor in tensors:
        check_dense("inputs", tensor, wanted)
    if not tensors:
        raise ValueError(f"inputs are an empty tuple; give {wanted}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(tensor.numel() == 0 for tensor in tensors):
        raise ValueError(
            f"inputs have shapes {shapes}; give at least one example with at least "
            "one token"
        )
    if () in shapes or all(tensor.dim() < 2 for tensor in tensors):
        raise ValueError(
            f"inputs have shapes {shapes}; give a batch, (B, T) for token ids, of one "
            "example by inputs[None]"
        )
    n_rows = {len(tensor) for tensor in tensors}
    if len(n_rows) > 1:
        raise ValueError(
            f"inputs have {sorted(n_rows)} rows, but rows are examples; give {wanted}, "
            "and what has no rows in additional_forward_args"
        )


def _with_numbers_of_python(baselines: Any) -> Any:
    """Make numbers of NumPy, such as an id out of an array, those that Captum takes."""
    if isinstance(baselines, tuple):
        return tuple(map(_with_numbers_of_python, baselines))
    return baselines.item() if isinstance(baselines, np.number) else baselines


def _check_baselines(baselines: Any, inputs: Any) -> None:
    if baselines is None:
        return
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if len(given) != len(tensors):
        raise ValueError(
            f"baselines holds {counted(len(given), 'baseline')} for "
            f"{counted(len(tensors), 'input')}; give one for each input, in a tuple"
        )
    for baseline, tensor in zip(given, tensors, strict=True):
        if isinstance(baseline, Tensor):
            _check_baseline_tensor(baseline, tensor)
        elif not isinstance(baseline, (int, float)) or isinstance(baseline, bool):
            raise ValueError(
                f"baselines={described(baseline)} is {type_of(baseline)}; give "
                "a number, a tensor shaped like the input, or a tuple of one for each "
                "input"
            )
        elif not math.isfinite(baseline):
            raise ValueError(f"baselines={baseline}; give finite numbers")
        elif not -(2**63) <= baseline < 2**63 and not tensor.is_floating_point():
            raise ValueError(
                f"baselines={described(baseline)} is larger than any token id; give an "
                "id, such as tokenizer.mask_token_id"
            )
        elif not (tensor.is_floating_point() or float(baseline).is_integer()):
            raise ValueError(
                f"baselines={baseline} is a fraction, but the input is token ids, "
                "which are integers; give an id, such as tokenizer.mask_token_id"
            )


def _check_baseline_tensor(baseline: Tensor, tensor: Tensor) -> None:
    check_dense("baselines", baseline, "a number, or shaped like the inputs")
    if baseline.dim() == 0:
        raise ValueError(
            "baselines is a tensor without dimensions; give its number, by .item()"
        )
    accepted = (tensor.shape, torch.Size([1, *tensor.shape[1:]]))
    if baseline.shape not in accepted:
        raise ValueError(
            f"baselines have shape {tuple(baseline.shape)} for an input of shape "
            f"{tuple(tensor.shape)}; give a number, a tensor of the input's shape, or "
            f"one for all examples, of shape {tuple(accepted[1])}"
        )
    if baseline.is_floating_point() and not tensor.is_floating_point():
        raise ValueError(
            f"baselines are {baseline.dtype}, but the input is token ids of "
            f"{tensor.dtype}; give ids, such as tokenizer.mask_token_id"
        )


Part = TypeVar("Part")


def run_in_parts(
    run: Callable[[ForwardArguments, int | None], Iterable[Part]],
    arguments: ForwardArguments,
    internal_batch_size: int | None,
    rows_per_example: int = 1,
    before_retry: Callable[[], None] = lambda: None,
) -> list[Part]:
    """Run a batch, in smaller parts where it does not fit into memory.

    Args:
        run (Callable): Runs a part, given the rows of a forward pass.
        arguments (ForwardArguments): The batch.
        internal_batch_size (int, optional): Rows of a forward pass. If ``None``, all of
            them, then half as many for as long as memory is short, with a warning.
        rows_per_example (int): Rows that an example takes.
        before_retry (Callable): Called after a pass that did not fit.

    Returns:
        list: What the parts gave, in order.

    Raises:
        RuntimeError: If memory is short for the rows that were asked for, or for one.
    """
    rows, at_once = arguments.n_rows * rows_per_example, internal_batch_size
    while True:
        try:
            return [
                result
                for part in arguments.split(at_once, rows_per_example)
                for result in run(part, at_once)
            ]
        except (MemoryError, RuntimeError) as error:
            given = internal_batch_size is not None
            if given or rows == 1 or not is_out_of_memory(error):
                raise
        # Behind the exception, which holds the tensors of the pass that failed.
        failed, rows = rows, (rows + 1) // 2
        if rows > rows_per_example:
            rows -= rows % rows_per_example
        at_once = rows
        before_retry()
        warn_caller(
            f"a forward and backward pass of {failed} rows did not fit into memory; "
            f"going on with {rows} at once. internal_batch_size={rows} saves the pass "
            "that failed"
        )


def check_layers(given: ModuleOrModuleList) -> list[nn.Module]:
    """Return the layers that were given, one alone or several in a list.

    Raises:
        ValueError: If there is none, or one is no module.
    """
    layers = given if isinstance(given, list) else [given]
    for layer in layers or [None]:
        if not isinstance(layer, nn.Module):
            raise ValueError(
                f"layer={described(given)} is no module, nor a list of modules; give a "
                "part of the model itself, such as its embeddings module"
            )
    return layers


def single_layer(given: ModuleOrModuleList) -> nn.Module:
    """Return the one layer that was given, alone or in a list.

    Raises:
        ValueError: If several were given, or something else.
    """
    layers = check_layers(given)
    if len(layers) != 1:
        raise ValueError(
            f"{len(layers)} layers were given, but there is one score per token "
            "position, which cannot be split between them (word, position and "
            "type embeddings). Attribute to one layer, such as the whole "
            "embeddings module"
        )
    return layers[0]


def shape_like_inputs(
    scores: Tensor,
    inputs: Sequence[TensorLike],
    sequences: Sequence[TokenSequence] = (),
    elements: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Spread token scores over the inputs that hold the tokens.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        inputs (sequence of TensorLike): Token ids ``(B, T)``, embeddings
            ``(B, T, D)``, or what tokens are made of, such as pixels ``(B, C, H, W)``.
        sequences (sequence of TokenSequence): An encoder's and a decoder's, which have
            an input each, or one of them; one sequence has one input.
        elements (dict, optional): The token of each element of an input, by the number
            of the input; see :class:`captum_attnflow.Explanation`. Where there is none,
            dimension 1 of an input is that of the tokens.

    Returns:
        tuple[Tensor, ...]: One attribution per input, whose sum over the elements of a
        token is the token's score.

    Raises:
        ValueError: If there are more inputs than sequences, or no tokens in an input.
    """
    elements = elements or {}
    if len(sequences) < 2:
        own = [elements.get(index) for index in range(len(inputs))]
        if not _make_own_tokens(own, scores.shape[1]):
            refuse_several(inputs)
        return tuple(
            _shape_like_input(scores, template, elements.get(index))
            for index, template in enumerate(inputs)
        )
    parts = split_sequences(scores, sequences)
    held: dict[int, list[int]] = {}
    for index, template in enumerate(inputs):
        seen = [i for i, sequence in enumerate(sequences) if index in sequence.inputs]
        held.setdefault((seen or [only_fitting(parts, template)])[0], []).append(index)
    for sequence, indices in held.items():
        own = [elements.get(index) for index in indices]
        if not _make_own_tokens(own, parts[sequence].shape[1]):
            refuse_several([inputs[index] for index in indices])
    sequence_of = {
        index: sequence for sequence, indices in held.items() for index in indices
    }
    return tuple(
        _shape_like_input(parts[sequence_of[index]], template, elements.get(index))
        for index, template in enumerate(inputs)
    )


def _make_own_tokens(elements: Sequence[Tensor | None], n_tokens: int) -> bool:
    """Whether inputs make tokens of their own each, as words and pixels do."""
    makers = torch.zeros(1, n_tokens + 1, dtype=torch.long)
    for tokens in elements:
        if tokens is None:
            return False
        made = tokens.cpu().flatten(1)
        made = made.where(made >= 0, n_tokens)
        makes = torch.zeros(len(made), n_tokens + 1, dtype=torch.long)
        makers = makers + makes.scatter_(1, made, 1)
    return bool((makers[:, :n_tokens] <= 1).all())


def split_sequences(
    scores: Tensor, sequences: Sequence[TokenSequence]
) -> tuple[Tensor, ...]:
    """Split scores ``(B, T)`` into those of each sequence."""
    return torch.split(scores, [sequence.length for sequence in sequences], 1)


def only_fitting(parts: Sequence[Tensor], template: TensorLike) -> int:
    """Return which sequence's scores a tensor may hold by its shape.

    Raises:
        ValueError: If it may hold none, or several.
    """
    fitting = [i for i, part in enumerate(parts) if _has_tokens(template, part)]
    if len(fitting) != 1:
        raise ValueError(
            f"a tensor of shape {template.shape} was not seen to become tokens of the "
            f"encoder or of the decoder, and {len(fitting)} of them have its length "
            f"(encoder and decoder: {[part.shape[1] for part in parts]} tokens). Pass "
            "(encoder tokens, decoder tokens), or attribute to the embeddings of one "
            "of them with the Layer... class"
        )
    return fitting[0]


def _shape_like_input(
    scores: Tensor, template: TensorLike, elements: Tensor | None
) -> Tensor:
    if elements is not None:
        return _spread(scores, template, elements)
    # In more than three dimensions there may be as many channels as tokens.
    if len(template.shape) <= 3 and _has_tokens(template, scores):
        return _fill(scores, template)
    raise ValueError(
        f"the input has shape {template.shape}, but the attention maps have "
        f"{counted(scores.shape[1], 'token')} for "
        f"{counted(scores.shape[0], 'example')}; the input is not made of these "
        "tokens, each element belonging to one of them, such as ids, embeddings or "
        "patches that do not overlap. Attribute to the layer that makes the tokens "
        "with the Layer... class, or pass this input in additional_forward_args"
    )


def refuse_several(inputs: Sequence[TensorLike]) -> None:
    """Refuse inputs between which token scores would have to be split.

    Raises:
        ValueError: If there is more than one.
    """
    if len(inputs) > 1:
        raise ValueError(
            f"{len(inputs)} inputs were given, of shapes "
            f"{[template.shape for template in inputs]}, but there is one score per "
            "token position, which cannot be split between them (word, position and "
            "type embeddings, ids and masks). Pass the tokens as the only input and "
            "the others in additional_forward_args, or attribute to the whole "
            "embeddings module with the Layer... class"
        )


def shape_like_layer(
    scores: Tensor,
    outputs: Sequence[TensorLike],
    tokens: Tensor | None = None,
    n_calls: int = 1,
) -> tuple[Tensor, ...]:
    """Spread token scores over what a layer emits; other tensors than tokens get 0.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        outputs (sequence of TensorLike): The tensors of the layer.
        tokens (Tensor, optional): The token that each element of the first of them
            makes, where the dimensions do not tell.
        n_calls (int): How often the layer ran; these are of the last call.

    Returns:
        tuple[Tensor, ...]: One attribution per tensor.

    Raises:
        ValueError: If none or several of the tensors have the shape of the tokens.
    """
    # What comes first is what the rest of the model computes with; masks follow.
    holders = [i for i, of in enumerate(outputs) if _has_tokens(of, scores)]
    if not holders and tokens is not None:
        first, *others = outputs
        return _spread(scores, first, tokens), *(
            _new(template, scores.new_zeros(())) for template in others
        )
    if not holders or (len(holders) > 1 and holders[0] > 0):
        again = f", in the last of the {n_calls} times that it ran," * (n_calls > 1)
        shapes = ", ".join(str(tuple(t.shape)) for t in outputs)
        there = f"tensors of shapes {shapes}" if outputs else "no tensor"
        raise ValueError(
            f"the layer has{again} {there}, of which {len(holders)} start with "
            f"(examples, tokens) = {tuple(scores.shape)}; "
            "the first or only one must, such as the output (B, T, D) of the "
            "embeddings module. Only tensors that it returns, or takes by position, "
            "are seen"
        )
    holder = outputs[holders[0]]
    if holder.is_sequence_first is None and 1 < holder.shape[0] == holder.shape[1]:
        raise ValueError(
            f"the layer has a tensor of shape {holder.shape}, of which the output's "
            "gradient does not show which dimension holds the examples and which the "
            "tokens. Pass another number of examples, such as by internal_batch_size=1"
        )
    return tuple(
        _fill(scores, template)
        if index == holders[0]
        else _new(template, scores.new_zeros(()))
        for index, template in enumerate(outputs)
    )


def _has_tokens(template: TensorLike, scores: Tensor) -> bool:
    return template.shape[:2] == tuple(scores.shape)


def _new(template: TensorLike, values: Tensor) -> Tensor:
    """Contiguous copy of values, broadcast and cast as attributions are."""
    dtype = torch.float64 if template.dtype == torch.float64 else torch.float32
    values = values.to(device=template.device, dtype=dtype).expand(template.shape)
    if template.is_sequence_first:
        values = values.transpose(0, 1)
    return values.contiguous()


def _fill(scores: Tensor, template: TensorLike) -> Tensor:
    features = template.shape[2:]
    share = scores / max(1, torch.Size(features).numel())
    return _new(template, share.reshape(*scores.shape, *(1 for _ in features)))


def _spread(scores: Tensor, template: TensorLike, elements: Tensor) -> Tensor:
    """Give every element an equal share of its token's score, and 0 without one."""
    elements = elements.to(scores.device).flatten(1)
    owned = elements >= 0
    token = elements.clamp_min(0)
    n_elements = torch.zeros_like(scores).scatter_add(1, token, owned.to(scores))
    shares = (scores / n_elements.clamp_min(1)).gather(1, token).where(owned, 0)
    return _new(template, shares.view(template.shape))


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
    if len({len(call.tensors) for call in calls}) > 1:
        raise ValueError(
            f"the layer {type(layer).__name__} ran {len(calls)} times in the forward "
            f"function, with {[len(call.tensors) for call in calls]} tensors; give a "
            "layer that runs once, or with as many tensors each time"
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


def check_attributions(
    given: TensorOrTensors, n_rows: int | None = None
) -> tuple[Tensor, ...]:
    """Return attributions as a tuple, if they are what attribute() returns.

    Args:
        given (Tensor or tuple[Tensor, ...]): The attributions.
        n_rows (int, optional): Rows of the inputs; any number by default.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    accepted = "what attribute() returns, a tensor (B, T, ...) or a tuple of these"
    parts = given if isinstance(given, (tuple, list)) else (given,)
    if not parts:
        raise ValueError(f"attributions={given!r} are none; give {accepted}")
    for part in parts:
        check_dense("attributions", part, accepted)
        fits = part.dim() >= 2 and part.is_floating_point()
        if not fits or (n_rows is not None and len(part) != n_rows):
            of_rows = "" if n_rows is None else f" for {counted(n_rows, 'example')}"
            raise ValueError(
                f"attributions have shape {tuple(part.shape)} and dtype {part.dtype}"
                f"{of_rows}; give {accepted}"
            )
    return tuple(parts)


def sum_over_features(attributions: Sequence[Tensor]) -> Tensor:
    """Sum all attributions of an example, shape ``(B,)``."""
    totals = [part.double().flatten(1).sum(1) for part in attributions]
    return torch.stack(totals).sum(0).to(attributions[0])
