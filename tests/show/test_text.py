from __future__ import annotations

import html
import html.parser
import re

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from pictures import HOSTILE
from rich.console import Console

from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.scored_tokens import MINUS, colour
from captum_attnflow.show import (
    html_page,
    save_html,
    terminal_text,
    text_records,
    visualize_text,
)
from captum_attnflow.slalom.model import SlalomReading
from captum_attnflow.texts.units import Word


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


READING = SlalomReading(
    values=(None, 1.0),
    importances=(None, 0.0),
    value_standard_errors=(None, 0.1),
    importance_standard_errors=(None, 0.2),
    log_odds=2.0,
    predicted_log_odds=1.5,
    r2_short=None,
    r2_deletions=0.5,
)


class Page(html.parser.HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_page_shows_what_captums_records_hold():
    page = Page(html_page([an_attribution()]))
    for words in ("positive (0.90)", "scores for “positive”", "funny", "sum to 2.50"):
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
    # The words, the strongest, the table; the label in the heading and the caption.
    assert page.text.count(HOSTILE) == 5
    assert "img" not in page.tags
    assert not any("onerror" in name for name, _ in page.attributes)


def test_page_is_complete_and_refers_to_nothing_outside():
    source = html_page([an_attribution(), an_attribution(tokens=("déjà", "映画"))])
    assert source.startswith("<!DOCTYPE html>")
    assert 'charset="utf-8"' in source
    assert "http:" not in source
    assert "https:" not in source
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


def test_terminal_shows_prediction_tokens_and_the_strongest():
    lines = terminal_text(an_attribution(target="negative")).plain.splitlines()
    assert lines == [
        "positive 0.900",
        "scores for “negative”",
        " so  funny ",
        'for: "funny" 80 %, "so" 20 %',
    ]


def test_the_highest_score_is_the_deepest_blue():
    spans = terminal_text(an_attribution()).spans
    colours = {str(span.style) for span in spans}
    assert f"black on {colour(1)}" in colours


@pytest.mark.parametrize(("share", "is_coloured"), [(0.03, False), (0.06, True)])
def test_a_page_colours_the_words_that_a_terminal_colours(share, is_coloured):
    attribution = an_attribution(scores=(share, 1.0))
    styles = [str(span.style) for span in terminal_text(attribution).spans]
    assert sum(style.startswith("black on") for style in styles) == 1 + is_coloured
    assert html_page([attribution]).count('class="token for"') == 1 + is_coloured


def test_a_score_against_the_target_is_orange_and_has_a_minus_sign_in_a_pipe():
    shown = terminal_text(an_attribution(scores=(-2.0, 1.0)))
    colours = {str(span.style) for span in shown.spans}
    assert colours >= {f"black on {colour(-1)}", f"black on {colour(0.5)}"}
    assert shown.plain.splitlines()[2:] == [
        f" {MINUS}so  funny ",
        'for: "funny" 33 %',
        'against: "so" 67 %',
    ]


def test_words_are_shown_as_written_and_pieces_on_request():
    attribution = an_attribution(
        tokens=("[CLS]", "uber", "##cool", "[UNK]", "[SEP]"),
        scores=(0.0, 1.0, 1.0, -1.0, 1.0),
        n_truncated=3,
        method="relevance-flow",
        words=(
            Word("[CLS]", (0,), "special"),
            Word("Übercool", (1, 2)),
            Word("🎬", (3,), "unknown"),
            Word("[SEP]", (4,), "special"),
        ),
    )
    shown = terminal_text(attribution)
    assert shown.plain.splitlines()[1:] == [
        "relevance-flow: scores for “positive”",
        "truncated: the model did not see 3 of 8 tokens",
        "unknown to the model: “🎬”",
        f" [CLS]  Übercool  {MINUS}🎬  [SEP] ",
        'for: "Übercool" 50 %, "[SEP]" 25 %',
        'against: "🎬" 25 %',
    ]
    assert [str(span.style) for span in shown.spans].count("dim") == 2
    pieces = terminal_text(attribution, by="token").plain
    assert f" uber  ##cool  {MINUS}[UNK] " in pieces
    with pytest.raises(ValueError, match="by='letter' is unknown"):
        terminal_text(attribution, by="letter")
    source = html_page(attribution)
    assert "“Übercool” (uber + ##cool): +2, 50 % for" in source
    assert f"“🎬” ([UNK]), unknown to the model: {MINUS}1, 25 % against" in source


def test_an_unsigned_text_has_no_legend_of_what_is_against():
    signed, unsigned = (
        html_page(an_attribution(scores=scores)).partition("<body")[2]
        for scores in ((-2.0, 1.0), (2.0, 1.0))
    )
    assert "against it" in signed
    assert "gainst" not in unsigned
    picture = visualize_text(text_records([an_attribution()])).data
    assert "Positive" in picture
    assert "Negative" not in picture


def test_captums_green_and_red_become_blue_and_orange():
    attribution = an_attribution(
        tokens=("so", "color: hsl(120, 75%, 50%)"), scores=(-2.0, 2.0)
    )
    picture = visualize_text(text_records([attribution])).data
    found = re.findall(r'<mark style="background-color: hsl\((\d+),', picture)
    assert found == ["22", "208"]
    assert "color: hsl(120, 75%, 50%)" in picture  # the token


def test_text_between_words_is_no_markup():
    source = html_page(
        [an_attribution(text="a<b&c\nd", tokens=tuple("abcd"), scores=(1.0,) * 4)]
    )
    words = re.search(r'<div class="words".*?</div>', source, re.DOTALL)
    assert "</span>&lt;<span" in words[0]
    assert "</span>&amp;<span" in words[0]
    assert "</span>\n<span" in words[0]


def test_what_is_said_of_a_picture_names_the_label_as_it_is():
    label = "don't & <x>"
    attribution = an_attribution(
        flow_value=None, slalom=READING, scores=(0.0, 1.5), target=label
    )
    alternatives = [
        value
        for name, value in Page(html_page([attribution])).attributes
        if name == "alt"
    ]
    assert alternatives == [f"Value and importance of each token for “{label}”"]


def test_html_of_slalom_shows_function_minus_model():
    attribution = an_attribution(flow_value=None, slalom=READING, scores=(0.0, 1.5))
    [record] = text_records([attribution])
    assert record.convergence_score == -0.5
    assert terminal_text(attribution).plain.splitlines()[4:] == [
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


class TestRecordsOfAnyAttribution:
    tokens = ("[CLS]", "grip", "##ping", HOSTILE)

    @pytest.mark.parametrize("shape", [(4,), (4, 8), (1, 4), (1, 4, 8)])
    def test_tensors_of_captums_shapes_give_the_same_record(self, shape):
        scores = torch.tensor([0.0, 1.0, 0.5, -2.0])
        wide = shape[-1] == 8
        attributions = (scores[:, None] / 8).expand(4, 8) if wide else scores
        batched = shape[0] == 1
        tokens = [self.tokens] if batched else self.tokens
        [record] = text_records(attributions.reshape(shape), tokens)
        assert record.word_attributions.tolist() == [0.0, 0.5, 0.25, -1.0]
        assert record.attr_score == -0.5
        assert record.raw_input_ids[3] == html.escape(HOSTILE)

    def test_integrated_gradients_of_captum_are_shown(self, demo):
        encoded = demo.encode(["a gripping film", "dull"])
        attribution = LayerIntegratedGradients(
            lambda ids: demo.model(ids).logits, demo.model.bert.embeddings
        )
        ids = encoded["input_ids"]
        tokens = [demo.tokenizer.convert_ids_to_tokens(row) for row in ids]
        scores, delta = attribution.attribute(
            ids, target=1, n_steps=4, return_convergence_delta=True
        )
        records = text_records(scores, tokens, convergence=delta, target=["1", "1"])
        assert [record.raw_input_ids for record in records] == tokens
        assert records[1].convergence_score == delta[1]
        assert float(records[0].attr_score) == pytest.approx(float(scores[0].sum()))

    def test_labels_are_escaped_and_unknown_ones_a_dash(self):
        [record] = text_records(torch.ones(1), ["a"], true_label=[HOSTILE])
        page = Page(html_page(visualize_text([record])))
        assert HOSTILE in page.text
        assert "“- (-)" not in page.text
        assert "nan" not in page.text

    @pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1]), ("0", "1")])
    def test_labels_are_what_attribute_takes(self, target):
        records = text_records(torch.ones(2, 1), [["a"], ["b"]], target=target)
        assert [record.attr_class for record in records] == ["0", "1"]

    @pytest.mark.parametrize("target", [1, "positive", torch.tensor(1)])
    def test_one_label_for_all_is_refused(self, target):
        with pytest.raises(ValueError, match="give an entry per text, such as target="):
            text_records(torch.ones(2, 1), [["a"], ["b"]], target=target)

    def test_words_are_merged_and_special_tokens_hidden_on_request(self):
        options = {"special_tokens": ["[CLS]"], "special": "hidden"}
        scores = torch.tensor([3.0, 1.0, 0.5, -2.0])
        [record] = text_records(scores, self.tokens, pieces="wordpiece", **options)
        assert record.raw_input_ids == ["gripping", html.escape(HOSTILE)]
        assert record.word_attributions.tolist() == [0.75, -1.0]
        assert record.attr_score == 2.5  # the hidden token's included

    def test_text_attributions_are_merged_as_well(self):
        attribution = an_attribution(tokens=("fun", "##ny"))
        [record] = text_records([attribution], pieces="wordpiece")
        assert record.raw_input_ids == ["funny"]
        assert record.pred_class == "positive"

    def test_scores_that_are_not_finite_are_told_and_not_painted(self):
        scores = torch.tensor([float("nan"), 1.0, float("inf")])
        with pytest.warns(UserWarning, match="scores of 2 tokens are not finite"):
            [record] = text_records(scores, ["a", "b", "c"])
        assert record.word_attributions.tolist() == [0.0, 1.0, 0.0]

    @pytest.mark.parametrize(("shape", "tokens"), [((0,), []), ((1, 0), [[]])])
    def test_a_text_without_tokens_is_shown(self, shape, tokens):
        [record] = text_records(torch.zeros(shape), tokens)
        assert "True Label" in visualize_text([record]).data

    def test_no_texts_are_no_records(self):
        assert text_records(torch.zeros(0, 3), []) == []

    @pytest.mark.parametrize(
        ("attributions", "tokens", "options", "words"),
        [
            (torch.ones(2), None, {}, "without tokens"),
            (torch.ones(2), ["a"], {}, "give 2 tokens"),
            (torch.ones(2, 2), [["a", "b"]], {}, "give 2 tokens for each of 2"),
            (torch.ones(1, 2, 3, 4), [["a", "b"]], {}, r"\(1, 2, 3, 4\)"),
            (torch.ones(1), ["a"], {"target": ["x", "y"]}, "target has 2 entries"),
            (torch.ones(1), ["a"], {"special": "gone"}, "'shown', 'hidden'"),
            (torch.ones(1), ["a"], {"word_ids": [[0]]}, "without pieces"),
            (torch.ones(1), ["a"], {"pieces": "bpe"}, "'byte-level'"),
            ([], ["a"], {}, "know theirs"),
        ],
    )
    def test_bad_input_is_refused(self, attributions, tokens, options, words):
        with pytest.raises(ValueError, match=words):
            text_records(attributions, tokens, **options)


class TestVisualizeText:
    def test_prints_nothing_outside_a_notebook(self, capsys):
        assert "funny" in visualize_text(text_records([an_attribution()])).data
        assert capsys.readouterr().out == ""

    def test_displays_nothing_of_its_own_in_a_notebook(self):
        shell = InteractiveShell.instance()
        try:
            with capture_output() as captured:
                picture = visualize_text(text_records([an_attribution()]))
        finally:
            shell.clear_instance()
        assert captured.outputs == []  # the value of the cell shows it, once
        assert "funny" in picture._repr_html_()

    def test_is_saved_as_a_page(self, tmp_path):
        picture = visualize_text(text_records([an_attribution(tokens=("a", "映画"))]))
        save_html(picture, tmp_path / "page.html")
        assert "映画" in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_a_text_attribution_shows_itself():
    attribution = an_attribution(tokens=("so", HOSTILE))
    page = Page(html_page(attribution))
    assert HOSTILE in page.text
    assert "positive (0.90)" in page.text
    console = Console(width=100, record=True)
    with console.capture() as capture:
        console.print(attribution)
    assert "positive 0.900" in capture.get()
