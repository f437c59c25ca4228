"""A summary as one page of HTML: no script, no network, everything escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from captum_attnflow.scored_tokens import FAINT, escaped
from captum_attnflow.show.document import figure_image, html_document, terms
from captum_attnflow.show.figures import DARK, LIGHT, Theme
from captum_attnflow.summary import pictures
from captum_attnflow.summary.agreement import Agreement
from captum_attnflow.summary.estimates import Estimate
from captum_attnflow.summary.folder_summary import (
    FolderSummary,
    WrongText,
    WrongTexts,
    facts,
    n_texts,
    percent,
)
from captum_attnflow.summary.positions import Positions
from captum_attnflow.summary.words import Example, LabelWords, Passage, WordEvidence

_FIRST_KEYS = ("model", "method", "options", "target", "data", "text_column")
_VALUE_CHARACTERS = 400
_MOST_LABELS = 12
_MOST_NAMES = 12  # of reasons and labels in the counts
_MOST_WORDS = 120  # of a text where the model is wrong

_FOOTER = """<p>Made by captum-attnflow. A share is a word's score over the sum of the
absolute scores of all words of its text. Intervals are Student's, at 95 %, over texts;
a text with several explanations counts once, by their mean. They are not corrected for
the number of words.</p>"""


def summary_page(folders: Sequence[FolderSummary], agreement: Agreement | None) -> str:
    """Write the page.

    Args:
        folders (sequence of FolderSummary): A section each.
        agreement (Agreement, optional): Of several folders.

    Returns:
        str: A complete HTML document without references to anything outside.
    """
    several = len(folders) > 1
    links: list[tuple[str, str]] = []
    body = ""
    if agreement is not None:
        links.append(("agreement", "Agreement of methods"))
        body += _agreement_section(agreement)
    for number, folder in enumerate(folders, 1):
        prefix = f"f{number}-"
        if several:
            links.append((f"{prefix}facts", folder.name))
        else:
            links += [
                (f"{prefix}{anchor}", title)
                for anchor, title in (
                    ("facts", "Counts"),
                    ("words", "Words"),
                    ("positions", "Positions"),
                )
            ]
            if folder.wrong is not None:
                links.append((f"{prefix}wrong", "Confidently wrong"))
        body += _folder_sections(folder, prefix, several)
    title = "What the explanations look like: " + ", ".join(f.name for f in folders)
    items = "".join(f'<li><a href="#{a}">{escaped(text)}</a></li>' for a, text in links)
    return html_document(
        "summary",
        title,
        f'<h1>{escaped(title)}</h1><nav aria-label="Sections"><ul>{items}</ul></nav>',
        body,
        footer=_FOOTER,
    )


def _folder_sections(folder: FolderSummary, prefix: str, several: bool) -> str:
    sections = [
        ("facts", "Counts", _facts(folder)),
        ("words", "Words for and against every label", _words(folder)),
        ("positions", "Positions", _positions(folder.positions)),
    ]
    if folder.wrong is not None:
        title = "Where the model is confidently wrong"
        sections.append(("wrong", title, _wrong(folder.wrong)))
    name = f": <bdi>{escaped(folder.name)}</bdi>" if several else ""
    return "".join(
        f'<section id="{prefix}{anchor}"><h2>{title}{name}</h2>{content}</section>'
        for anchor, title, content in sections
    )


def _facts(folder: FolderSummary) -> str:
    counts, manifest = folder.counts, folder.manifest
    said = {key: _value(of) for key, of in manifest.items() if of not in (None, {}, [])}
    about = {"folder": str(folder.path)}
    about |= {key: said.pop(key) for key in _FIRST_KEYS if key in said}
    counted = facts(counts)
    for name, of in (("label", counts.labels), ("predicted", counts.predicted)):
        if name == "label" or of != counts.labels:
            counted[f"explained by {name}"] = _listed(of)
    if counts.failed:
        counted["failed by reason"] = _listed(counts.failed)
    return (
        f'<div class="columns"><div>{terms(about)}<details><summary>The rest of the '
        f"manifest</summary>{terms(said)}</details></div><div>{terms(counted)}</div></div>"
        f"{_how_words_are_made(folder)}"
    )


def _value(given: object) -> str:
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "…"


def _listed(counted: Mapping[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counted.items())[:_MOST_NAMES]]
    n_more = len(counted) - len(shown)
    return "; ".join(shown) + (f"; and {n_more:,} more" if n_more else "")


def _how_words_are_made(folder: FolderSummary) -> str:
    tokenization, special = folder.tokenization, folder.special_share
    names = ", ".join(sorted(tokenization.special_tokens))
    pieces = tokenization.pieces or "none: each token is a word"
    where = {
        "manifest": "as the manifest says",
        "texts": "what looks like [X] or <x> and is in every text",
    }[tokenization.found_in]
    sentence = (
        f"Pieces of words: {pieces}. Special tokens ({where}): {names or 'none'}; they "
        f"hold {100 * special.mean:.1f} % of a text's absolute scores on average, and "
        "are left out below."
    )
    return f'<p class="muted">{escaped(sentence)}</p>'


def _words(folder: FolderSummary) -> str:
    sentences = [
        f"Words in fewer than {folder.min_texts} texts of a label are left out. The "
        "words of the highest lower bounds speak most for a label, those of the lowest "
        "upper bounds against it. Open a word for examples."
    ]
    if not folder.is_signed:
        sentences.append(
            "This method gives no negative scores: no word can speak against a label, "
            "and a high share says how much a word counts rather than in which "
            "direction."
        )
    if folder.floor:
        sentences.append(
            "There were more distinct words than are counted at once. Rare ones were "
            f"dropped: a word may be missing, and a count be too low, by up to "
            f"{n_texts(folder.floor)}."
        )
    shown = folder.labels[:_MOST_LABELS]
    if len(shown) < len(folder.labels):
        sentences.append(
            f"The {len(shown)} most frequent labels of {len(folder.labels):,} are "
            "shown; words.csv holds all."
        )
    text = "".join(f"<p>{escaped(sentence)}</p>" for sentence in sentences)
    return text + "".join(_label_words(of) for of in shown)


def _label_words(of: LabelWords) -> str:
    title = f"<h3><bdi>{escaped(of.label)}</bdi>: {n_texts(of.n_texts)}</h3>"
    shown = [*of.speak_for, *of.speak_against]
    bounds = [max(abs(word.share.low), abs(word.share.high)) for word in shown]
    largest = max(bounds, default=1.0)
    sides = "".join(
        f'<div class="side-{side}"><h4>Speak {side} it</h4>'
        f"{_word_list(words, largest)}</div>"
        for side, words in (("for", of.speak_for), ("against", of.speak_against))
    )
    return f'{title}<div class="columns">{sides}</div>'


def _word_list(words: Sequence[WordEvidence], largest: float) -> str:
    if not words:
        return '<p class="muted">No word\'s interval lies on this side of 0.</p>'
    return (
        f'<ol class="word-list">{"".join(_word(word, largest) for word in words)}</ol>'
    )


def _word(word: WordEvidence, largest: float) -> str:
    share = word.share
    low, high = sorted((abs(share.low) / largest, abs(share.high) / largest))
    bar = (
        f'<span class="bar" aria-hidden="true">'
        f'<i style="--from:0;--length:{abs(share.mean) / largest:.4f}"></i>'
        f'<b style="--from:{low:.4f};--length:{high - low:.4f}"></b></span>'
    )
    name = escaped(word.word)
    examples = "".join(f"<li>{_example(example)}</li>" for example in word.examples)
    return (
        f'<li><details><summary><bdi title="{name}">{name}</bdi>{bar}'
        f'<span class="number">{percent(share.mean)}</span>'
        f'<span class="number interval muted">{_interval(share, percent)}, '
        f"{n_texts(share.n)}</span></summary>"
        f'<ul class="examples">{examples}</ul></details></li>'
    )


def _interval(estimate: Estimate, written: Callable[[float], str]) -> str:
    if not math.isfinite(estimate.low):
        return "no interval"
    low, high = written(estimate.low), written(estimate.high)
    return f"[{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _example(example: Example) -> str:
    about = f"{_where(example.row, example.id)}, share {percent(example.share)}, "
    about += _predicted(example.predicted, example.probability)
    return f"{_passage(example.passage)}<p>{escaped(about)}</p>"


def _where(row: int, name: str | None) -> str:
    return f"row {row}" + (f" ({name})" if name is not None else "")


def _predicted(label: str, probability: float | None) -> str:
    number = "" if probability is None else f" {probability:.3f}"
    return f"predicted {label or 'nothing'}{number}"


def _passage(passage: Passage) -> str:
    """Words on a ground as deep as their share, those against underlined, too."""
    largest = max(map(abs, passage.shares), default=0.0) or 1.0
    before, after = passage.is_cut
    parts = ["… "] if before else []
    for word, share, spaced, marked in zip(
        passage.words, passage.shares, passage.spaced, passage.marked, strict=True
    ):
        depth = abs(share) / largest
        side = "" if depth < FAINT else "for" if share > 0 else "against"
        shown = (
            f'<bdi class="{side}" style="--share:{depth:.3f}" '
            f'title="{percent(share)}">{escaped(word)}</bdi>'
        )
        parts.append(" " if spaced else "")
        parts.append(f"<mark>{shown}</mark>" if marked else shown)
    parts += [" …"] if after else []
    return f'<p class="passage">{"".join(parts)}</p>'


def _positions(positions: Positions) -> str:
    rho, absolute = positions.rank_correlation, positions.absolute_rank_correlation
    rows = [("rank correlation of score and position", rho)]
    if rho != absolute:
        rows.append(("rank correlation of absolute score and position", absolute))
    listed = {
        name: f"{of.mean:+.2f} {_interval(of, '{:+.2f}'.format)} ({n_texts(of.n)})"
        for name, of in rows
        if of.n
    }
    for name, part in (
        ("variance that the order explains in each text", positions.own_order),
        ("variance that one profile explains in all", positions.common_profile),
    ):
        if part is not None:
            listed[name] = f"{100 * part:.0f} %"
    relative = positions.relative.shares
    described = ", ".join(f"{100 * share.mean:.1f} %" for share in relative)
    return (
        f'<p class="verdict">{escaped(positions.verdict)}</p>{terms(listed)}'
        + _picture(
            lambda theme: pictures.draw_positions(positions, theme),
            "Bars of the mean absolute share by tenth of the text, and by word from "
            f"both ends. By tenth: {described}.",
        )
    )


def _picture(draw: Callable[[Theme], Figure], described: str) -> str:
    return figure_image(draw(LIGHT), described, draw(DARK))


def _agreement_section(agreement: Agreement) -> str:
    rows = "".join(
        f"<tr><td>{escaped(pair.first)}<br>{escaped(pair.second)}</td>"
        f"<td>{pair.compared}</td>{_cell(pair.rank_correlation, '{:.2f}'.format)}"
        f"{_cell(pair.top_overlap, _whole_percent)}"
        f'<td class="number">{_known(pair.chance_overlap, _whole_percent)}</td></tr>'
        for pair in agreement.pairs
    )
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{title}</th>'
        for title, number in (
            ("folders", False),
            ("compared", False),
            ("rank correlation", True),
            (f"same in the top {agreement.top_k}", True),
            ("by chance", True),
        )
    )
    sentences = [
        f"The folders are compared on {n_texts(agreement.n_compared)} that all of "
        "them explain for the same label and by the same words. Numbers are means over "
        "texts with their intervals."
    ]
    if agreement.n_other_words:
        sentences.append(
            f"Not compared: {n_texts(agreement.n_other_words)} of other words in some "
            "folder."
        )
    if agreement.n_unmatched:
        sentences.append(
            f"Explanations without a counterpart in every other folder: "
            f"{agreement.n_unmatched:,}."
        )
    text = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    picture = _picture(
        lambda theme: pictures.draw_agreement(agreement, theme),
        "The numbers of the table with their intervals.",
    )
    return (
        f'<section id="agreement"><h2>Agreement of methods</h2>{text}'
        f'<div class="scrolled" tabindex="0" role="region" aria-label="Agreement">'
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{picture}</section>"
    )


def _cell(estimate: Estimate, written: Callable[[float], str]) -> str:
    shown = _known(estimate.mean, written)
    interval = f" {_interval(estimate, written)}" if estimate.n else ""
    return f'<td class="number">{shown}{interval}</td>'


def _known(number: float, written: Callable[[float], str]) -> str:
    return written(number) if math.isfinite(number) else "unknown"


def _whole_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _wrong(wrong: WrongTexts) -> str:
    n_wrong, n = wrong.n_wrong, wrong.n_compared
    sentence = (
        f"Of {n_texts(n)} with a label in the column {wrong.label_column!r}, "
        f"{n_wrong:,} ({100 * n_wrong / n:.1f} %) predicted otherwise."
    )
    if wrong.texts:
        sentence += (
            f" Below: the {len(wrong.texts)} of the highest probability, with the "
            "shares of their words."
        )
    elif n_wrong:
        sentence += " None of them has both a probability and scores."
    items = "".join(f"<li>{_wrong_text(each)}</li>" for each in wrong.texts)
    return f'<p>{escaped(sentence)}</p><ol class="wrong">{items}</ol>'


def _wrong_text(wrong: WrongText) -> str:
    text = wrong.text
    row = text.row
    passage = _passage(Passage.of(text, 0, _MOST_WORDS))
    about = (
        f"{_where(row.row, row.id)}, {_predicted(row.predicted, row.probability)}, the "
        f"data says {wrong.true_label}"
    )
    if row.label != row.predicted:
        about += f"; the scores are for {row.label}"
    return f"{passage}<p>{escaped(about)}</p>"
