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
    AttentionFlow,
    AttnLRP,
    GeneralizedAttentionFlow,
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


def bert(initializer_range):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=2,
        initializer_range=initializer_range,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def model():
    return bert(initializer_range=0.02)


@pytest.fixture(scope="module")
def peaked_model():
    """Larger weights, so that attention is as uneven as in a trained model.

    The mean entropy of a query, averaged over heads, is 3.3 at 64 tokens, that of a
    MiniLM trained on SST-2 3.4.
    """
    return bert(initializer_range=0.18)


def pass_to(model, ids):
    """One forward and backward pass, to the embeddings and not to the weights."""
    embeddings = model.bert.embeddings.word_embeddings(ids).detach()
    embeddings.requires_grad_()
    output = model(inputs_embeds=embeddings).logits[:, 1]
    torch.autograd.grad(output.sum(), embeddings)


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
        {"one forward and backward pass": Contestant(lambda: pass_to(model, ids))},
        rounds=15,
    )


@pytest.mark.parametrize("n_tokens", [64, 128, 256, 512])
def test_flows_of_one_text_in_forward_and_backward_passes(race, peaked_model, n_tokens):
    """The ratio to the last line is the cost in passes."""
    ids = torch.randint(1000, 30000, (1, n_tokens))

    def forward(ids):
        return peaked_model(ids).logits

    methods = {
        "AttnLRP": AttnLRP(forward),
        "RelevanceFlow, conserved flow": RelevanceFlow(forward),
        "GeneralizedAttentionFlow": GeneralizedAttentionFlow(forward),
        "AttentionFlow": AttentionFlow(forward),
        "AttentionFlow, free residual edges": AttentionFlow(forward, residual="free"),
        "RelevanceFlow, maximum flows": RelevanceFlow(forward, flow="maximum"),
    }
    race(
        f"flows of a 6 x 384 BERT, {n_tokens} tokens",
        {
            name: Contestant(lambda method=method: method.attribute(ids, target=1))
            for name, method in methods.items()
        },
        {
            "one forward and backward pass": Contestant(
                lambda: pass_to(peaked_model, ids)
            )
        },
        rounds=5,
    )
