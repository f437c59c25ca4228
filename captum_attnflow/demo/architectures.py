"""The kinds of small classifier that :mod:`captum_attnflow.demo.train` trains.

The packaged model is a BERT. The others are there to judge attributions on what BERT
is not: layer norms before the blocks, causal attention, rotary positions, gated
feed-forwards, keys that heads share. All have the width and the heads of the BERT.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MegatronBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow.demo.batches import MAX_TOKENS

__all__ = ["ARCHITECTURES", "build_model"]

LABELS = {0: "negative", 1: "positive"}
HIDDEN_SIZE = 128
N_HEADS = 4
INTERMEDIATE_SIZE = 512
GATED_INTERMEDIATE_SIZE = 344
"""Two thirds of the ungated size: a gate makes three matrices of two (Shazeer 2020)."""


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
"""For each name, what makes the configuration that fits a tokenizer."""


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
