r"""Links from a model's outputs to the log-odds that SLALOM explains.

The log-odds of class ``c`` against all others are

.. math::
    \log \frac{p_c}{1 - p_c} = y_c - \log \sum_{k \ne c} e^{y_k}

for logits :math:`y`. For two classes this is the difference of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_dense, check_flags
from captum_attnflow.targets import Target

Link = Literal["logits", "probabilities", "identity"]
"""What the outputs are: logits, probabilities, or the number itself to be explained."""
# Most by which probabilities that a model rounded may miss a sum of 1.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class LinkedOutputs:
    """The log-odds of the queries, for each function to fit.

    Attributes:
        rows (list of int): The text of each function. There is one function per text,
            or one per target token of a language model.
        columns (list of Tensor): Per function, shape ``(Q,)``, float64, the log-odds
            of the queries of its text.
        link (str): The link of all functions.
        caveats (tuple of str): Sentences on what the outputs left open.
        n_classes (int): Number of classes that a target selects from; 1 without
            targets.
    """

    rows: list[int]
    columns: list[Tensor]
    link: Link
    caveats: tuple[str, ...]
    n_classes: int


def link_outputs(
    outputs: Sequence[Tensor],
    targets: Sequence[Target] | None,
    link: Link | Literal["auto"],
    excluding: bool | None = None,
) -> LinkedOutputs:
    """Turn each text's outputs ``(Q, C)`` into log-odds, by one link for all.

    Without targets, a function is fitted to each of the ``C`` outputs.

    Args:
        outputs (sequence of Tensor): Per text, shape ``(Q, C)``.
        targets (sequence of tuple, optional): Per text; the last index is the class.
        link (str): The link; ``"auto"`` recognises it.
        excluding (bool, optional): Whether labels exclude each other, if it is known.
            If not, ``"auto"`` reads the outputs of a label like single ones.
    """
    rows, parts, classes = [], [], []
    for text, output in enumerate(outputs):
        each = [output] if targets is not None else list(output[..., None].unbind(1))
        for part in each:
            rows.append(text)
            parts.append(part)
            classes.append(0 if targets is None else targets[text][-1] % part.shape[1])
    everything = torch.cat(parts)
    index = torch.cat(
        [
            torch.full((len(part),), one)
            for part, one in zip(parts, classes, strict=True)
        ]
    )
    one, is_open, chosen, caveats = everything.shape[1] == 1, False, link, []
    if chosen == "auto":
        # The outputs of all labels say what those of one are.
        read = everything.reshape(-1, 1) if excluding is False else everything
        chosen = recognise_link(read, bool(excluding))
        is_open = fits_both_readings(read)
        if excluding is False:
            everything = everything.gather(1, index[:, None])
            index = torch.zeros_like(index)
    odds = log_odds(everything, index, chosen)
    if is_open:
        sums = "" if one or excluding is False else " and do not sum to 1"
        accepted = "logits" if chosen == "logits" else "identity"
        caveats.append(
            f"the {'one output' if one else 'outputs'} per input lie"
            f"{'s' if one else ''} in [0, 1] for all queries{sums}, which scores and "
            "probabilities"
            f"{'' if one else ' of labels that do not exclude each other'} may; "
            f'{"it was" if one else "they were"} read by link="{chosen}". Say by link= '
            f'which it is: "probabilities", or "{accepted}" for scores'
        )
    n_clamped = int(clamped(everything, index, chosen).sum())
    if n_clamped:
        caveats.append(
            f"{n_clamped} of {len(index)} probabilities are 0 or 1 in "
            f"{everything.dtype}; their log-odds were cut off. Let forward_func return "
            'logits, with link="identity" for labels that do not exclude each other'
        )
    columns = list(odds.split([len(part) for part in parts]))
    n_classes = 1 if targets is None else outputs[0].shape[1]
    return LinkedOutputs(rows, columns, chosen, tuple(caveats), n_classes)


def recognise_link(outputs: Tensor, excluding: bool = False) -> Link:
    """Recognise what kind of outputs a model gives.

    Args:
        outputs (Tensor): Shape ``(Q, C)``, all outputs of a call.
        excluding (bool): Whether it is known that one of several classes applies, so
            that probabilities of them sum to 1.

    Returns:
        str: ``"probabilities"`` if all are in (0, 1), or of several classes if all are
        in [0, 1] and sum to 1 (within 1e-3, or what bfloat16 can hold), which is asked
        of both where classes exclude each other. Otherwise ``"logits"`` for several
        classes and ``"identity"`` for one output.

    Examples::

        >>> recognise_link(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
        'probabilities'
        >>> recognise_link(torch.tensor([[1.2], [-0.3]]))
        'identity'
        >>> recognise_link(torch.tensor([[0.2, 0.9]]), excluding=True)
        'logits'
    """
    _check_outputs(outputs)
    check_flags(excluding=excluding)
    one = outputs.shape[1] == 1
    inside = bool(((outputs > 0) & (outputs < 1)).all()) and (one or not excluding)
    if inside or (_in_range(outputs) and _exclude_each_other(outputs)):
        return "probabilities"
    return "identity" if one else "logits"


def fits_both_readings(outputs: Tensor) -> bool:
    """Whether outputs may be probabilities and scores.

    So may those in [0, 1] of which there is one per row, or which do not sum to 1, like
    the probabilities of labels that do not exclude each other.
    """
    _check_outputs(outputs)
    if not _in_range(outputs):
        return False
    return outputs.shape[1] == 1 or not bool(_sums_to_one(outputs).all())


def log_odds(outputs: Tensor, index: Tensor, link: Link) -> Tensor:
    """Turn a class's outputs into its log-odds.

    Args:
        outputs (Tensor): Shape ``(Q, C)``.
        index (Tensor): Shape ``(Q,)``, int64, the class of each row.
        link (str): ``"logits"``; ``"probabilities"``, of which those that
            :func:`clamped` marks are raised to the smallest that it does not mark, and
            which are of labels that do not exclude each other where they do not sum to
            1; or ``"identity"``, which takes the class's output unchanged.

    Returns:
        Tensor: Shape ``(Q,)``, float64.

    Raises:
        ValueError: If ``link`` is ``"probabilities"`` and an output is not in [0, 1].

    Examples::

        >>> logits = torch.tensor([[0.0, 1.5]])
        >>> index = torch.tensor([1])
        >>> float(log_odds(logits, index, "logits"))
        1.5
        >>> round(float(log_odds(logits.softmax(-1), index, "probabilities")), 5)
        1.5
    """
    _check_outputs(outputs)
    _check_index(index, outputs)
    check_choice("link", link, get_args(Link))
    chosen = outputs.double().gather(1, index[:, None])[:, 0]
    if link == "identity" or (link == "logits" and outputs.shape[1] == 1):
        return chosen
    if link == "probabilities":
        if not _in_range(outputs):
            least, most = float(outputs.min()), float(outputs.max())
            raise ValueError(
                f'link="probabilities" was given, but outputs range from {least:.3g} '
                f'to {most:.3g}; give link="logits" or link="identity"'
            )
        for_class, against = _probabilities(outputs, index)
        least_for, least_against = _least_probabilities(outputs)
        odds: Tensor = for_class.clamp_min(least_for).log()
        return odds - against.clamp_min(least_against).log()
    others = outputs.double().scatter(1, index[:, None], -torch.inf)
    return chosen - others.logsumexp(1)


def clamped(outputs: Tensor, index: Tensor, link: Link) -> Tensor:
    """Mark probabilities that are too close to 0 or 1 for their dtype.

    Takes the arguments of :func:`log_odds`.

    Returns:
        Tensor: Shape ``(Q,)``, bool. True where the probability of the class, or of
        all others, is less than the smallest normal number of the dtype. For one
        output, whose complement is not given, that is half an epsilon.
    """
    _check_outputs(outputs)
    _check_index(index, outputs)
    check_choice("link", link, get_args(Link))
    if link != "probabilities":
        return torch.zeros(len(outputs), dtype=torch.bool)
    for_class, against = _probabilities(outputs, index)
    least_for, least_against = _least_probabilities(outputs)
    return (for_class < least_for) | (against < least_against)


def _check_outputs(outputs: Tensor) -> None:
    """Refuse outputs that are not floats ``(Q, C)``."""
    check_dense("outputs", outputs, "(Q, C), a row of outputs per query")
    if outputs.dim() != 2 or not outputs.is_floating_point() or not outputs.numel():
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and dtype {outputs.dtype}; "
            "give floats (Q, C), a row of outputs per query"
        )


def _check_index(index: Tensor, outputs: Tensor) -> None:
    """Refuse an index that is not one class per row."""
    check_dense("index", index, "(Q,), the class of each row")
    fits = index.shape == outputs.shape[:1] and index.dtype == torch.int64
    if not fits or bool(((index < 0) | (index >= outputs.shape[1])).any()):
        raise ValueError(
            f"index has shape {tuple(index.shape)} and dtype {index.dtype}; give int64 "
            f"({len(outputs)},), each from 0 to {outputs.shape[1] - 1}"
        )


def _in_range(outputs: Tensor) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _probabilities(outputs: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of the class and of its complement, each ``(Q,)``.

    The others are summed, not subtracted from 1, which would round small ones away.
    Of labels that do not exclude each other, whose sum is not 1, the others say nothing
    about the complement.
    """
    exact = outputs.double()
    for_class = exact.gather(1, index[:, None])[:, 0]
    if not _exclude_each_other(outputs):
        return for_class, 1 - for_class
    return for_class, exact.scatter(1, index[:, None], 0.0).sum(1)


def _least_probabilities(outputs: Tensor) -> tuple[float, float]:
    limits = torch.finfo(outputs.dtype)
    return limits.tiny, limits.tiny if _exclude_each_other(outputs) else limits.eps / 2


def _exclude_each_other(outputs: Tensor) -> bool:
    return outputs.shape[1] > 1 and bool(_sums_to_one(outputs).all())


def _sums_to_one(outputs: Tensor) -> Tensor:
    # A softmax in bfloat16 sums to 1 within its own precision.
    tolerance = max(_SUM_TOLERANCE, 2 * torch.finfo(outputs.dtype).eps)
    return (outputs.double().sum(1) - 1).abs() < tolerance
