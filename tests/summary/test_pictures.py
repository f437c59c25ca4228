from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pictures import HOSTILE, SCRIPTS, overlapping
from score_folders import explained, random_rows, write_folder

from captum_attnflow.summary import summarize


def drawn_texts(figure):
    """Titles, labels and the ticks that are in view."""
    FigureCanvasAgg(figure).draw()
    texts = []
    for panel in figure.axes:
        texts += [panel.title, *panel.texts]
        for axis in (panel.xaxis, panel.yaxis) if panel.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts.append(axis.label)
            for tick in axis.get_major_ticks():
                texts += [tick.label1] if low <= tick.get_loc() <= high else []
    return [text for text in texts if text.get_text()]


@pytest.fixture
def figures(tmp_path):
    rows = [
        explained(n, ["[CLS]", *filter(None, SCRIPTS)], range(-4, 7), target=label)
        for n in range(6)
        for label in (HOSTILE, "short")
    ]
    return summarize(
        [write_folder(tmp_path / name, rows, method=name) for name in ("a", "$b$" * 30)]
    ).figures()


def test_bars_are_the_means_with_their_intervals(tmp_path):
    summary = summarize(write_folder(tmp_path, random_rows(120)))
    figure = summary.figures()["words"]
    for panel, label in zip(figure.axes, summary.folders[0].labels, strict=True):
        shown = [*label.speak_for[:10], *reversed(label.speak_against[:10])]
        assert [bar.get_width() for bar in panel.patches] == pytest.approx(
            [100 * word.share.mean for word in shown]
        )
        [segments] = [c for c in panel.collections if len(c.get_segments())]
        for segment, word in zip(segments.get_segments(), shown, strict=True):
            ends = [100 * word.share.low, 100 * word.share.high]
            assert segment[:, 0] == pytest.approx(ends)
        names = [tick.get_text() for tick in panel.get_yticklabels()]
        assert names == [f"{word.word}  ({word.share.n})" for word in shown]


def test_names_are_drawn_as_they_are_and_none_covers_another(figures):
    assert list(figures) == [
        *("words-1", "positions-1", "words-2", "positions-2", "agreement"),
    ]
    for figure in figures.values():
        texts = drawn_texts(figure)
        assert overlapping(figure, texts) == []
        width = figure.get_figwidth() * figure.dpi
        for text in texts:
            extent = text.get_window_extent()
            assert extent.x0 >= -1
            assert extent.x1 <= width + 1
    words = [text.get_text() for text in drawn_texts(figures["words-1"])]
    assert "$5$  (6)" in words
    assert any(HOSTILE[:15] in text for text in words)


def test_both_labels_of_a_contrast_fit_into_a_title(tmp_path):
    rows = [
        explained(n, ["good"], [1], target="science-and-technology") for n in range(2)
    ]
    folder = write_folder(tmp_path, rows, against="politics-and-economics")
    figure = summarize(folder, min_texts=2).figures()["words"]
    [panel] = figure.axes
    assert panel.get_title() == (
        "science-and-technology rather than\npolitics-and-economics: 2 texts"
    )
    assert overlapping(figure, drawn_texts(figure)) == []


def test_labels_without_clear_words_say_so(tmp_path):
    rows = [explained(1, ["a", "b"], [1, 2])]
    figure = summarize(write_folder(tmp_path, rows)).figures()["words"]
    assert "No word's interval" in drawn_texts(figure)[-1].get_text()
