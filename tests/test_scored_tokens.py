"""Results show themselves, in a notebook and in a terminal."""

from __future__ import annotations

import pytest
from pictures import HOSTILE, an_explanation
from rich.console import Console

from captum_attnflow import SLALOM, AttentionFlow, RelevanceFlow
from captum_attnflow.scored_tokens import (
    ScoredTokens,
    TokenTable,
    colour,
    printable,
    relative,
)


def printed(result: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(result)
    return capture.get()


@pytest.mark.parametrize("method", [AttentionFlow, RelevanceFlow, SLALOM])
def test_every_explanation_shows_itself(method, demo):
    ids = demo.encode(["a gripping , funny film", "dull"])["input_ids"]
    explanation = method(lambda ids: demo.model(ids).logits).explain(ids, target=1)
    tokens = [demo.tokenizer.convert_ids_to_tokens(row) for row in ids]
    assert "example 1" in explanation._repr_html_()
    assert " 6 " in printed(explanation)  # positions where no tokens are given
    table = explanation.show(tokens)
    for shown in (table._repr_html_(), printed(table)):
        assert "gripping" in shown
        assert "[PAD]" in shown


def test_tokens_are_escaped():
    shown = an_explanation(1, 2).show([[HOSTILE, "\x1b[2J"]])
    assert "<img" not in shown._repr_html_()
    assert r"\x1b[2J" in shown._repr_html_()
    assert "\x1b[2J" not in printed(shown)


@pytest.mark.parametrize("tokens", [[["a"]], [["a", "b"], ["a", "b"]], ["ab"]])
def test_tokens_that_are_not_one_per_score_are_refused(tokens):
    with pytest.raises(ValueError, match="give"):
        an_explanation(1, 2).show(tokens)


@pytest.mark.parametrize(
    ("scores", "shares"),
    [
        ([], []),
        ([0.0, -0.0], [0.0, 0.0]),
        ([1.0, -2.0], [0.5, -1.0]),
        ([float("nan"), float("inf"), 3.0], [0.0, 0.0, 1.0]),
        ([5e-324, 0.0], [1.0, 0.0]),
    ],
)
def test_scores_are_shown_relative_to_the_largest_finite_one(scores, shares):
    assert relative(scores) == shares


def test_colours_deepen_with_the_share_and_turn_with_its_sign():
    assert colour(0.0) == "rgb(255,255,255)"
    blue, orange = (
        tuple(map(int, colour(share)[4:-1].split(","))) for share in (1.0, -1.0)
    )
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    paler = tuple(map(int, colour(0.5)[4:-1].split(",")))
    assert all(deep < half for deep, half in zip(blue, paler, strict=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\u202eb", r"a\u202eb"),  # would turn the text that follows
        ("👩\u200d💻", "👩\u200d💻"),  # a joiner is part of the emoji
        ("می\u200cخ", "می\u200cخ"),
        ("映画", "映画"),
    ],
)
def test_only_what_has_no_shape_of_its_own_is_escaped(text, shown):
    assert printable(text) == shown


def test_a_text_of_no_tokens_is_shown():
    table = TokenTable((ScoredTokens("nothing", (), ()),))
    assert "nothing" in table._repr_html_()
    assert "no token" in printed(table)
