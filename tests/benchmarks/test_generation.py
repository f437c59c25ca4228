"""All tokens of a generated text against Captum's wrapper, in turns."""

from __future__ import annotations

import pytest
import torch
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTokenInput,
)
from race import Contestant
from transformers import GPT2Config, GPT2LMHeadModel

from captum_attnflow import (
    GenerationAttribution,
    LayerAttentionFlow,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
)
from captum_attnflow.demo import load_demo_model

OURS = [LayerGeneralizedAttentionFlow, LayerAttentionFlow, LayerRelevanceFlow]
TARGET = "so very dull and not funny . " * 4 + "a gripping film ."


@pytest.fixture(scope="module")
def tokenizer():
    return load_demo_model()[1]


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=256, n_layer=12, n_head=8, n_positions=128
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def prompt(tokenizer):
    prompt = TextTokenInput("a gripping , funny film " * 6, tokenizer)
    assert prompt.to_model_input().shape == (1, 32)
    return prompt


def test_all_generated_tokens(race, model, tokenizer, prompt):
    layer = model.transformer.wte

    def contestant(wrapper, method, **options):
        attribution = wrapper(method(model, layer), tokenizer)
        return Contestant(lambda: attribution.attribute(prompt, TARGET), **options)

    race(
        "32 generated tokens after a prompt of 32, 12 x 256 GPT-2",
        {method.__name__: contestant(GenerationAttribution, method) for method in OURS},
        {
            "LayerGeneralizedAttentionFlow, token by token": contestant(
                LLMGradientAttribution, LayerGeneralizedAttentionFlow
            ),
            "LayerIntegratedGradients, 50 steps": contestant(
                LLMGradientAttribution, LayerIntegratedGradients, rounds=1
            ),
        },
        rounds=3,
    )
