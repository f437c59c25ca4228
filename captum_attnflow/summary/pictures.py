"""The pictures of a summary: words with intervals, positions, agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_attnflow.show.figures import PRINTED, Theme, drawable, shortened
from captum_attnflow.summary.agreement import Agreement
from captum_attnflow.summary.estimates import Estimate
from captum_attnflow.summary.folder_summary import n_texts
from captum_attnflow.summary.positions import Positions, Profile
from captum_attnflow.summary.words import LabelWords, WordEvidence

_WIDTH = 5.0  # inches, such that it can be read at the width of a telephone
_MOST_LABELS = 6
_WORDS_PER_SIDE = 10
_LABEL_CELLS = 20
_NAME_CELLS = 28
_FONT_SIZE = 8


def draw_words(labels: Sequence[LabelWords], theme: Theme = PRINTED) -> Figure:
    """Draw the words for and against the most frequent labels.

    Args:
        labels (sequence of LabelWords): A panel each, of the first six.
        theme (Theme): The colours.
    """
    shown = [(of, _both_sides(of)) for of in labels[:_MOST_LABELS]]
    heights = [max(2, len(words)) for _, words in shown]
    figure, panels = _panels(sum(heights) * 0.19 + 0.7 * len(shown), heights, theme)
    for panel, (of, words) in zip(panels, shown, strict=True):
        _title(panel, f"{of.label}: {n_texts(of.n_texts)}", theme)
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
    text, families = drawable(shortened(given, 2 * _NAME_CELLS))
    title = panel.set_title(text, fontsize=_FONT_SIZE + 1, color=theme.ink)
    title.set(fontfamily=families, parse_math=False)


def _name_ticks(panel: Axes, names: Sequence[tuple[str, ...]]) -> None:
    """Write names, of one or more lines, in fonts that have their characters."""
    drawn = [[drawable(line) for line in lines] for lines in names]
    texts = ["\n".join(text for text, _ in lines) for lines in drawn]
    for tick, lines in zip(panel.set_yticklabels(texts), drawn, strict=True):
        families = dict.fromkeys(family for _, found in lines for family in found)
        tick.set(fontfamily=list(families), parse_math=False)


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
