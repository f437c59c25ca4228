"""Tiny models with random weights, one for each way of writing attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 50
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_DISENTANGLED = {**_COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_TOKEN_IDS = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "pad_token_id": 0,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "Albert": {**_COMMON, "embedding_size": 16},
    "Bert": _COMMON,
    "BigBird": {**_COMMON, "attention_type": "original_full", **_TOKEN_IDS},
    "Deberta": _DISENTANGLED,
    "DebertaV2": _DISENTANGLED,
    "DistilBert": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
    },
    "Electra": _COMMON,
    "Funnel": {
        "vocab_size": VOCABULARY,
        "block_sizes": [1, 1],
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 64,
    },
    "ModernBert": {**_COMMON, "global_attn_every_n_layers": 1, **_TOKEN_IDS},
    "MPNet": _COMMON,
    "Roberta": _COMMON,
    "XLNet": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "n_layer": 3,
        "n_head": 4,
        "d_inner": 64,
    },
}

# Those for which transformers offers attention by a fused kernel.
FUSED_ENCODERS = ["Albert", "Bert", "DistilBert", "Electra", "ModernBert", "Roberta"]

_DECODER = {**_COMMON, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_WINDOWED = {**_GROUPED, "sliding_window": 4}
_GEMMA = {**_WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8}

DECODERS: dict[str, dict[str, Any]] = {
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "n_layer": 3,
        "n_head": 4,
        "initializer_range": 0.3,
    },
    "falcon": {**_DECODER, "multi_query": True},
    "gemma2": {
        **_GEMMA,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3_text": {
        **_GEMMA,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": _GPT,
    "gpt_neox": _DECODER,
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": _GROUPED,
    "mistral": _WINDOWED,
    "opt": {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
}

# Those for which transformers offers attention by a fused kernel.
FUSED_DECODERS = sorted(DECODERS.keys() - {"bloom", "gemma2", "gptj"})


def decoder(
    family: str, implementation: str = "eager", dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A causal language model; the same weights for the same family."""
    config = transformers.AutoConfig.for_model(
        family, **copy.deepcopy(DECODERS[family])
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation
        )
    return model.to(dtype).eval()


_EXPERTS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        **_DECODER,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {
        **_WINDOWED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "llama4_text": {
        **_GROUPED,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "intermediate_size_mlp": 32,
    },
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def mixture_of_experts(family: str) -> nn.Module:
    """A causal language model that routes tokens to experts, whose kernels want
    float32; the same weights for the same family."""
    config = transformers.AutoConfig.for_model(
        family, **copy.deepcopy(_EXPERTS[family])
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        )
    return model.eval()


def classifier(
    family: str, implementation: str = "eager", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A sequence classifier of two labels; the same weights for the same family."""
    config = getattr(transformers, f"{family}Config")(**copy.deepcopy(ENCODERS[family]))
    config.num_labels = 2
    factory = getattr(transformers, f"{family}ForSequenceClassification")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = factory._from_config(config, attn_implementation=implementation)
    return model.to(dtype).eval()


def bert(dtype: torch.dtype = torch.float64, implementation: str = "sdpa") -> nn.Module:
    return classifier("Bert", implementation, dtype)


def token_ids(n_rows: int = 2, n_tokens: int = 10) -> Tensor:
    return torch.randint(5, VOCABULARY, (n_rows, n_tokens))


_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}

# Model type and configuration, and the tokens before the patches.
VISION_MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "BEiT": ("beit", {"use_relative_position_bias": True}, 1),
    "CLIP": ("clip_vision_model", {}, 1),
    "DeiT": ("deit", {}, 2),
    "DINOv2": ("dinov2", {}, 1),
    "DINOv2 with registers": ("dinov2_with_registers", {"num_register_tokens": 4}, 5),
    "DINOv3": ("dinov3_vit", {"num_register_tokens": 4}, 5),
    "ViT": ("vit", {}, 1),
    "ViT, tall patches": ("vit", {"patch_size": (16, 4)}, 1),
    "YOLOS": ("yolos", {"image_size": (32, 32), "num_detection_tokens": 5}, 1),
}


def vision_model(name: str, implementation: str = "sdpa") -> nn.Module:
    """A vision transformer without a head; the same weights for the same name."""
    family, options, _ = VISION_MODELS[name]
    config = transformers.AutoConfig.for_model(family, **{**_VISION, **options})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModel.from_config(
            config, attn_implementation=implementation
        )
    return model.double().eval()


def vision_classifier() -> nn.Module:
    config = transformers.ViTConfig(**_VISION, num_labels=2)
    return transformers.ViTForImageClassification(config).double().eval()


def image_captioner() -> nn.Module:
    """A vision transformer that a decoder of text attends to."""
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_VISION),
        transformers.BertConfig(**_COMMON, is_decoder=True, add_cross_attention=True),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.VisionEncoderDecoderModel(config)
    return model.double().eval()


def longformer() -> nn.Module:
    config = transformers.LongformerConfig(
        **{**_COMMON, "attention_window": 4, "num_labels": 2}
    )
    return transformers.LongformerForSequenceClassification(config).eval()


def swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
        num_labels=2,
    )
    return transformers.SwinForImageClassification(config).eval()


def pooled_by_attention() -> nn.Module:
    config = transformers.SiglipVisionConfig(**_VISION)
    return transformers.SiglipVisionModel(config).eval()


def bert_for(auto_class: str, vocabulary: int, **options: Any) -> nn.Module:
    """A tiny BERT of random weights, with the head of a task."""
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        **options,
    )
    return getattr(transformers, auto_class).from_config(config).eval()


def causal_language_model(vocabulary: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config).eval()


class TorchEncoder(nn.Module):
    """``nn.TransformerEncoder`` over embeddings, with a mean-pooled head."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first)
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(32, 2)
        self.batch_first = batch_first
        self.double().eval()

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        hidden = self.embedding(ids)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        hidden = self.encoder(hidden, src_key_padding_mask=padding)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        return self.head(hidden[:, 0])


class HandWritten(nn.Module):
    """Attention written out by softmax and einsum, with an experts' gate between."""

    def __init__(self, n_experts: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.gate = nn.Linear(32, n_experts)
        self.experts = nn.Parameter(torch.randn(n_experts, 32, 32) / 8)
        self.mixed_experts = nn.Parameter(torch.randn(n_experts, 32) / 8)
        self.head = nn.Linear(32, 2)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for _ in range(2):
            weights = torch.softmax(hidden @ hidden.mT / 32, dim=-1)
            hidden = hidden + torch.einsum("bij,bjd->bid", weights, hidden)
            gates = torch.softmax(self.gate(hidden), dim=-1)
            outputs = torch.einsum("btd,edf->btef", hidden, self.experts)
            hidden = hidden + torch.einsum("bte,btef->btf", gates, outputs)
            hidden = hidden + gates @ self.mixed_experts
        return self.head(hidden.mean(1))


class PatchEncoder(nn.Module):
    """``nn.TransformerEncoder`` over patches, between tokens that have no pixels."""

    def __init__(
        self,
        patch: tuple[int, int],
        n_before: int = 0,
        n_behind: int = 0,
        stride: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.projection = nn.Conv2d(3, 32, patch, stride or patch)
        self.before = nn.Parameter(torch.randn(n_before, 32))
        self.behind = nn.Parameter(torch.randn(n_behind, 32))
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 2)
        self.double().eval()

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.projection(pixels).flatten(2).transpose(1, 2)
        before, behind = (
            tokens.expand(len(pixels), -1, -1) for tokens in (self.before, self.behind)
        )
        return self.head(self.encoder(torch.cat([before, patches, behind], 1))[:, -1])


ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "Bart": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "init_std": 0.3,
        "decoder_start_token_id": 2,
    },
    "T5": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "initializer_factor": 2.0,
        "decoder_start_token_id": 0,
    },
}


def encoder_decoder(family: str, implementation: str = "eager") -> nn.Module:
    """A generating encoder-decoder; the same weights for the same family."""
    config = getattr(transformers, f"{family}Config")(**ENCODER_DECODERS[family])
    factory = getattr(transformers, f"{family}ForConditionalGeneration")
    if implementation == "sdpa" and not factory._supports_sdpa:
        pytest.skip(f"transformers {transformers.__version__} has no sdpa in {family}")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = factory._from_config(config, attn_implementation=implementation)
    return model.double().eval().requires_grad_(False)


class TorchTransformer(nn.Module):
    """``nn.Transformer``, which embeds both sides before it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, 32)
        self.target = nn.Embedding(VOCABULARY, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, 2)
        self.double().eval().requires_grad_(False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        target, source = self.target(target), self.source(source)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(
            source, target, tgt_mask=causal.double(), tgt_is_causal=True
        )
        return self.head(hidden[:, -1])


def numbers_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Each number below the vocabulary's size is a token, whose id it is."""
    vocabulary = {str(number): number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="0")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
