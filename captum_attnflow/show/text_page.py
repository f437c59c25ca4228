"""Texts as sections of a page: words on coloured grounds, the strongest, a table.

What is shown of a text are the records of Captum's ``visualize_text``, and beside them
what a result of this package knows: its words, its method and the size of its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from importlib.resources import files

from captum.attr import visualization as captum_visualization

from captum_attnflow.scored_tokens import (
    FAINT,
    MINUS,
    escaped,
    relative,
    rounded,
    strongest_places,
    which_of_several,
)
from captum_attnflow.show.document import figure_image
from captum_attnflow.show.figures import DARK, LIGHT
from captum_attnflow.show.slalom_plane import draw_plane
from captum_attnflow.show.text import UNKNOWN, LabelledText, SafeRecord, words_shown
from captum_attnflow.texts.units import Kind


@dataclass(frozen=True)
class ShownWord:
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
        words (tuple of ShownWord): The words.
        facts (tuple of str): What the scores are, in sentences.
        notes (tuple of str): How the text was read.
        is_absolute (bool): Whether scores are what a method gave, and not relative.
        picture (str): HTML of a figure below the text.
    """

    number: int
    predicted: str
    words: tuple[ShownWord, ...]
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


def shown_record(
    record: captum_visualization.VisualizationDataRecord, number: int
) -> ShownText:
    """Read a record of Captum, or one that :func:`text_records` made."""
    is_safe = isinstance(record, SafeRecord)
    safe = str if is_safe else lambda given: escaped(str(given))
    scale = record.scale if is_safe else 1.0
    shares = record.word_attributions.tolist()
    words = tuple(
        ShownWord(safe(token), share * scale)
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


def shown_text(text: LabelledText, number: int) -> ShownText:
    """Read a result of a pipeline, which knows its words, its method and more."""
    words: list[ShownWord] = []
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
        words.append(ShownWord(escaped(word.text), score, gap, word.kind, spelled))
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


def text_section(text: ShownText, several: bool) -> str:
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


def _tip(text: ShownText, word: ShownWord) -> str:
    spelled = f" ({word.pieces})" if word.pieces else ""
    kind = {"unknown": ", unknown to the model", "special": ", a special token"}
    return (
        f"“{word.text}”{spelled}{kind.get(word.kind, '')}: {_score(text, word)}"
        f"{_share(text, word)}"
    )


def _score(text: ShownText, word: ShownWord) -> str:
    written = f"{word.score:+.3g}" if word.score else "0"
    return written.replace("-", MINUS) + ("" if text.is_absolute else " of the largest")


def _share(text: ShownText, word: ShownWord) -> str:
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


def text_script() -> str:
    """The script of a page with texts."""
    return (files(__package__) / "text_page.js").read_text("utf-8")
