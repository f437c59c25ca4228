"""Where the tokens of an image come from: their pixels, in vision-language models.

A vision tower's tokens are features that saw the whole image. Where they stand for
patches in reading order, a token's box is that of its patch: the residual stream of the
tower carries the patch's own content there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

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
            f"which pixels the {n_tokens} image tokens of a {kind} stand for is not "
            f"known here; it is for {', '.join(_MERGED)}",
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
