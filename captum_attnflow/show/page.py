"""Any picture as an HTML page of its own, and any attribution as terminal text.

Texts are sections of the page: words on coloured grounds, the strongest, a table. What
is shown of a text are the records of Captum's ``visualize_text``, and beside them what
a result of this package knows: its words, its method and the size of its scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from importlib.resources import files
from os import PathLike
from typing import Protocol, get_args, runtime_checkable

from captum.attr import visualization as captum_visualization
from matplotlib.figure import Figure
from rich.text import Text
from typing_extensions import TypeIs

from captum_attnflow._checks import check_choice, check_type, described, type_of
from captum_attnflow._files import replace_file
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import (
    FAINT,
    MINUS,
    escaped,
    relative,
    rounded,
    strongest_places,
    which_of_several,
)
from captum_attnflow.show.document import figure_image, html_document, legend
from captum_attnflow.show.figures import DARK, LIGHT
from captum_attnflow.show.generated import GeneratedResult, generated_page
from captum_attnflow.show.slalom_plane import draw_plane
from captum_attnflow.show.text import (
    UNKNOWN,
    LabelledText,
    SafeRecord,
    Shown,
    TextPicture,
    attribution_text,
    words_shown,
)
from captum_attnflow.texts.units import Kind


class ShownInNotebook(Protocol):
    """What a notebook shows as HTML: every picture and result of this package."""

    def _repr_html_(self) -> str: ...


@runtime_checkable
class Page(Protocol):
    """A picture that is a page of its own, scripts included."""

    def to_html(self) -> str:
        """Return a complete HTML document."""
        ...


@runtime_checkable
class SeveralTexts(Protocol):
    """A result that holds scored texts, such as both of a compared pair."""

    @property
    def attributions(self) -> Sequence[LabelledText]:
        """The texts with their scores, each with its ``index`` among those given."""


def html_page(
    picture: ShownInNotebook | Figure | Sequence[ShownInNotebook | Figure],
    model: str | None = None,
) -> str:
    """Render a picture as a page of its own.

    Args:
        picture (picture or sequence): What :func:`visualize_text` or another picture
            of this package returns, a figure such as :func:`slalom_plane`, a result of
            ``explain()``, or several of these. A text is shown by its words: hover or
            focus one, by the arrow keys too, for its score and share. Generated text
            alone, of one prompt or of several, is an interactive page: one chooses a
            generated token by click or arrow keys, and the text before it is coloured
            for it.
        model (str, optional): The model's name, which the page then says.

    Returns:
        str: A complete HTML document without references to anything outside.

    Raises:
        ValueError: If a flow diagram is one of several pictures.
    """
    if isinstance(picture, Page):
        return picture.to_html()
    check_type("model", model, (str, type(None)), "the model's name, or None")
    pictures = picture if isinstance(picture, Sequence) else [picture]
    for item in pictures:
        if not isinstance(item, (Page, Figure)):
            _check_shows("picture", item, "_repr_html_")
    if any(isinstance(item, Page) for item in pictures):
        raise ValueError(
            "a flow diagram is a whole page, and its script runs in no other page; "
            "write it to a file of its own"
        )
    by_model = f"Model: {model}" if model else ""
    generated = [item for item in pictures if _is_generated(item)]
    if generated and len(generated) == len(pictures):
        return generated_page(generated, by_model)
    texts = list(_texts(pictures))
    sections = [_text_section(text, several=len(texts) > 1) for text in texts]
    for item in pictures:
        if isinstance(item, Figure):
            said = "; ".join(axes.get_title() for axes in item.axes)
            sections.append(figure_image(item, said))
        elif not isinstance(item, TextPicture) and not _scored_texts(item):
            sections.append(f'<div class="section">{item._repr_html_()}</div>')
    header = "<h1>What the output rests on</h1>"
    if by_model:
        header += f'<p class="caption">{escaped(by_model)}</p>'
    if texts:
        header += legend(any(text.is_signed for text in texts))
    script = (files(__package__) / "text_page.js").read_text("utf-8")
    return html_document(
        "texts",
        "Attributions",
        header,
        "\n".join(sections),
        script=script if texts else None,
    )


def _texts(pictures: Sequence[ShownInNotebook | Figure]) -> Iterator[ShownText]:
    """All texts of the pictures, numbered; labels of one text share its number."""
    number = 0
    for item in pictures:
        if isinstance(item, TextPicture):
            for record in item.records:
                number += 1
                yield _shown_record(record, number)
        elif texts := _scored_texts(item):
            number += 1
            for text in texts:
                yield _shown_text(text, getattr(text, "index", number - 1) + 1)


def _scored_texts(item: object) -> Sequence[LabelledText]:
    """The texts of a result, which may have explained none of its words."""
    if _shows_several_texts(item):
        return item.attributions
    return [item] if isinstance(item, LabelledText) else []


def _shows_several_texts(item: object) -> TypeIs[SeveralTexts]:
    # The scores of an image have the same name.
    return isinstance(item, SeveralTexts) and isinstance(item.attributions, Sequence)


def _is_generated(
    picture: object,
) -> TypeIs[GenerationExplanation | GeneratedResult]:
    return isinstance(picture, (GenerationExplanation, GeneratedResult))


def save_html(
    picture: ShownInNotebook | Figure | Sequence[ShownInNotebook | Figure],
    path: str | PathLike[str],
    model: str | None = None,
) -> None:
    """Write a picture to a file that any browser opens, without network access.

    Args:
        picture: See :func:`html_page`.
        path (str or path): The file; one that exists is replaced, as a whole.
        model (str, optional): The model's name, which the page then says.

    Raises:
        OSError: If it cannot be written, naming the file, which is then as it was.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum_attnflow.show import text_records, visualize_text
        >>> records = text_records(torch.tensor([[0.5, 2.0]]), [["so", "funny"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html(visualize_text(records), f"{folder}/scores.html")
    """
    check_type("path", path, (str, PathLike), "the name of a file, or its path")
    replace_file(path, html_page(picture, model))


def _check_shows(name: str, given: object, member: str) -> None:
    if isinstance(given, type) or not hasattr(given, member):
        raise ValueError(
            f"{name}={described(given)} is {type_of(given)}; give a result of "
            "explain(), or a picture of this package"
        )


class ShownInTerminal(Protocol):
    """What rich prints as text."""

    def __rich__(self) -> Text: ...


def terminal_text(attribution: ShownInTerminal, by: Shown = "word") -> Text:
    """Render an attribution for a terminal.

    The deeper the colour behind a word, the higher its share of the text's largest
    score, blue for the target; orange, and with a minus sign, against it. Characters
    that are not printable are shown as escapes.

    Args:
        attribution (TextAttribution or result of ``explain()``): The attribution.
        by (str): Texts that know their words are shown by each ``"word"``, or by each
            ``"token"`` of the model, such as ``##ing``.

    Returns:
        Text: By word what ``rich.print(attribution)`` prints.

    Raises:
        ValueError: If ``by`` is something else.
    """
    check_choice("by", by, get_args(Shown))
    _check_shows("attribution", attribution, "__rich__")
    if by == "token" and _shows_several_texts(attribution):
        parts = [attribution_text(text, by) for text in attribution.attributions]
        return Text("\n").join(parts)
    if by == "token" and isinstance(attribution, LabelledText):
        return attribution_text(attribution, by)
    return attribution.__rich__()


@dataclass(frozen=True)
class _ShownWord:
    """A word on the page; its texts are safe in HTML.

    Attributes:
        text (str): The word.
        score (float): Its score, or its share of the largest where that is unknown.
        before (str): What stands between it and the word before.
        kind (str): See :class:`~captum_attnflow.texts.units.Word`.
        pieces (str): Its tokens, where these are others than the word.
    """

    text: str
    score: float
    before: str = " "
    kind: Kind = "word"
    pieces: str = ""


@dataclass(frozen=True)
class ShownText:
    """A text on the page; its texts are safe in HTML.

    Attributes:
        number (int): Which of the texts it is, counted from 1.
        predicted (str): The label, with its probability or value.
        words (tuple of _ShownWord): The words.
        facts (tuple of str): What the scores are, in sentences.
        notes (tuple of str): How the text was read.
        is_absolute (bool): Whether scores are what a method gave, and not relative.
        picture (str): HTML of a figure below the text.
    """

    number: int
    predicted: str
    words: tuple[_ShownWord, ...]
    facts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_absolute: bool = True
    picture: str = ""

    @cached_property
    def total(self) -> float:
        """The sum of absolute scores, of which words have shares."""
        return sum(abs(word.score) for word in self.words)

    @property
    def is_signed(self) -> bool:
        """Whether any word speaks against."""
        return any(word.score < 0 for word in self.words)


def _shown_record(
    record: captum_visualization.VisualizationDataRecord, number: int
) -> ShownText:
    """Read a record of Captum, or one that :func:`text_records` made."""
    is_safe = isinstance(record, SafeRecord)
    safe = str if is_safe else lambda given: escaped(str(given))
    scale = record.scale if is_safe else 1.0
    shares = record.word_attributions.tolist()
    words = tuple(
        _ShownWord(safe(token), share * scale)
        for token, share in zip(record.raw_input_ids, shares, strict=False)
    )
    facts = [f"scores for “{safe(record.attr_class)}”"] if _known(
        record.attr_class
    ) else []  # fmt: skip
    facts.append(f"they sum to {float(record.attr_score):.2f}".replace("-", MINUS))
    if _known(record.true_class):
        facts.append(f"true label “{safe(record.true_class)}”")
    return ShownText(
        number=number,
        predicted=f"<bdi>{safe(record.pred_class)} ({record.pred_prob:.2f})</bdi>",
        words=words,
        facts=tuple(facts),
        is_absolute=is_safe,
    )


def _known(label: object) -> bool:
    return str(label) not in ("", UNKNOWN)


def _shown_text(text: LabelledText, number: int) -> ShownText:
    """Read a result of a pipeline, which knows its words, its method and more."""
    words: list[_ShownWord] = []
    before = 0
    source, pair = getattr(text, "text", ""), getattr(text, "text_pair", None)
    for word, score in words_shown(text):
        if word.kind == "special" and words and pair is not None:
            source, pair, before = pair, None, 0
        at = source.find(word.text, before) if word.kind != "special" else -1
        after_word = bool(words) and words[-1].kind != "special"
        joined = after_word and 0 <= at - before <= 1
        gap = source[before:at] if joined else " "
        gap = gap if gap.isspace() else escaped(gap)  # a line break stays one
        before = before if at < 0 else at + len(word.text)
        pieces = [text.tokens[place] for place in word.tokens]
        differs = pieces != [word.text] and word.kind != "special"
        spelled = escaped(" + ".join(pieces)) if differs else ""
        words.append(_ShownWord(escaped(word.text), score, gap, word.kind, spelled))
    known = text.labels
    value = known.get("probability", known.get("value"))
    total = float(known.get("total", sum(text.scores)))
    method, against = getattr(text, "method", None), getattr(text, "against", None)
    target = f"“{escaped(str(known['target']))}”"
    rather = f" against “{escaped(against)}”" if against is not None else ""
    by = f"{escaped(method)}: " if method else ""
    notes = [note] if (note := getattr(text, "note", "")) else []
    unknown = [word.text for word in words if word.kind == "unknown"]
    if unknown:
        names = ", ".join(f"“{name}”" for name in dict.fromkeys(unknown))
        notes.append(f"unknown to the model: {names}")
    reading, picture = getattr(text, "slalom", None), ""
    if reading is not None:
        light, dark = (
            draw_plane(reading, text.tokens, str(known["target"]), theme)
            for theme in (LIGHT, DARK)
        )
        said = f"Value and importance of each token for “{known['target']}”"
        picture = figure_image(light, said, dark)
    number_shown = "" if value is None else f" ({value:.2f})"
    return ShownText(
        number=number,
        predicted=f"<bdi>{escaped(str(known['predicted']))}{number_shown}</bdi>",
        words=tuple(words),
        facts=(
            f"{by}scores for {target}{rather}",
            f"they sum to {total:.2f}".replace("-", MINUS),
        ),
        notes=tuple(notes),
        picture=picture,
    )


def _text_section(text: ShownText, several: bool) -> str:
    """Write a text's section of the page."""
    name = f"Text {text.number}: " if several else ""
    about = "; ".join(text.facts)
    notes = "".join(f'<p class="note">{note}</p>' for note in text.notes)
    shares = relative([word.score for word in text.words])
    spans = "".join(
        _word_span(text, place, share) for place, share in enumerate(shares)
    )
    of = f"text {text.number}, " if several else ""
    return (
        f'<section class="section" data-about="{of}{about}">'
        f"<h2>{name}{text.predicted}</h2>"
        f'<p class="caption">{about}</p>{notes}'
        f'<div class="words" role="group" dir="auto" aria-label="{name or "Text: "}'
        f'arrow keys go from word to word">{spans}</div>'
        f'<div class="columns">{_sides(text)}</div>{_table(text)}{text.picture}'
        "</section>"
    )


def _word_span(text: ShownText, place: int, share: float) -> str:
    word = text.words[place]
    side = "" if abs(share) < FAINT else " for" if share > 0 else " against"
    kind = "" if word.kind == "word" else f" {word.kind}"
    before = word.before if place else ""
    return (
        f'{before}<span class="token{side}{kind}" tabindex="{-1 if place else 0}" '
        f'style="--share: {abs(share):.3f}" data-tip="{_tip(text, word)}">'
        f"{word.text}</span>"
    )


def _tip(text: ShownText, word: _ShownWord) -> str:
    spelled = f" ({word.pieces})" if word.pieces else ""
    kind = {"unknown": ", unknown to the model", "special": ", a special token"}
    return (
        f"“{word.text}”{spelled}{kind.get(word.kind, '')}: {_score(text, word)}"
        f"{_share(text, word)}"
    )


def _score(text: ShownText, word: _ShownWord) -> str:
    written = f"{word.score:+.3g}" if word.score else "0"
    return written.replace("-", MINUS) + ("" if text.is_absolute else " of the largest")


def _share(text: ShownText, word: _ShownWord) -> str:
    if not word.score or not text.total:
        return ""
    side = "for" if word.score > 0 else "against"
    return f", {rounded(100 * abs(word.score) / text.total)} % {side}"


def _sides(text: ShownText) -> str:
    scores = [word.score for word in text.words]
    names = [unescape(word.text) for word in text.words]
    shares = relative(scores)
    found = ""
    for side, places in strongest_places(scores).items():
        items = "".join(
            f"<li><span><bdi>“{text.words[place].text}”</bdi>"
            f"{_which(names, place)}</span>"
            f'<span class="number">{percent}</span>'
            f'<i style="--share: {abs(shares[place]):.3f}"></i></li>'
            for place, percent in places
        )
        title = side.capitalize() if text.is_signed else "Strongest"
        found += (
            f'<div class="side-{side}"><h3>{title}</h3>'
            f'<ol class="strongest">{items}</ol></div>'
        )
    return found or "<p>All scores are 0.</p>"


def _which(names: Sequence[str], place: int) -> str:
    which = which_of_several(names, place)
    return f" <small><bdi>{escaped(which)}</bdi></small>" if which else ""


def _table(text: ShownText) -> str:
    rows = "".join(
        f"<tr><td><bdi>{word.text}</bdi></td><td>{_score(text, word)}</td>"
        f"<td>{_share(text, word).removeprefix(', ')}</td></tr>"
        for word in text.words
    )
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("word", "score", "share")
    )
    return (
        "<details><summary>Scores as a table</summary>"
        '<div class="scrolled" tabindex="0" role="region" aria-label="Scores">'
        f"<table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )
