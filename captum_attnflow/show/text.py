"""Attributions of texts: Captum's records and picture of them, and terminal text.

Tokens may be merged to words, by the tokenizer's word ids or by the marks of its
pieces. Captum's picture puts tokens and labels into HTML as they are and paints NaN in
full colour, so records are escaped and made finite here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol, TypedDict, get_args, runtime_checkable

import torch
from captum.attr import visualization as captum_visualization
from IPython.display import HTML
from IPython.utils.capture import capture_output
from rich.text import Text
from torch import Tensor
from typing_extensions import Unpack

from captum_attnflow._checks import (
    check_choice,
    check_dense,
    check_flags,
    check_type,
    counted,
)
from captum_attnflow._warnings import warn_caller
from captum_attnflow.scored_tokens import (
    briefly,
    check_tokens,
    coloured_tokens,
    escaped,
    printable,
    recoloured,
    relative,
)
from captum_attnflow.slalom.model import SlalomReading
from captum_attnflow.texts.units import PIECES, Pieces, Word, merge_words

Special = Literal["shown", "hidden"]


def shown_tokens(
    tokens: Sequence[str],
    scores: Sequence[float],
    pieces: Pieces | None,
    word_ids: Sequence[int | None] | None,
    special_tokens: Collection[str],
    special: Special,
) -> tuple[list[str], list[float]]:
    """Merge tokens to words and hide special ones.

    Args:
        tokens (sequence of str): The tokens of one text.
        scores (sequence of float): One per token.
        pieces (str, optional): See :func:`merge_words`; None merges nothing.
        word_ids (sequence of int, optional): See :func:`merge_words`.
        special_tokens (collection of str): Tokens that belong to no word.
        special (str): ``"shown"`` or ``"hidden"``.

    Returns:
        tuple[list[str], list[float]]: **tokens** and **scores** that are left.

    Raises:
        ValueError: If an option is unknown or lengths disagree.
    """
    check_choice("special", special, get_args(Special))
    if word_ids is not None and pieces is None:
        raise ValueError(
            "word_ids were given without pieces; say how the tokenizer marks pieces of "
            f"words: one of {', '.join(PIECES)}"
        )
    if pieces is not None:
        tokens, scores = merge_words(tokens, scores, pieces, word_ids, special_tokens)
    pairs = zip(tokens, scores, strict=True)
    left = [
        (token, score)
        for token, score in pairs
        if special == "shown" or token not in special_tokens
    ]
    return [token for token, _ in left], [score for _, score in left]


UNKNOWN = "-"


class _Unknown(float):
    """A number that Captum's picture shows as unknown, in any number format."""

    def __format__(self, _: str) -> str:
        return UNKNOWN


class SafeRecord(captum_visualization.VisualizationDataRecord):  # type: ignore[misc]
    """Captum's record, of texts that are safe in HTML.

    Attributes:
        scale (float): The largest absolute score, which the record's are relative to.
    """

    def __init__(self, *, scale: float, **given: Any) -> None:
        super().__init__(**given)
        self.scale = scale


def safe_record(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    predicted: str = UNKNOWN,
    probability: float | None = None,
    value: float | None = None,
    true_label: str = UNKNOWN,
    target: str = UNKNOWN,
    total: float | None = None,
    convergence: float = 0.0,
) -> captum_visualization.VisualizationDataRecord:
    """Make Captum's record of one text, with tokens and labels escaped.

    Args:
        tokens (sequence of str): The tokens.
        scores (sequence of float): One per token; the record holds them divided by
            their largest absolute value.
        predicted (str): The predicted label.
        probability (float, optional): Its probability.
        value (float, optional): The output, in regression. It is shown where a label
            has its probability.
        true_label (str): The true label.
        target (str): The label that the scores belong to.
        total (float, optional): The attribution score; the sum of the scores by
            default.
        convergence (float): The convergence score, which the picture does not show.
    """
    number = value if probability is None else probability
    return SafeRecord(
        word_attributions=torch.tensor(relative(scores)),
        pred_prob=_Unknown("nan") if number is None else number,
        pred_class=escaped(predicted),
        true_class=escaped(true_label),
        attr_class=escaped(target),
        attr_score=sum(scores) if total is None else total,
        raw_input_ids=[escaped(token) for token in tokens],
        convergence_score=convergence,
        scale=max((abs(score) for score in scores if isfinite(score)), default=0.0),
    )


def visualize_text(
    records: Sequence[captum_visualization.VisualizationDataRecord], legend: bool = True
) -> TextPicture:
    """Render records by Captum's ``visualize_text``.

    Captum displays as it renders, which shows the picture twice at the end of a
    notebook's cell and prints an object's name elsewhere. Here it is returned alone.
    Captum's green and red become blue and orange, which all kinds of colour vision tell
    apart, and its legend names negative scores only where there are any.

    Args:
        records (sequence of VisualizationDataRecord): Such as those of
            :func:`~captum_attnflow.show.text_records`, which are escaped;
            Captum's function puts the tokens of others into the page as they are.
        legend (bool): Whether to say what the colours mean.

    Returns:
        TextPicture: An ``IPython.display.HTML``, the value of a notebook's cell;
        ``.data`` is its HTML, and :func:`~captum_attnflow.show.save_html` writes its
        records to a page.
    """
    records = list(records) if isinstance(records, (list, tuple)) else records
    check_type("records", records, list, "what text_records returns")
    for record in records:
        kind = captum_visualization.VisualizationDataRecord
        check_type("a record", record, kind, "what text_records returns")
    check_flags(legend=legend)
    with capture_output():
        picture: HTML = captum_visualization.visualize_text(records, legend)
    html = recoloured(str(picture.data))
    if not any((record.word_attributions < 0).any() for record in records):
        html = _NEGATIVE_SAMPLE.sub("", html)
    return TextPicture(html, records)


class TextPicture(HTML):
    """Captum's text picture, with the records that it was made of.

    Attributes:
        records (list of VisualizationDataRecord): What is shown.
    """

    def __init__(
        self, html: str, records: Sequence[captum_visualization.VisualizationDataRecord]
    ) -> None:
        super().__init__(html)  # type: ignore[no-untyped-call]
        self.records = list(records)


_NEGATIVE_SAMPLE = re.compile(r"<span style=[^<>]*></span> Negative\s*")


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
        list[VisualizationDataRecord]: One per text. A dash stands for what is unknown.
        The attribution score is the sum of the token scores, hidden ones included.

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
    if word_ids is not None:
        check_type("word_ids", word_ids, (list, tuple), "a list for each text")
        for of_text in word_ids:
            accepted = "a list of integers"
            check_type("word_ids of a text", of_text, (list, tuple), accepted)
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
            f"{name}={given!r} is not a list; give an entry per text, such as "
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
        accepted = "a tensor (B, T), or a list of results of TextClassifier.explain"
        check_type("attributions", attributions, (list, tuple), accepted)
        for item in attributions:
            check_type("an attribution", item, LabelledText, accepted)
        return [_Row(item.tokens, item.scores, item.labels) for item in attributions]
    check_dense("attributions", attributions, "(B, T)")
    if tokens is None:
        raise ValueError(
            f"attributions of shape {tuple(attributions.shape)} were given without "
            "tokens; give a list of tokens per text"
        )
    check_type("tokens", tokens, (list, tuple), "a list of tokens for each text")
    for row in tokens:
        check_type("the tokens of a text", row, (str, list, tuple), "a list of str")
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
            f"scores of {counted(int((~scores.isfinite()).sum()), 'token')} are not "
            "finite and are shown as 0; a division by a sum or norm of 0 gives such"
        )
    # Captum's picture would paint NaN in full colour.
    scores = scores.nan_to_num(0.0, 0.0, 0.0)
    return [
        _Row(text, row, {}) for text, row in zip(texts, scores.tolist(), strict=True)
    ]


Shown = Literal["word", "token"]
"""What a text is shown by: words as its writer spelled them, or the model's tokens."""


def words_shown(text: LabelledText, by: Shown = "word") -> list[tuple[Word, float]]:
    """Return what a text is shown by, each with its score.

    Args:
        text (TextAttribution): The text. Where it does not know its words, each token
            is one.
        by (str): ``"word"`` or ``"token"``.

    Returns:
        list[tuple[Word, float]]: A word's score is the sum of its tokens'.
    """
    check_choice("by", by, get_args(Shown))
    words: Sequence[Word] | None = getattr(text, "words", None)
    if words is None:
        words = [Word(token, (place,)) for place, token in enumerate(text.tokens)]
    elif by == "token":
        words = [
            Word(text.tokens[place], (place,), word.kind)
            for word in words
            for place in word.tokens
        ]
    return [(word, sum(text.scores[place] for place in word.tokens)) for word in words]


def attribution_text(text: LabelledText, by: Shown = "word") -> Text:
    """Render a text for a terminal: prediction, coloured words, the strongest of them.

    Args:
        text (TextAttribution): The text.
        by (str): ``"word"`` or ``"token"``, which is a piece of a word.

    Returns:
        Text: In lines: the predicted label with its probability, or the value; the
        method, and what its scores are for; how the text was read where the model did
        not see all of it as it is; the words; those for and against by their share.
    """
    known = text.labels
    number = known.get("probability", known.get("value"))
    shown = Text.assemble((printable(str(known["predicted"])), "bold"))
    if number is not None:
        shown.append(f" {number:.3f}")
    method, against = getattr(text, "method", None), getattr(text, "against", None)
    rather = f" against “{printable(against)}”" if against is not None else ""
    by_what = f"{method}: " if method else ""
    shown.append(f"\n{by_what}scores for “{printable(str(known['target']))}”{rather}")
    if note := getattr(text, "note", ""):
        shown.append(f"\n{note}", "italic")
    words = words_shown(text, by)
    unknown = [f"“{briefly(w.text)}”" for w, _ in words if w.kind == "unknown"]
    if unknown:
        listed = ", ".join(dict.fromkeys(unknown))
        shown.append(f"\nunknown to the model: {listed}", "italic")
    special = [place for place, (w, _) in enumerate(words) if w.kind == "special"]
    names, scores = [word.text for word, _ in words], [score for _, score in words]
    shown.append("\n").append_text(coloured_tokens(names, scores, special))
    reading: SlalomReading | None = getattr(text, "slalom", None)
    return shown if reading is None else shown.append(_readings(text.tokens, reading))


def _readings(tokens: Sequence[str], slalom: SlalomReading) -> str:
    """A line per explained token: value and importance, with their standard errors."""
    printed = [printable(token) for token in tokens]
    width = max(map(len, printed), default=0)
    lines = [f"\n{'':{width}}          value     importance"]
    for token, *numbers in zip(
        printed,
        slalom.values,
        slalom.value_standard_errors,
        slalom.importances,
        slalom.importance_standard_errors,
        strict=True,
    ):
        if None not in numbers:
            value, its_error, importance, error = numbers
            lines.append(
                f"{token:{width}} {value:+7.2f} ±{its_error:5.2f} "
                f"{importance:+7.2f} ±{error:5.2f}"
            )
    known = {"short inputs": slalom.r2_short, "deletions": slalom.r2_deletions}
    fits = [f"{name} {r2:.2f}" for name, r2 in known.items() if r2 is not None]
    if fits:
        lines.append(f"held-out R2: {', '.join(fits)}")
    return "\n".join(lines)
