"""Inputs of full length in which absent tokens are replaced by a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense, check_tensor
from captum_attnflow.targets import Target, run_forward
from captum_attnflow.texts.texts import (
    Absence,
    Query,
    check_masks,
    check_tokens,
    explained_positions,
    in_order_of_appearance,
)
from captum_attnflow.texts.token_axis import rows_of


class ReplaceableTexts:
    """Texts in which each position holds its token or the baseline.

    Subclasses add ``run``.

    Args:
        tokens (Tensor): Shape ``(B, T)``, equal where tokens are of one type.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.

    Raises:
        ValueError: If a text has no token to explain.
    """

    absence: Absence = "baseline"
    max_rows: int | None = None
    float_shape: tuple[int, ...] | None = None

    def __init__(self, tokens: Tensor, keep: Tensor, padding: Tensor) -> None:
        check_masks(keep, padding)
        check_tokens("tokens", tokens, padding)
        check_tensor("tokens", tokens, "integers", ("B", "T"))
        self.n_positions = tokens.shape[1]
        self._explained = ~keep & ~padding
        self.positions = explained_positions(keep, padding)
        self.types = [
            in_order_of_appearance(row[positions].tolist())
            for row, positions in zip(tokens, self.positions, strict=True)
        ]

    def length(self, text: int, query: Query) -> int:
        """Return 0: no position is deleted, so all queries share a batch."""
        return 0

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return the target: all positions stay where they are."""
        return target

    def present(self, texts: Sequence[int], queries: Sequence[Query]) -> Tensor:
        """Return a mask ``(N, T)``, bool, ``False`` where the baseline is."""
        present = ~self._explained[list(texts)]
        for row, (text, query) in enumerate(zip(texts, queries, strict=True)):
            present[row, [self.positions[text][index] for index in query]] = True
        return present


class ReplaceableInputs(ReplaceableTexts):
    """Token ids, embeddings or features ``(B, T)`` with baselines at absent tokens.

    Features are indicators such as those of ``captum.attr.LLMAttribution``.

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
        # With a limit of rows the floats are Captum's own, whose shape helps nobody.
        if inputs.is_floating_point() and max_rows is None:
            self.float_shape = tuple(inputs.shape)

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on inputs with baselines in them."""
        rows = torch.tensor(texts).to(self._inputs.device)
        present = self.present(texts, queries).to(self._inputs.device)
        present = present.view(*present.shape, *(1,) * (self._inputs.dim() - 2))
        inputs = torch.where(present, self._inputs[rows], self._baselines[rows])
        additional = self._additional and tuple(
            rows_of(argument, len(self._inputs), rows) for argument in self._additional
        )
        return run_forward(forward_func, inputs, None, additional)
