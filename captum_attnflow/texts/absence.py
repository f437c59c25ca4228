"""Texts with absent tokens: these are deleted, or a baseline stands in their place.

A kind of input is one class with the members of :class:`PerturbableTexts`: token ids or
embeddings without some columns, texts without words, inputs of full length in which
absent tokens are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense, check_tensor, check_type, which_of
from captum_attnflow.targets import Target, run_forward
from captum_attnflow.texts.token_axis import TokenAxis, rows_of

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
                f"{which_of('text', number, len(positions))} has only special tokens, "
                "padding, tokens that equal the baseline and those that the target "
                "names or that stand behind a causal read-out; there is nothing to "
                "explain. Remove it, or change keep, the baselines or the target"
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


class DeletableColumns:
    """Token ids ``(B, T)`` or embeddings ``(B, T, D)`` with columns to delete.

    A type is a distinct id or a distinct embedding. Padding is deleted from every
    query. Tokens to keep stay in every query, and each other token stays between the
    same kept tokens as in the text.

    Args:
        inputs (Tensor): Shape ``(B, T)`` or ``(B, T, D)``.
        additional (tuple, optional): The forward function's further arguments.
        keep (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens to keep.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
        named_by (tuple of int): Which indices of a target name a position. The tokens
            there are among those to keep.
        whole (frozenset of int): Which of the further arguments have tokens of their
            own, such as a decoder's, and lose no column.

    Raises:
        ValueError: If a text has no token to explain.
    """

    absence: Absence = "deleted"
    max_rows: int | None = None

    def __init__(
        self,
        inputs: Tensor,
        additional: tuple[Any, ...] | None,
        keep: Tensor,
        padding: Tensor,
        named_by: tuple[int, ...] = (),
        whole: frozenset[int] = frozenset(),
    ) -> None:
        check_masks(keep, padding)
        check_tokens("inputs", inputs, padding)
        self._inputs = inputs
        self._additional = additional
        is_floating = inputs.is_floating_point()
        self.float_shape = tuple(inputs.shape) if is_floating else None
        self._named_by, self._whole = named_by, whole
        self._token_axis = TokenAxis(padding)
        self.n_positions = inputs.shape[1]
        self.positions = explained_positions(keep, padding)
        self.types = [
            in_order_of_appearance(row[positions].tolist())
            for row, positions in zip(
                _number_tokens(inputs), self.positions, strict=True
            )
        ]
        self._kept: list[list[int]] = []
        self._order: list[list[int]] = []
        for kept in (keep & ~padding).tolist():
            self._kept.append([index for index, stays in enumerate(kept) if stays])
            # Each kept token ends a segment. Sorting by segment keeps the query's order
            # within one.
            segments = accumulate(kept)
            self._order.append(
                [2 * seg - stays for seg, stays in zip(segments, kept, strict=True)]
            )

    def length(self, text: int, query: Query) -> int:
        """Return the number of tokens, kept ones included."""
        return len(self._kept[text]) + len(query)

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return the target with positions counted in the query's columns."""
        if not self._named_by:
            return target
        columns, counted = self._columns(text, query), list(target)
        for index in self._named_by:
            counted[index] = columns.index(target[index] % self.n_positions)
        return tuple(counted)

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on the columns of each query."""
        rows = torch.tensor(texts)
        columns = torch.tensor(
            [self._columns(*pair) for pair in zip(texts, queries, strict=True)]
        )
        device = self._inputs.device
        inputs = self._inputs[rows.to(device)[:, None], columns.to(device)]
        additional = self._token_axis.take_arguments(
            self._additional, rows, columns, self._whole
        )
        return run_forward(forward_func, inputs, None, additional)

    def _columns(self, text: int, query: Query) -> list[int]:
        positions = self.positions[text]
        columns = self._kept[text] + [positions[index] for index in query]
        return sorted(columns, key=self._order[text].__getitem__)


class DeletableWords:
    """Texts of words, split at white space; a query's words are joined by spaces.

    Args:
        texts (sequence of str): The texts.
        additional (tuple, optional): The forward function's further arguments.

    Raises:
        ValueError: If a text has no word.
    """

    absence: Absence = "deleted"
    max_rows: int | None = None
    float_shape: tuple[int, ...] | None = None

    def __init__(
        self, texts: Sequence[str], additional: tuple[Any, ...] | None
    ) -> None:
        accepted = "a list of at least one str"
        check_type("texts", texts, (list, tuple), accepted)
        if not texts:
            raise ValueError(f"texts={texts!r} are none; give {accepted}")
        for text in texts:
            check_type("a text", text, str, accepted)
        kinds = (tuple, list, type(None))
        check_type("additional", additional, kinds, "a tuple of arguments, or None")
        self._additional = additional or ()
        self._words = [text.split() for text in texts]
        for row, words in enumerate(self._words):
            if not words:
                where = which_of("text", row + 1, len(texts))
                raise ValueError(f"{where} has no word; remove it")
        self.types = [in_order_of_appearance(words) for words in self._words]
        self.positions = [list(range(len(words))) for words in self._words]
        self.n_positions = max(len(words) for words in self._words)

    def length(self, text: int, query: Query) -> int:
        """Return the number of words."""
        return len(query)

    def target_in_query(self, target: Target, text: int, query: Query) -> Target:
        """Return the target: outputs of a function of texts have no positions."""
        return target

    def run(
        self,
        forward_func: Callable[..., Any],
        texts: Sequence[int],
        queries: Sequence[Query],
    ) -> Any:
        """Run the forward function on a list of shorter texts."""
        rows = torch.tensor(texts)
        n_texts = len(self._words)
        joined = [
            " ".join(self._words[text][index] for index in query)
            for text, query in zip(texts, queries, strict=True)
        ]
        further = (rows_of(argument, n_texts, rows) for argument in self._additional)
        return forward_func(joined, *further)


def _number_tokens(inputs: Tensor) -> Tensor:
    """Give equal ids or equal embeddings the same number, ``(B, T)``."""
    if inputs.dim() == 2:
        return inputs.cpu()
    rows = inputs.detach().flatten(0, 1).flatten(1)
    numbers: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return numbers.view(inputs.shape[:2]).cpu()


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
