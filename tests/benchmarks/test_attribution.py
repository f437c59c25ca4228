"""Whole attributions against LayerIntegratedGradients, in one run."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from transformers import BertConfig, BertForSequenceClassification

from captum_attnflow import (
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
)

GROUP = "attribution of a 6 x 384 BERT, 64 tokens, batch 1"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=2,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1000, 30000, (1, 64))


def measure(benchmark, attribution, ids, rounds, **arguments):
    benchmark.group = GROUP
    benchmark.pedantic(
        attribution.attribute,
        args=(ids,),
        kwargs={"target": 1, **arguments},
        rounds=rounds,
        warmup_rounds=1,
        iterations=1,
    )


@pytest.mark.parametrize(
    "method",
    [
        LayerGeneralizedAttentionFlow,
        LayerAttentionFlow,
        LayerAttentionRollout,
        LayerRelevanceFlow,
    ],
)
def test_ours(benchmark, model, ids, method):
    attribution = method(lambda ids: model(ids).logits, model.bert.embeddings)
    measure(benchmark, attribution, ids, rounds=9)


def test_layer_integrated_gradients_with_50_steps(benchmark, model, ids):
    attribution = LayerIntegratedGradients(
        lambda ids: model(ids).logits, model.bert.embeddings
    )
    measure(benchmark, attribution, ids, rounds=5, n_steps=50)


def test_one_forward_and_backward(benchmark, model, ids):
    def passes():
        model.zero_grad()
        model(ids).logits[:, 1].sum().backward()

    benchmark.group = GROUP
    benchmark.pedantic(passes, rounds=9, warmup_rounds=1, iterations=1)
