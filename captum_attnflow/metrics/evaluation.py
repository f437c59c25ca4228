r"""What a metric is given, which tokens it removes, and the probability without them.

All metrics of this package remove the tokens of highest score, or all others. The order
of a sort must not matter: if only some tokens of a group with equal scores are among
the highest ``k``, every choice among the group is equally likely, and a metric is its
expectation over these choices. Each distinct set of tokens is evaluated once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import (
    NullProgress,
    TargetType,
    format_additional_forward_args,
    progress,
)
from captum_attnflow._checks import (
    check_additional,
    check_batch_size,
    check_callable,
    check_choice,
    check_dense,
    check_flags,
    check_integer,
    check_seed,
)
from captum_attnflow.targets import (
    check_output,
    run_forward,
    select_numbers,
    target_of_rows,
    targets_of_texts,
)
from captum_attnflow.texts import TokenAxis, find_whole_arguments
from captum_attnflow.texts.token_axis import columns_of

TensorOrTensors = Tensor | tuple[Tensor, ...]
RemovalMode = Literal["replace", "delete"]
Output = Literal["logits", "probabilities"]


class EvaluationOptions(TypedDict, total=False):
    """Options of every function that removes tokens, by keyword.

    Attributes:
        removal (str): ``"replace"`` (default) puts the baseline in a token's place;
            ``"delete"`` takes the token out of the input and of every argument that
            shares its axis, so that the model sees a shorter text.
        output (str): ``"logits"`` (default): a softmax over the last dimension of the
            output makes probabilities, the logistic function if it has a single
            output. ``"probabilities"``: the output holds them already; a probability of
            0 counts as 1e-38, so that log odds stay finite.
        keep (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; tokens that are
            never removed and not counted, such as special tokens. Default: None.
        padding (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; positions that
            hold no token. They are cut off before the model runs, with either removal.
            Default: None.
        internal_batch_size (int, optional): Most rows in one forward pass. Default:
            None, all rows of one length.
        show_progress (bool): Show a progress bar. Default: False.
    """

    removal: RemovalMode
    output: Output
    keep: Tensor | None
    padding: Tensor | None
    internal_batch_size: int | None
    show_progress: bool


class RemovalOptions(EvaluationOptions, total=False):
    """Options that all metrics share, by keyword: :class:`EvaluationOptions`, and ties.

    Attributes:
        n_tie_samples (int): If there are at most this many choices among tied tokens,
            all are evaluated, otherwise this many random ones. Default: 32.
        seed (int): Seed of these random choices. Default: 0.
    """

    n_tie_samples: int
    seed: int


def _only_tensor(name: str, given: TensorOrTensors) -> Tensor:
    """Take the one tensor of tokens, given alone or in a tuple as in Captum.

    Raises:
        ValueError: If there are several, or it has no dimension of tokens.
    """
    tensors = given if isinstance(given, tuple) else (given,)
    for tensor in tensors:
        check_dense(name, tensor, "one of tokens, (B, T) or (B, T, D)")
    if len(tensors) != 1 or tensors[0].dim() < 2 or tensors[0].numel() == 0:
        raise ValueError(
            f"{name} have shapes {[tuple(tensor.shape) for tensor in tensors]}; give "
            "one tensor of tokens, (B, T) or (B, T, D), and everything else in "
            "additional_forward_args; ids[None] makes a batch of one text"
        )
    return tensors[0].detach()


def _read_inputs(inputs: TensorOrTensors) -> Tensor:
    """Take the one tensor of token ids or embeddings.

    Raises:
        ValueError: If there are several, or it holds bools.
    """
    tokens = _only_tensor("inputs", inputs)
    if tokens.dtype == torch.bool:
        raise ValueError(
            "inputs are of dtype torch.bool; give token ids, integers, or embeddings"
        )
    return tokens


def read_token_scores(
    attributions: TensorOrTensors, tokens: Tensor | None = None
) -> Tensor:
    """Sum attributions over features; shape ``(B, T)``, on the CPU.

    Args:
        attributions (Tensor): Shape ``(B, T)`` or ``(B, T, D)``.
        tokens (Tensor, optional): Shape ``(B, T, ...)``, the inputs that they score.

    Raises:
        ValueError: If they have another shape or are not finite.
    """
    given = _only_tensor("attributions", attributions)
    if tokens is not None and given.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f"attributions have shape {tuple(given.shape)} for inputs of shape "
            f"{tuple(tokens.shape)}; give one score, or one per feature, for each of "
            "the tokens"
        )
    scores = given.cpu().double().flatten(2).sum(2) if given.dim() > 2 else given.cpu()
    if not bool(scores.isfinite().all()):
        example = int((~scores.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the attributions of example {example} hold NaN or infinite values, which "
            "cannot be ranked; give finite values"
        )
    return scores


def read_mask(name: str, mask: Tensor | None, scores: Tensor) -> Tensor:
    """Broadcast a mask; shape ``(B, T)``, bool, on the CPU.

    Raises:
        ValueError: If it has another shape or dtype.
    """
    if mask is None:
        return torch.zeros(scores.shape, dtype=torch.bool)
    check_dense(name, mask, f"bool of shape {tuple(scores.shape)}")
    fits = mask.shape in (scores.shape, scores.shape[1:])
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; give bool "
            f"of shape {tuple(scores.shape)} or {tuple(scores.shape[1:])}"
        )
    return mask.cpu().expand(scores.shape)


def n_of_share(fraction: float, n_tokens: int) -> int:
    """Return how many of ``n_tokens`` tokens a share is, rounded up."""
    # In floating point, 0.07 * 100 is a little more than 7. Without the margin it would
    # round up to 8.
    return math.ceil(fraction * n_tokens - 1e-9)


def _read_baseline(baselines: Any, inputs: Tensor) -> Tensor:
    """Broadcast what replaces tokens to the shape and dtype of the inputs.

    Raises:
        ValueError: If there is none, or it does not fit the inputs.
    """
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


Part = Literal["highest", "rest"]


class Level(NamedTuple):
    """What is removed at one level.

    Attributes:
        fraction (float): Share of the removable tokens, in [0, 1]; of ``n`` tokens it
            means the ``k = ceil(fraction * n)`` highest, so that a positive fraction
            means at least one.
        part (str): ``"highest"`` removes these tokens, ``"rest"`` all others.
    """

    fraction: float
    part: Part

    def n_highest(self, n_tokens: int) -> int:
        """Return how many of ``n_tokens`` tokens are the highest."""
        return n_of_share(self.fraction, n_tokens)


class Count(NamedTuple):
    """What is removed at one level, by number.

    Attributes:
        tokens (int): Number of the highest removable tokens; at least one token is
            left.
        part (str): ``"highest"`` removes these tokens, ``"rest"`` all others.
    """

    tokens: int
    part: Part

    def n_highest(self, n_tokens: int) -> int:
        """Return how many of ``n_tokens`` tokens are the highest."""
        return max(0, min(self.tokens, n_tokens - 1))


AnyLevel = Level | Count
NOTHING = Level(0.0, "highest")


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Distinct sets of tokens to remove.

    Attributes:
        example (Tensor): Shape ``(S,)``, int64, row of the batch that a set belongs to.
        removed (Tensor): Shape ``(S, T)``, bool.
    """

    example: Tensor
    removed: Tensor


@dataclass(frozen=True, eq=False)
class Removals(TokenSets):
    """Sets of tokens, and the weight of each at each level.

    Attributes:
        term_set (Tensor): Shape ``(N,)``, int64, set of each term of the expectations.
        term_level (Tensor): Shape ``(N,)``, int64, level of each term.
        term_weight (Tensor): Shape ``(N,)``, float64, probability of each term; those
            of one example and level sum to 1.
        shape (tuple of int): Examples ``B`` and levels ``K``.
    """

    term_set: Tensor
    term_level: Tensor
    term_weight: Tensor
    shape: tuple[int, int]

    def expectation(self, values: Tensor) -> Tensor:
        """Average a value per set over the choices of each example and level.

        Args:
            values (Tensor): Shape ``(S,)``, float64.

        Returns:
            Tensor: Shape ``(B, K)``.
        """
        terms = self.term_weight * values[self.term_set]
        where = (self.example[self.term_set], self.term_level)
        return values.new_zeros(self.shape).index_put(where, terms, accumulate=True)


def plan_removals(
    scores: Tensor,
    removable: Tensor,
    levels: Sequence[AnyLevel],
    n_tie_samples: int,
    seed: int,
) -> Removals:
    """List the sets of tokens that every level needs.

    Args:
        scores (Tensor): Shape ``(B, T)``, one score per token.
        removable (Tensor): Shape ``(B, T)``, bool; the tokens that count.
        levels (sequence of Level or Count): The levels.
        n_tie_samples (int): If there are at most this many choices among tied tokens,
            all are taken; otherwise this many are drawn.
        seed (int): Seed of the draws. They depend only on it and on the numbers of tied
            and of chosen tokens.

    Returns:
        Removals: On the CPU; a set that serves several levels is listed once.
    """
    sets: dict[tuple[int, tuple[int, ...]], int] = {}
    terms: list[tuple[int, int, float]] = []
    for example, (row, allowed) in enumerate(zip(scores, removable, strict=True)):
        positions = allowed.nonzero()[:, 0].tolist()
        score_of = dict(zip(positions, row[allowed].tolist(), strict=True))
        for number, level in enumerate(levels):
            n_highest = level.n_highest(len(positions))
            choices = list(_highest(score_of, n_highest, n_tie_samples, seed))
            for highest in choices:
                if level.part == "rest":
                    highest = tuple(p for p in positions if p not in highest)
                index = sets.setdefault((example, highest), len(sets))
                terms.append((index, number, 1 / len(choices)))
    removed = torch.zeros(len(sets), scores.shape[1], dtype=torch.bool)
    for index, (_, positions) in enumerate(sets):
        removed[index, list(positions)] = True
    term_set, term_level, term_weight = zip(*terms, strict=True)
    return Removals(
        example=torch.tensor([example for example, _ in sets]),
        removed=removed,
        term_set=torch.tensor(term_set),
        term_level=torch.tensor(term_level),
        term_weight=torch.tensor(term_weight, dtype=torch.float64),
        shape=(len(scores), len(levels)),
    )


def _highest(
    score_of: dict[int, float], n_highest: int, n_tie_samples: int, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yield equally likely choices of the positions of the highest scores, in order."""
    if n_highest == 0:
        yield ()
        return
    threshold = sorted(score_of.values(), reverse=True)[n_highest - 1]
    certain = [p for p, score in score_of.items() if score > threshold]
    tied = [p for p, score in score_of.items() if score == threshold]
    n_chosen = n_highest - len(certain)
    for chosen in _choices(tied, n_chosen, n_tie_samples, seed):
        yield tuple(sorted((*certain, *chosen)))


def _choices(
    tied: list[int], n_chosen: int, n_tie_samples: int, seed: int
) -> Iterator[tuple[int, ...]]:
    if math.comb(len(tied), n_chosen) <= n_tie_samples:
        yield from itertools.combinations(tied, n_chosen)
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_tie_samples):
        order = torch.randperm(len(tied), generator=generator).tolist()
        yield tuple(tied[index] for index in order[:n_chosen])


Value = Callable[[Tensor, Tensor], Tensor]
"""Of the target's log probabilities with all tokens and without a set of them."""


@dataclass(frozen=True, eq=False)
class TokenRemoval:
    """A forward function and inputs from which tokens are removed.

    Rows with equally many tokens left run together. They need no padding, so the model
    needs no attention mask.

    Attributes:
        forward_func (Callable): The forward function, as Captum takes it.
        inputs (Tensor): Shape ``(B, T, ...)``, token ids or embeddings.
        baselines (scalar or Tensor, optional): What replaces a removed token.
        target (int, tuple, Tensor or list, optional): The output that is measured.
        additional (tuple, optional): Further arguments of the forward function.
        removal (str): ``"replace"`` or ``"delete"``.
        output (str): ``"logits"`` or ``"probabilities"``.
        padding (Tensor): Shape ``(B, T)``, bool.
        whole (frozenset of int): Numbers of further arguments with tokens of their own,
            such as a decoder's, which lose none.
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
    whole: frozenset[int]
    internal_batch_size: int | None
    show_progress: bool

    def __post_init__(self) -> None:
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
        axis = TokenAxis(self.padding)
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
                    None,
                    axis.take_arguments(self.additional, rows, columns, self.whole),
                )
                selected = _log_probability(
                    check_output(output, len(sets)),
                    target_of_rows(self.target, rows),
                    self.output,
                )
                values[sets] = selected.cpu()
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


def read_removal(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    baselines: Any,
    target: TargetType,
    additional_forward_args: object,
    *,
    removal: RemovalMode = "replace",
    output: Output = "logits",
    keep: Tensor | None = None,
    padding: Tensor | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> tuple[TokenRemoval, Tensor]:
    """Read the arguments of a metric; which tokens may be removed follows from them.

    See :mod:`captum_attnflow.metrics` and :class:`EvaluationOptions`.

    Returns:
        tuple: The model without tokens, and the removable ones, ``(B, T)``, bool, on
        the CPU.
    """
    check_callable("forward_func", forward_func)
    check_flags(show_progress=show_progress)
    check_choice("removal", removal, ("replace", "delete"))
    tokens = _read_inputs(inputs)
    positions = tokens.new_empty(tokens.shape[:2])
    absent = read_mask("padding", padding, positions)
    kept = read_mask("keep", keep, positions)
    targets_of_texts(target, len(tokens))
    additional = format_additional_forward_args(additional_forward_args)
    check_additional(additional, len(tokens))
    removable = ~(absent | kept)
    # With removal="replace" only padding is cut off.
    deleted = removable if removal == "delete" else torch.zeros_like(removable)
    model = TokenRemoval(
        forward_func=forward_func,
        inputs=tokens,
        baselines=baselines,
        target=target,
        additional=additional,
        removal=removal,
        output=output,
        padding=absent.to(tokens.device),
        whole=find_whole_arguments(forward_func, tokens, additional, deleted, absent),
        internal_batch_size=internal_batch_size,
        show_progress=show_progress,
    )
    return model, removable


def level_values(
    wanted: Mapping[str, tuple[Value, Sequence[AnyLevel]]],
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any,
    target: TargetType,
    additional_forward_args: object,
    *,
    n_tie_samples: int = 32,
    seed: int = 0,
    **options: Unpack[EvaluationOptions],
) -> dict[str, Tensor]:
    """Evaluate values at levels; expectations where scores tie.

    ``wanted`` maps any name to a value and its levels. The other arguments are those
    of :mod:`captum_attnflow.metrics` and :class:`RemovalOptions`.

    Returns:
        dict[str, Tensor]: Shape ``(B, K)``, float64, by the names given.
    """
    model, removable = read_removal(
        forward_func, inputs, baselines, target, additional_forward_args, **options
    )
    scores = read_token_scores(attributions, model.inputs)
    check_integer("n_tie_samples", n_tie_samples, 1)
    check_seed(seed)
    levels = dict.fromkeys(
        [NOTHING, *(level for _, levels in wanted.values() for level in levels)]
    )
    numbers = {level: number for number, level in enumerate(levels)}
    removals = plan_removals(scores, removable, list(numbers), n_tie_samples, seed)
    after = model.log_probability(removals)
    before = removals.expectation(after)[:, numbers[NOTHING]][removals.example]
    return {
        name: removals.expectation(value(before, after))[
            :, [numbers[level] for level in levels_of_value]
        ]
        for name, (value, levels_of_value) in wanted.items()
    }


def _log_probability(output: Tensor, target: TargetType, kind: Output) -> Tensor:
    """Select the target's log probability; shape ``(N,)``."""
    # In float64, a probability near 1 still differs from 1.
    output = output.double()
    if not bool(output.isfinite().all()):
        raise ValueError(
            "forward_func returned NaN or infinite values; it must return finite ones "
            "for any of the tokens removed"
        )
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
    return select_numbers(output, target, len(output))
