"""The model's answer to inputs from which tokens were removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow._captum import (
    NullProgress,
    TargetType,
    progress,
    run_forward,
    select_targets,
)
from captum_attnflow._checks import check_batch_size, check_choice, check_dense
from captum_attnflow.metrics.removal import TokenSets
from captum_attnflow.targets import target_of_rows
from captum_attnflow.texts.token_axis import TokenAxis, columns_of

RemovalMode = Literal["replace", "delete"]
Output = Literal["logits", "probabilities"]


@dataclass(frozen=True, eq=False)
class TokenRemoval:
    """A forward function whose inputs lose tokens.

    Rows are grouped by the number of tokens that are left, without padding, so that no
    attention mask is needed to keep them apart.

    Attributes:
        forward_func (Callable): The forward function, as Captum takes it.
        inputs (Tensor): Shape ``(B, T, ...)``, token ids or embeddings.
        baselines (scalar or Tensor, optional): What replaces a removed token.
        target (int, tuple, Tensor or list, optional): The output that is measured.
        additional (tuple, optional): Further arguments of the forward function.
        removal (str): ``"replace"`` or ``"delete"``.
        output (str): ``"logits"`` or ``"probabilities"``.
        padding (Tensor): Shape ``(B, T)``, bool.
        internal_batch_size (int, optional): Most rows in one forward pass.
        show_progress (bool): Show a progress bar over the rows.
    """

    forward_func: Callable[..., Any]
    inputs: Tensor
    baselines: Any
    target: TargetType
    additional: tuple[Any, ...] | None
    removal: RemovalMode
    output: Output
    padding: Tensor
    internal_batch_size: int | None
    show_progress: bool

    def __post_init__(self) -> None:
        check_choice("removal", self.removal, ("replace", "delete"))
        check_choice("output", self.output, ("logits", "probabilities"))
        check_batch_size(self.internal_batch_size)

    @torch.no_grad()
    def log_probability(self, removals: TokenSets) -> Tensor:
        """Evaluate the target's log probability without each set of tokens.

        Args:
            removals (TokenSets): ``S`` sets of tokens.

        Returns:
            Tensor: Shape ``(S,)``, float64, in ``(-inf, 0]``, on the CPU.

        Raises:
            ValueError: If no token would be left, or the output is no probability.
        """
        values = torch.zeros(len(removals.example), dtype=torch.float64)
        bar: Any = progress if self.show_progress else NullProgress
        with bar(desc="token removals", total=len(values)) as shown:
            for sets, columns in self._batches(removals):
                rows = removals.example[sets].to(self.inputs.device)
                removed = removals.removed[sets].to(self.inputs.device)
                inputs = self._without(rows, removed)
                output = run_forward(
                    self.forward_func,
                    columns_of(inputs, columns, (1,)),
                    additional_forward_args=self._additional(rows, columns),
                )
                target = target_of_rows(self.target, rows)
                selected = _log_probability(output, target, self.output)
                values[sets] = selected.double().cpu()
                shown.update(len(sets))
        return values

    def _batches(self, removals: TokenSets) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield sets with equally many columns left, and these columns."""
        left = ~self.padding.cpu()[removals.example]
        if self.removal == "delete":
            left = left & ~removals.removed
        n_left = left.sum(1)
        if bool((n_left == 0).any()):
            example = int(removals.example[n_left == 0][0])
            raise ValueError(
                f"example {example} would lose all of its tokens, and a model cannot "
                "read an empty input. Keep special tokens by keep=, give lower "
                'fractions, or use removal="replace"'
            )
        for length in n_left.unique().tolist():
            same = (n_left == length).nonzero()[:, 0]
            for sets in same.split(self.internal_batch_size or len(same)):
                columns = left[sets].nonzero()[:, 1].reshape(len(sets), length)
                yield sets, columns.to(self.inputs.device)

    def _without(self, rows: Tensor, removed: Tensor) -> Tensor:
        if self.removal == "delete":
            return self.inputs[rows]
        baseline = _read_baseline(self.baselines, self.inputs)
        per_feature = removed.reshape(*removed.shape, *(1,) * (self.inputs.dim() - 2))
        return torch.where(per_feature, baseline[rows], self.inputs[rows])

    def _additional(self, rows: Tensor, columns: Tensor) -> tuple[Any, ...] | None:
        if self.additional is None:
            return None
        axis = TokenAxis(self.padding)
        return tuple(axis.take(given, rows, columns) for given in self.additional)


def _read_baseline(baselines: Any, inputs: Tensor) -> Tensor:
    if isinstance(baselines, tuple) and len(baselines) == 1:
        (baselines,) = baselines
    if baselines is None:
        raise ValueError(
            'removal="replace" needs baselines: the id of the reference token, such as '
            "tokenizer.mask_token_id, or its embedding; or give "
            'removal="delete", which needs none'
        )
    if isinstance(baselines, Tensor):
        check_dense("baselines", baselines, "an embedding, or shaped like the inputs")
    try:
        given = torch.as_tensor(baselines, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"baselines={baselines!r} is no number and no tensor; give the id of the "
            "reference token, its embedding, or a tensor shaped like the inputs"
        ) from error
    if given.is_floating_point() and not inputs.is_floating_point():
        raise ValueError(
            f"baselines={baselines!r} cannot replace token ids, which are integers; "
            "give the id of the reference token"
        )
    try:
        return given.to(inputs.dtype).expand(inputs.shape)
    except RuntimeError as error:
        raise ValueError(
            f"baselines of shape {tuple(given.shape)} do not fit inputs of shape "
            f"{tuple(inputs.shape)}; give a number, one embedding, or a tensor shaped "
            "like the inputs"
        ) from error


def _log_probability(output: Any, target: TargetType, kind: Output) -> Tensor:
    """Select the target's log probability, one per row."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"forward_func returned a {type(output).__name__}; Captum needs a tensor. "
            "Wrap the model, for example: lambda ids: model(ids).logits"
        )
    # In float64, a probability near 1 still differs from 1.
    output = output.double()
    if not bool(output.isfinite().all()):
        raise ValueError("forward_func returned NaN or infinite values")
    if kind == "logits":
        single = output.dim() < 2 or output.shape[-1] == 1
        output = F.logsigmoid(output) if single else output.log_softmax(-1)
    elif bool(((output < -1e-6) | (output > 1 + 1e-6)).any()):
        raise ValueError(
            f"forward_func returned values from {output.min():.3g} to "
            f"{output.max():.3g}, which are no probabilities; give "
            'output="logits" if they are logits'
        )
    else:
        # A probability of 0 counts as the smallest number, so that logs stay finite.
        output = output.clamp(torch.finfo(torch.float32).tiny, 1).log()
    if target is None and output.dim() == 2 and output.shape[1] == 1:
        target = 0
    try:
        selected = select_targets(output, target)
    except (AssertionError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"target={target!r} selects nothing of outputs of shape "
            f"{tuple(output.shape)}: {error}. Give a class, or a tuple of one index "
            "for each dimension behind the first"
        ) from error
    if selected.numel() != len(output):
        raise ValueError(
            f"target={target!r} leaves shape {tuple(selected.shape)} of the output; "
            "one number per example is needed. Pass target, for example the predicted "
            "class: output.argmax(-1)"
        )
    per_row: Tensor = selected.reshape(len(output))
    return per_row
