"""Trains the packaged sentiment model, a three-layer BERT, or one of another kind.

Run as ``python -m captum_attnflow.demo.train --data DIR --output DIR [--teacher DIR]``.
With a teacher the model learns from the teacher's logits as well as from the labels;
without one it learns from the labels alone. ``--architecture`` chooses the kind, from
those of :mod:`captum_attnflow.demo.architectures`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow.demo.architectures import ARCHITECTURES, build_model
from captum_attnflow.demo.batches import (
    MAX_TOKENS,
    Examples,
    accuracy,
    encode,
    forward,
    length_grouped_batches,
    read_examples,
)
from captum_attnflow.demo.distillation import (
    distillation_examples,
    project_embeddings,
)

EMBEDDING_LR_FACTOR = 0.1
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> BertTokenizer:
    """Trains a lower-case WordPiece tokenizer that splits text as BERT's does."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=1000,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    # The trainer's own numbering of the pieces can differ from run to run.
    pieces = sorted(set(trained.get_vocab()) - set(SPECIAL_TOKENS))
    vocab = {piece: index for index, piece in enumerate(SPECIAL_TOKENS + pieces)}
    return BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS)


def batch_loss(logits: Tensor, examples: Examples, indices: Tensor) -> Tensor:
    """Returns the label loss, plus the logit-matching loss under a teacher."""
    loss = cross_entropy(logits, examples.labels[indices])
    if examples.teacher_logits is None:
        return loss
    return loss + mse_loss(logits, examples.teacher_logits[indices])


def build_optimizer(model: PreTrainedModel, lr: float) -> Optimizer:
    """Returns AdamW with a lower learning rate for the word embeddings.

    The embeddings of rare words would otherwise lose what the teacher knows of them.
    """
    embeddings = list(model.get_input_embeddings().parameters())
    others = [p for p in model.parameters() if p is not embeddings[0]]
    groups = [
        {"params": embeddings, "lr": lr * EMBEDDING_LR_FACTOR},
        {"params": others, "lr": lr},
    ]
    return torch.optim.AdamW(groups, fused=True)


def linear_schedule(optimizer: Optimizer, steps: int) -> OneCycleLR:
    """Returns a linear warm-up over a twentieth of the steps, then linear decay."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=0.05,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    dev: Examples,
    args: argparse.Namespace,
) -> None:
    """Trains the model and leaves it at the epoch of the best dev accuracy."""
    encoded = encode(tokenizer, examples.texts)
    lengths = torch.tensor([len(ids) for ids in encoded])
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = build_optimizer(model, args.lr)
    steps = -(-len(encoded) // args.batch_size)
    schedule = linear_schedule(optimizer, args.epochs * steps)
    best_accuracy, best_state = -1.0, model.state_dict()
    for epoch in range(args.epochs):
        model.train()
        batches = length_grouped_batches(lengths, args.batch_size, generator)
        for indices in tqdm(batches, desc=f"epoch {epoch + 1}", total=steps):
            logits = forward(model, [encoded[i] for i in indices.tolist()])
            optimizer.zero_grad()
            torch.autograd.backward(batch_loss(logits, examples, indices))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        dev_accuracy = accuracy(model, tokenizer, dev)
        print(f"epoch {epoch + 1}: dev accuracy {dev_accuracy:.4f}", flush=True)
        if dev_accuracy >= best_accuracy:
            best_accuracy = dev_accuracy
            best_state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_state)


def save(model: PreTrainedModel, tokenizer: BertTokenizer, output: Path) -> None:
    """Saves float16 weights that ``from_pretrained`` loads as float32."""
    weights = {k: v.to(torch.float16) for k, v in model.state_dict().items()}
    model.save_pretrained(output, state_dict=weights)
    tokenizer.save_pretrained(output)
    tokenizer.backend_tokenizer.save(str(output / "tokenizer.json"), pretty=False)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="SST-2 folder")
    parser.add_argument("--output", type=Path, required=True, help="model folder")
    parser.add_argument("--teacher", type=Path, help="teacher model folder")
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default="bert",
        help="kind of model",
    )
    parser.add_argument(
        "--perturbed",
        type=int,
        default=180_000,
        help="perturbed phrases that the teacher labels (at least 1)",
    )
    parser.add_argument("--vocab-size", type=int, default=6_000, help="pieces at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--limit", type=int, help="train on the first phrases only")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Trains, saves and evaluates the model."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    phrases = read_examples(args.data / "phrases.train.tsv")
    dev = read_examples(args.data / "dev.words.tsv")
    sentences = read_examples(args.data / "train.tsv").texts
    tokenizer = train_tokenizer(sentences, args.vocab_size)
    if args.architecture in ("gpt2", "llama"):
        # GPT-2 would add the embedding of the word 0 for a segment 0.
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = build_model(args.architecture, tokenizer)
    examples = Examples(phrases.texts[: args.limit], phrases.labels[: args.limit])
    if args.teacher is not None:
        project_embeddings(model, tokenizer, args.teacher)
        examples = distillation_examples(
            examples, args.teacher, args.perturbed, args.seed
        )
    fit(model, tokenizer, examples, dev, args)
    save(model, tokenizer, args.output)

    reloaded = AutoModelForSequenceClassification.from_pretrained(args.output)
    saved_tokenizer = AutoTokenizer.from_pretrained(args.output)
    test = read_examples(args.data / "test.words.tsv")
    for name, split in (("dev", dev), ("test", test)):
        print(f"{name} accuracy: {accuracy(reloaded, saved_tokenizer, split):.4f}")


if __name__ == "__main__":
    main()
