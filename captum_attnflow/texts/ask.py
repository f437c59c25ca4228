"""Puts queries to a forward function, grouped by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from captum._utils.progress import progress
from torch import Tensor

from captum_attnflow.targets import Target
from captum_attnflow.texts.outputs import select_classes
from captum_attnflow.texts.texts import PerturbableTexts, Query

_DEFAULT_ROWS = 128


def ask(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    queries: Sequence[Sequence[Query]],
    targets: Sequence[Target] | None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> list[Tensor]:
    """Return the outputs of every query.

    Queries of equal length run together, those of different texts too, so that no
    query is padded. No gradient is recorded.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        queries (sequence of sequence): Per text, its queries.
        targets (sequence of tuple, optional): Per text; selects the outputs of one
            position where there are several.
        internal_batch_size (int, optional): Most rows per forward pass; 128 by default.
        show_progress (bool): Show Captum's progress bar.

    Returns:
        list[Tensor]: Per text, shape ``(Q_b, C)`` on the CPU, for all ``C`` classes.

    Raises:
        ValueError: If outputs are not one finite row per query.
    """
    asked = [(text, query) for text, each in enumerate(queries) for query in each]
    size = internal_batch_size or _DEFAULT_ROWS
    if texts.max_rows is not None:
        size = min(size, texts.max_rows)
    batches = list(_batches([texts.length(*one) for one in asked], size))
    outputs: list[Tensor] = [torch.empty(0)] * len(asked)
    first_shape: Sequence[int] | None = None
    for batch in progress(batches, desc="queries", disable=not show_progress):
        rows = [asked[number][0] for number in batch]
        output = run_queries(forward_func, texts, rows, [asked[n][1] for n in batch])
        if targets:
            _refuse_another_width(first_shape, output)
            first_shape = first_shape or getattr(output, "shape", None)
        row_targets = targets and [
            texts.move_target(targets[text], text, query)
            for text, query in (asked[number] for number in batch)
        ]
        classes = select_classes(output, row_targets, len(batch)).detach().cpu()
        for number, row in zip(batch, classes, strict=True):
            outputs[number] = row
    _refuse_not_finite(outputs, [query for _, query in asked])
    answers = iter(outputs)
    return [
        torch.stack(list(islice(answers, len(each)))) if each else torch.empty(0)
        for each in queries
    ]


def run_queries(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    rows: Sequence[int],
    queries: Sequence[Query],
) -> Any:
    """Return what the forward function gives for queries of equal length.

    No gradient is recorded.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        rows (sequence of int): The text of each query.
        queries (sequence of tuple): The queries.

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


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Group the numbers of queries by length, in parts of ``size`` at most.

    The longest come first: what fails on the whole text fails at once.
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
            f"{tuple(shape)}, so that a class is another place once tokens are deleted "
            '(one output per token); give absence="baseline", which deletes none, or '
            "let forward_func return the one output to explain"
        )


def _refuse_not_finite(outputs: Sequence[Tensor], queries: Sequence[Query]) -> None:
    bad = [n for n, row in enumerate(outputs) if not bool(row.isfinite().all())]
    if bad:
        raise ValueError(
            f"forward_func returned NaN or infinite outputs for {len(bad)} of "
            f"{len(outputs)} queries, first for one of {len(queries[bad[0]])} of the "
            "text's tokens; it must return finite outputs for short inputs, too"
        )
