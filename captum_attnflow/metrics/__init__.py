r"""Metrics of attributions: faithfulness, and agreement with labelled evidence.

The functions take attributions of this package, of Captum or of another, in the style
of :mod:`captum.metrics`. They return one value per example, so that two attributions of
the same examples can be compared pair by pair. The functions of
:mod:`captum_attnflow.metrics.evidence` measure how well scores point at tokens that a
person has marked. The others measure faithfulness: how the prediction changes as tokens
are removed. In the formulas :math:`p` is the probability of the target class, :math:`n`
the number of tokens that can be removed, and :math:`x_k` the
:math:`\lceil k n \rceil` tokens of highest attribution, at least one if :math:`k > 0`.

**Ties.** The order of a sort must not matter. If only some tokens of a group with equal
scores belong to :math:`x_k`, every choice among the group is equally likely, and the
metric is the expectation over the choices. If there are at most ``n_tie_samples``
choices, all are evaluated, which is exact. Otherwise that many random choices are
evaluated. They depend on ``seed``, not on the batch. An attribution of zeros is the
random attribution.

The metrics of faithfulness share these arguments:

Args:
    forward_func (Callable or Module): The forward function, as Captum takes it.
    inputs (Tensor): Token ids ``(B, T)`` or embeddings ``(B, T, D)``; a tuple of one
        such tensor is accepted.
    attributions (Tensor): Shape ``(B, T)``, or ``(B, T, D)``, which is summed over
        features.
    baselines (scalar or Tensor, optional): What stands in for a token under
        ``removal="replace"``: the id of a reference token, its embedding, or a tensor
        that broadcasts to ``inputs``. Not used by ``removal="delete"``.
    target (int, tuple, Tensor or list, optional): The class whose probability is
        measured, as Captum selects it; the measures are meant for the predicted one.
    additional_forward_args (Any, optional): Passed on behind ``inputs``. A tensor with
        one row per example, or one for all, and the tokens in dimension 1 follows the
        tokens; so do both of the last two dimensions of a pairwise mask
        ``(B, ..., T, T)``. Integers that count up along the tokens (position ids, of
        three or more tokens) are counted anew instead. An argument of the same length
        that has tokens of its own, such as a decoder's, stays whole: its parameter has
        ``decoder`` in its name, or the model takes it beside a shorter input; see
        :func:`captum_attnflow.texts.find_whole_arguments`. Anything else passes as it
        is.
    fractions (sequence of float): The levels :math:`k`, in [0, 1].
    **options: The :class:`RemovalOptions`.

Raises:
    ValueError: If shapes do not fit, an option is unknown, attributions are not
        finite, or a text would lose all of its tokens.

Examples::

    >>> from captum_attnflow import AttentionRollout
    >>> from captum_attnflow.demo import load_demo_model
    >>> model, tokenizer = load_demo_model()
    >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
    >>> forward = lambda ids: model(ids).logits
    >>> scores = AttentionRollout(forward).attribute(ids, target=1)
    >>> special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    >>> value = aopc(
    ...     forward, ids, scores, tokenizer.mask_token_id, target=1, keep=special
    ... )
    >>> value.shape
    torch.Size([1])
"""

from captum_attnflow.metrics.erasure import (
    METRICS,
    Metric,
    aopc,
    comprehensiveness,
    deletion_area,
    deletion_curve,
    faithfulness,
    insertion_area,
    insertion_curve,
    log_odds,
    sufficiency,
)
from captum_attnflow.metrics.evaluation import RemovalOptions
from captum_attnflow.metrics.evidence import (
    evidence_average_precision,
    evidence_f1,
    evidence_hit,
    evidence_rank,
)
from captum_attnflow.metrics.normalized import AOPCBounds, aopc_bounds, naopc

__all__ = [
    "AOPCBounds",
    "METRICS",
    "Metric",
    "RemovalOptions",
    "aopc",
    "aopc_bounds",
    "comprehensiveness",
    "deletion_area",
    "deletion_curve",
    "evidence_average_precision",
    "evidence_f1",
    "evidence_hit",
    "evidence_rank",
    "faithfulness",
    "insertion_area",
    "insertion_curve",
    "log_odds",
    "naopc",
    "sufficiency",
]
