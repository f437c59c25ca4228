"""The texts that the demo model learns from, and what a teacher adds to them.

Labelled texts are encoded and grouped into batches of similar length. A teacher gives
its logits on them and on perturbed phrases, and its word embeddings.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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


EMBEDDING_STD = 0.05


def perturb_phrases(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Draws phrases and drops or replaces some of their words.

    Replacements are drawn uniformly from the distinct words. So words that are rare in
    the labelled text occur in many contexts.
    """
    rng = random.Random(seed)
    phrases = [words for text in texts if len(words := text.split()) >= 4]
    vocabulary = sorted({word for words in phrases for word in words})

    def perturb(words: list[str]) -> str:
        kept = [word for word in words if rng.random() > 0.1] or words
        return " ".join(
            rng.choice(vocabulary) if rng.random() < 0.15 else word for word in kept
        )

    return [perturb(rng.choice(phrases)) for _ in range(count)]


def teacher_logits(teacher: Path, texts: Sequence[str]) -> Tensor:
    """Returns the teacher's logits, kept in the temporary folder between runs."""
    digest = hashlib.sha256("\n".join(texts).encode())
    digest.update((teacher / "model.safetensors").read_bytes())
    cache = Path(tempfile.gettempdir()) / f"demo-teacher-{digest.hexdigest()}.st"
    if not cache.exists():
        model = AutoModelForSequenceClassification.from_pretrained(
            teacher, dtype=torch.bfloat16, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
        logits = predict(model, encode(tokenizer, texts), progress="teacher")
        save_file({"logits": logits}, cache)
    return load_file(cache)["logits"]


def distillation_examples(
    phrases: Examples, teacher: Path, count: int, seed: int
) -> Examples:
    """Adds the teacher's logits to the phrases, and ``count`` perturbed phrases."""
    perturbed = perturb_phrases(phrases.texts, count, seed)
    phrase_logits = teacher_logits(teacher, phrases.texts)
    perturbed_logits = teacher_logits(teacher, perturbed)
    return Examples(
        texts=phrases.texts + perturbed,
        labels=torch.cat([phrases.labels, perturbed_logits.argmax(-1)]),
        teacher_logits=torch.cat([phrase_logits, perturbed_logits]),
    )


@torch.no_grad()
def project_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher: Path,
) -> None:
    """Initialises the word embeddings from the teacher's, reduced by PCA."""
    source_model = AutoModelForSequenceClassification.from_pretrained(
        teacher, dtype=torch.float32, local_files_only=True
    )
    source: Tensor = source_model.get_input_embeddings().weight
    source_tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    source_vocab = source_tokenizer.get_vocab()

    def embed(piece: str) -> Tensor:
        if piece in source_vocab:
            return source[source_vocab[piece]]
        word = piece.removeprefix("##")
        encoded = source_tokenizer(word, add_special_tokens=False)
        return source[encoded["input_ids"]].mean(0)

    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    vectors = torch.stack([embed(piece) for piece in pieces])
    centred = vectors - vectors.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    target = model.get_input_embeddings().get_parameter("weight")
    projected = centred @ directions[:, -target.shape[1] :]
    target.copy_(projected * (EMBEDDING_STD / projected.std()))
