"""The arguments of Integrated Gradients, read once as Captum reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
)
from captum._utils.typing import BaselineType, ModuleOrModuleList, TargetType
from captum.attr._utils.common import (
    _format_input_baseline,
    _tensorize_baseline,
    _validate_input,
    _validate_target,
)
from torch import Tensor, nn

from captum_attnflow._memory import is_out_of_memory
from captum_attnflow._options import check_batch_size, check_integer
from captum_attnflow._tensors import check_dense
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture import UnsupportedAttentionError
from captum_attnflow.targets import repeat_target, target_of_rows
from captum_attnflow.texts.token_axis import has_rows, rows_of


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
        n_steps: int,
        method: str,
    ) -> ForwardArguments:
        """Validate as ``IntegratedGradients`` does and drop its steps and its method.

        Raises:
            AssertionError: As Captum raises it, for baselines, steps or method.
            ValueError: For inputs or a target that no forward pass can have.
        """
        check_inputs(inputs)
        _check_baselines(baselines, inputs)
        _check_target(target)
        check_integer("n_steps", n_steps)
        tensors, formatted_baselines = _format_input_baseline(inputs, baselines)
        _validate_input(tensors, formatted_baselines, n_steps, method)
        _validate_target(len(tensors[0]), target)
        return ForwardArguments(
            inputs=_format_tensor_into_tuples(tensors),
            baselines=_tensorize_baseline(tensors, formatted_baselines),
            target=target,
            additional=_format_additional_forward_args(additional_forward_args),
            has_baselines=baselines is not None,
        )

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


def _check_baselines(baselines: Any, inputs: Any) -> None:
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    for baseline, tensor in zip(given, tensors, strict=False):
        if isinstance(baseline, Tensor):
            check_dense("baselines", baseline, "a number, or shaped like the inputs")
            if baseline.dim() == 0:
                raise ValueError(
                    "baselines is a tensor without dimensions; give its number, by "
                    ".item()"
                )
        elif isinstance(baseline, float) and not math.isfinite(baseline):
            raise ValueError(f"baselines={baseline}; give finite numbers")
        elif isinstance(baseline, float) and not (
            tensor.is_floating_point() or baseline.is_integer()
        ):
            raise ValueError(
                f"baselines={baseline} is a fraction, but the input is token ids, "
                "which are integers; give an id, such as tokenizer.mask_token_id"
            )


def _check_target(target: Any) -> None:
    if isinstance(target, bool):
        raise ValueError(
            f"target={target} is no index; give that of the output, such as "
            f"{int(target)}"
        )
    if isinstance(target, Tensor) and target.dim() > 1:
        raise ValueError(
            f"a target of shape {tuple(target.shape)}; give one class per example, "
            "shape (B,), such as target.flatten(), or a list of tuples for outputs of "
            "more dimensions"
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
