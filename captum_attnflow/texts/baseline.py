"""Queries in which what is absent holds the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from captum._utils.common import _run_forward
from torch import Tensor, nn

from captum_attnflow._tensors import check_dense
from captum_attnflow.capture.entries import in_this_thread
from captum_attnflow.targets import Target
from captum_attnflow.texts.texts import (
    Absence,
    Query,
    check_masks,
    check_tokens,
    explained_positions,
    in_order_of_appearance,
)
from captum_attnflow.texts.token_axis import rows_of


class _Replaceable:
    """Positions that hold either their token or the baseline."""

    absence: Absence = "baseline"
    max_rows: int | None = None

    def __init__(self, tokens: Tensor, keep: Tensor, padding: Tensor) -> None:
        check_masks(keep, padding)
        check_tokens("tokens", tokens, padding)
        self.n_positions = tokens.shape[1]
        self._explained = ~keep & ~padding
        self.positions = explained_positions(keep, padding)
        self.types = [
            in_order_of_appearance(row[positions].tolist())
            for row, positions in zip(tokens, self.positions, strict=True)
        ]

    def length(self, text: int, query: Query) -> int:
        """Return the same for all: no position is deleted."""
        return 0

    def move_target(self, target: Target, text: int, query: Query) -> Target:
        """Return the target: all positions stay where they are."""
        return target

    def _present(self, texts: Sequence[int], queries: Sequence[Query]) -> Tensor:
        """``(N, T)``, bool, ``False`` where the baseline stands."""
        present = ~self._explained[list(texts)]
        for row, (text, query) in enumerate(zip(texts, queries, strict=True)):
            present[row, [self.positions[text][index] for index in query]] = True
        return present


class ReplaceableInputs(_Replaceable):
    """Inputs whose positions hold the baseline where a token is absent.

    Token ids or embeddings, or features ``(B, T)``, such as an LLM's indicator tensor.

    Args:
        inputs (Tensor): Shape ``(B, T, ...)``.
        baselines (Tensor): Of the same shape, or one that broadcasts to it.
        additional (tuple, optional): The forward function's further arguments.
        tokens (Tensor): Shape ``(B, T)``, equal where tokens are of one type.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
        max_rows (int, optional): Most rows that one forward pass can take.
    """

    def __init__(
        self,
        inputs: Tensor,
        baselines: Tensor,
        additional: tuple[Any, ...] | None,
        tokens: Tensor,
        keep: Tensor,
        padding: Tensor,
        max_rows: int | None = None,
    ) -> None:
        super().__init__(tokens, keep, padding)
        check_tokens("inputs", inputs, padding)
        check_dense("baselines", baselines, "shaped like the inputs")
        try:
            self._inputs, self._baselines = inputs, baselines.expand(inputs.shape)
        except RuntimeError as error:
            raise ValueError(
                f"baselines have shape {tuple(baselines.shape)} for inputs of shape "
                f"{tuple(inputs.shape)}; give them shaped like the inputs"
            ) from error
        self._additional = additional
        self.max_rows = max_rows

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on inputs with baselines in them."""
        rows = torch.tensor(texts).to(self._inputs.device)
        present = self._present(texts, queries).to(self._inputs.device)
        present = present.view(*present.shape, *(1,) * (self._inputs.dim() - 2))
        inputs = torch.where(present, self._inputs[rows], self._baselines[rows])
        additional = self._additional and tuple(
            rows_of(argument, len(self._inputs), rows) for argument in self._additional
        )
        return _run_forward(forward_func, inputs, None, additional)


class ReplaceableActivations(_Replaceable):
    """What a layer puts out or takes in, ``(B, T, ...)``, at each position.

    The layer's activation for the baseline inputs stands where a token is absent.

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
        present = self._present(texts, queries)

        def replace(activation: Tensor) -> Tensor:
            here = present.to(activation.device)
            here = here.view(*here.shape, *(1,) * (activation.dim() - 2))
            baseline = self._baseline[rows.to(self._baseline.device)]
            return torch.where(here, activation, baseline.to(activation))

        with replaced_activation(self._layer, self._of_input, replace):
            return _run_forward(forward_func, inputs, None, additional)


@contextmanager
def replaced_activation(
    layer: nn.Module, of_input: bool, replace: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the first tensor that a layer takes by position, or puts out.

    Only in calls of this thread.

    Raises:
        ValueError: When the layer runs, if it takes no tensor first by position, or
            puts out neither a tensor nor a plain tuple or list that starts with one.
    """

    def before(module: nn.Module, taken: tuple[Any, ...]) -> Any:
        if not taken or not isinstance(taken[0], Tensor):
            raise ValueError(
                f"the layer {type(module).__name__} takes no tensor first by position, "
                "so that its input cannot be replaced; attribute to its output, or to "
                "the output of the layer before it, by attribute_to_layer_input=False"
            )
        return (replace(taken[0]), *taken[1:])

    def after(module: nn.Module, taken: tuple[Any, ...], put_out: Any) -> Any:
        if isinstance(put_out, Tensor):
            return replace(put_out)
        # Of other sequences, such as a ModelOutput, readers need more than the order.
        if (
            type(put_out) in (tuple, list)
            and put_out
            and isinstance(put_out[0], Tensor)
        ):
            return type(put_out)((replace(put_out[0]), *put_out[1:]))
        raise ValueError(
            f"the layer {type(module).__name__} puts out a {type(put_out).__name__}, "
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
