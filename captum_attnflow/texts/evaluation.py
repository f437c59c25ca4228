"""Runs a forward function on queries, in batches of equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from captum_attnflow._captum import progress
from captum_attnflow._checks import (
    check_batch_size,
    check_callable,
    check_flags,
    check_integer,
    check_type,
    counted,
    described,
    type_of,
)
from captum_attnflow._memory import is_out_of_memory
from captum_attnflow.targets import (
    Target,
    check_output,
    run_forward,
    targets_of_texts,
)
from captum_attnflow.texts.absence import PerturbableTexts, Query
from captum_attnflow.texts.token_axis import TokenAxis, parameter_names

_DEFAULT_ROWS = 128
# Arguments with these in their names have a column for each token of the input.
_NAMES_OF_COLUMNS = ("mask", "padding", "position", "type", "segment")


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
    check_callable("forward_func", forward_func)
    _check_queries(texts, queries)
    check_batch_size(internal_batch_size)
    check_flags(show_progress=show_progress)
    if targets is not None:
        check_type("targets", targets, (list, tuple), "a tuple of indices per text")
        targets = targets_of_texts(list(targets), len(texts.types))
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
        ValueError: If the forward function takes the whole text, but fails on a
            shorter one or on baselines; or if it fails on floats.
        Exception: Any other error of the forward function, as it is.
    """
    check_callable("forward_func", forward_func)
    _check_query_rows(texts, rows, queries)
    with torch.no_grad():
        try:
            return texts.run(forward_func, rows, queries)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            explained = _in_words(error, forward_func, texts, rows, queries[0])
            if explained is None:
                raise
            raise explained from error


def baselines_refused(error: Exception) -> ValueError:
    """Say in words that a forward function fails on baselines, but not on inputs."""
    return ValueError(
        "forward_func takes the inputs, but failed on the baselines: "
        f"{type(error).__name__}: {error}. Give baselines that it takes, such as an id "
        "of its vocabulary: tokenizer.mask_token_id or tokenizer.pad_token_id"
    )


def find_whole_arguments(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    additional: tuple[Any, ...] | None,
    removable: Tensor,
    padding: Tensor,
) -> frozenset[int]:
    """Find arguments as long as the input that have tokens of their own.

    Names decide, and values that are all 0 or 1, as masks and types have. Any other
    argument is tried: it has tokens of its own if the model takes it whole with a
    shorter input. A mask cannot be tried so, since models ignore one that hides
    nothing.

    Args:
        forward_func (Callable): The forward function.
        inputs (Tensor): Shape ``(B, T, ...)``.
        additional (tuple, optional): The forward function's further arguments.
        removable (Tensor): Shape ``(B, T)``, bool, ``True`` at tokens that may be
            deleted.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding, which is deleted.

    Returns:
        frozenset[int]: Numbers of arguments that lose no column with a token.
    """
    check_callable("forward_func", forward_func)
    kinds = (tuple, list, type(None))
    check_type("additional", additional, kinds, "a tuple of arguments, or None")
    axis, arguments = TokenAxis(padding), additional or ()
    names = parameter_names(forward_func, 1, len(arguments))
    decoders = frozenset(n for n, name in enumerate(names) if "decoder" in name)
    undecided = [
        number
        for number, (name, argument) in enumerate(zip(names, arguments, strict=True))
        if axis.is_shared(argument)
        and number not in decoders
        and not any(part in name for part in _NAMES_OF_COLUMNS)
        and not bool(((argument == 0) | (argument == 1)).all())
    ]
    shorter = _shorter_text(removable, padding) if undecided else None
    if shorter is None:
        return decoders
    rows, columns = shorter

    def runs(numbers: Iterable[int]) -> bool:
        taken = axis.take_arguments(additional, rows, columns, decoders.union(numbers))
        device = inputs.device
        try:
            with torch.no_grad():
                text = inputs[rows.to(device)[:, None], columns.to(device)]
                run_forward(forward_func, text, None, taken)
        except Exception as error:  # models fail on another length in many ways
            if is_out_of_memory(error):
                raise
            return False
        return True

    if runs(undecided):
        return decoders.union(undecided)
    return decoders.union(number for number in undecided if runs([number]))


_ACCEPTED_QUERIES = "tuples of indices into the text's explained tokens"


def _check_texts(texts: object) -> None:
    members = ("absence", "types", "positions", "n_positions", "max_rows", "run")
    if not all(hasattr(texts, name) for name in members):
        raise ValueError(
            f"texts={described(texts)} is {type_of(texts)}; give texts with "
            "parts removed, such as DeletableColumns"
        )


def _check_queries(texts: PerturbableTexts, queries: Sequence[Sequence[Query]]) -> None:
    """Refuse queries that are not a list of tuples for each text."""
    _check_texts(texts)
    accepted = f"a list of {_ACCEPTED_QUERIES} for each text"
    check_type("queries", queries, (list, tuple), accepted)
    if len(queries) != len(texts.types):
        raise ValueError(
            f"queries of {counted(len(queries), 'text')} were given for "
            f"{counted(len(texts.types), 'text')}; give {accepted}"
        )
    for text, each in enumerate(queries):
        check_type("the queries of a text", each, (list, tuple), _ACCEPTED_QUERIES)
        for query in each:
            _check_query(query, len(texts.types[text]))


def _check_query_rows(
    texts: PerturbableTexts, rows: Sequence[int], queries: Sequence[Query]
) -> None:
    """Refuse queries that are not one tuple for each of the numbers of texts."""
    _check_texts(texts)
    check_type("rows", rows, (list, tuple), "the number of a text for each query")
    check_type("queries", queries, (list, tuple), _ACCEPTED_QUERIES)
    if not rows or len(rows) != len(queries):
        raise ValueError(
            f"rows and queries have lengths {len(rows)} and {len(queries)}; give at "
            "least one query, and the number of its text in rows"
        )
    for row, query in zip(rows, queries, strict=True):
        check_integer("a row", row, 0)
        if row >= len(texts.types):
            raise ValueError(
                f"rows hold {row}, but there are {counted(len(texts.types), 'text')}; "
                "give their numbers, from 0"
            )
        _check_query(query, len(texts.types[row]))


def _check_query(query: Query, n_tokens: int) -> None:
    check_type("a query", query, tuple, _ACCEPTED_QUERIES)
    # Queries are many, and so are their indices: no Python code runs for each of them.
    are_integers = set(map(type, query)) <= {int}
    if not are_integers or (query and not 0 <= min(query) <= max(query) < n_tokens):
        raise ValueError(
            f"a query is {described(query)}, but its text has "
            f"{counted(n_tokens, 'token')} to explain; give a tuple of their indices, "
            "integers from 0"
        )


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
    scores = check_output(_as_tensor(output), n_rows)
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


def _shorter_text(removable: Tensor, padding: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find a text to shorten: its row ``(1,)`` and columns ``(1, L)`` that are left."""
    for row, (may_go, absent) in enumerate(
        zip(removable.cpu(), padding.cpu(), strict=True)
    ):
        left = ~absent
        left[may_go.nonzero()[-1:, 0]] = False
        # A single column would fit any length by broadcasting.
        if 2 <= int(left.sum()) < len(left):
            return torch.tensor([row]), left.nonzero()[:, 0][None]
    return None


def _in_words(
    error: Exception,
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    rows: Sequence[int],
    query: Query,
) -> ValueError | None:
    """Explain a failure by running whole texts; None if these do not explain it."""
    # Inputs of full length run in as many rows, so that only baselines differ. Whole
    # texts of different lengths do not run together.
    rows = rows if texts.absence == "baseline" else rows[:1]
    wholes = [tuple(range(len(texts.types[row]))) for row in rows]
    try:
        texts.run(forward_func, rows, wholes)
    except Exception:
        if texts.float_shape is None:
            return None
        return ValueError(
            f"forward_func failed on floats of shape {texts.float_shape}: "
            f"{type(error).__name__}: {error}. SLALOM calls it on parts of what is "
            "given as inputs. For floats it must take embeddings (B, T, D), such as "
            "lambda embeddings: model(inputs_embeds=embeddings).logits, or features "
            "(B, T); if it takes token ids, give token ids (B, T), integers"
        )
    if texts.absence == "baseline":
        return baselines_refused(error)
    length, full = texts.length(rows[0], query), texts.length(rows[0], wholes[0])
    if length >= full:
        return None
    return ValueError(
        f"forward_func takes the {full} tokens of text {rows[0] + 1}, but failed "
        f"on {length} of them: {type(error).__name__}: {error}. SLALOM deletes "
        "tokens; for a model that takes one width only, give "
        'absence="baseline" and baselines to stand where a token is absent'
    )


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
                f"forward_func returned {type_of(output)}; it must return a "
                "tensor with one row per input, such as model(...).logits"
            ) from error
    return scores if scores.is_floating_point() else scores.double()
