from __future__ import annotations

import html.parser

import pytest
from rich.console import Console

from captum_attnflow.surrogate.reading import SlalomReading
from captum_attnflow.text import TextAttribution
from captum_attnflow.visualization import html_page, terminal_text, text_records

HOSTILE = "<img src=x onerror=alert(1)>"


def an_attribution(**changes) -> TextAttribution:
    given = {
        "text": "so funny",
        "tokens": ("so", "funny"),
        "scores": (0.5, 2.0),
        "predicted": "positive",
        "probability": 0.9,
        "target": "positive",
        "flow_value": 2.5,
    }
    return TextAttribution(**{**given, **changes})


class Page(html.parser.HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_page_shows_captums_picture():
    page = Page(html_page([an_attribution()]))
    for words in ("Attribution Label", "positive (0.90)", "funny", "2.50"):
        assert words in page.text


def test_hostile_tokens_and_labels_appear_as_text():
    page = Page(
        html_page(
            [
                an_attribution(
                    tokens=(HOSTILE, "<script>"), predicted=HOSTILE, target=HOSTILE
                )
            ]
        )
    )
    assert page.text.count(HOSTILE) == 3
    assert not page.tags & {"img", "script"}


def test_page_is_complete_and_refers_to_nothing_outside():
    source = html_page([an_attribution(), an_attribution(tokens=("déjà", "映画"))])
    assert source.startswith("<!DOCTYPE html>")
    assert 'charset="utf-8"' in source
    assert "http" not in source.replace("<!DOCTYPE html>", "")
    assert "映画" in source


def test_page_prints_nothing(capsys):
    html_page([an_attribution()])
    assert capsys.readouterr().out == ""


def test_scores_are_coloured_relative_to_the_largest_of_their_text():
    [record] = text_records([an_attribution()])
    assert record.word_attributions.tolist() == [0.25, 1.0]
    assert record.attr_score == 2.5
    assert record.convergence_score == 0


@pytest.mark.parametrize("scores", [(0.0, 0.0), (1e-300, 1e-305)])
def test_empty_and_tiny_scores_are_shown(scores):
    attribution = an_attribution(scores=scores)
    assert "funny" in html_page([attribution])
    assert "funny" in terminal_text(attribution).plain
    assert "nan" not in html_page([attribution])


def test_terminal_shows_prediction_tokens_and_the_highest_scores():
    lines = terminal_text(an_attribution(target="negative")).plain.splitlines()
    assert lines == [
        "positive 0.900  (scores for negative)",
        " so  funny ",
        "highest: funny 2, so 0.5",
    ]


def test_the_highest_score_is_the_deepest_green():
    spans = terminal_text(an_attribution()).spans
    colours = {str(span.style) for span in spans}
    assert "black on rgb(77,255,77)" in colours


def test_a_score_against_the_target_is_red():
    spans = terminal_text(an_attribution(scores=(-2.0, 1.0))).spans
    colours = {str(span.style) for span in spans}
    assert colours >= {"black on rgb(255,77,77)", "black on rgb(166,255,166)"}


def test_html_of_slalom_shows_function_minus_model():
    reading = SlalomReading(
        values=(None, 1.0),
        importances=(None, 0.0),
        value_standard_errors=(None, 0.1),
        importance_standard_errors=(None, 0.2),
        log_odds=2.0,
        predicted_log_odds=1.5,
        r2_short=None,
        r2_deletions=0.5,
    )
    attribution = an_attribution(flow_value=None, slalom=reading, scores=(0.0, 1.5))
    [record] = text_records([attribution])
    assert record.convergence_score == -0.5
    assert terminal_text(attribution).plain.splitlines()[3:] == [
        "               value     importance",
        "funny   +1.00 ± 0.10   +0.00 ± 0.20",
        "held-out R2: deletions 0.50",
    ]


def test_control_characters_do_not_reach_the_terminal():
    attribution = an_attribution(tokens=("\x1b[2J", "[red]b[/red]"))
    console = Console(file=None, record=True, force_terminal=True)
    with console.capture() as capture:
        console.print(terminal_text(attribution))
    assert "\x1b[2J" not in capture.get()
    assert r"\x1b[2J" in terminal_text(attribution).plain
    assert "[red]b[/red]" in terminal_text(attribution).plain
