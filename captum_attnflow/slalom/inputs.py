"""From Captum's inputs to texts whose tokens can be deleted or replaced.

Also finds which token a target names, and which tokens the output does not depend on.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from captum.attr import InterpretableInput
from torch import Tensor
from typing_extensions import TypeIs

from captum_attnflow._captum import TargetType, format_additional_forward_args
from captum_attnflow._checks import counted
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    check_inputs,
    refuse_several,
)
from captum_attnflow.capture.entries import TensorLike
from captum_attnflow.texts import (
    Absence,
    DeletableColumns,
    DeletableWords,
    PerturbableTexts,
    Query,
    ReplaceableInputs,
    Target,
    evaluate_queries,
    find_padding,
    find_special_tokens,
    find_whole_arguments,
    read_keep,
    run_queries,
    targets_of_texts,
)
from captum_attnflow.texts.token_axis import warn_of_unmarked_padding

# Outputs that differ by less are equal, in multiples of the dtype's rounding: kernels
# sum in another order over inputs of another length.
_ROUNDINGS = 64
_LARGEST_ROUNDING = 2e-2


def are_texts(inputs: object) -> TypeIs[Sequence[str]]:
    """Whether the inputs are a list, or another sequence, of str."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, str)
        and len(inputs) > 0
        and all(isinstance(text, str) for text in inputs)
    )


def check_tokens(inputs: object, target: TargetType) -> None:
    """Refuse inputs that are not a batch of tokens, and targets that are not indices.

    Raises:
        ValueError: If they are not; the message says what is accepted and what to do.
    """
    if isinstance(inputs, str):
        raise ValueError(f"inputs are one text; give a list of texts, [{inputs!r}]")
    check_inputs(inputs)
    tensors = cast(
        tuple[Tensor, ...], inputs if isinstance(inputs, tuple) else (inputs,)
    )
    if any(tensor.dim() < 2 or tensor.dtype == torch.bool for tensor in tensors):
        raise ValueError(
            f"inputs have shapes {[tuple(tensor.shape) for tensor in tensors]} and "
            f"dtypes {[tensor.dtype for tensor in tensors]}; give token ids (B, T) or "
            "embeddings (B, T, D), one row per text"
        )
    targets_of_texts(target, len(tensors[0]))


def words_of(
    texts: Sequence[str], additional_forward_args: object, keep: Tensor | None
) -> PerturbableTexts:
    """Read texts for a forward function that takes texts."""
    if keep is not None:
        raise ValueError(
            "keep was given with inputs that are texts, whose words are all explained; "
            "put what must stay into forward_func"
        )
    return DeletableWords(
        texts, format_additional_forward_args(additional_forward_args)
    )


def tokens_of(
    forward_func: Callable[..., Any],
    tokenizer: object | None,
    arguments: ForwardArguments,
    keep: Tensor | None,
    absence: Absence,
    internal_batch_size: int | None,
) -> PerturbableTexts:
    """Read ids, embeddings or features.

    Raises:
        ValueError: If the inputs have another shape, or there are several.
    """
    inputs = _only_tokens(arguments)
    additional = arguments.additional
    wrapped = any(isinstance(item, InterpretableInput) for item in additional or ())
    is_ids = not inputs.is_floating_point() and inputs.dim() == 2
    (baseline,) = arguments.baselines
    places = torch.arange(inputs.shape[1]).expand(inputs.shape[:2])
    if wrapped or (inputs.is_floating_point() and inputs.dim() == 2):
        nowhere = torch.zeros(inputs.shape, dtype=torch.bool)
        fixed = equal_positions(inputs, baseline)
        # Captum's wrapper of language models takes one row at a time.
        return ReplaceableInputs(
            inputs,
            baseline,
            additional,
            places,
            fixed,
            nowhere,
            1 if wrapped else None,
        )
    unchanged = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    if absence == "baseline" or arguments.has_baselines:
        unchanged = equal_positions(inputs, baseline)
    kept, padding = kept_and_padding(
        forward_func, tokenizer, arguments, inputs if is_ids else None, keep, unchanged
    )
    targets = targets_of_texts(arguments.target, len(inputs))
    if absence == "baseline":
        tokens = inputs.cpu() if is_ids else places

        def replaceable(kept: Tensor) -> ReplaceableInputs:
            return ReplaceableInputs(
                inputs, baseline, additional, tokens, kept, padding
            )

        behind = without_effect(
            forward_func, replaceable(kept), targets, None, internal_batch_size
        )
        return replaceable(kept | behind)
    return _deletable(
        forward_func, inputs, additional, kept, padding, targets, internal_batch_size
    )


def _deletable(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    additional: tuple[Any, ...] | None,
    kept: Tensor,
    padding: Tensor,
    targets: Sequence[Target] | None,
    internal_batch_size: int | None,
) -> DeletableColumns:
    """Find which arguments lose columns with a token, and what the target names."""
    whole = find_whole_arguments(
        forward_func, inputs, additional, ~kept & ~padding, padding
    )

    def columns(kept: Tensor, named_by: tuple[int, ...] = ()) -> DeletableColumns:
        return DeletableColumns(inputs, additional, kept, padding, named_by, whole)

    if targets is None or max(map(len, targets)) < 2:
        return columns(kept)
    named_by = indices_of_tokens(forward_func, columns(kept), max(map(len, targets)))
    if not named_by:
        return columns(kept)
    named = named_positions(targets, named_by, padding)
    texts = columns(kept | named, named_by)
    last = [int(row.nonzero().max()) for row in named]
    first_behind = [
        bisect(positions, position)
        for positions, position in zip(texts.positions, last, strict=True)
    ]
    behind = without_effect(
        forward_func, texts, targets, first_behind, internal_batch_size
    )
    return columns(kept | named | behind, named_by)


def _only_tokens(arguments: ForwardArguments) -> Tensor:
    """Return the one input, if it has a token axis."""
    refuse_several([TensorLike.of(tensor) for tensor in arguments.inputs])
    (inputs,) = arguments.inputs
    is_floating = inputs.is_floating_point()
    if not inputs.is_complex() and inputs.dim() in ((2, 3) if is_floating else (2,)):
        return inputs
    given = f"the input has shape {tuple(inputs.shape)} and dtype {inputs.dtype}"
    if inputs.dim() == 4:
        raise ValueError(
            f"{given}, as pixels have, but SLALOM reads tokens. Take LayerSLALOM at "
            "the layer that makes tokens of pixels, such as model.vit.embeddings, or a "
            "method that finds the tokens of pixels, such as RelevanceFlow"
        )
    raise ValueError(
        f"{given}; give token ids (B, T), integers, embeddings (B, T, D) or features "
        "(B, T) of floats, or a list of texts"
    )


def equal_positions(inputs: Tensor, baseline: Tensor) -> Tensor:
    """Mark positions whose inputs equal the baseline, ``(B, T)``."""
    same = (inputs == baseline).expand(inputs.shape)
    return same.reshape(*inputs.shape[:2], -1).all(2).cpu()


def kept_and_padding(
    forward_func: Callable[..., Any],
    tokenizer: object | None,
    arguments: ForwardArguments,
    ids: Tensor | None,
    keep: Tensor | None,
    unchanged: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return masks ``(B, T)`` of tokens that stay in every query and of padding.

    So stay the unchanged ones, which equal their baseline.
    """
    n_texts, n_positions = unchanged.shape
    kept = read_keep(keep, (n_texts, n_positions))
    if kept is None:
        kept = torch.zeros(n_texts, n_positions, dtype=torch.bool)
        if ids is not None:
            kept = find_special_tokens(ids.cpu(), forward_func, tokenizer)
    padding = find_padding(
        forward_func,
        len(arguments.inputs),
        arguments.additional,
        (n_texts, n_positions),
    )
    if ids is not None:
        # Padding that equals its baseline is not in play, whether marked or not.
        known = padding | unchanged
        warn_of_unmarked_padding(ids.cpu(), known, forward_func, tokenizer)
    return kept | unchanged, padding


def indices_of_tokens(
    forward_func: Callable[..., Any], texts: PerturbableTexts, n_indices: int
) -> tuple[int, ...]:
    """Find which indices of a target are token positions, from inputs of two lengths.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): Texts whose tokens are deleted.
        n_indices (int): Indices of a target.

    Returns:
        tuple of int: Numbers of those indices; the last index is the class.

    Raises:
        ValueError: If an axis follows the tokens, but is of another length.
    """
    full = tuple(range(len(texts.types[0])))
    lengths, shapes = [], []
    for query in (full, full[:-1] or full):
        output = run_queries(forward_func, texts, [0], [query])
        if not isinstance(output, Tensor) or output.dim() != n_indices + 1:
            return ()
        lengths.append(texts.length(0, query))
        shapes.append(output.shape[1:-1])
    found = []
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        if list(sizes) == lengths:
            found.append(axis)
        elif sizes[0] != sizes[1]:
            raise ValueError(
                f"forward_func returned outputs of shape (rows, "
                f"{', '.join(map(str, output.shape[1:]))}) for "
                f"{counted(lengths[1], 'token')}, so that the token that index {axis} "
                "of the target names is not known "
                'once tokens are deleted; give absence="baseline", which deletes none'
            )
    return tuple(found)


def named_positions(
    targets: Sequence[Target], axes: Sequence[int], padding: Tensor
) -> Tensor:
    """Mark the positions that targets name, ``(B, T)``.

    Raises:
        ValueError: If a position is padding or out of range.
    """
    n_positions = padding.shape[1]
    named = torch.zeros_like(padding)
    for text, target in enumerate(targets):
        for position in (target[axis] for axis in axes):
            inside = -n_positions <= position < n_positions
            if not inside or bool(padding[text, position]):
                raise ValueError(
                    f"target {target} of text {text + 1} names position {position}, "
                    f"which is {'padding' if inside else 'out of range'}: the text has "
                    f"{counted(int((~padding[text]).sum()), 'token')} in "
                    f"{counted(n_positions, 'position')}"
                )
            named[text, position] = True
    return named


def without_effect(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    targets: Sequence[Target] | None,
    first_behind: Sequence[int] | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Mark last tokens on which no output depends: those a causal model does not read.

    Outputs with and without these tokens are compared after all tokens before them,
    after the first half and after the first one. Where these are equal, they are also
    compared after any number of the first and of the last tokens before them.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        targets (sequence of tuple, optional): Per text.
        first_behind (sequence of int, optional): Per text, the index of the first
            explained token behind the position that its target names. Otherwise the
            first token without effect is searched by bisection.
        internal_batch_size (int, optional): Most rows per forward pass.

    Returns:
        Tensor: Shape ``(B, T)``, bool.
    """
    sizes = [len(types) for types in texts.types]

    def are_idle(starts: dict[int, int], contexts: Contexts) -> set[int]:
        """Return the texts whose tokens from ``start`` on change nothing."""
        queries = [
            _pairs(contexts(starts[text] or size), starts[text], size)
            if text in starts
            else []
            for text, size in enumerate(sizes)
        ]
        outputs = evaluate_queries(
            forward_func, texts, queries, targets, internal_batch_size
        )
        return {text for text in starts if _equal_in_pairs(outputs[text])}

    low = [0 if first_behind else 1] * len(sizes)
    idle_from = list(sizes)
    tried = dict(enumerate(first_behind or (size - 1 for size in sizes)))
    tried = {
        text: start
        for text, start in tried.items()
        # A single token cannot be left out: an empty query has no output.
        if low[text] <= start < sizes[text] and sizes[text] > 1
    }
    while tried:
        idle = are_idle(tried, _few_contexts)
        if idle:
            idle = are_idle({text: tried[text] for text in idle}, _many_contexts)
        for text, start in tried.items():
            if text in idle:
                idle_from[text] = start
            else:
                low[text] = start + 1
        tried = {
            text: (low[text] + idle_from[text]) // 2
            for text in tried
            if first_behind is None and low[text] < idle_from[text] < sizes[text]
        }
    behind = torch.zeros(len(sizes), texts.n_positions, dtype=torch.bool)
    for text, start in enumerate(idle_from):
        behind[text, texts.positions[text][start:]] = True
    return behind


Contexts = Callable[[int], list[Query]]


def _pairs(contexts: list[Query], start: int, size: int) -> list[Query]:
    """Return pairs of non-empty queries that differ by tokens from ``start`` on."""
    if start == 0:  # nothing is before them: compare all tokens with some of them
        return [query for part in contexts[1:] for query in (contexts[0], part)]
    behind = tuple(range(start, size))
    return [query for before in contexts for query in ((*before, *behind), before)]


def _few_contexts(start: int) -> list[Query]:
    before = tuple(range(start))
    return list(dict.fromkeys([before, before[: (start + 1) // 2], before[:1]]))


def _many_contexts(start: int) -> list[Query]:
    before = tuple(range(start))
    firsts = [before[:size] for size in range(1, start)]
    return [before, *firsts, *(before[-size:] for size in range(1, start))]


def _equal_in_pairs(outputs: Tensor) -> bool:
    tolerance = min(_ROUNDINGS * torch.finfo(outputs.dtype).eps, _LARGEST_ROUNDING)
    difference = (outputs[0::2] - outputs[1::2]).abs().max()
    return bool(difference <= tolerance * outputs.abs().max())
