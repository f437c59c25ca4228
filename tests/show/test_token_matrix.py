from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import emulating
from pictures import HOSTILE, SCRIPTS, overlapping
from rich.console import Console
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By

from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import colour
from captum_attnflow.show import token_matrix


def test_what_comes_after_a_token_is_blank():
    words = ["Once", "upon", "a", "time", "there"]
    matrix = token_matrix(torch.ones(3, 5), words, ["time", "there", "was"], n_prompt=3)
    assert np.isnan(matrix.scores).tolist() == [
        [False, False, False, True, True],
        [False, False, False, False, True],
        [False, False, False, False, False],
    ]
    assert matrix._repr_html_().count('class="blank"') == 3 + 2  # and the corners
    lines = matrix.__rich__().plain.splitlines()
    assert [line.split() for line in lines[::2]] == [
        ["time:", "Once", "upon", "a"],
        ["there:", "Once", "upon", "a", "|", "time"],
        ["was:", "Once", "upon", "a", "|", "time", "there"],
    ]
    numbers = [text.get_text() for text in matrix.figure().axes[0].texts]
    assert numbers == ["1"] * 12


def test_the_terminal_names_the_strongest_of_every_row_with_their_shares():
    scores = torch.tensor([[0.5, -2.0, 7.0], [0.25, 1.0, 3.0]])
    matrix = token_matrix(scores, ["a", "b", "c"], ["c", "d"], n_prompt=2)
    assert matrix.__rich__().plain.splitlines()[1::2] == [
        '  for: "a" 20 %; against: "b" 80 %',
        '  for: "c" 71 %, "b" 24 %, "a" 5.9 %',
    ]


def test_scores_are_coloured_relative_to_the_largest_of_the_row_or_of_all():
    scores = torch.tensor([[1.0, -0.5], [0.0, 0.25]])
    matrix = token_matrix(scores, ["a", "b"], ["c", "d"])
    assert matrix.colours.tolist() == [[1.0, -0.5], [0.0, 1.0]]
    of_all = token_matrix(scores, ["a", "b"], ["c", "d"], scale="matrix")
    assert of_all.colours.tolist() == [[1.0, -0.5], [0.0, 0.25]]
    assert (matrix.shares == of_all.shares).all()
    assert matrix.shares.tolist() == [[1 / 1.5, -0.5 / 1.5], [0.0, 1.0]]
    assert 'class="for" style="--share: 1.000"' in matrix._repr_html_()
    colours = {str(span.style) for span in matrix.__rich__().spans}
    assert {f"black on {colour(1.0)}"} <= colours
    [image] = matrix.figure().axes[0].images
    assert image.get_clim() == (-1.0, 1.0)


def test_columns_are_the_prompt_alone_by_default():
    matrix = token_matrix(torch.ones(2, 3), ["a", "b", "c"], ["d", "e"])
    assert not np.isnan(matrix.scores).any()


@pytest.mark.parametrize("n_tokens", [1, 10, 42, 200])
def test_labels_do_not_overlap(n_tokens):
    words = [f"word{'m' * (place % 12)}" for place in range(n_tokens)]
    matrix = token_matrix(torch.randn(n_tokens, n_tokens), words, words)
    for figure in (matrix.figure(), matrix.figure(n_tokens=None)):
        figure.set_dpi(72)
        axes = figure.axes[0]
        for axis in (axes.xaxis, axes.yaxis):
            assert overlapping(figure, axis.get_ticklabels()) == []
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == words
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == words[:: 1 if n_tokens <= 42 else 3]


@pytest.mark.parametrize(("n_prompt", "n_generated"), [(300, 60), (4000, 500), (5, 90)])
def test_a_figure_fits_on_a_page_however_long_the_text_is(n_prompt, n_generated):
    words = [f"word{place}" for place in range(n_prompt + n_generated - 1)]
    scores = torch.randn(n_generated, len(words))
    matrix = token_matrix(scores, words, words[-n_generated:], n_prompt)
    matrix = replace(matrix, caption="many words " * 40)
    width, height = matrix.figure().get_size_inches()
    assert width <= 8.2
    assert height <= 11.7


def test_weak_tokens_share_columns_with_their_mean_and_strong_ones_stand_alone():
    words = [f"p{place}" for place in range(30)] + [f"g{place}" for place in range(9)]
    scores = torch.full((10, 39), 0.01)
    strong = [0, 3, 4, 20, 31, 33]
    scores[:, strong] = torch.linspace(-2, 2, 60).reshape(10, 6)
    scores[:, 10] = -0.02
    matrix = token_matrix(scores, words, [f"r{row}" for row in range(10)], 30)
    figure = matrix.figure(n_tokens=14)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [
        *("p0", "2 tokens", "p3", "p4", "15 tokens", "p20", "9 tokens"),
        *("g0", "g1", "g2", "g3", "g4", "g5", "3 tokens"),
    ]
    styles = [label.get_style() for label in axes.get_xticklabels()]
    assert [style == "italic" for style in styles] == ["tokens" in n for n in names]
    [line] = [each for each in axes.lines if each.get_xdata()[0] == 6.5]
    assert line  # between the prompt and what was generated
    numbers = np.array([text.get_text() for text in axes.texts], dtype=float)
    sizes = [int(name.split()[0]) if "tokens" in name else 1 for name in names]
    ends = np.cumsum(sizes)
    runs = [
        row[end - size : end][~np.isnan(row[end - size : end])]
        for row in matrix.scores
        for size, end in zip(sizes, ends, strict=True)
    ]
    means = [run.mean() for run in runs if len(run)]
    assert numbers == pytest.approx(means, rel=0.06, abs=1e-3)
    others = np.repeat(np.array(sizes) > 1, sizes)
    absolute = np.abs(matrix.scores)
    share = 100 * np.nansum(absolute[:, others]) / np.nansum(absolute)
    said = axes.get_xlabel().replace("\n", " ")
    assert said.startswith("in italics the mean of weaker tokens, ")
    assert float(said.split(", ")[1].split()[0]) == pytest.approx(share, rel=0.06)


def test_colours_of_shared_columns_are_relative_to_the_largest_of_a_token():
    scores = torch.ones(1, 60) * 0.1
    scores[0, 30] = 1.0
    words = [str(place) for place in range(60)]
    [image] = token_matrix(scores, words, ["x"]).figure(n_tokens=20).axes[0].images
    colours = image.get_array()[0]
    assert colours.max() == 1
    assert sorted(set(np.round(colours, 6)))[0] == pytest.approx(0.1)
    shown = token_matrix(scores, words, ["x"]).figure(n_tokens=20).axes[0]
    assert len(shown.get_xticklabels()) <= 20


@pytest.mark.parametrize("n_tokens", [1, 0, -3, 2.5, "all"])
def test_a_wrong_number_of_columns_is_refused(n_tokens):
    matrix = token_matrix(torch.ones(1, 2), ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="n_tokens="):
        matrix.figure(n_tokens=n_tokens)


def test_a_sum_over_rows_has_a_scale_of_its_own():
    explanation = GenerationExplanation(
        tokens=["a", "b", "c", "d"],
        scores=torch.tensor([[1.0, 0, 0, 0], [2.0, 0.5, 0, 0], [3.0, 0, -1.5, 0]]),
        log_probabilities=torch.zeros(3),
        flow_value=torch.zeros(3),
    )
    colours = explanation.matrix(scale="matrix").colours
    assert colours[:3, 0] == pytest.approx([1 / 3, 2 / 3, 1])
    assert colours[3].tolist()[0] == 1.0
    assert colours[3, 1:3] == pytest.approx([0.5 / 6, -1.5 / 6])


LINE = GenerationExplanation(
    tokens=["The", " cap", "ital", " is", " Mar", "se", "ille"],
    scores=torch.tensor(
        [
            [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0],
            [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0],
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0],
        ]
    ),
    log_probabilities=torch.zeros(3),
    flow_value=torch.zeros(3),
    pieces=("The", " cap", "ital", " is", " Mar", "se", "ille"),
)


class TestNamesOfUnits:
    """A row names of a word or line what its sum holds, and the head all of it."""

    @pytest.mark.parametrize(
        ("units", "left_out", "head", "rows"),
        [
            ("word", (), "Marseille", [None, "Mar", "Marse", "Marse"]),
            ("word", ("read-out",), "Marseille", [None, None, "Mar", "Mar"]),
            (
                "line",
                ("first", "read-out"),
                "capital is",
                ["capital", "capital is", "capital is", "capital is"],
            ),
        ],
    )
    def test_they_are_of_the_tokens_in_the_sum(self, units, left_out, head, rows):
        matrix = LINE.matrix(units, left_out)
        column = matrix.input_tokens.index(head)
        page, lines = matrix._repr_html_(), matrix.__rich__().plain.splitlines()[1:]
        assert f'scope="col">{head}</th>' in page
        assert page.count(f'data-score="{head}: ') == rows.count(head)
        for row, name in enumerate(rows):
            score = matrix.scores[row, column]
            assert np.isnan(score) == (name is None)
            if name is not None:
                assert matrix.names(row)[column] == name
                assert f'data-score="{name}: {score:.3g} (' in page
                assert f" {name} " in lines[2 * row]
                assert f'"{name}" ' in lines[2 * row + 1]

    def test_rows_of_spans_name_what_stands_before_or_in_them(self):
        spans = ((0, 2), (2, 3))
        explanation = replace(LINE, scores=LINE.scores[1:], spans=spans)
        matrix = explanation.matrix("word", ["read-out"])
        assert [matrix.names(row)[-2:] for row in (0, 1)] == [
            ["is", "Marseille"],
            ["is", "Mar"],
        ]
        assert np.isnan(matrix.scores[0, -2:]).all()

    def test_an_image_is_named_by_the_tokens_in_the_sum(self):
        parts = ("prompt", "image", "image", "image", *["generated"] * 3)
        explanation = replace(LINE, parts=parts)
        matrix = explanation.matrix(left_out=["read-out"])
        assert matrix.input_tokens[1] == "[image: 3 tokens]"
        names = [matrix.names(row)[1] for row in range(4)]
        assert names == ["[image: 2 tokens]", *["[image: 3 tokens]"] * 3]

    def test_one_of_several_alike_is_told_by_what_the_row_holds(self):
        pieces = ("a", " b", " a", " a", "b")
        explanation = GenerationExplanation(
            tokens=[*pieces],
            scores=torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 0.0]]),
            log_probabilities=torch.zeros(2),
            flow_value=torch.zeros(2),
            pieces=pieces,
        )
        said = explanation.matrix("word").__rich__().plain.splitlines()[4]
        assert (
            said == '  for: "a" (a a) 40 %, "a" (b a a) 30 %, "b" 20 %, "a" (a b) 10 %'
        )

    def test_names_of_a_row_that_is_not_there_are_refused(self):
        with pytest.raises(ValueError, match="row=4 must be at most 3"):
            LINE.matrix("word").names(4)
        with pytest.raises(ValueError, match="row=-1 must be an integer of at least 0"):
            LINE.matrix("word").names(-1)

    def test_a_figure_whose_weak_columns_are_merged_keeps_the_heads(self):
        axes = LINE.matrix("word").figure(n_tokens=3).axes[0]
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names[-1] == "Marseille"


def test_signs_are_written_where_numbers_are_not():
    scores = torch.full((2, 20), 0.5)
    scores[0, 3], scores[1, 7], scores[1, 8] = -1.0, -0.3, -0.001
    words = [str(place) for place in range(20)]
    matrix = token_matrix(scores, words, ["x", "y"])
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", matrix._repr_html_())[1:]
    written = [place for place, cell in enumerate(cells) if cell == "\N{MINUS SIGN}"]
    assert written == [3, 20 + 7]
    figure = matrix.figure()
    [marks] = figure.axes[0].lines
    assert [*zip(*marks.get_data(), strict=True)] == [(3, 0), (7, 1)]
    assert "\N{MINUS SIGN} is against" in figure.axes[1].get_ylabel()
    positive = token_matrix(scores.abs(), words, ["x", "y"]).figure()
    assert positive.axes[1].get_ylim() == (0, 1)


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_labels_stay_where_a_long_table_is_scrolled(width, opened, browser):
    words = [f"word{place}" for place in range(120)]
    matrix = token_matrix(torch.randn(60, 120), words, words[:60], n_prompt=61)
    with emulating(browser, width):
        opened(replace(matrix, caption="what it is"))
        box, head, row, corner = browser.execute_script(
            "const box = document.querySelector('.token-scores div');"
            "box.scrollTo(800, 500);"
            "const find = (css) => document.querySelector(css).getBoundingClientRect();"
            "return [box.getBoundingClientRect(), find('thead tr:last-child'),"
            "find('tbody tr:nth-child(40) th'), find('thead td')]"
            ".map((found) => found.toJSON())"
        )
        page = browser.execute_script("return document.documentElement.scrollWidth")
    assert page <= width
    assert box["top"] <= head["top"] <= head["bottom"] <= box["top"] + 200
    assert row["left"] == corner["left"] == pytest.approx(box["left"], abs=1)
    assert box["bottom"] <= 800


@pytest.mark.browser
def test_prompt_and_generated_columns_have_headings(opened):
    words = ["a", "b", "c", "d"]
    browser = opened(token_matrix(torch.ones(2, 4), words, ["d", "e"], n_prompt=3))
    parts = browser.find_elements(By.CSS_SELECTOR, "th.part")
    found = [(part.text, part.get_attribute("colspan")) for part in parts]
    assert found == [("prompt", "3"), ("generated", "1")]
    cells = browser.find_elements(By.CSS_SELECTOR, "tbody td")
    ActionChains(browser).move_to_element(cells[1]).perform()
    shown = "return getComputedStyle(arguments[0], '::after').content"
    assert browser.execute_script(shown, cells[1]) == '"b: 1 (33 %)"'


@pytest.mark.parametrize("tokens", [[], ["one"], SCRIPTS])
@pytest.mark.parametrize("outputs", [[], [HOSTILE, "映画"]])
def test_every_script_is_shown_without_a_warning(tokens, outputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = token_matrix(torch.zeros(len(outputs), len(tokens)), tokens, outputs)
        matrix.figure().savefig(io.BytesIO(), format="pdf")
    assert "<img" not in matrix._repr_html_()
    console = Console(force_terminal=True)
    with console.capture() as capture:
        console.print(matrix)
    assert "\x1b[2J" not in capture.get()


@pytest.mark.parametrize(
    ("n_columns", "n_prompt", "words"),
    [(3, None, "2 output and 2 input"), (2, 3, "n_prompt=3"), (2, -1, "n_prompt=-1")],
)
def test_bad_input_is_refused(n_columns, n_prompt, words):
    with pytest.raises(ValueError, match=words):
        token_matrix(torch.ones(2, n_columns), ["a", "b"], ["c", "d"], n_prompt)
