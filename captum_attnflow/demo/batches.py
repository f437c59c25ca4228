"""Labelled texts, their token ids, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 128
EVAL_BATCH_SIZE = 128


class Examples(NamedTuple):
    """Labelled texts, with the teacher's logits where a teacher is given."""

    texts: list[str]
    labels: Tensor
    teacher_logits: Tensor | None = None


def read_examples(path: Path) -> Examples:
    """Reads ``text<TAB>label[<TAB>...]`` rows below one header line."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return Examples(
        texts=[row[0] for row in rows],
        labels=torch.tensor([int(row[1]) for row in rows]),
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tensor]:
    """Returns the token ids of each text, special tokens included."""
    encoded = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
    return [torch.tensor(ids) for ids in encoded["input_ids"]]


def forward(model: PreTrainedModel, batch: Sequence[Tensor]) -> Tensor:
    """Pads a batch of token ids to its longest member and returns the logits."""
    pad_id = model.config.pad_token_id
    input_ids = pad_sequence(list(batch), batch_first=True, padding_value=pad_id)
    logits: Tensor = model(
        input_ids=input_ids, attention_mask=(input_ids != pad_id).long()
    ).logits
    return logits


@torch.inference_mode()
def predict(
    model: PreTrainedModel, encoded: Sequence[Tensor], progress: str | None = None
) -> Tensor:
    """Returns the logits of every text, computed in batches of similar length."""
    model.train(False)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    starts = range(0, len(order), EVAL_BATCH_SIZE)
    logits = [
        forward(model, [encoded[i] for i in order[start : start + EVAL_BATCH_SIZE]])
        for start in tqdm(starts, desc=progress, disable=progress is None)
    ]
    return torch.cat(logits)[torch.tensor(order).argsort()].float()


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> float:
    """Returns the share of examples whose label the model predicts."""
    predicted = predict(model, encode(tokenizer, examples.texts)).argmax(-1)
    return float((predicted == examples.labels).double().mean())


def length_grouped_batches(
    lengths: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields shuffled batches of indices whose texts are of similar length."""
    order = torch.randperm(len(lengths), generator=generator)
    grouped = torch.cat(
        [
            chunk[lengths[chunk].argsort(stable=True)]
            for chunk in torch.split(order, 50 * batch_size)
        ]
    )
    batches = torch.split(grouped, batch_size)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]
