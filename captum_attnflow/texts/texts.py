"""The protocol of texts with parts removed, and checks that its classes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense
from captum_attnflow.targets import Target

Absence = Literal["deleted", "baseline"]
"""How a token is absent from a query: it is left out, or its baseline stands there."""
Query = tuple[int, ...]
"""Indices of explained tokens, in the order of the input; an index may be repeated."""


class PerturbableTexts(Protocol):
    """A batch of texts, each a row of tokens, of which some are explained.

    Attributes:
        absence (str): ``"deleted"``: a query is a shorter input, which may also repeat
            a token. ``"baseline"``: all positions stay, and those that a query leaves
            out hold the baseline.
        types (list of list of int): Per text, the type of each explained token, from
            0 in order of appearance.
        positions (list of list of int): Per text, the position of each of them.
        n_positions (int): Positions of the longest text.
        max_rows (int, optional): Most queries that one forward pass can take.
        float_shape (tuple of int, optional): Shape of the inputs if they are the
            user's floats, embeddings or features.
    """

    absence: Absence
    types: list[list[int]]
    positions: list[list[int]]
    n_positions: int
    max_rows: int | None
    float_shape: tuple[int, ...] | None

    def length(self, text: int, query: Query) -> int:
        """Return the length of a query; queries of equal length share a batch."""
        ...

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return a text's target, with positions counted in the query's input."""
        ...

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on queries of equal length.

        Args:
            forward_func (Callable): The user's forward function.
            texts (sequence of int): The text of each query.
            queries (sequence of tuple): Indices into the text's explained tokens.

        Returns:
            Any: What the forward function returns.
        """
        ...


def check_masks(keep: Tensor, padding: Tensor) -> None:
    """Refuse masks that are not two bool tensors of one shape ``(B, T)``.

    Raises:
        ValueError: If they are not; the message says what was given.
    """
    for name, mask in (("keep", keep), ("padding", padding)):
        check_dense(name, mask, "bool (B, T)")
        if mask.dtype != torch.bool or mask.dim() != 2 or not mask.numel():
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; give "
                "bool (B, T), of at least one text of one position"
            )
    if keep.shape != padding.shape:
        raise ValueError(
            f"keep has shape {tuple(keep.shape)} and padding {tuple(padding.shape)}; "
            "give both for the same positions"
        )


def check_tokens(name: str, tensor: Tensor, padding: Tensor) -> None:
    """Refuse a tensor that does not have the texts and positions of the masks.

    Raises:
        ValueError: If it does not; the message says what was given.
    """
    accepted = f"(B, T, ...) = {(*padding.shape, '...')}, as keep and padding have"
    check_dense(name, tensor, accepted)
    if tensor.shape[:2] != padding.shape:
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; give {accepted}")


def explained_positions(keep: Tensor, padding: Tensor) -> list[list[int]]:
    """List the positions of each text that are neither kept nor padding.

    Args:
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.

    Raises:
        ValueError: If a text has none.
    """
    check_masks(keep, padding)
    positions = [row.nonzero()[:, 0].tolist() for row in ~keep & ~padding]
    for number, each in enumerate(positions, 1):
        if not each:
            raise ValueError(
                f"text {number} of {len(positions)} has only special tokens, padding, "
                "tokens that equal the baseline and those that the target names or "
                "that stand behind a causal read-out; there is nothing to explain. "
                "Remove it, or change keep, the baselines or the target"
            )
    return positions


def in_order_of_appearance(tokens: Sequence[Any]) -> list[int]:
    """Number the distinct tokens from 0.

    Examples::

        >>> in_order_of_appearance(["so", "very", "very", "so"])
        [0, 1, 1, 0]
    """
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(token, len(numbers)) for token in tokens]
