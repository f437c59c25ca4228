"""Tokens of an image in vision-language models: from pixels, and into the decoder.

A vision tower's tokens are features that saw the whole image. Where they stand for
patches in reading order, a token's box is that of its patch: the residual stream of the
tower carries the patch's own content there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captum_attnflow._checks import with_article
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.show.image import Box


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The pixels that an image's tokens stand for.

    Attributes:
        pixels (Tensor, optional): Shape ``(C, H, W)``, in [0, 1], the image as the
            model sees it: resized and cropped, but not normalised. None where the model
            is given several pictures of it, or something else.
        boxes (tuple of Box): One per token, in pixels of that image; none where the
            tokens are no plain grid of patches.
        layout (str): What the tokens stand for, in words; or why there are no boxes.
    """

    pixels: Tensor | None
    boxes: tuple[Box, ...]
    layout: str


def _merged_by_pooling(config: Any) -> int:
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side // isqrt(config.mm_tokens_per_image)


# By model_type: how many patches, on each side, are merged into one token. Models
# whose tokens are known to be a grid in reading order.
_MERGED: dict[str, Callable[[Any], int]] = {
    "gemma3": _merged_by_pooling,
    "llava": lambda config: 1,
    "qwen2_5_vl": lambda config: config.vision_config.spatial_merge_size,
    "qwen2_vl": lambda config: config.vision_config.spatial_merge_size,
}


def find_image_tokens(
    config: Any, image_processor: Any, processed: Mapping[str, Tensor], n_tokens: int
) -> ImageTokens:
    """Find the box of pixels that each token of one image stands for.

    Args:
        config (PreTrainedConfig): The whole model's.
        image_processor (BaseImageProcessor): What made the pixels.
        processed (mapping): What the model takes: ``"pixel_values"`` of shape
            ``(1, C, H, W)``; or flat patches ``(N, ...)`` with ``"image_grid_thw"``.
        n_tokens (int): How many tokens the image has.

    Returns:
        ImageTokens: Without boxes where the number of tokens is another than that of
        the grid, or the model's layout is not known.
    """
    kind = config.model_type
    patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
    pixels = _pixels(processed, patch, image_processor)
    if pixels is None:
        shape = tuple(processed["pixel_values"].shape)
        return ImageTokens(
            None,
            (),
            f"the model takes the image as pixel_values of shape {shape}, which is not "
            "one picture: it may be cut into tiles. Its tokens have no boxes",
        )
    if kind not in _MERGED or not isinstance(patch, int):
        return ImageTokens(
            pixels,
            (),
            f"which pixels the {n_tokens} image tokens of {with_article(kind)} stand "
            f"for is not known here; it is for {', '.join(_MERGED)}",
        )
    side = patch * _MERGED[kind](config)
    _, height, width = pixels.shape
    n_rows, n_columns = height // side, width // side
    if n_rows * n_columns != n_tokens:
        return ImageTokens(
            pixels,
            (),
            f"the {n_tokens} image tokens are not the {n_rows} x {n_columns} squares "
            f"of {side} pixels in {height} x {width}, so that they have no boxes in it",
        )
    boxes = tuple(
        (column * side, row * side, (column + 1) * side, (row + 1) * side)
        for row in range(n_rows)
        for column in range(n_columns)
    )
    layout = (
        f"{n_rows} x {n_columns} image tokens, each a square of {side} pixels in the "
        f"{height} x {width} that the model sees"
    )
    return ImageTokens(pixels, boxes, layout)


def _pixels(
    processed: Mapping[str, Tensor], patch: object, image_processor: Any
) -> Tensor | None:
    """Return the one picture that the model sees, in [0, 1]."""
    values = processed["pixel_values"].detach().float().cpu()
    if "image_grid_thw" in processed:
        grid = processed["image_grid_thw"]
        if len(grid) != 1 or int(grid[0, 0]) != 1 or not isinstance(patch, int):
            return None
        merge = image_processor.merge_size
        values = _assembled(values, grid[0].tolist(), patch, merge)[None]
    if values.dim() != 4 or len(values) != 1 or values.shape[1] not in (1, 3):
        return None
    pixels: Tensor = values[0]
    if getattr(image_processor, "do_normalize", False):
        of_channels = (
            torch.tensor(statistic).view(-1, 1, 1)
            for statistic in (image_processor.image_mean, image_processor.image_std)
        )
        mean, deviation = of_channels
        pixels = pixels * deviation + mean
    return pixels.clamp(0, 1)


def _assembled(patches: Tensor, grid: list[int], patch: int, merge: int) -> Tensor:
    """Put the flat patches of Qwen-VL together, ``(C, H, W)``.

    They are in the order of merged squares, in reading order, and in each of these in
    reading order again; a patch holds ``(C, frames, patch, patch)``, and of a still
    image all frames are the same.
    """
    _, n_rows, n_columns = grid
    shape = (n_rows // merge, n_columns // merge, merge, merge, -1)
    split = patches.reshape(*shape[:4], 3, -1, patch, patch)[:, :, :, :, :, 0]
    ordered = split.permute(4, 0, 2, 5, 1, 3, 6)  # (C, row, row of square, y, ...)
    return ordered.reshape(3, n_rows * patch, n_columns * patch)


# What a decoder takes and is passed on, beside embeddings; and what changes nothing.
_PASSED_ON = ("attention_mask", "position_ids")
_WITHOUT_EFFECT = (
    *("use_cache", "return_dict", "cache_position", "past_key_values"),
    *("output_attentions", "output_hidden_states"),
)


class MergedInput:
    """What the decoder reads: the model's own merging of text and image.

    How features of the image are placed, and what positions and masks belong to them,
    each model does its own way (Qwen-VL has positions of three dimensions, in Gemma 3
    the tokens of an image see each other). So the model itself runs, without gradients,
    and what its decoder is called with is read.

    Args:
        model (PreTrainedModel): A vision-language model.
        processed (mapping): What its processor made of an image and a prompt.
        n_generated (int): How many tokens of the sequence's end are generated.
    """

    def __init__(
        self, model: PreTrainedModel, processed: Mapping[str, Tensor], n_generated: int
    ) -> None:
        self._model = model
        self._processed = processed
        self._n_generated = n_generated
        self._logits = torch.empty(0)

    def embed(self, ids: Tensor) -> dict[str, Any]:
        """Return what the decoder reads, as its model takes it by name.

        Args:
            ids (Tensor): Shape ``(1, T)``, the prompt and the answer behind it.

        Returns:
            dict[str, Any]: ``"inputs_embeds"``, shape ``(1, T, D)``, and what belongs
            to them, such as ``"position_ids"``.

        Raises:
            ValueError: If the decoder reads anything else of the image.
        """
        model: Any = self._model
        calls: list[dict[str, Any]] = []

        def read(decoder: object, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            names = [*signature(model.get_decoder().forward).parameters]
            calls.append({**dict(zip(names, args, strict=False)), **named})

        taken = signature(model.forward).parameters
        options = {"logits_to_keep": self._n_generated, "use_cache": False}
        handle = model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
        try:
            with torch.no_grad():
                self._logits = model(
                    **self._with_answer(ids),
                    **{name: value for name, value in options.items() if name in taken},
                ).logits
        finally:
            handle.remove()
        self._check_calls(calls, ids)
        [call] = calls
        beside = {name: call.get(name) for name in _PASSED_ON}
        return {
            "inputs_embeds": call["inputs_embeds"].detach(),
            **{name: value for name, value in beside.items() if value is not None},
        }

    def check_agreement(
        self, explanation: GenerationExplanation, generated: Tensor
    ) -> None:
        """Refuse scores of a pass that is not the model's own.

        Args:
            explanation (GenerationExplanation): Of the pass over embeddings.
            generated (Tensor): Shape ``(G,)``.

        Raises:
            ValueError: If its log-probabilities are others.
        """
        own = self._logits[0, -len(generated) :].double().log_softmax(-1)
        own = own.gather(1, generated.to(own.device)[:, None])[:, 0]
        found = explanation.log_probabilities.to(own)
        # The same operations, but for the kernels of attention: by precision of logits.
        tolerance = torch.finfo(self._logits.dtype).eps ** 0.5 * (1 + own.abs())
        if bool(((own - found).abs() > tolerance).any()):
            raise ValueError(
                f"{type(self._model).__name__} gives other outputs when its decoder is "
                f"passed the embeddings that it made itself (log-probabilities "
                f"{found.tolist()}, not {own.tolist()}): it does more with the image "
                "than placing its tokens; this model is not supported. Take LLaVA, "
                "Qwen2-VL, Qwen2.5-VL or Gemma 3"
            )

    def _with_answer(self, ids: Tensor) -> dict[str, Tensor]:
        """Extend what stands beside the prompt's ids, token by token, to the answer."""
        prompt = self._processed["input_ids"]
        n_more = ids.shape[1] - prompt.shape[1]
        given = {**self._processed, "input_ids": ids}
        for name, value in self._processed.items():
            is_of_tokens = name.endswith(("_ids", "_mask")) and name != "input_ids"
            if is_of_tokens and value.shape == prompt.shape:
                # Behind the prompt nothing is masked, and nothing is an image's.
                more = value.new_full((1, n_more), int(name == "attention_mask"))
                given[name] = torch.cat([value, more], 1)
        return given

    def _check_calls(self, calls: Sequence[Mapping[str, Any]], ids: Tensor) -> None:
        """Refuse decoders that are not called once, with embeddings of all tokens."""
        name = type(self._model).__name__
        advice = "this model is not supported. Take LLaVA, Qwen2-VL or Gemma 3"
        embeddings = calls[0].get("inputs_embeds") if len(calls) == 1 else None
        if embeddings is None or embeddings.shape[:2] != ids.shape:
            raise ValueError(
                f"the decoder of {name} does not read one sequence of embeddings, of "
                f"{ids.shape[1]} tokens, in which the image's stand; {advice}"
            )
        known = {"inputs_embeds", *_PASSED_ON, *_WITHOUT_EFFECT}
        further = sorted(
            argument
            for argument, value in calls[0].items()
            if argument not in known and value is not None
        )
        if further:
            raise ValueError(
                f"the decoder of {name} takes {', '.join(further)} beside embeddings: "
                "what it knows of the image does not come through its tokens alone, "
                f"and scores of these would miss the rest; {advice}"
            )
