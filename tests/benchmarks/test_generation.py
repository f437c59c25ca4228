"""All tokens of a generated text against Captum's wrapper, in one run."""

from __future__ import annotations

import pytest
import torch
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTokenInput,
)
from transformers import GPT2Config, GPT2LMHeadModel

from captum_attnflow import (
    GenerationAttribution,
    LayerAttentionFlow,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
)
from captum_attnflow.demo import load_demo_model

GROUP = "32 generated tokens after 32, 12 x 256 GPT-2"
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


def measure(benchmark, attribution, prompt, rounds, **arguments):
    benchmark.group = GROUP
    benchmark.pedantic(
        attribution.attribute,
        args=(prompt, TARGET),
        kwargs=arguments,
        rounds=rounds,
        warmup_rounds=1 if rounds > 1 else 0,
        iterations=1,
    )


@pytest.mark.parametrize(
    "method", [LayerGeneralizedAttentionFlow, LayerAttentionFlow, LayerRelevanceFlow]
)
def test_ours(benchmark, model, tokenizer, prompt, method):
    attribution = method(model, model.transformer.wte)
    measure(benchmark, GenerationAttribution(attribution, tokenizer), prompt, 5)


def test_the_same_method_step_by_step(benchmark, model, tokenizer, prompt):
    attribution = LayerGeneralizedAttentionFlow(model, model.transformer.wte)
    measure(benchmark, LLMGradientAttribution(attribution, tokenizer), prompt, 3)


def test_layer_integrated_gradients_with_50_steps(benchmark, model, tokenizer, prompt):
    attribution = LayerIntegratedGradients(model, model.transformer.wte)
    measure(benchmark, LLMGradientAttribution(attribution, tokenizer), prompt, 1)
