"""Results as tables: every score in its row, beside what is known of its text."""

from __future__ import annotations

import math
import sys

import pandas
import pytest
import torch
from models import VOCABULARY, causal_language_model, numbers_tokenizer

from captum_attnflow import GenerationExplanation
from captum_attnflow.long_form import COLUMNS, to_arrow, to_pandas
from captum_attnflow.pipelines.image_classification import ImageAttribution, Patch
from captum_attnflow.pipelines.methods import METHODS, method_class
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.pipelines.text_generation import TextGenerator
from captum_attnflow.show import merge_words

TEXTS = ["a gripping , funny film", "dull", "unwatchably overlong"]


@pytest.fixture(scope="module")
def explain(demo):
    """Explain the texts by a method, on the level of tensors."""

    def forward(ids, attention_mask):
        return demo.model(input_ids=ids, attention_mask=attention_mask).logits

    def explain(method):
        encoded = demo.encode(TEXTS)
        return method_class(method)(forward).explain(
            encoded["input_ids"],
            target=1,
            additional_forward_args=(encoded["attention_mask"],),
        )

    return explain


@pytest.mark.parametrize("method", METHODS)
def test_a_table_has_a_row_for_each_token_of_each_text(demo, method):
    results = demo.explain(TEXTS, method, target="negative")
    table = to_arrow(results)
    rows = [
        {
            "example": result.index,
            "text": result.text,
            "position": position,
            "token": token,
            "score": score,
            "share": score / (sum(map(abs, result.scores)) or 1.0),
            "label": "negative",
            "predicted": result.predicted,
            "probability": result.probability,
            "value": None,
        }
        for result in results
        for position, (token, score) in enumerate(
            zip(result.tokens, result.scores, strict=True)
        )
    ]
    assert table.to_pylist() == rows
    types = [str(field.type).replace("double", "float64") for field in table.schema]
    assert types == [COLUMNS[name] for name in table.column_names]


def test_pandas_and_arrow_have_the_same_rows(demo):
    results = demo.explain(TEXTS, "attention-rollout")
    frame, table = to_pandas(results), to_arrow(results)
    assert list(frame.columns) == table.column_names
    assert (
        frame.drop(columns="value").to_dict("records")
        == table.drop_columns("value").to_pylist()
    )
    assert frame.value.isna().all()
    assert frame.dtypes.astype(str).to_dict() == {n: COLUMNS[n] for n in frame}
    absolute = frame.share.abs().groupby(frame.example).sum()
    assert absolute.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_one_result_makes_the_part_of_the_table_that_is_its_own(demo):
    results = demo.explain(TEXTS, "attention-rollout")
    alone = results[2].to_pandas()
    together = to_pandas(results)
    expected = together[together.example == 2].reset_index(drop=True)
    pandas.testing.assert_frame_equal(alone, expected)


def test_rows_of_words_sum_the_scores_of_their_tokens(demo):
    results = demo.explain(TEXTS, "attnlrp")
    special = demo.tokenizer.all_special_tokens
    table = to_arrow(
        results, units="word", pieces="wordpiece", special_tokens=special
    ).to_pylist()
    assert "token" not in table[0]
    for result in results:
        rows = [row for row in table if row["example"] == result.index]
        words, scores = merge_words(
            result.tokens, result.scores, "wordpiece", special_tokens=special
        )
        assert [row["word"] for row in rows] == words
        assert [row["score"] for row in rows] == scores
        assert [row["position"] for row in rows] == list(range(len(words)))
        assert sum(abs(row["share"]) for row in rows) == pytest.approx(1)
    assert any(len(result.tokens) > len(result.text.split()) + 2 for result in results)
    assert [row["word"] for row in table if row["example"] == 2][1:-1] == (
        TEXTS[2].split()
    )


@pytest.mark.parametrize("method", ["relevance-flow", "slalom"])
def test_a_batch_of_tensors_takes_its_tokens(demo, explain, method):
    result = explain(method)
    ids = demo.encode(TEXTS)["input_ids"]
    tokens = [demo.tokenizer.convert_ids_to_tokens(row) for row in ids]
    frame = result.to_pandas(tokens)
    shape = result.scores.shape
    assert frame.score.tolist() == result.scores.flatten().tolist()
    assert frame.token.tolist() == [token for row in tokens for token in row]
    assert frame.example.tolist() == [row for row in range(3) for _ in range(shape[1])]
    without = result.to_arrow()
    assert without.column_names == ["example", "position", "score", "share"]
    assert without["score"].to_pylist() == frame.score.tolist()
    words = result.to_pandas(tokens, units="word", pieces="wordpiece")
    assert words.groupby("example").score.sum().tolist() == pytest.approx(
        result.scores.sum(1).tolist()
    )


def test_several_batches_are_numbered_through(explain):
    result = explain("attention-rollout")
    parts = [result.select(slice(0, 2)), result.select(slice(2, 3))]
    assert to_arrow(parts).equals(result.to_arrow())


@pytest.fixture(scope="module")
def generated():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TextGenerator(
            causal_language_model(VOCABULARY), numbers_tokenizer()
        )
    return generator.explain(["7 8 9", "10"], max_new_tokens=3)


def test_generated_text_has_a_row_for_each_token_before_each(generated):
    rows = to_arrow(generated).to_pylist()
    seen = 0
    for example, result in enumerate(generated):
        explanation = result.explanation
        for step, log_probability in enumerate(explanation.log_probabilities.tolist()):
            stop = explanation.n_given + step
            total = explanation.scores[step].abs().sum()
            for position in range(stop):
                row = rows[seen]
                score = float(explanation.scores[step, position])
                assert row.pop("share") == pytest.approx(score / float(total))
                assert row == {
                    "example": example,
                    "text": result.prompt,
                    "generated": result.generated,
                    "generated_start": stop,
                    "generated_stop": stop + 1,
                    "explained": explanation.pieces[stop],
                    "log_probability": log_probability,
                    "position": position,
                    "token": explanation.tokens[position],
                    "part": "prompt" if position < explanation.n_given else "generated",
                    "score": score,
                }
                seen += 1
    assert seen == len(rows) == (3 + 4 + 5) + (1 + 2 + 3)
    alone = generated[1].explanation.to_arrow()
    assert alone["token"].to_pylist() == [row["token"] for row in rows[12:]]


def test_a_span_of_generated_text_has_the_rows_of_all_tokens_before_its_last():
    explanation = GenerationExplanation(
        tokens=["Ġa", "Ġdull", "er", "Ġplot", "."],
        scores=torch.tensor([[1.0, 2.0, 4.0, 0.0, 0.0], [1.0, -2.0, 0.5, 1.0, 0.0]]),
        log_probabilities=torch.tensor([-1.0, -2.0, -4.0]),
        flow_value=torch.ones(2),
        spans=((1, 2), (0, 3)),
        pieces=("a", " dull", "er", " plot", "."),
    )
    frame = explanation.to_pandas()
    assert frame.token.tolist() == [*explanation.tokens[:3], *explanation.tokens[:4]]
    assert frame.explained.tolist() == [" plot"] * 3 + ["er plot."] * 4
    assert frame.generated_start.tolist() == [3] * 3 + [2] * 4
    assert frame.generated_stop.tolist() == [4] * 3 + [5] * 4
    assert frame.log_probability.tolist() == [-2.0] * 3 + [-7.0] * 4
    # A word of the prompt does not reach into what was generated.
    words = explanation.to_pandas(units="word")
    assert words.word.tolist() == ["a", "dull", "er", "a", "dull", "er", "plot"]
    assert words.part.tolist() == ["prompt"] * 2 + ["generated"] + (
        ["prompt"] * 2 + ["generated"] * 2
    )
    assert words.score.tolist() == [1.0, 2.0, 4.0, 1.0, -2.0, 0.5, 1.0]
    assert words.position.tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_words_of_generated_text_are_those_of_its_explanation():
    explanation = GenerationExplanation(
        tokens=["Ġdull", "er", "Ġplot", "s", "!"],
        scores=torch.tensor([[1.0, 2.0, 4.0, 8.0, 0.0]]),
        log_probabilities=torch.zeros(1),
        flow_value=torch.ones(1),
        pieces=("dull", "er", " plot", "s", "!"),
    )
    summed = explanation.sum_over("word")
    words = explanation.to_pandas(units="word")
    assert words.word.tolist() == ["duller", "plots"]
    assert [text.strip() for text in summed.texts[:2]] == words.word.tolist()
    assert words.score.tolist() == summed.scores[0, :2].tolist() == [3.0, 12.0]


def test_an_image_has_a_row_for_each_patch():
    patches = (Patch((0, 0, 2, 3), 1.0), Patch((2, 0, 4, 3), -3.0))
    pixels = torch.zeros(3, 3, 4)
    result = ImageAttribution("a.png", patches, "cat", 0.75, "dog", 1.0, pixels)
    first, second = to_arrow([result, result]).to_pylist()[2:]
    known = {"example": 1, "image": "a.png", "label": "dog", "predicted": "cat"}
    known |= {"probability": 0.75, "value": None, "top": 0, "bottom": 3}
    assert first == known | {
        **{"position": 0, "left": 0, "right": 2, "score": 1.0, "share": 0.25}
    }
    assert second == known | {
        **{"position": 1, "left": 2, "right": 4, "score": -3.0, "share": -0.75}
    }


def test_scores_of_zero_have_shares_of_zero_and_regression_has_its_value():
    result = TextAttribution("a b", ("a", "b"), (0.0, 0.0), "x", None, "x", value=2.5)
    frame = result.to_pandas()
    assert frame.share.tolist() == [0.0, 0.0]
    assert frame.value.tolist() == [2.5, 2.5]
    assert all(map(math.isnan, frame.probability))


def test_a_text_without_a_row_leaves_the_others(demo):
    empty = TextAttribution("", (), (), "x", 0.5, "x")
    (result,) = demo.explain(["dull"], "attention-rollout")
    assert to_arrow([empty, result]).equals(to_arrow(result))


@pytest.mark.parametrize("make", [to_arrow, to_pandas])
def test_wrong_arguments_are_refused_in_words(explain, make):
    text = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    batch = explain("attention-rollout")
    generated = GenerationExplanation(
        ["a", "b"], torch.ones(1, 2), torch.zeros(1), torch.ones(1)
    )
    wrong = {
        r"results=\[\] must be a result": ([],),
        r"results='x' must be a result": ("x",),
        r"results=.* must be .* of one class": ([text, generated],),
        r"tokens were given for a TextAttribution, which knows its own": (
            text,
            [["a"]],
        ),
        r"tokens were given for 2 results": ([batch, batch], [["a"]]),
        r"1 text of \[1\] tokens": (batch, [["a"]]),
        r"tokens=3 is no list; give": (batch, 3),
        r"a row of tokens='abc' is no list; give": (batch, ["abc"] * 3),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            make(*arguments)
    options = {
        "units='sentence' is unknown; give one of 'token', 'word'": {
            "units": "sentence"
        },
        "without pieces; say how the tokenizer marks": {"units": "word"},
        "pieces='wordpiece' was given for tokens; give units=": {"pieces": "wordpiece"},
        r"special_tokens='\[CLS\]' is no list": {"special_tokens": "[CLS]"},
    }
    for message, given in options.items():
        with pytest.raises(ValueError, match=message):
            make(text, **given)
    with pytest.raises(ValueError, match=r"pieces or special_tokens.*; leave them out"):
        make(generated, units="word", pieces="wordpiece")
    with pytest.raises(ValueError, match=r"needs tokens to merge.*; give tokens"):
        make(batch, units="word", pieces="wordpiece")


@pytest.mark.parametrize(
    ("library", "make"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow")]
)
def test_a_library_that_is_missing_is_named_with_what_to_install(
    monkeypatch, library, make
):
    monkeypatch.setitem(sys.modules, library, None)
    text = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    with pytest.raises(ImportError, match=rf'needs {library}.*pip install "captum-'):
        getattr(text, make)()
