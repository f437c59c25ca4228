r"""How well attributions point at labelled evidence, measured without the model.

If a person has marked the tokens that an answer comes from, an attribution can be
compared with the marks: ERASER's plausibility (DeYoung et al., ACL 2020). A model may
use other tokens than people do. Read these metrics together with faithfulness, or on
prompts in which only the marked tokens hold the answer.

**Ties.** As for faithfulness, every order among equal scores is equally likely, and a
metric is the expectation over the orders; here always exact, in closed form (McSherry
& Najork, ECIR 2008). An attribution of zeros is the random one.

The functions share these arguments:

Args:
    attributions (Tensor): Shape ``(B, T)``, or ``(B, T, D)``, which is summed over
        features. The highest is taken for the evidence; give absolute values where the
        sign should not count.
    evidence (Tensor): Shape ``(B, T)`` or ``(T,)``, bool; the labelled tokens.
    keep (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; tokens that are not
        ranked, as special tokens. Default: None.
    padding (Tensor, optional): Shape ``(B, T)`` or ``(T,)``, bool; positions that hold
        no token. Default: None.

Raises:
    ValueError: If shapes do not fit, attributions are not finite, or an example has no
        evidence, or evidence that ``keep`` or ``padding`` leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attnflow._captum import log_usage
from captum_attnflow.metrics.evaluation import (
    TensorOrTensors,
    n_of_share,
    read_mask,
    read_token_scores,
)


@dataclass(frozen=True)
class _Ranking:
    """Ranked tokens in order of their scores, and the ties among them.

    A group is a set of tokens with equal scores; a place's group is that of the token
    sorted there. All are float64.

    Attributes:
        counted (Tensor): Shape ``(B, T)``, bool; places that hold a ranked token, the
            first of each row.
        n_evidence (Tensor): Shape ``(B,)``.
        before (Tensor): Shape ``(B, T)``; tokens above the place's group.
        size (Tensor): Shape ``(B, T)``; tokens in the group.
        evidence_before (Tensor): Shape ``(B, T)``; evidence above the group.
        evidence_inside (Tensor): Shape ``(B, T)``; evidence in the group.
    """

    counted: Tensor
    n_evidence: Tensor
    before: Tensor
    size: Tensor
    evidence_before: Tensor
    evidence_inside: Tensor

    @property
    def place(self) -> Tensor:
        """Places from 1, shape ``(T,)``."""
        return torch.arange(1, self.counted.shape[1] + 1, dtype=torch.float64)

    def at(self, values: Tensor, place: Tensor) -> Tensor:
        """Read values ``(B, T)`` at one place, from 1, per example; shape ``(B,)``."""
        return values.gather(1, place.long()[:, None] - 1)[:, 0]


@log_usage()
def evidence_rank(
    attributions: TensorOrTensors,
    evidence: Tensor,
    *,
    keep: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    r"""Rank of the first evidence token; 1 is the best.

    Among :math:`g` tied tokens with :math:`e` of the evidence the first of it is
    expected at place :math:`(g + 1) / (e + 1)`.

    Takes the arguments of :mod:`captum_attnflow.metrics.evidence`.

    Returns:
        Tensor: Shape ``(B,)``, float64, from 1 to the number of ranked tokens.

    Raises:
        ValueError: See there.

    Examples::

        >>> scores = torch.tensor([[0.1, 0.7, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]])
        >>> evidence_rank(scores, torch.tensor([False, False, False, True]))
        tensor([2.0000, 2.5000], dtype=torch.float64)
    """
    ranking = _rank(attributions, evidence, keep, padding)
    first = (ranking.evidence_inside > 0).int().argmax(1) + 1
    size = ranking.at(ranking.size, first)
    inside = ranking.at(ranking.evidence_inside, first)
    return ranking.at(ranking.before, first) + (size + 1) / (inside + 1)


@log_usage()
def evidence_hit(
    attributions: TensorOrTensors,
    evidence: Tensor,
    k: int = 1,
    *,
    keep: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    r"""Tell whether one of the ``k`` highest tokens is evidence: hit@k.

    Where the :math:`k` highest take :math:`c` of :math:`g` tied tokens, with :math:`e`
    of the evidence and none of it above, the probability is hypergeometric,
    :math:`1 - \binom{g - e}{c} / \binom{g}{c}`.

    Takes the arguments of :mod:`captum_attnflow.metrics.evidence`, and:

    Args:
        attributions (Tensor): See there.
        evidence (Tensor): See there.
        k (int): How many tokens; where fewer are ranked, all. Default: 1.
        keep (Tensor, optional): See there.
        padding (Tensor, optional): See there.

    Returns:
        Tensor: Shape ``(B,)``, float64, from 0 to 1; without ties 0 or 1.

    Raises:
        ValueError: If ``k`` is not a positive integer; otherwise see there.

    Examples::

        >>> scores = torch.tensor([[0.1, 0.7, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]])
        >>> evidence = torch.tensor([False, False, False, True])
        >>> evidence_hit(scores, evidence)
        tensor([0.0000, 0.2500], dtype=torch.float64)
        >>> evidence_hit(scores, evidence, k=2)
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k < 2**63:
        raise ValueError(f"k={k!r} must be a positive integer, such as 1 or 3")
    ranking = _rank(attributions, evidence, keep, padding)
    last = ranking.counted.sum(1).clamp(max=k)
    size, inside = (
        ranking.at(values, last)[:, None]
        for values in (ranking.size, ranking.evidence_inside)
    )
    taken = (last - ranking.at(ranking.before, last))[:, None]
    # The ratio of binomials, factor by factor. Each factor is the probability that the
    # next draw misses, too.
    drawn = ranking.place - 1
    misses = ((size - inside - drawn) / (size - drawn)).where(drawn < taken, 1)
    missed = misses.clamp_min(0).prod(1)
    return 1 - missed.where(ranking.at(ranking.evidence_before, last) == 0, 0)


@log_usage()
def evidence_average_precision(
    attributions: TensorOrTensors,
    evidence: Tensor,
    *,
    keep: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    r"""Area under the precision-recall curve of the evidence: average precision.

    The mean over the evidence of the precision down to each of its tokens, which is the
    curve's area in steps, as scikit-learn's ``average_precision_score`` has it; ERASER
    takes trapezoids, which flatter. At place :math:`m + j`, the :math:`j`-th of
    :math:`g` tied tokens with :math:`e` of the evidence, below :math:`m` tokens with
    :math:`h` of it, the expectation over the ties is

    .. math::
        \frac{e}{g} \cdot \frac{1}{m + j}
        \left(h + 1 + (j - 1) \frac{e - 1}{g - 1}\right)

    (scikit-learn counts a tie as one step instead).

    Takes the arguments of :mod:`captum_attnflow.metrics.evidence`.

    Returns:
        Tensor: Shape ``(B,)``, float64, from above 0 to 1.

    Raises:
        ValueError: See there.

    Examples::

        >>> scores = torch.tensor([[0.1, 0.7, 0.2, 0.3]])
        >>> evidence = torch.tensor([[False, True, True, False]])
        >>> evidence_average_precision(scores, evidence)  # (1 / 1 + 2 / 3) / 2
        tensor([0.8333], dtype=torch.float64)
    """
    ranking = _rank(attributions, evidence, keep, padding)
    others = (ranking.place - ranking.before - 1) / (ranking.size - 1).clamp_min(1)
    found = ranking.evidence_before + 1 + others * (ranking.evidence_inside - 1)
    share = ranking.evidence_inside / ranking.size
    terms = (share * found / ranking.place).where(ranking.counted, 0)
    return terms.sum(1) / ranking.n_evidence


@log_usage()
def evidence_f1(
    attributions: TensorOrTensors,
    evidence: Tensor,
    fraction: float | None = None,
    *,
    keep: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    r"""F1 of the highest tokens against the evidence, ERASER's token F1.

    With :math:`k` highest tokens of which :math:`t` are among the :math:`n` of the
    evidence, :math:`2 t / (k + n)`. Of :math:`c` tokens taken from :math:`g` tied ones
    with :math:`e` of the evidence, :math:`c e / g` are expected to be.

    Takes the arguments of :mod:`captum_attnflow.metrics.evidence`, and:

    Args:
        attributions (Tensor): See there.
        evidence (Tensor): See there.
        fraction (float, optional): Share of the ranked tokens to take, in (0, 1],
            rounded up. Default: None, as many as are evidence, where precision, recall
            and F1 are the same.
        keep (Tensor, optional): See there.
        padding (Tensor, optional): See there.

    Returns:
        Tensor: Shape ``(B,)``, float64, from 0 to 1.

    Raises:
        ValueError: If ``fraction`` is out of its range; otherwise see there.

    Examples::

        >>> scores = torch.tensor([[0.1, 0.7, 0.2, 0.3]])
        >>> evidence = torch.tensor([[False, True, True, False]])
        >>> evidence_f1(scores, evidence), evidence_f1(scores, evidence, fraction=0.7)
        (tensor([0.5000], dtype=torch.float64), tensor([0.8000], dtype=torch.float64))
    """
    is_number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if fraction is not None and not (is_number and 0 < fraction <= 1):
        raise ValueError(
            f"fraction={fraction!r}; give a share of the tokens above 0 and up to 1, "
            "such as 0.1 for 10 %, or None for as many tokens as are evidence"
        )
    ranking = _rank(attributions, evidence, keep, padding)
    last = ranking.n_evidence
    if fraction is not None:
        counts = ranking.counted.sum(1).tolist()
        last = last.new_tensor([n_of_share(fraction, n) for n in counts])
        last = last.clamp_min(1)
    taken = last - ranking.at(ranking.before, last)
    share = ranking.at(ranking.evidence_inside / ranking.size, last)
    true = ranking.at(ranking.evidence_before, last) + taken * share
    return 2 * true / (last + ranking.n_evidence)


def _rank(
    attributions: TensorOrTensors,
    evidence: Tensor,
    keep: Tensor | None,
    padding: Tensor | None,
) -> _Ranking:
    """Sort ranked tokens to the front, highest first, and count what ties hold."""
    scores = read_token_scores(attributions).double()
    ranked = ~(read_mask("keep", keep, scores) | read_mask("padding", padding, scores))
    labelled = read_mask("evidence", evidence, scores)
    _check_evidence(labelled, ranked)
    order = scores.masked_fill(~ranked, -math.inf).argsort(1, descending=True)
    counted = ranked.gather(1, order)
    scores, labelled = scores.gather(1, order), labelled.gather(1, order)
    # The place of its first token names a group.
    place = torch.arange(scores.shape[1]).expand(scores.shape)
    starts = torch.ones_like(counted)
    # A token outside the ranking never ties with a ranked one.
    differs = scores[:, 1:] != scores[:, :-1]
    starts[:, 1:] = differs | (counted[:, 1:] != counted[:, :-1])
    before = place.where(starts, 0).cummax(1).values
    size = torch.zeros_like(before).scatter_add(1, before, torch.ones_like(before))
    evidence_at = torch.zeros_like(before).scatter_add(1, before, labelled.long())
    evidence_above = labelled.long().cumsum(1) - labelled.long()
    return _Ranking(
        counted=counted,
        n_evidence=labelled.sum(1).double(),
        before=before.double(),
        size=size.gather(1, before).double(),
        evidence_before=evidence_above.gather(1, before).double(),
        evidence_inside=evidence_at.gather(1, before).double(),
    )


def _check_evidence(labelled: Tensor, ranked: Tensor) -> None:
    outside = (labelled & ~ranked).any(1)
    if bool(outside.any()):
        raise ValueError(
            f"the evidence of example {int(outside.nonzero()[0])} has tokens that keep "
            "or padding leaves out; they could never be found, so take them out of one "
            "of the masks"
        )
    without = ~labelled.any(1)
    if bool(without.any()):
        raise ValueError(
            f"example {int(without.nonzero()[0])} has no evidence; give it at least "
            "one token of evidence, or leave it out"
        )
