from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from pictures import HOSTILE, SCRIPTS, overlapping
from rich.console import Console

from captum_attnflow.show import token_matrix


def test_what_comes_after_a_token_is_blank():
    words = ["Once", "upon", "a", "time", "there"]
    matrix = token_matrix(torch.ones(3, 5), words, ["time", "there", "was"], n_prompt=3)
    assert np.isnan(matrix.scores).tolist() == [
        [False, False, False, True, True],
        [False, False, False, False, True],
        [False, False, False, False, False],
    ]
    assert matrix._repr_html_().count('class="blank"') == 3 + 1  # and the corner
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
    assert "rgb(77,255,77)" in matrix._repr_html_()
    colours = {str(span.style) for span in matrix.__rich__().spans}
    assert {"black on rgb(77,255,77)", "black on rgb(255,255,255)"} <= colours
    [image] = matrix.figure().axes[0].images
    assert image.get_clim() == (-1.0, 1.0)


def test_columns_are_the_prompt_alone_by_default():
    matrix = token_matrix(torch.ones(2, 3), ["a", "b", "c"], ["d", "e"])
    assert not np.isnan(matrix.scores).any()


@pytest.mark.parametrize("n_tokens", [1, 10, 200])
def test_labels_do_not_overlap(n_tokens):
    words = [f"word{'m' * (place % 12)}" for place in range(n_tokens)]
    figure = token_matrix(torch.randn(n_tokens, n_tokens), words, words).figure()
    figure.set_dpi(72)
    axes = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        shown = axis.get_ticklabels()
        assert [label.get_text() for label in shown] == words
        assert overlapping(figure, shown) == []


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
