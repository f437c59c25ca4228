r"""AOPC between its bounds over all orders (Edin et al. 2024, arXiv 2408.08137).

How far a prediction can fall as tokens are removed depends on the model and the text,
so AOPC of different models must not be compared. NAOPC is AOPC on a scale from the
worst to the best order in which the text's tokens can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._captum import NullProgress, TargetType, log_usage, progress
from captum_attnflow._checks import check_dense, check_integer, check_type, counted
from captum_attnflow.metrics.erasure import probability_fall
from captum_attnflow.metrics.evaluation import (
    Count,
    EvaluationOptions,
    RemovalOptions,
    TensorOrTensors,
    TokenRemoval,
    TokenSets,
    level_values,
    read_removal,
)

Falls = Callable[[Sequence[int]], list[float]]
"""Of sets of tokens, as bits of integers: the fall of the probability without each."""

BEAM_WIDTH = 5


class AOPCBounds(NamedTuple):
    """The lowest and the highest AOPC that an order of a text's tokens has.

    Attributes:
        lower (Tensor): Shape ``(B,)``, float64, in [-1, 1].
        upper (Tensor): Shape ``(B,)``, float64, in [-1, 1].
    """

    lower: Tensor
    upper: Tensor


@log_usage()
def naopc(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    attributions: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    beam_width: int = BEAM_WIDTH,
    bounds: AOPCBounds | None = None,
    **options: Unpack[RemovalOptions],
) -> Tensor:
    r"""Normalised AOPC (Edin et al. 2024); higher is more faithful.

    .. math::
        \frac{\mathrm{AOPC} - \mathrm{lower}}{\mathrm{upper} - \mathrm{lower}},
        \qquad \mathrm{AOPC} = \frac{1}{n - 1} \sum_{k=1}^{n-1}
            \big( p(x) - p(x \setminus x_k) \big),

    where :math:`x_k` are the :math:`k` tokens of highest attribution, so that one more
    is removed at each step. The paper's sum includes :math:`k = n`, at which all tokens
    are removed. That term is the same for AOPC and both bounds and drops out of the
    ratio. So this is the paper's value, also for models that cannot read a text without
    tokens. This AOPC has other levels than :func:`aopc`.

    The bounds are those of :func:`aopc_bounds`, which states their cost. Narrow beams
    may miss the best and the worst order; values may then lie outside [0, 1].

    See :mod:`captum_attnflow.metrics` for the other arguments and what they raise.

    Args:
        forward_func (Callable or Module): See there.
        inputs (Tensor): See there.
        attributions (Tensor): See there.
        baselines (scalar or Tensor, optional): See there.
        target (int, tuple, Tensor or list, optional): See there.
        additional_forward_args (Any, optional): See there.
        beam_width (int): Of the search for the bounds.
        bounds (AOPCBounds, optional): What :func:`aopc_bounds` returned for the same
            arguments; all attributions of a text share them. By default, they are
            searched for.
        **options: The :class:`RemovalOptions`.

    Returns:
        Tensor: Shape ``(B,)``, float64. 1 where all orders have the same AOPC, as those
        of a single token: none is better.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> value = naopc(
        ...     lambda ids: model(ids).logits,
        ...     ids,
        ...     torch.tensor([[0.0, 0, 2, 0, 1, 0, 0]]),
        ...     tokenizer.mask_token_id,
        ...     target=1,
        ...     keep=torch.tensor([True, False, False, False, False, False, True]),
        ... )
        >>> bool(0.5 < value)  # nearer to the best order than to the worst
        True
    """
    ties = ("n_tie_samples", "seed")
    others = cast(
        EvaluationOptions, {k: v for k, v in options.items() if k not in ties}
    )
    arguments = (baselines, target, additional_forward_args)
    model, removable = read_removal(forward_func, inputs, *arguments, **others)
    counts = range(1, model.inputs.shape[1])
    falls = level_values(
        {"fall": (probability_fall, [Count(k, "highest") for k in counts])},
        forward_func,
        inputs,
        attributions,
        *arguments,
        **options,
    )["fall"]
    n_steps = (removable.sum(1, keepdim=True) - 1).clamp_min(0)
    taken = torch.arange(1, 1 + falls.shape[1]) <= n_steps
    value = falls.where(taken, 0).sum(1) / n_steps[:, 0].clamp_min(1)
    if bounds is None:
        bounds = aopc_bounds(forward_func, inputs, *arguments, beam_width, **others)
    check_type("bounds", bounds, (tuple, list), "what aopc_bounds returns, or None")
    lower, upper = (_read_bound(bound, value) for bound in bounds)
    span = upper - lower
    return torch.where(span > 0, (value - lower) / span.where(span > 0, 1), 1)


@log_usage()
def aopc_bounds(
    forward_func: Callable[..., Any],
    inputs: TensorOrTensors,
    baselines: Any = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    beam_width: int = BEAM_WIDTH,
    **options: Unpack[EvaluationOptions],
) -> AOPCBounds:
    r"""Search for the AOPC of the worst and of the best order of each text's tokens.

    AOPC is that of :func:`naopc`. A beam of ``beam_width`` sets of tokens is extended
    by every token that is left. One beam keeps the sets whose orders have made the
    prediction fall most so far; another beam keeps those with the least fall. All
    orders of one set continue in the same way, so only the best is kept. With a width
    of at least :math:`\binom{n}{\lfloor n/2 \rfloor}` the bounds are exact: 20 for 6
    tokens.

    The candidates of a step, of both beams and each set once, make one forward pass.
    Texts are searched one by one, so that a text's bounds depend on no other text. A
    text of :math:`n` tokens takes less than ``beam_width`` :math:`\cdot\, n (n + 1)`
    rows, 2,090 for 20 tokens and beams of 5, where one value of :func:`naopc` takes 20
    more: so keep what this returns.

    See :mod:`captum_attnflow.metrics` for the other arguments and what they raise.

    Args:
        forward_func (Callable or Module): See there.
        inputs (Tensor): See there.
        baselines (scalar or Tensor, optional): See there.
        target (int, tuple, Tensor or list, optional): See there.
        additional_forward_args (Any, optional): See there.
        beam_width (int): Sets of tokens in each beam, at least 1.
        **options: The :class:`EvaluationOptions`; orders have no ties.

    Returns:
        AOPCBounds: 0 and 0 where there are less than two tokens to remove.

    Raises:
        ValueError: If ``beam_width`` is not positive; otherwise see there.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> lower, upper = aopc_bounds(
        ...     lambda ids: model(ids).logits,
        ...     ids,
        ...     tokenizer.mask_token_id,
        ...     target=1,
        ...     keep=torch.tensor([True, False, False, False, False, False, True]),
        ... )
        >>> bool(lower < upper)
        True
    """
    check_integer("beam_width", beam_width, 1)
    show_progress = options.pop("show_progress", False)
    model, removable = read_removal(
        forward_func, inputs, baselines, target, additional_forward_args, **options
    )
    bar: Any = progress if show_progress else NullProgress
    found = []
    with bar(desc="orders of tokens", total=len(removable)) as shown:
        for example, allowed in enumerate(removable):
            positions = allowed.nonzero()[:, 0]
            falls = _falls_of(model, example, positions)
            found.append(_search(falls, len(positions), beam_width))
            shown.update(1)
    lower, upper = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return AOPCBounds(lower, upper)


def _read_bound(bound: Tensor, value: Tensor) -> Tensor:
    check_dense("bounds", bound, "what aopc_bounds returns")
    given = bound.double().cpu()
    if given.shape != value.shape:
        raise ValueError(
            f"bounds have shape {tuple(given.shape)} for "
            f"{counted(len(value), 'example')}; give what aopc_bounds returns for the "
            "same inputs, a lower and an upper bound of one number per example"
        )
    return given


def _falls_of(model: TokenRemoval, example: int, positions: Tensor) -> Falls:
    """Return a function of sets of an example's tokens; bit ``j`` is the ``j``-th."""
    width = model.inputs.shape[1]

    def log_probability(removed: Tensor) -> Tensor:
        rows = torch.full((len(removed),), example)
        return model.log_probability(TokenSets(rows, removed))

    before = log_probability(torch.zeros(1, width, dtype=torch.bool))

    def falls(sets: Sequence[int]) -> list[float]:
        removed = torch.zeros(len(sets), width, dtype=torch.bool)
        bits = [[members >> j & 1 for j in range(len(positions))] for members in sets]
        removed[:, positions] = torch.tensor(bits, dtype=torch.bool)
        fallen: list[float] = probability_fall(
            before, log_probability(removed)
        ).tolist()
        return fallen

    return falls


def _search(falls: Falls, n_tokens: int, beam_width: int) -> tuple[float, float]:
    """Return the lowest and the highest mean of falls along an order that is found."""
    # For each sign of the falls: sets, and the largest sum of signed falls along an
    # order that leads to the set.
    beams: dict[int, dict[int, float]] = {-1: {0: 0.0}, 1: {0: 0.0}}
    for _ in range(1, n_tokens):
        reached = {sign: _extend(beam, n_tokens) for sign, beam in beams.items()}
        sets = sorted({members for sums in reached.values() for members in sums})
        fall_of = dict(zip(sets, falls(sets), strict=True))
        for sign, sums in reached.items():
            totals = {s: total + sign * fall_of[s] for s, total in sums.items()}
            best = sorted(totals, key=lambda s: (-totals[s], s))[:beam_width]
            beams[sign] = {members: totals[members] for members in best}
    n_steps = max(1, n_tokens - 1)
    lower, upper = (sign * max(beam.values()) / n_steps for sign, beam in beams.items())
    return lower, upper


def _extend(beam: dict[int, float], n_tokens: int) -> dict[int, float]:
    """Add each further token to each set; keep the best order that leads to a set."""
    reached: dict[int, float] = {}
    for members, total in beam.items():
        for token in range(n_tokens):
            larger = members | 1 << token
            if larger != members:
                reached[larger] = max(total, reached.get(larger, total))
    return reached
