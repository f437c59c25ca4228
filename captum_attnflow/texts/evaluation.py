"""Runs a forward function on queries, in batches of equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from captum._utils.progress import progress
from torch import Tensor

from captum_attnflow.targets import Target
from captum_attnflow.texts.texts import PerturbableTexts, Query

_DEFAULT_ROWS = 128


def evaluate_queries(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    queries: Sequence[Sequence[Query]],
    targets: Sequence[Target] | None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> list[Tensor]:
    """Return the outputs for every query.

    Queries of equal length run together, also those of different texts, so that no
    query is padded. No gradient is recorded.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        queries (sequence of sequence): Per text, its queries.
        targets (sequence of tuple, optional): Per text; selects the position whose
            classes are returned, where an output has several positions.
        internal_batch_size (int, optional): Most rows per forward pass; 128 by default.
        show_progress (bool): Show Captum's progress bar.

    Returns:
        list[Tensor]: Per text, shape ``(Q_b, C)`` on the CPU, with all ``C`` classes.

    Raises:
        ValueError: If outputs are not one finite row per query.
    """
    pairs = [(text, query) for text, each in enumerate(queries) for query in each]
    size = internal_batch_size or _DEFAULT_ROWS
    if texts.max_rows is not None:
        size = min(size, texts.max_rows)
    batches = list(_batches([texts.length(*pair) for pair in pairs], size))
    outputs: list[Tensor] = [torch.empty(0)] * len(pairs)
    first_shape: Sequence[int] | None = None
    for batch in progress(batches, desc="queries", disable=not show_progress):
        rows = [pairs[number][0] for number in batch]
        output = run_queries(forward_func, texts, rows, [pairs[n][1] for n in batch])
        if targets:
            _refuse_another_width(first_shape, output)
            first_shape = first_shape or getattr(output, "shape", None)
        row_targets = targets and [
            texts.target_in_query(targets[text], text, query)
            for text, query in (pairs[number] for number in batch)
        ]
        classes = select_classes(output, row_targets, len(batch)).detach().cpu()
        for number, row in zip(batch, classes, strict=True):
            outputs[number] = row
    _refuse_not_finite(outputs, [query for _, query in pairs])
    remaining = iter(outputs)
    return [
        torch.stack(list(islice(remaining, len(each)))) if each else torch.empty(0)
        for each in queries
    ]


def run_queries(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    rows: Sequence[int],
    queries: Sequence[Query],
) -> Any:
    """Run the forward function on one batch of queries of equal length.

    No gradient is recorded.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        rows (sequence of int): The text of each query.
        queries (sequence of tuple): The queries.

    Returns:
        Any: What the forward function returns.

    Raises:
        ValueError: If it fails on shorter inputs, but takes the whole text.
    """
    with torch.no_grad():
        try:
            return texts.run(forward_func, rows, queries)
        except Exception as error:
            text = rows[0]
            whole = tuple(range(len(texts.types[text])))
            length, full = texts.length(text, queries[0]), texts.length(text, whole)
            if texts.absence == "baseline" or length >= full:
                raise
            try:
                texts.run(forward_func, [text], [whole])
            except Exception:
                raise error from None
            raise ValueError(
                f"forward_func takes the {full} tokens of text {text + 1}, but failed "
                f"on {length} of them: {type(error).__name__}: {error}. SLALOM deletes "
                "tokens; for a model that takes one width only, give "
                'absence="baseline" and baselines to stand where a token is absent'
            ) from error


def select_classes(
    output: Any, targets: Sequence[Target] | None, n_rows: int
) -> Tensor:
    """Select the outputs of all classes at the position that each row's target names.

    Args:
        output (Tensor, array or list): What the forward function returned.
        targets (sequence of tuple, optional): Per row; the last index is the class.
        n_rows (int): Rows of the input.

    Returns:
        Tensor: Shape ``(N, C)``; one column for one output per row.

    Raises:
        ValueError: If the output does not have one row per input, or a target selects
            no class of it.
    """
    scores = _as_tensor(output)
    if scores.dim() == 0 or len(scores) != n_rows:
        raise ValueError(
            f"forward_func returned an output of shape {tuple(scores.shape)} for "
            f"{n_rows} inputs; it must return one row per input: a tensor of shape "
            f"({n_rows},) or ({n_rows}, classes)"
        )
    if targets is None:
        if scores.dim() <= 2:
            return scores.reshape(n_rows, -1)
        raise ValueError(
            f"forward_func returned {tuple(scores.shape[1:])} outputs per input and "
            "target is None; give target to choose which of them to explain"
        )
    lengths = {len(index) for index in targets}
    if lengths != {scores.dim() - 1}:
        raise ValueError(
            f"targets of {sorted(lengths)} indices were given, but forward_func "
            f"returned outputs of shape {tuple(scores.shape)}; give "
            f"{scores.dim() - 1} indices per target, or None for one output per input"
        )
    index = torch.tensor(list(targets), device=scores.device)
    sizes = torch.tensor(scores.shape[1:], device=scores.device)
    if bool(((index >= sizes) | (index < -sizes)).any()):
        raise ValueError(
            f"a target of {sorted(set(targets))} is out of range: forward_func "
            f"returned outputs of shape {tuple(scores.shape)}. Give indices into the "
            "dimensions after the first"
        )
    rows = torch.arange(n_rows, device=scores.device)
    places = (rows, *index[:, :-1].unbind(1))
    return scores[places]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Group the numbers of queries by length, in parts of ``size`` at most.

    The longest come first, so that a model that fails on the whole text fails early.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for _, group in groupby(order, key=lengths.__getitem__):
        numbers = list(group)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _refuse_another_width(first: Sequence[int] | None, output: Any) -> None:
    shape = getattr(output, "shape", None)
    if first and shape and first[-1] != shape[-1]:
        raise ValueError(
            f"forward_func returned outputs of shape {tuple(first)} and of shape "
            f"{tuple(shape)}, so that an index of the target means another output once "
            'tokens are deleted (one output per token); give absence="baseline", which '
            "deletes none, or let forward_func return the one output to explain"
        )


def _refuse_not_finite(outputs: Sequence[Tensor], queries: Sequence[Query]) -> None:
    bad = [n for n, row in enumerate(outputs) if not bool(row.isfinite().all())]
    if bad:
        raise ValueError(
            f"forward_func returned NaN or infinite outputs for {len(bad)} of "
            f"{len(outputs)} queries, first for one of {len(queries[bad[0]])} of the "
            "text's tokens; it must return finite outputs for short inputs, too"
        )


def _as_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        scores = output
    else:
        try:
            scores = torch.as_tensor(output)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"forward_func returned a {type(output).__name__}; it must return a "
                "tensor with one row per input, such as model(...).logits"
            ) from error
    return scores if scores.is_floating_point() else scores.double()
