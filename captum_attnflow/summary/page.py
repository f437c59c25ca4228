"""A summary as one page of HTML, and the pictures of it.

The page has no script, needs no network, and everything on it is escaped. Pictures show
words with intervals, positions and agreement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_attnflow._checks import counted
from captum_attnflow.scored_tokens import FAINT, escaped, printable
from captum_attnflow.show.document import figure_image, html_document, terms
from captum_attnflow.show.figures import (
    DARK,
    LIGHT,
    PRINTED,
    Label,
    Theme,
    drawable,
    shortened,
)
from captum_attnflow.summary.folder_summary import (
    FolderSummary,
    WrongText,
    WrongTexts,
    facts,
    percent,
)
from captum_attnflow.summary.ranks import Agreement, Positions, Profile
from captum_attnflow.summary.words import (
    Estimate,
    Example,
    LabelWords,
    Passage,
    WordEvidence,
)

_FIRST_KEYS = (
    *("model", "method", "options", "target", "against", "data", "text_column"),
)
_VALUE_CHARACTERS = 400
_MOST_LABELS = 12
_MOST_NAMES = 12  # of reasons and labels in the counts
_MOST_WORDS = 120  # of a text where the model is wrong

_WIDTH = 5.0  # inches, such that it can be read at the width of a telephone
_DRAWN_LABELS = 6
_WORDS_PER_SIDE = 10
_LABEL_CELLS = 20
_NAME_CELLS = 28
_TITLE_CELLS = 56
_FONT_SIZE = 8

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
            f"{counted(folder.floor, 'text')}."
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
    title = f"<h3><bdi>{escaped(of.label)}</bdi>: {counted(of.n_texts, 'text')}</h3>"
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
        f"{counted(share.n, 'text')}</span></summary>"
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
        name: f"{of.mean:+.2f} {_interval(of, '{:+.2f}'.format)} "
        f"({counted(of.n, 'text')})"
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
            lambda theme: draw_positions(positions, theme),
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
        f"The folders are compared on {counted(agreement.n_compared, 'text')} that all "
        "of them explain for the same label and by the same words. Numbers are means "
        "over texts with their intervals."
    ]
    if agreement.n_other_words:
        sentences.append(
            f"Not compared: {counted(agreement.n_other_words, 'text')} of other words "
            "in some folder."
        )
    if agreement.n_unmatched:
        sentences.append(
            f"Explanations without a counterpart in every other folder: "
            f"{agreement.n_unmatched:,}."
        )
    text = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    picture = _picture(
        lambda theme: draw_agreement(agreement, theme),
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
        f"Of {counted(n, 'text')} with a label in the column {wrong.label_column!r}, "
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
    if row.explained != row.predicted:
        about += f"; the scores are for {row.explained}"
    return f"{passage}<p>{escaped(about)}</p>"


def draw_words(labels: Sequence[LabelWords], theme: Theme = PRINTED) -> Figure:
    """Draw the words for and against the most frequent labels.

    Args:
        labels (sequence of LabelWords): A panel each, of the first six.
        theme (Theme): The colours.
    """
    shown = [(of, _both_sides(of)) for of in labels[:_DRAWN_LABELS]]
    heights = [max(2, len(words)) for _, words in shown]
    figure, panels = _panels(sum(heights) * 0.19 + 0.7 * len(shown), heights, theme)
    for panel, (of, words) in zip(panels, shown, strict=True):
        _title(panel, f"{of.label}: {counted(of.n_texts, 'text')}", theme)
        if not words:
            _say(panel, "No word's interval lies on one side of 0.", theme)
            continue
        shares = [word.share for word in words]
        colours = [
            theme.positive if share.mean > 0 else theme.negative for share in shares
        ]
        means = [100 * share.mean for share in shares]
        panel.barh(range(len(words)), means, color=colours)
        panel.errorbar(
            means,
            range(len(words)),
            xerr=_error_bars(shares),
            fmt="none",
            ecolor=theme.ink,
            elinewidth=0.8,
            capsize=1.5,
        )
        panel.axvline(0, color=theme.ink, linewidth=0.6)
        panel.set_yticks(range(len(words)))
        _name_ticks(
            panel,
            [
                (f"{shortened(word.word, _LABEL_CELLS)}  ({word.share.n:,})",)
                for word in words
            ],
        )
        panel.set_ylim(len(words) - 0.5, -0.5)
        panel.set_xlabel("mean share of the text, % (texts with the word)")
    return figure


def _both_sides(of: LabelWords) -> list[WordEvidence]:
    against = of.speak_against[:_WORDS_PER_SIDE]
    return [*of.speak_for[:_WORDS_PER_SIDE], *reversed(against)]


def draw_positions(positions: Positions, theme: Theme = PRINTED) -> Figure:
    """Draw the mean absolute share by tenth of the text, and from both ends.

    Args:
        positions (Positions): What is drawn.
        theme (Theme): The colours.
    """
    figure, panels = _panels(5.4, [1, 1, 1], theme)
    tenths = [str(number) for number in range(1, 1 + len(positions.relative.even))]
    ends = [str(number) for number in range(1, 1 + len(positions.from_start.even))]
    for panel, profile, title, ticks in (
        (panels[0], positions.relative, "tenth of the text", tenths),
        (panels[1], positions.from_start, "word from the start", ends),
        (panels[2], positions.from_end, "word from the end (1: the last)", ends),
    ):
        _draw_profile(panel, profile, theme)
        panel.set_xticks(range(len(ticks)), ticks)
        panel.set_xlabel(title)
        panel.set_ylabel("mean share, %")
    # The last word stands on the right, as in a text that is read from the left.
    panels[2].invert_xaxis()
    panels[0].legend(
        fontsize=_FONT_SIZE,
        frameon=False,
        labelcolor=theme.ink,
        loc="lower right",
        bbox_to_anchor=(1, 1),  # above the bars, which it would hide
    )
    return figure


def _draw_profile(panel: Axes, profile: Profile, theme: Theme) -> None:
    there = [place for place, share in enumerate(profile.shares) if share.n]
    shares = [profile.shares[place] for place in there]
    panel.bar(there, [100 * s.mean for s in shares], color=theme.positive, alpha=0.8)
    panel.errorbar(
        there,
        [100 * share.mean for share in shares],
        yerr=_error_bars(shares),
        fmt="none",
        ecolor=theme.ink,
        elinewidth=0.8,
        capsize=1.5,
    )
    panel.step(
        there,
        [100 * profile.even[place] for place in there],
        where="mid",
        color=theme.negative,
        linestyle="--",
        linewidth=1.2,
        label="if all words had the same",
    )
    panel.set_xlim(-0.6, len(profile.shares) - 0.4)
    panel.set_ylim(bottom=0)


def draw_agreement(agreement: Agreement, theme: Theme = PRINTED) -> Figure:
    """Draw rank correlation and overlap of every two folders, with intervals.

    Args:
        agreement (Agreement): What is drawn.
        theme (Theme): The colours.
    """
    pairs = agreement.pairs
    names = [
        (shortened(pair.first, _NAME_CELLS), shortened(pair.second, _NAME_CELLS))
        for pair in pairs
    ]
    figure, panels = _panels(1.6 + 0.7 * len(pairs), [1, 1], theme)
    for panel, estimates, title in (
        (panels[0], [p.rank_correlation for p in pairs], "mean rank correlation"),
        (
            panels[1],
            [p.top_overlap for p in pairs],
            f"same of the top {agreement.top_k} (dashes: chance)",
        ),
    ):
        known = [at for at, estimate in enumerate(estimates) if estimate.n]
        panel.errorbar(
            [estimates[at].mean for at in known],
            known,
            xerr=_error_bars([estimates[at] for at in known], unit=1),
            fmt="o",
            markersize=4,
            color=theme.positive,
        )
        panel.set_yticks(range(len(pairs)))
        _name_ticks(panel, names)
        panel.set_ylim(len(pairs) - 0.5, -0.5)
        panel.set_xlabel(title)
    lowest = min((_finite(p.rank_correlation.low, 0.0) for p in pairs), default=0.0)
    panels[0].set_xlim(min(-0.05, lowest - 0.05), 1.05)
    panels[0].axvline(0, color=theme.muted, linewidth=0.6)
    panels[1].set_xlim(-0.05, 1.05)
    for at, pair in enumerate(pairs):
        panels[1].plot(
            [pair.chance_overlap] * 2, [at - 0.3, at + 0.3], "--", color=theme.negative
        )
    return figure


def _panels(
    height: float, heights: Sequence[float], theme: Theme
) -> tuple[Figure, list[Axes]]:
    figure = Figure(
        figsize=(_WIDTH, max(height, 1.5)), layout="constrained", facecolor=theme.paper
    )
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for panel in panels[:, 0]:
        panel.set_facecolor("none")
        panel.tick_params(colors=theme.ink, labelsize=_FONT_SIZE)
        panel.xaxis.label.set(color=theme.ink, fontsize=_FONT_SIZE)
        panel.yaxis.label.set(color=theme.ink, fontsize=_FONT_SIZE)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.muted)
    return figure, list(panels[:, 0])


def _title(panel: Axes, given: str, theme: Theme) -> None:
    # A contrast names two labels, of which the second is not to be cut off.
    lines = wrap(
        printable(given),
        _TITLE_CELLS,
        max_lines=2,
        placeholder="…",
        break_on_hyphens=False,
    )
    text, families = _drawable_lines([shortened(line, _TITLE_CELLS) for line in lines])
    title = panel.set_title(text, fontsize=_FONT_SIZE + 1, color=theme.ink)
    title.set(fontfamily=families, parse_math=False)


def _name_ticks(panel: Axes, names: Sequence[tuple[str, ...]]) -> None:
    """Write names, of one or more lines, in fonts that have their characters."""
    drawn = [_drawable_lines(lines) for lines in names]
    ticks = panel.set_yticklabels([text for text, _ in drawn])
    for tick, (_, families) in zip(ticks, drawn, strict=True):
        tick.set(fontfamily=families, parse_math=False)


def _drawable_lines(lines: Sequence[str]) -> Label:
    drawn = [drawable(line) for line in lines]
    families = dict.fromkeys(family for _, found in drawn for family in found)
    return "\n".join(text for text, _ in drawn), list(families)


def _say(panel: Axes, sentence: str, theme: Theme) -> None:
    panel.text(0.5, 0.5, sentence, ha="center", va="center", color=theme.muted)
    panel.set_axis_off()


def _error_bars(
    estimates: Sequence[Estimate], unit: float = 100
) -> tuple[list[float], list[float]]:
    """Lengths below and above the means; none where an interval has no end."""
    below = [unit * _finite(each.mean - each.low, math.nan) for each in estimates]
    above = [unit * _finite(each.high - each.mean, math.nan) for each in estimates]
    return below, above


def _finite(number: float, otherwise: float) -> float:
    return number if math.isfinite(number) else otherwise
