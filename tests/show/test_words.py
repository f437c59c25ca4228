from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attnflow.show import merge_words


@pytest.mark.parametrize(
    ("pieces", "tokens", "words"),
    [
        ("wordpiece", ["un", "##like", "##ly", ",", "yes"], ["unlikely", ",", "yes"]),
        ("sentencepiece", ["▁un", "like", "▁yes"], ["unlike", "yes"]),
        ("byte-level", ["un", "like", "Ġyes", "Ċ", "no"], ["unlike", "yes", "no"]),
        ("byte-level", ["ĠgrÃ", "¼n", "Ġæĺł", "çĶ»"], ["grün", "映画"]),
    ],
)
def test_pieces_are_merged_by_their_marks(pieces, tokens, words):
    merged, scores = merge_words(tokens, [1.0] * len(tokens), pieces)
    assert merged == words
    assert sum(scores) == len(tokens)


def test_special_tokens_belong_to_no_word():
    words, scores = merge_words(
        ["<s>", "fun", "ny", "</s>"],
        [1.0, 2.0, 3.0, 4.0],
        "byte-level",
        special_tokens=["<s>", "</s>"],
    )
    assert (words, scores) == (["<s>", "funny", "</s>"], [1.0, 5.0, 4.0])


def test_word_ids_of_the_tokenizer_go_before_the_marks(demo):
    encoded = demo.tokenizer("unfunny, funny", return_tensors="pt")
    tokens = demo.tokenizer.convert_ids_to_tokens(encoded.input_ids[0])
    words, scores = merge_words(
        tokens, [1.0] * len(tokens), "wordpiece", encoded.word_ids(0)
    )
    assert words == ["[CLS]", "unfunny", ",", "funny", "[SEP]"]
    assert sum(scores) == len(tokens)
    apart, _ = merge_words(["a", "##b"], [1.0, 2.0], "wordpiece", [0, 1])
    assert len(apart) == 2


@given(st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=8))
def test_merging_keeps_the_sum_of_the_scores(parts):
    tokens = [f"##{text}" if joined else text for text, joined in parts]
    scores = [float(2**place) for place in range(len(tokens))]
    words, merged = merge_words(tokens, scores, "wordpiece")
    assert len(words) == len(merged)
    assert sum(merged) == sum(scores)


def test_no_tokens_are_no_words():
    assert merge_words([], [], "wordpiece") == ([], [])


def test_word_ids_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 word ids for 1 token; give one"):
        merge_words(["a"], [1.0], "wordpiece", [0, 0, 0])
