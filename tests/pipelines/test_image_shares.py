"""The shares of image and text in what generated text was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.pipelines.image_text_generation import GeneratedFromImage
from captum_attnflow.show.generated import generated_page
from captum_attnflow.show.token_matrix import LeftOut

PARTS = (
    *("template", "system", "template", "image", "image", "prompt", "template"),
    *("generated", "generated"),
)
CHAT = GeneratedFromImage(
    prompt="",
    generated="a cat",
    explanation=GenerationExplanation(
        tokens=[
            "<s>",
            "brief",
            "user",
            "<image>",
            "<image>",
            "what",
            "bot",
            "a",
            "cat",
        ],
        scores=torch.tensor(
            [
                [4.0, 2.0, 1.0, 5.0, -3.0, 2.0, 3.0, 0.0, 0.0],
                [1.0, 3.0, 0.0, 1.0, 3.0, -2.0, 6.0, 4.0, 0.0],
            ]
        ),
        log_probabilities=torch.zeros(2),
        flow_value=torch.zeros(2),
        parts=PARTS,
    ),
    method="relevance-flow",
    image="photo.png",
    boxes=((0, 0, 2, 2), (2, 0, 4, 2)),
    layout="1 x 2 image tokens",
    pixels=torch.zeros(3, 2, 4),
)


@pytest.mark.parametrize(
    ("left_out", "of_rows", "words"),
    [
        (
            (),
            (8 / 20, 4 / 20),
            "image 30 % of the total, text 32.5 %, template 37.5 % (absolute scores)",
        ),
        (
            ("first",),
            (8 / 16, 4 / 19),
            "image 34.3 % of what is shown, text 37.1 %, template 28.6 % "
            "(absolute scores; left out: first)",
        ),
        # In front of "a" it is "bot", in front of "cat" it is "a".
        (
            ("read-out",),
            (8 / 17, 4 / 16),
            "image 36.4 % of what is shown, text 27.3 %, template 36.4 % "
            "(absolute scores; left out: read-out)",
        ),
        (
            ("system",),
            (8 / 18, 4 / 17),
            "image 34.3 % of what is shown, text 22.9 %, template 42.9 % "
            "(absolute scores; left out: system)",
        ),
        (
            ("template",),
            (8 / 12, 4 / 13),
            "image 48 % of what is shown, text 52 % "
            "(absolute scores; left out: template)",
        ),
        (
            ("first", "read-out", "system", "template"),
            (8 / 10, 4 / 6),
            "image 75 % of what is shown, text 25 % "
            "(absolute scores; left out: first, read-out, system, template)",
        ),
    ],
)
def test_they_leave_out_what_the_matrix_leaves_out_and_say_so(left_out, of_rows, words):
    result = replace(CHAT, left_out=left_out)
    assert result.image_shares.tolist() == pytest.approx(of_rows)
    assert result.shares == words
    assert result.__rich__().plain.startswith(f"photo.png: {words}\n")
    assert f"photo.png: {words}<br>" in result._repr_html_()
    found = result.to_dict()
    assert found["image_shares"] == pytest.approx(of_rows)
    assert found["left_out"] == list(left_out)
    titles = [axes.get_title() for axes in result.figure([0, 1]).axes]
    for row, share in enumerate(of_rows):
        title = f"{row}: {('a', 'cat')[row]} (image {100 * share:.2g} %)"
        assert title in titles


def test_they_are_those_of_the_matrix_where_no_score_is_negative():
    explanation = replace(CHAT.explanation, scores=CHAT.explanation.scores.abs())
    for left_out in ((), ("template",), ("first", "read-out"), ("system", "read-out")):
        result = replace(CHAT, explanation=explanation, left_out=left_out)
        matrix = result.matrix()
        column = matrix.input_tokens.index("[image: 2 tokens]")
        *rows, answer = matrix.shares[:, column]
        assert result.image_shares.tolist() == pytest.approx(rows)
        assert result.shares.startswith(f"image {100 * answer:.3g} % of ")


def test_a_text_without_a_chat_has_no_template():
    parts = tuple(
        "prompt" if part in ("system", "template") else part for part in PARTS
    )
    result = replace(CHAT, explanation=replace(CHAT.explanation, parts=parts))
    assert result.shares == "image 30 % of the total, text 70 % (absolute scores)"


def test_scores_that_are_all_0_are_said_to_be():
    zeros = torch.zeros_like(CHAT.explanation.scores)
    nothing = replace(CHAT, explanation=replace(CHAT.explanation, scores=zeros))
    assert nothing.shares == "all scores are 0"
    nothing = replace(nothing, left_out=("first", "template"))
    assert nothing.shares == "all scores are 0; left out: first, template"
    assert nothing.image_shares.tolist() == [0, 0]


def test_a_token_of_the_image_that_is_left_out_has_neither_share_nor_colour():
    scores = CHAT.explanation.scores[:, 3:]
    parts, tokens = PARTS[3:], CHAT.explanation.tokens[3:]
    explanation = replace(
        CHAT.explanation, scores=scores, parts=parts, tokens=tokens, pieces=()
    )
    result = replace(CHAT, explanation=explanation, left_out=("first",))
    assert result.matrix().input_tokens[0] == "[image: 1 token]"
    assert result.image_shares.tolist() == pytest.approx([3 / 8, 3 / 15])
    assert result.image_scores.tolist() == [[5, -3], [1, 3]]
    assert result._overlays([0, 1]).popitem()[1].tolist() == [0, 3]
    grid = result.__rich__().plain.splitlines()[-2]
    assert grid[:2] == "  "


@pytest.mark.parametrize(
    ("left_out", "names"),
    [
        ("first", ["first"]),
        (["system", "first"], ["first", "system"]),
        ({"read-out"}, ["read-out"]),
        (frozenset(get_args(LeftOut)), [*get_args(LeftOut)]),
    ],
)
def test_what_is_left_out_is_named_alike_however_it_is_given(left_out, names):
    result = replace(CHAT, left_out=left_out)
    said = f"left out: {', '.join(names)}"
    assert result.shares.endswith(f"(absolute scores; {said})")
    assert f"; {said} (" in result.matrix().caption
    assert result.to_dict()["left_out"] == names
    assert f'"leftOut": {json.dumps(names)}' in generated_page([result])
    expected = replace(CHAT, left_out=tuple(names))
    assert torch.equal(result.image_shares, expected.image_shares)
    assert np.array_equal(
        result.matrix().scores, expected.matrix().scores, equal_nan=True
    )


def test_what_cannot_be_left_out_is_refused():
    with pytest.raises(ValueError, match="left_out='last'"):
        _ = replace(CHAT, left_out=("last",)).image_shares
