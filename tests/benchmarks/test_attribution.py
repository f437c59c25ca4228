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
    AttnLRP,
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
    RelevanceFlow,
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


@pytest.mark.parametrize("shape", [(1, 18), (1, 128), (16, 64)])
def test_relevance_in_forward_and_backward_passes(race, model, shape):
    """The ratio to the last line is the cost in passes to the embeddings."""
    ids = torch.randint(1000, 30000, shape)

    def forward(ids):
        return model(ids).logits

    def passes():
        embeddings = model.bert.embeddings.word_embeddings(ids).detach()
        embeddings.requires_grad_()
        output = model(inputs_embeds=embeddings).logits[:, 1]
        torch.autograd.grad(output.sum(), embeddings)

    race(
        f"relevance by rules, a 6 x 384 BERT, {shape[1]} tokens, batch {shape[0]}",
        {
            "AttnLRP": Contestant(lambda: AttnLRP(forward).attribute(ids, target=1)),
            "RelevanceFlow, one point": Contestant(
                lambda: RelevanceFlow(forward).attribute(ids, target=1)
            ),
            "RelevanceFlow, one step from a baseline": Contestant(
                lambda: RelevanceFlow(forward).attribute(ids, 103, target=1)
            ),
        },
        {"one forward and backward pass": Contestant(passes)},
        rounds=15,
    )
