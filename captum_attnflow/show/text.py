"""Captum's records of text attributions, ours or Captum's, made safe to show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, runtime_checkable

from captum.attr import visualization as captum_visualization
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._warnings import warn_caller
from captum_attnflow.scored_tokens import check_tokens
from captum_attnflow.show.captum_text import safe_record
from captum_attnflow.show.words import Pieces, Special, shown_tokens


class Labels(TypedDict, total=False):
    """What a record says beside tokens and scores: an entry per text.

    Attributes:
        predicted (sequence of str or int, or Tensor): The predicted labels.
        probability (sequence of float or Tensor): Their probabilities.
        true_label (sequence of str or int, or Tensor): The true labels.
        target (sequence of str or int, or Tensor): The labels that were attributed.
        convergence (sequence of float or Tensor): The convergence scores, as
            ``return_convergence_delta=True`` gives them.
    """

    predicted: Sequence[str | int] | Tensor
    probability: Sequence[float] | Tensor
    true_label: Sequence[str | int] | Tensor
    target: Sequence[str | int] | Tensor
    convergence: Sequence[float] | Tensor


@runtime_checkable
class LabelledText(Protocol):
    """A text with scored tokens and what a record says beside them.

    A :class:`captum_attnflow.pipelines.text_classification.TextAttribution` is one.
    """

    @property
    def tokens(self) -> Sequence[str]:
        """Its tokens."""

    @property
    def scores(self) -> Sequence[float]:
        """One score per token."""

    @property
    def labels(self) -> Mapping[str, Any]:
        """The arguments of :func:`safe_record` behind tokens and scores."""


@dataclass(frozen=True)
class _Row:
    tokens: Sequence[str]
    scores: Sequence[float]
    labels: Mapping[str, Any]


def text_records(
    attributions: Tensor | Sequence[LabelledText],
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    pieces: Pieces | None = None,
    word_ids: Sequence[Sequence[int | None]] | None = None,
    special_tokens: Collection[str] = (),
    special: Special = "shown",
    **labels: Unpack[Labels],
) -> list[captum_visualization.VisualizationDataRecord]:
    """Make records for Captum's ``visualize_text`` from any attribution.

    Captum puts tokens and labels into HTML as they are; here they are escaped. Scores
    are divided by the largest of their text, so that colours compare tokens. Where all
    are 0 nothing is coloured.

    Args:
        attributions (Tensor or sequence of TextAttribution): What ``attribute()`` of
            this package or of Captum returns: shape ``(B, T)``, or ``(B, T, D)``, which
            is summed over ``D``; ``(T,)`` or ``(T, D)`` for one text. Or what
            ``TextClassifier.explain`` returns, which knows tokens and labels.
        tokens (sequence): With a tensor: a list of tokens per text, or the list of one
            text; one per position, special tokens and padding included.
        pieces (str, optional): Merge tokens to words; how the tokenizer marks the
            pieces, see :func:`merge_words`.
        word_ids (sequence, optional): With ``pieces``: for every text the word of each
            token, see :func:`merge_words`.
        special_tokens (collection of str): Tokens that belong to no word, such as
            ``tokenizer.all_special_tokens``.
        special (str): ``"shown"`` or ``"hidden"``, whether special tokens are.
        **labels: An entry per text, see :class:`Labels`; in preference to what a
            TextAttribution knows.

    Returns:
        list[VisualizationDataRecord]: One per text. What is not known is shown as a
        dash; the attribution score is the sum of the token scores, hidden ones
        included.

    Raises:
        ValueError: If the shapes of attributions, tokens and the rest disagree or an
            option is unknown.

    Examples::

        >>> import torch
        >>> [record] = text_records(
        ...     torch.tensor([0.0, 1.0, 2.0, -1.5]),
        ...     ["[CLS]", "grip", "##ping", "<b>"],
        ...     pieces="wordpiece",
        ...     special_tokens=["[CLS]"],
        ...     special="hidden",
        ...     target=["positive"],
        ... )
        >>> record.raw_input_ids, record.word_attributions
        (['gripping', '&lt;b&gt;'], tensor([ 1.0000, -0.5000]))
    """
    rows = _rows(attributions, tokens)
    columns = {name: _column(name, given) for name, given in labels.items()}
    for name, column in {**columns, "word_ids": word_ids or rows}.items():
        if len(column) != len(rows):
            raise ValueError(
                f"{name} has {len(column)} entries for {len(rows)} texts; give one per "
                "text"
            )
    records = []
    for index, row in enumerate(rows):
        ids = None if word_ids is None else word_ids[index]
        known = {
            **row.labels,
            **{name: column[index] for name, column in columns.items()},
        }
        shown = shown_tokens(
            row.tokens, row.scores, pieces, ids, special_tokens, special
        )
        records.append(safe_record(*shown, **{"total": sum(row.scores), **known}))
    return records


def _column(name: str, given: Any) -> list[Any]:
    """Entries of a label, those that are names or class indices as text."""
    is_scalar = isinstance(given, Tensor) and given.dim() == 0
    if isinstance(given, str) or is_scalar or not hasattr(given, "__len__"):
        raise ValueError(
            f"{name}={given!r} is no list; give an entry per text, such as "
            f"{name}=[{given!r}]"
        )
    entries = given.tolist() if isinstance(given, Tensor) else list(given)
    is_number = name in ("probability", "convergence")
    return entries if is_number else [str(entry) for entry in entries]


def _rows(
    attributions: Tensor | Sequence[LabelledText],
    tokens: Sequence[str] | Sequence[Sequence[str]] | None,
) -> list[_Row]:
    if not isinstance(attributions, Tensor):
        if tokens is not None:
            raise ValueError(
                "tokens were given with attributions that know theirs; give them with "
                "a tensor of attributions only"
            )
        return [_Row(item.tokens, item.scores, item.labels) for item in attributions]
    if tokens is None:
        raise ValueError(
            f"attributions of shape {tuple(attributions.shape)} were given without "
            "tokens; give a list of tokens per text"
        )
    texts = [list(row) for row in tokens if not isinstance(row, str)]
    if len(texts) < len(tokens) or attributions.dim() == 1:
        # One text: its tokens are strings.
        texts, attributions = [[str(token) for token in tokens]], attributions[None]
    if attributions.dim() not in (2, 3):
        raise ValueError(
            f"attributions of shape {tuple(attributions.shape)} were read as a batch "
            "of texts; give (B, T) or (B, T, D) with a list of tokens per text, (T,) "
            "or (T, D) with the list of one text"
        )
    scores = attributions.detach().double().cpu()
    scores = scores.sum(-1) if scores.dim() == 3 else scores
    check_tokens(texts, scores)
    if not scores.isfinite().all():
        warn_caller(
            f"{int((~scores.isfinite()).sum())} token scores are not finite and are "
            "shown as 0; a division by a sum or norm of 0 gives such"
        )
    # Captum's picture would paint NaN in full green.
    scores = scores.nan_to_num(0.0, 0.0, 0.0)
    return [
        _Row(text, row, {}) for text, row in zip(texts, scores.tolist(), strict=True)
    ]
