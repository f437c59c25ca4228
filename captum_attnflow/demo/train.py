"""Trains the packaged sentiment model, a three-layer BERT, or one of another kind.

Run as ``python -m captum_attnflow.demo.train --data DIR --output DIR [--teacher DIR]``.
Labelled texts are encoded and grouped into batches of similar length. With a teacher
the model also learns from the teacher's logits, on the texts and on perturbed phrases,
and begins with its word embeddings; without one it learns from the labels alone.
``--architecture`` chooses the kind. The other kinds are there to judge attributions on
what BERT is not: layer norms before the blocks, causal attention, rotary positions,
gated feed-forwards, keys that heads share. All have the width and the heads of the
BERT.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    GPT2Config,
    LlamaConfig,
    MegatronBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

MAX_TOKENS = 128
EVAL_BATCH_SIZE = 128
EMBEDDING_STD = 0.05
EMBEDDING_LR_FACTOR = 0.1
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

LABELS = {0: "negative", 1: "positive"}
HIDDEN_SIZE = 128
N_HEADS = 4
INTERMEDIATE_SIZE = 512
GATED_INTERMEDIATE_SIZE = 344
"""Two thirds of the ungated size: a gate makes three matrices of two (Shazeer 2020)."""


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


def _bert(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The packaged model: layer norms after the blocks, read at ``[CLS]``."""
    return BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=3,
        num_attention_heads=N_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_position_embeddings=MAX_TOKENS,
    )


def _pre_ln(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Megatron's BERT: layer norms before the blocks, read at ``[CLS]``."""
    return MegatronBertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=N_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_position_embeddings=MAX_TOKENS,
    )


def _gpt2(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Causal, layer norms before the blocks, read at the last token, ``[SEP]``."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        n_embd=HIDDEN_SIZE,
        n_layer=4,
        n_head=N_HEADS,
        n_inner=INTERMEDIATE_SIZE,
        n_positions=MAX_TOKENS,
        use_cache=False,  # a classifier never continues its text
    )


def _llama(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Causal, with RMS norms, rotary positions, SwiGLU, a key for every two heads."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS // 2,
        intermediate_size=GATED_INTERMEDIATE_SIZE,
        max_position_embeddings=MAX_TOKENS,
        use_cache=False,
    )


ARCHITECTURES: dict[str, Callable[[PreTrainedTokenizerBase], PreTrainedConfig]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "pre-ln": _pre_ln,
}
"""For each name, the function from a tokenizer to a fitting configuration."""


def build_model(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Builds an untrained classifier of two labels.

    Args:
        architecture (str): A key of :data:`ARCHITECTURES`.
        tokenizer (PreTrainedTokenizerBase): Gives the size of the vocabulary and the
            ids of its special tokens.

    Returns:
        PreTrainedModel:
            The float32 model, its weights drawn from torch's global generator.

    Raises:
        KeyError: If there is no such architecture.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> _, tokenizer = load_demo_model()
        >>> model = build_model("llama", tokenizer)
        >>> model.config.num_attention_heads, model.config.num_key_value_heads
        (4, 2)
    """
    config = ARCHITECTURES[architecture](tokenizer)
    config.id2label = LABELS
    config.label2id = {name: index for index, name in LABELS.items()}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


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
    # The trainer's numbering of the pieces can differ from run to run.
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

    At the full rate the embeddings of rare words would drift from the teacher's.
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
