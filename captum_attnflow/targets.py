"""The forward function: its run, errors of its ids, and the output that is selected.

Targets are Captum's, one for all examples or one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index as as_index
from traceback import walk_tb
from typing import Any, SupportsIndex, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow._captum import (
    TargetType,
    forward_layer_distributed_eval,
    run_captums_forward,
    select_targets,
)
from captum_attnflow._checks import (
    check_dense,
    check_integer,
    counted,
    described,
    type_of,
)
from captum_attnflow._memory import is_out_of_memory

Target = tuple[int, ...]
"""Index of one output of a text, as in ``logits[target]``."""


def is_per_example(target: TargetType) -> bool:
    """Whether each example has its own: a list, or a tensor of several numbers."""
    return isinstance(target, list) or (
        isinstance(target, Tensor) and target.numel() > 1
    )


def target_of_rows(target: TargetType, rows: Tensor | slice) -> TargetType:
    """Take the targets of rows ``(N,)`` of the batch, if there is one per example."""
    if not is_per_example(target):
        return target
    if isinstance(rows, slice):
        return target[rows]
    if isinstance(target, list):
        return [target[row] for row in rows.tolist()]
    return target[rows.to(target.device)]


def repeat_target(target: TargetType, times: int) -> TargetType:
    """Repeat targets, if there is one per example, block after block."""
    if not is_per_example(target):
        return target
    return target * times if isinstance(target, list) else target.repeat(times)


def targets_of_texts(target: TargetType, n_texts: int) -> list[Target] | None:
    """Read a target as Captum does, one tuple of indices per text.

    Args:
        target (int, tuple, Tensor or list, optional): As in
            ``captum.attr.IntegratedGradients``.
        n_texts (int): Texts in the batch.

    Raises:
        ValueError: If the targets are not one per text, or no indices.
    """
    check_integer("n_texts", n_texts, 1)
    check_target(target, n_texts)
    if target is None:
        return None
    each: Any = target if is_per_example(target) else [target] * n_texts
    return [
        tuple(map(as_index, index if isinstance(index, tuple) else (index,)))
        for index in each
    ]


_ACCEPTED = (
    "give an integer or a tuple of integers for all examples, or one for each: a list "
    "such as [1, 0], or a tensor (B,)"
)


def check_target(target: object, n_examples: int | None = None) -> None:
    """Refuse what Captum does not read as a target, and bools, which Python would.

    Args:
        target (object): An integer, a tuple of integers, a list of one of these for
            each example, a tensor of integers, ``()`` or ``(B,)``, or None.
        n_examples (int, optional): How many a list or a tensor of several numbers has
            to be for; any number by default.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.

    Examples::

        >>> check_target([(0, 2), (1, 2)])
        >>> check_target([[1], [0]])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: target=[[1], [0]] is no index, as it is nested; give an integer ...
        >>> check_target([0], n_examples=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: target=[0] is for 1 example, but there are 2; give an integer ...
    """
    _check_indices(target)
    given = cast(TargetType, target)
    if n_examples is None or not is_per_example(given) or len(given) == n_examples:
        return
    raise ValueError(
        f"target={described(target)} is for {counted(len(given), 'example')}, but "
        f"there {'is' if n_examples == 1 else 'are'} {n_examples:,}; {_ACCEPTED}"
    )


def _check_indices(target: object) -> None:
    if isinstance(target, Tensor):
        _check_tensor(target)
        return
    if isinstance(target, bool):
        raise ValueError(
            f"target={target} is no index; give that of the output, such as "
            f"{int(target)}"
        )
    for one in target if isinstance(target, list) else [target]:
        indices = one if isinstance(one, tuple) else (one,)
        beyond = [index for index in indices if _is_beyond_int64(index)]
        if beyond:
            raise ValueError(
                f"target={described(target)} is no index, as {beyond[0]:.3g} is larger "
                f"than any; {_ACCEPTED}"
            )
        wrong = [
            index
            for index in indices
            if not _is_index(index, in_tuple=indices is one)
            and not (index is None and one is target)
        ]
        if wrong:
            kind = type(wrong[0]).__name__
            is_nested = isinstance(wrong[0], (list, tuple))
            why = "it is nested" if is_nested else f"{type_of(wrong[0])} is none"
            if hasattr(wrong[0], "tolist"):
                why = f"Captum takes no {kind}, but its tolist()"
            raise ValueError(
                f"target={described(target)} is no index, as {why}; {_ACCEPTED}"
            )


def _is_beyond_int64(given: object) -> bool:
    return isinstance(given, int) and not -(2**63) <= given < 2**63


def _is_index(given: object, in_tuple: bool) -> bool:
    """Whether Captum takes it: a number of a tuple may be of any integer type."""
    if isinstance(given, bool) or not (in_tuple or isinstance(given, int)):
        return False
    try:
        as_index(cast(SupportsIndex, given))
    except TypeError:
        return False
    return True


def _check_tensor(target: Tensor) -> None:
    check_dense("target", target, "one class per example, (B,)")
    if target.dim() > 1:
        raise ValueError(
            f"a target of shape {tuple(target.shape)}; give one class per example, "
            "shape (B,), such as target.flatten(), or a list of tuples for outputs of "
            "more dimensions"
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"target={described(target)} is no index, as {target.dtype} is no dtype of "
            "integers; give target.long()"
        )


def check_output(output: Any, n_rows: int) -> Tensor:
    """Return what a forward function returned, if it has one row per input.

    Args:
        output (Any): What it returned.
        n_rows (int): Rows that went in.

    Raises:
        ValueError: If the output is no tensor, or has another number of rows.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"forward_func returned {type_of(output)}; Captum needs a tensor. "
            "Wrap the model, for example: lambda ids: model(ids).logits"
        )
    shape = tuple(output.shape)
    if output.dim() == 0 or shape[0] != n_rows:
        raise ValueError(
            f"forward_func returned shape {shape} for {counted(n_rows, 'input')}; the "
            "first dimension must be the batch, one row per input. Inputs that have "
            "their tokens first go in transposed"
        )
    return output


def select_numbers(output: Tensor, target: TargetType, n_examples: int) -> Tensor:
    """Select one number per row of an output.

    Args:
        output (Tensor): Shape ``(N, ...)``.
        target (int, tuple, Tensor or list, optional): As Captum reads it; one for all
            rows, or one for each.
        n_examples (int): Examples that the caller knows of. A path has several rows for
            each, after all examples' first ones.

    Returns:
        Tensor: Shape ``(N,)``.

    Raises:
        ValueError: If the output has no such target.
    """
    check_target(target)
    # Messages name the examples, not the points of their paths.
    given = target
    if is_per_example(target):
        given = target[: len(target) * n_examples // len(output)]
    check_target(given, n_examples)
    shape = (n_examples, *output.shape[1:])
    try:
        selected = select_targets(output, target)
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"target={given!r} does not select from an output of shape {shape}: "
            f"{error}. Give one index per example into the dimensions after the first "
            f"(for classes: 0 to {shape[-1] - 1})"
        ) from error
    if selected[0].numel() != 1:
        raise ValueError(
            f"target={given!r} leaves shape {(n_examples, *selected.shape[1:])} of the "
            f"output {shape}; one number per example is needed. Pass target, for "
            "example the predicted class: output.argmax(-1)"
        )
    per_row: Tensor = selected.reshape(len(output))
    return per_row


def select_output(
    output: Any, target: TargetType, n_rows: int, n_examples: int
) -> Tensor:
    """Select one number per row of what a forward function returned, with its graph.

    Args:
        output (Any): What it returned.
        target (int, tuple, Tensor or list, optional): As Captum reads it.
        n_rows (int): Rows that went in.
        n_examples (int): As :func:`select_numbers` takes it.

    Returns:
        Tensor: Shape ``(n_rows,)``, in the autograd graph.

    Raises:
        ValueError: If the output is no tensor with that many rows, has no such target,
            or no gradient.
    """
    selected = select_numbers(check_output(output, n_rows), target, n_examples)
    if not selected.requires_grad:
        raise ValueError(
            "the output does not depend on the inputs through autograd; forward_func "
            "must not run under torch.no_grad() or detach its output, and attribute() "
            "must not be called under torch.inference_mode(). Kernels quantised to "
            "integers have no gradient: load the model in float32 or bfloat16"
        )
    return selected


def run_forward(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    target: TargetType = None,
    additional_forward_args: tuple[Any, ...] | None = None,
) -> Any:
    """Run a forward function as Captum does, and name ids beyond the vocabulary."""
    with vocabulary_in_words(inputs, additional_forward_args):
        return run_captums_forward(
            forward_func, inputs, target, additional_forward_args
        )


def run_with_layer(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], layer: Any, **how: Any
) -> Any:
    """Run a forward function and keep what a layer puts out, as Captum does.

    Ids beyond the vocabulary are named.
    """
    with vocabulary_in_words(inputs, how.get("additional_forward_args")):
        return forward_layer_distributed_eval(forward_func, inputs, layer, **how)


@contextmanager
def vocabulary_in_words(
    inputs: Tensor | tuple[Any, ...], additional: tuple[Any, ...] | None = None
) -> Iterator[None]:
    """Say which of the given ids an embedding has no row for.

    Torch says "index out of range in self". What was looked up stands in the failed
    call itself, so that this costs nothing where all is well. Errors of other lookups,
    such as of too many positions, pass on as they are.

    Args:
        inputs (Tensor or tuple): The inputs of a forward function.
        additional (tuple, optional): Its further arguments.

    Raises:
        ValueError: If a lookup of given ids fails.
    """
    try:
        yield
    except IndexError as error:
        lookup = _failed_lookup(error)
        if lookup is None:
            raise
        ids, n_rows = lookup
        beyond = ids[(ids < 0) | (ids >= n_rows)]
        of_inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        given = (*of_inputs, *(additional or ()))
        if not any(_holds(tensor, beyond) for tensor in given):
            raise
        which = ", ".join(map(str, sorted(set(beyond.tolist()))[:5]))
        raise ValueError(
            f"the ids {which} were given, but the embedding that they are looked up in "
            f"has {n_rows} rows; give ids from 0 to {n_rows - 1}, such as those of the "
            "model's own tokenizer. After adding tokens to it, call "
            "model.resize_token_embeddings(len(tokenizer))"
        ) from error


def check_baseline_ids(ids: Tensor, n_rows: int) -> None:
    """Refuse baselines that an embedding has no row for.

    Args:
        ids (Tensor): The baselines.
        n_rows (int): Rows of the embedding.

    Raises:
        ValueError: If there is one.
    """
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= n_rows:
        raise ValueError(
            f"the baselines hold ids from {least} to {most}, but the embedding has "
            f"{n_rows} rows; give ids from 0 to {n_rows - 1}, such as "
            "tokenizer.mask_token_id"
        )


def _failed_lookup(error: IndexError) -> tuple[Tensor, int] | None:
    """Find the ids and the rows of a lookup in which an error was raised."""
    last = None
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is F.embedding.__code__:
            last = frame.f_locals
    if last is None or not isinstance(last.get("input"), Tensor):
        return None
    return last["input"], len(last["weight"])


def _holds(given: Any, ids: Tensor) -> bool:
    """Whether a tensor holds just these ids, however often it is laid out anew."""
    if not isinstance(given, Tensor) or given.is_floating_point() or not len(ids):
        return False
    return all(
        int((given == one).sum()) == int((ids == one).sum()) for one in ids.unique()
    )


def ids_needed(
    error: Exception,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional: tuple[Any, ...] | None,
) -> ValueError | None:
    """Say that ids are needed, where a forward function failed on floats for that.

    A run on the ids 0 tells.

    Args:
        error (Exception): With which it failed.
        forward_func (Callable): The forward function.
        inputs (tuple[Tensor, ...]): What it was given.
        additional (tuple, optional): Its further arguments.

    Returns:
        ValueError: To be raised from the error; None if that has another reason.
    """
    first, *others = inputs
    shape = tuple(first.shape)
    is_floats = first.is_floating_point() and 2 <= len(shape) <= 3
    if not is_floats or is_out_of_memory(error):
        return None
    ids = torch.zeros(shape[:2], dtype=torch.long, device=first.device)
    try:
        with torch.no_grad():
            run_forward(forward_func, (ids, *others), None, additional)
    except Exception:
        return None
    return ValueError(
        f"forward_func takes token ids (B, T), integers, but failed on floats of shape "
        f"{shape}: {type(error).__name__}: {error}. Give the ids; or, for embeddings, "
        "a function of these, such as lambda embeddings: "
        "model(inputs_embeds=embeddings).logits. Attributions at embeddings are those "
        "of the Layer... class, which takes ids and the embeddings module"
    )
