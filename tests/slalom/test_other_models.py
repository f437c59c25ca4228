"""SLALOM on models of other kinds, against queries and fits that are made by hand."""

from __future__ import annotations

import warnings
from collections import Counter
from math import log

import numpy as np
import pytest
import torch
import transformers
from models import VOCABULARY, encoder_decoder, numbers_tokenizer
from reference.slalom import removal, slalom
from scipy.optimize import least_squares
from torch import nn

from captum_attnflow import SLALOM, LayerSLALOM

_SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "num_labels": 3}
_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
TOKENS = [7, 12, 30, 12, 41, 9]
CLASS = 2


class PreNorm(nn.Module):
    """A pre-LN encoder without positions, pooled by the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, norm_first=True, dropout=0.0
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.encoder(self.embed(ids)).mean(1))


def softmax_odds(logits):
    shares = logits.softmax(-1)
    return log(shares[CLASS] / (1 - shares[CLASS]))


def gpt2():
    config = transformers.GPT2Config(**_SMALL, **_GPT)
    model = transformers.GPT2ForSequenceClassification(config).double().eval()
    return lambda ids: model(ids).logits


def pre_norm():
    return PreNorm().double().eval()


def t5():
    model = encoder_decoder("T5")

    def forward(ids):
        start = torch.tensor([[0, 5, 8]]).expand(len(ids), -1)
        return model(input_ids=ids, decoder_input_ids=start).logits[:, -1]

    return forward


def bert(head="SequenceClassification"):
    config = transformers.BertConfig(**_SMALL, **_BERT)
    model = getattr(transformers, f"BertFor{head}")(config).double().eval()
    return lambda ids: model(ids).logits


MODELS = {
    "GPT-2": (gpt2, {}, softmax_odds),
    "pre-LN encoder": (pre_norm, {}, softmax_odds),
    "T5 with a fixed decoder": (t5, {}, softmax_odds),
    "multi-label": (bert, {"link": "identity"}, lambda logits: float(logits[CLASS])),
    "multi-label, probabilities": (
        lambda: nn.Sequential(PreNorm(), nn.Sigmoid()).double().eval(),
        {"link": "probabilities"},
        lambda shares: log(shares[CLASS] / (1 - shares[CLASS])),
    ),
}


def fit_by_hand(texts, odds, weights):
    """Least squares of the function over values and importances, from several starts.

    Returns:
        float: The weighted sum of squares.
    """
    types = sorted({token for text in texts for token in text})
    counts = np.array([[Counter(text)[each] for each in types] for text in texts])

    def errors(parameters):
        value, importance = np.split(parameters, 2)
        mass = counts * np.exp(importance)
        return np.sqrt(weights) * (mass @ value / mass.sum(1) - odds)

    draws = np.random.default_rng(0)
    starts = [np.zeros(2 * len(types)), *draws.normal(size=(4, 2 * len(types)))]
    fits = [least_squares(errors, start) for start in starts]
    return min(2 * fit.cost for fit in fits)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.mark.filterwarnings("ignore:the fit misses", "ignore:the importances")
@pytest.mark.parametrize("kind", MODELS)
def test_queries_link_and_fit_are_those_made_by_hand(kind):
    make, options, odds_of = MODELS[kind]
    model, asked = make(), []

    def forward(ids):
        asked.extend(ids.tolist())
        return model(ids)

    ids = torch.tensor([TOKENS])
    attribution = SLALOM(forward, n_samples=100, **options)
    attribution.attribute(ids, target=CLASS)
    queries = [tuple(query) for query in asked]
    explanation = attribution.explain(ids, target=CLASS)
    # Each query was asked once, as a text of its own, of the text's tokens.
    assert max(map(len, queries)) == len(TOKENS)
    assert len(queries) == explanation.n_queries.item()
    assert {token for query in queries for token in query} == {*TOKENS}
    with torch.no_grad():
        odds = [odds_of(model(torch.tensor([query]))[0]) for query in queries]
    full = odds[queries.index(tuple(TOKENS))]
    assert explanation.output.item() == pytest.approx(full)

    value, importance = explanation.values[0], explanation.importances[0]
    function = [0.0] * VOCABULARY, [0.0] * VOCABULARY
    for token, its_value, its_importance in zip(
        TOKENS, value.tolist(), importance.tolist(), strict=True
    ):
        function[0][token], function[1][token] = its_value, its_importance
    weights = np.array([0.5 if len(query) == 1 else 1.0 for query in queries])
    predicted = np.array([slalom(query, function) for query in queries])
    error = float((weights * (predicted - odds) ** 2).sum())
    least = fit_by_hand(queries, np.array(odds), weights)
    # Nothing is below least squares, and the priors of the fit cost little of R2.
    spread = float((weights * (odds - np.mean(odds)) ** 2).sum())
    assert -1e-6 <= (error - least) / spread <= 0.1
    assert explanation.predicted.item() == pytest.approx(slalom(TOKENS, function))
    falls = [removal(TOKENS, place, function) for place in range(len(TOKENS))]
    found = explanation.score_tokens("removal")[0].tolist()
    assert found == pytest.approx(falls)


@pytest.mark.filterwarnings("ignore:the fit misses", "ignore:the importances")
def test_a_token_classifier_is_asked_at_the_token_that_the_target_names():
    model, asked, place = bert("TokenClassification"), [], 3
    named, others = TOKENS[place], [t for i, t in enumerate(TOKENS) if i != place]

    def forward(ids):
        asked.extend(ids.tolist())
        return model(ids)

    ids = torch.tensor([TOKENS])
    attribution = SLALOM(forward, n_samples=80)
    explanation = attribution.explain(ids, target=(place, CLASS))
    with torch.no_grad():
        full = softmax_odds(model(ids)[0, place])
    assert explanation.output.item() == pytest.approx(full)
    assert explanation.values[0, place] == 0
    assert explanation.type_index[0, place] == -1
    assert all(named in query for query in asked)
    function = [0.0] * VOCABULARY, [0.0] * VOCABULARY
    for index, token in enumerate(TOKENS):
        if index != place:
            function[0][token] = explanation.values[0, index].item()
            function[1][token] = explanation.importances[0, index].item()
    predicted = slalom(others, function)
    assert explanation.predicted.item() == pytest.approx(predicted)


def test_probabilities_that_do_not_sum_to_one_are_those_of_several_labels():
    model = bert()
    slalom = SLALOM(lambda ids: model(ids).sigmoid(), n_samples=60)
    with pytest.warns(UserWarning, match=r'sum to 1.*"probabilities"\. Say by link='):
        found = slalom.explain(torch.tensor([TOKENS]), target=CLASS)
    expected = model(torch.tensor([TOKENS]))[:, CLASS]
    torch.testing.assert_close(found.output, expected)


class Logits(nn.Module):
    """What captum.attr needs of a model of transformers: a module of tensors."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


@pytest.mark.filterwarnings("ignore:the fit misses", "ignore:the importances")
@pytest.mark.parametrize("problem", [None, "single_label", "multi_label"])
@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: module.forward])
def test_the_config_says_whether_labels_exclude_each_other(problem, wrap):
    ids = torch.tensor([TOKENS])
    config = transformers.BertConfig(
        **_SMALL, **_BERT, problem_type=problem and f"{problem}_classification"
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    found = SLALOM(wrap(Logits(model)), n_samples=60).explain(ids, target=CLASS)
    logits = model(ids).logits[0].detach()
    several = problem == "multi_label"
    assert found.link == ("identity" if several else "logits",)
    expected = float(logits[CLASS]) if several else softmax_odds(logits)
    assert float(found.output) == pytest.approx(expected)
    assert found.caveats == ()


def test_special_tokens_are_those_of_the_model_that_a_module_holds():
    config = transformers.BertConfig(**_SMALL, **_BERT, bos_token_id=7, eos_token_id=9)
    model = transformers.BertForSequenceClassification(config).double().eval()
    found = SLALOM(Logits(model), n_samples=60).attribute(
        torch.tensor([TOKENS]), target=CLASS
    )
    assert (found != 0).tolist() == [[False, True, True, True, True, False]]


@pytest.mark.filterwarnings("ignore:the fit misses", "ignore:the importances")
def test_padding_that_no_mask_marks_is_warned_of():
    config = transformers.BertConfig(**_SMALL, **_BERT)
    model = transformers.BertForSequenceClassification(config).double().eval()
    tokenizer = numbers_tokenizer()
    tokenizer.pad_token = "0"
    ids = torch.tensor([TOKENS, [*TOKENS[:4], 0, 0]])

    def forward(ids, attention_mask=None):
        return model(ids, attention_mask=attention_mask).logits

    attribution = SLALOM(forward, n_samples=40, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=r"texts \[1\] begin or end with padding"):
        attribution.attribute(ids, target=CLASS)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        attribution.attribute(
            ids, target=CLASS, additional_forward_args=((ids != 0).long(),)
        )
        attribution.attribute(ids[:1], target=CLASS)
    assert [each for each in found if "padding" in str(each.message)] == []


@pytest.mark.filterwarnings("ignore:the fit misses", "ignore:the importances")
@pytest.mark.parametrize("where", ["deleted", "baseline", "layer"])
def test_padding_that_equals_its_baseline_is_not_warned_of(where):
    config = transformers.BertConfig(**_SMALL, **_BERT)
    model = transformers.BertForSequenceClassification(config).double().eval()
    tokenizer = numbers_tokenizer()
    tokenizer.pad_token = "1"
    ids = torch.tensor([[*TOKENS[:4], 1, 1]])

    def forward(ids):
        return model(ids).logits

    if where == "layer":
        layer = model.bert.embeddings.word_embeddings
        attribution = LayerSLALOM(forward, layer, n_samples=40, tokenizer=tokenizer)
    else:
        attribution = SLALOM(forward, n_samples=40, tokenizer=tokenizer, absence=where)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        scores = attribution.attribute(ids, baselines=1, target=CLASS)
    assert [each for each in found if "padding" in str(each.message)] == []
    assert not scores[0, 4:].any()
    with pytest.warns(UserWarning, match=r"texts \[0\] begin or end with padding"):
        attribution.attribute(ids, baselines=2, target=CLASS)
