from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from rich.console import Console

from captum_attnflow import RelevanceFlow, TextClassifier
from captum_attnflow.pipelines.encoding import TextEncoder, Windowed
from captum_attnflow.pipelines.methods import METHODS
from captum_attnflow.show import html_page, terminal_text

WORDS = "the plot is dull but the acting is funny and so gripping".split()  # noqa: SIM905
LONG = " ".join(WORDS[(i * i + i) % len(WORDS)] for i in range(30))
LIMIT = 16


@pytest.fixture(scope="module")
def short(demo):
    """The demo model, of 16 tokens."""
    return TextClassifier(
        demo.model, demo.tokenizer, {"truncation": True, "max_length": LIMIT}
    )


def overflowing(tokenizer, *parts, stride, side):
    """The windows as the tokenizer itself makes them."""
    return tokenizer(
        *parts,
        truncation=side,
        max_length=LIMIT,
        stride=stride,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("stride", [0, 1, 5, 8])
@pytest.mark.parametrize(
    ("parts", "side"),
    [
        ((LONG,), "only_first"),
        (("so funny", LONG), "only_second"),
        ((LONG, "so funny"), "only_first"),
    ],
)
def test_windows_are_those_of_the_tokenizer(short, parts, side, stride):
    text = parts if len(parts) == 2 else parts[0]
    encoder = TextEncoder(short.model, short.tokenizer, short.tokenizer_options)
    encoded = encoder.encode([text, "dull"], "window", Windowed(stride))
    expected = overflowing(short.tokenizer, *parts, stride=stride, side=side)
    rows = encoded.rows_of(0)
    assert len(rows) == len(expected.input_ids) > 1
    assert encoded.ids[rows].tolist() == expected.input_ids.tolist()
    types = encoded.others["token_type_ids"][rows]
    assert types.tolist() == expected.token_type_ids.tolist()
    whole = short.tokenizer(*parts).input_ids
    assert encoded.tokens[0] == tuple(short.tokenizer.convert_ids_to_tokens(whole))
    assert encoded.n_truncated == (0, 0)


@pytest.mark.parametrize(
    ("parts", "side"), [((LONG,), "only_first"), (("so funny", LONG), "only_second")]
)
def test_scores_sum_to_the_mean_output_of_the_windows(short, parts, side):
    text = parts if len(parts) == 2 else parts[0]
    [result] = short.explain([text], truncation="window", stride=4)
    windows = overflowing(short.tokenizer, *parts, stride=4, side=side)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        logits = short.model(**{name: windows[name] for name in names}).logits
    mean = logits.mean(0)
    label = int(mean.argmax())
    assert result.predicted == short.labels[label]
    assert result.probability == pytest.approx(float(mean.softmax(0)[label]), abs=1e-5)
    assert result.n_windows == len(logits)
    assert sum(result.scores) == pytest.approx(float(mean[label]), abs=1e-4)
    assert result.flow_value == pytest.approx(float(mean[label]), abs=1e-4)


def test_a_score_is_the_mean_over_windows_of_each_alone(short):
    [result] = short.explain([LONG], target=1, truncation="window", stride=4)
    tokenizer = short.tokenizer
    whole = tokenizer(LONG).input_ids
    content = whole[1:-1]
    room = LIMIT - 2
    starts = range(0, len(content) - 4, room - 4)
    total = torch.zeros(len(whole), dtype=torch.float64)
    flow = RelevanceFlow(lambda ids: short.model(ids).logits)
    for start in starts:
        part = content[start : start + room]
        ids = torch.tensor([[whole[0], *part, whole[-1]]])
        baseline = torch.full_like(ids, tokenizer.mask_token_id)
        baseline[0, 0], baseline[0, -1] = whole[0], whole[-1]
        scores = flow.attribute(ids, baseline, 1)[0].double()
        total[0] += scores[0]
        total[-1] += scores[-1]
        total[1 + start : 1 + start + len(part)] += scores[1:-1]
    expected = (total / len(starts)).tolist()
    assert len(starts) == result.n_windows == 3
    assert result.scores == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_windows_as_if_alone(short, method):
    options = {"truncation": "window", "stride": 4}
    first, long = short.explain(["dull", LONG], method, **options)
    assert (first.n_windows, long.n_windows) == (1, 3)
    [alone] = short.explain([LONG], method, **options)
    assert long.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-6)
    assert len(long.tokens) == len(long.scores) == 32
    assert long.delta == pytest.approx(alone.delta, rel=1e-3, abs=1e-5)
    if method == "slalom":
        # Each window has a reading of its own; the mean has none.
        assert long.slalom is None
        assert first.slalom is not None
        assert long.output is not None


def test_a_text_within_the_limit_is_read_as_ever(short):
    texts = ["dull", ("so", "funny")]
    assert short.explain(texts, truncation="window") == short.explain(texts)


def test_the_default_stride_is_a_quarter_of_the_room(short):
    [default] = short.explain([LONG], "attention-rollout", truncation="window")
    [quarter] = short.explain(
        [LONG], "attention-rollout", truncation="window", stride=(LIMIT - 2) // 4
    )
    assert default == quarter


def test_truncation_is_counted_and_told(short):
    n_tokens = len(short.tokenizer(LONG).input_ids)
    with pytest.warns(UserWarning, match=f"{n_tokens} tokens.*limit of {LIMIT}"):
        [result] = short.explain([LONG], "attention-rollout")
    assert len(result.tokens) == LIMIT
    assert result.n_truncated == n_tokens - LIMIT
    said = f"did not see {n_tokens - LIMIT} of {n_tokens} tokens"
    assert said in terminal_text(result).plain
    assert said in result._repr_html_()
    assert said in html_page([result])


def test_windows_are_told(short):
    [result] = short.explain([LONG], "attention-rollout", truncation="window", stride=4)
    said = "mean of 3 overlapping windows"
    console = Console(record=True, width=200)
    console.print(result)
    for shown in (console.export_text(), result._repr_html_(), html_page([result])):
        assert said in shown


def test_nothing_is_told_of_a_text_within_the_limit(short):
    [result] = short.explain(["dull"], "attention-rollout")
    assert (result.note, result.n_truncated, result.n_windows) == ("", 0, 1)
    assert "<p>" not in html_page([result])


def test_a_long_text_is_refused_with_its_tokens_and_the_limit(short):
    n_tokens = len(short.tokenizer(LONG).input_ids)
    message = rf"text 2 of 2, 'the.*', has {n_tokens} tokens, .*limit is {LIMIT}"
    with pytest.raises(ValueError, match=message) as error:
        short.explain(["dull", LONG], truncation="refuse")
    copied = pickle.loads(pickle.dumps(error.value))
    assert str(copied) == str(error.value)
    assert (
        copied.reason == f"the text has more tokens than the model's limit of {LIMIT}"
    )
    [result] = short.explain(["dull"], "attention-rollout", truncation="refuse")
    assert result.n_truncated == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "cut"}, "truncation='cut' is unknown; give one of 'truncate'"),
        ({"stride": 3}, "stride=3 was given with truncation='truncate'"),
        ({"truncation": "window", "stride": -1}, "stride=-1 must be an integer of at"),
        ({"truncation": "window", "stride": 14}, "stride must be fewer than 14"),
    ],
)
def test_wrong_windows_are_refused(short, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        short.explain([LONG], **options)


def test_a_pair_of_two_long_texts_has_no_windows(short):
    with pytest.raises(ValueError, match=r"in every window must be fewer than 16"):
        short.explain([(LONG, LONG + " so")], truncation="window")


def test_a_long_text_of_several_labels_has_those_of_the_mean(short):
    model = copy.deepcopy(short.model)
    model.classifier = torch.nn.Linear(model.config.hidden_size, 4)
    model.config.id2label = dict(enumerate("abcd"))
    model.config.problem_type = "multi_label_classification"
    several = TextClassifier(model, short.tokenizer, short.tokenizer_options)
    windows = overflowing(short.tokenizer, LONG, stride=4, side="only_first")
    with torch.no_grad():
        outputs = model(windows.input_ids, windows.attention_mask).logits.mean(0)
        model.classifier.bias += 0.1 - outputs  # all four are above a half
    results = several.explain([LONG], truncation="window", stride=4)
    assert [result.predicted for result in results] == list("abcd")
    for result in results:
        assert result.probability == pytest.approx(0.525, abs=1e-3)
        assert sum(result.scores) == pytest.approx(0.1, abs=1e-4)
