"""Batches of tiny classifiers with random weights."""

from __future__ import annotations

import copy

import torch
import transformers
from models import DECODERS, classifier, token_ids
from torch import nn

from captum_attnflow.study.adapters import TextBatch

ENCODERS = ["Bert", "DistilBert", "Electra", "Roberta"]
CAUSAL = {"GPT2": "gpt2", "Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2"}
PADDING = 0


def build(family: str, implementation: str = "sdpa") -> nn.Module:
    """A classifier of two labels; biases and norms are random, too."""
    if family in ENCODERS:
        model = classifier(family, implementation)
    else:
        options = copy.deepcopy(DECODERS[CAUSAL[family]])
        config = getattr(transformers, f"{family}Config")(**options, num_labels=2)
        config.pad_token_id = PADDING
        factory = getattr(transformers, f"{family}ForSequenceClassification")
        model = factory._from_config(config, attn_implementation=implementation)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) / 4
    return model.double().eval()


def batch_of(model: nn.Module, lengths: tuple[int, ...] = (9, 6)) -> TextBatch:
    """Texts of the lengths, padded on the right."""
    ids = token_ids(len(lengths), max(lengths))
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return TextBatch(
        model=model,
        ids=ids.masked_fill(padding, PADDING),
        others={"attention_mask": (~padding).long()},
        special=torch.zeros_like(padding),
        padding=padding,
        reference_id=3,
        predicted=torch.full((len(lengths),), -1),
    ).predict()
