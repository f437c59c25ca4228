"""What the demo model takes from its teacher: logits and word embeddings."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow.demo.batches import Examples, encode, predict

EMBEDDING_STD = 0.05


def perturb_phrases(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Draws phrases and drops or replaces some of their words.

    Replacements come uniformly from the distinct words, so that rare words, which the
    labelled text hardly shows, are seen in many contexts.
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
