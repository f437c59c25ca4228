"""Tiny vision-language models with random weights, and processors for them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import tokenizers
import torch
import transformers

_WORDS = ["USER", ":", "what", "is", "this", "?"]
_WORDS += ["a", "cat", "dog", "two", "of", "them"]
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_CHAT = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}"
    "{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %} {% endfor %}dog :"
)
PROMPTS = {
    "LLaVA": "USER : <image> what is this ?",
    "Qwen2-VL": "USER : <|vision_start|> <|image_pad|> <|vision_end|> what is this ?",
    "Qwen2.5-VL": "USER : <|vision_start|> <|image_pad|> <|vision_end|> what is this ?",
    "Gemma 3": "USER : <start_of_image> what is this ?",
}


def words_tokenizer(**special: str) -> transformers.PreTrainedTokenizerFast:
    """Each word is a token."""
    words = ["<unk>", "<bos>", "<eos>", *special.values(), *_WORDS, "system", "user"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: number for number, word in enumerate(words)}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<unk>",
        extra_special_tokens=special,
    )


class QwenProcessor(transformers.Qwen2VLProcessor):
    """Without that of videos, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.image_token_id
        self.video_token = tokenizer.video_token
        self.video_token_id = tokenizer.video_token_id
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer)


def image_processor(family: str, name: str, **options: Any) -> Any:
    """One that needs no torchvision; before transformers 5.2 its name has no suffix."""
    models = "transformers.models"
    try:
        module = import_module(f"{models}.{family}.image_processing_pil_{family}")
        return getattr(module, f"{name}Pil")(**options)
    except ModuleNotFoundError:
        module = import_module(f"{models}.{family}.image_processing_{family}")
        return getattr(module, name)(**options)


def _llava(**options: Any) -> tuple[Any, Any]:
    tokenizer = words_tokenizer(image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **_VISION, image_size=16, patch_size=4
        ),
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        image_token_id=tokenizer.image_token_id,
        **{"vision_feature_layer": -1, **options},
    )
    processor = transformers.LlavaProcessor(
        image_processor(
            "clip",
            "CLIPImageProcessor",
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
        ),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=_CHAT,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _qwen(family: str, vision: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    tokenizer = words_tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    of_vision = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rotary = {
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "rope_theta": 1e4,
    }
    config = transformers.AutoConfig.for_model(
        family,
        text_config={"vocab_size": len(tokenizer), **_TEXT, "rope_parameters": rotary},
        vision_config={**of_vision, **vision},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        **options,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    images = image_processor(
        "qwen2_vl",
        "Qwen2VLImageProcessor",
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=16 * 16,
        max_pixels=24 * 32,
    )
    return model, QwenProcessor(images, tokenizer)


def _gemma() -> tuple[Any, Any]:
    tokenizer = words_tokenizer(
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    config = transformers.Gemma3Config(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            # Longer than the image: versions of transformers differ within it.
            "sliding_window": 18,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**_VISION, "image_size": 16, "patch_size": 2},
        mm_tokens_per_image=16,
        image_token_id=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = transformers.Gemma3Processor(
        image_processor(
            "gemma3", "Gemma3ImageProcessor", size={"height": 16, "width": 16}
        ),
        tokenizer,
        image_seq_length=16,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # The projection is 0 before training, and every image would be the same.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, processor


_SMALL = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
_MAKERS = {
    "LLaVA": _llava,
    "LLaVA with [CLS]": lambda: _llava(vision_feature_select_strategy="full"),
    "Qwen2-VL": lambda: _qwen(
        "qwen2_vl", {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    ),
    "Qwen2.5-VL": lambda: _qwen(
        "qwen2_5_vl", {**_SMALL, "window_size": 16, "fullatt_block_indexes": [1]}
    ),
    "Qwen3-VL": lambda: _qwen(
        "qwen3_vl",
        {**_SMALL, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "Gemma 3": _gemma,
}


def vision_language_model(name: str) -> tuple[Any, Any]:
    """A model and its processor; the same weights for the same name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = _MAKERS[name]()
    # As trained ones, they generate no placeholders.
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return model.eval(), processor
