"""The arguments of Integrated Gradients, read once as Captum reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
)
from captum._utils.typing import BaselineType, TargetType
from captum.attr._utils.common import (
    _format_input_baseline,
    _validate_input,
    _validate_target,
)
from torch import Tensor

from captum_attnflow.attr._options import check_batch_size


@dataclass(frozen=True)
class ForwardArguments:
    """What one forward pass of the user's function takes.

    Attributes:
        inputs (tuple[Tensor, ...]): Inputs; dimension 0 is the batch.
        target (int, tuple, Tensor or list, optional): Output to attribute.
        additional (tuple, optional): Further arguments.
    """

    inputs: tuple[Tensor, ...]
    target: TargetType
    additional: tuple[Any, ...] | None

    @staticmethod
    def read(
        inputs: Tensor | tuple[Tensor, ...],
        baselines: BaselineType,
        target: TargetType,
        additional_forward_args: object,
        n_steps: int,
        method: str,
    ) -> ForwardArguments:
        """Validate as ``IntegratedGradients`` does and drop what has no meaning here.

        Raises:
            AssertionError: As Captum raises it, for baselines, steps or method.
            ValueError: For an empty input.
        """
        tensors, formatted_baselines = _format_input_baseline(inputs, baselines)
        _validate_input(tensors, formatted_baselines, n_steps, method)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if any(tensor.numel() == 0 for tensor in tensors):
            raise ValueError(
                f"inputs have shapes {shapes}; give at least one example with at least "
                "one token"
            )
        _validate_target(len(tensors[0]), target)
        return ForwardArguments(
            inputs=_format_tensor_into_tuples(tensors),
            target=target,
            additional=_format_additional_forward_args(additional_forward_args),
        )

    @property
    def n_rows(self) -> int:
        """Examples in the batch."""
        return len(self.inputs[0])

    def split(self, batch_size: int | None) -> Iterator[ForwardArguments]:
        """Cut the batch into parts of at most ``batch_size`` rows.

        Arguments that do not have one row per example pass through whole.

        Raises:
            ValueError: If ``batch_size`` is not a positive integer.
        """
        check_batch_size(batch_size)
        if batch_size is None:
            yield self
            return
        for start in range(0, self.n_rows, batch_size):
            rows = slice(start, min(start + batch_size, self.n_rows))
            yield replace(
                self,
                inputs=tuple(tensor[rows] for tensor in self.inputs),
                target=self._rows_of_target(rows),
                additional=None
                if self.additional is None
                else tuple(
                    self._rows_of(argument, rows) for argument in self.additional
                ),
            )

    def _rows_of_target(self, rows: slice) -> TargetType:
        per_example = isinstance(self.target, list) or (
            isinstance(self.target, Tensor) and self.target.numel() > 1
        )
        return self.target[rows] if per_example else self.target

    def _rows_of(self, argument: Any, rows: slice) -> Any:
        has_rows = isinstance(argument, Tensor) and argument.dim() > 0
        if has_rows and len(argument) == self.n_rows:
            return argument[rows]
        return argument
