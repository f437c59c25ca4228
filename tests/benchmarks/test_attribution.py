"""Whole attributions against Captum's, in turns."""

from __future__ import annotations

import pytest
import torch
from captum.attr import (
    LayerGradientXActivation,
    LayerIntegratedGradients,
    ShapleyValueSampling,
)
from race import Contestant
from transformers import BertConfig, BertForSequenceClassification

from captum_attnflow import (
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
)

OURS = [
    LayerGeneralizedAttentionFlow,
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerRelevanceFlow,
]


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


@pytest.mark.parametrize("batch", [1, 16])
def test_whole_attribution(race, model, batch):
    ids = torch.randint(1000, 30000, (batch, 64))

    def forward(ids):
        return model(ids).logits

    def passes():
        model.zero_grad()
        forward(ids)[:, 1].sum().backward()

    def contestant(method, rounds=None, **arguments):
        return Contestant(
            lambda: method.attribute(ids, target=1, **arguments), rounds=rounds
        )

    layer = model.bert.embeddings
    integrated = LayerIntegratedGradients(forward, layer)
    race(
        f"attribution of a 6 x 384 BERT, 64 tokens, batch {batch}",
        {method.__name__: contestant(method(forward, layer)) for method in OURS},
        {
            "one forward and backward pass": Contestant(passes),
            "LayerGradientXActivation": contestant(
                LayerGradientXActivation(forward, layer)
            ),
            "LayerIntegratedGradients, 50 steps": contestant(
                integrated, rounds=2, n_steps=50, internal_batch_size=64
            ),
            "ShapleyValueSampling, 1 sample": contestant(
                ShapleyValueSampling(forward), rounds=1, n_samples=1
            ),
        },
        rounds=5,
    )
