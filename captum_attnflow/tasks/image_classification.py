"""Images in, patch attributions out: the pipeline behind the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from captum_attnflow.tasks.image_attribution import ImageAttribution, Patch
from captum_attnflow.tasks.pretrained import (
    ATTENTION_METHODS,
    DEFAULT_METHOD,
    find_method,
    find_target,
    labels_of,
    load_pretrained,
)


@dataclass(frozen=True)
class ImageClassifier:
    """An image classifier with its image processor.

    Attributes:
        model (PreTrainedModel): A vision transformer with a classification head, in
            eval mode.
        processor (BaseImageProcessor): The model's image processor.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor

    @staticmethod
    def load(name: str) -> ImageClassifier:
        """Load a classifier from a local folder or by its hub id.

        Args:
            name (str): As :func:`load_pretrained` takes it, which says what is read.

        Raises:
            FileNotFoundError: As :func:`load_pretrained`.
            ValueError: As :func:`load_pretrained`.
        """
        model, processor = load_pretrained(
            name,
            AutoModelForImageClassification,
            # The other backend needs torchvision.
            partial(AutoImageProcessor.from_pretrained, backend="pil"),
            "an image classifier",
            "preprocessor_config.json",
        )
        return ImageClassifier(model, processor)

    def explain(
        self,
        images: Sequence[str],
        method: str = DEFAULT_METHOD,
        target: str | int | None = None,
        **options: Any,
    ) -> list[ImageAttribution]:
        """Predict and attribute images.

        Args:
            images (sequence of str): Their files.
            method (str): A key of :data:`ATTENTION_METHODS`.
            target (str or int, optional): Label or index to attribute; the predicted
                one of each image by default.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[ImageAttribution]: One per image.

        Raises:
            OSError: If a file is not there or no image.
            ValueError: If the method, an option or the target is unknown, or the model
                does not make tokens of patches that do not overlap.
        """
        attribution = find_method(method, options, ATTENTION_METHODS)(
            self._logits, **options
        )
        # One by one: processors that keep the aspect ratio give several sizes.
        return [self._explain(image, attribution, target) for image in images]

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits

    def _explain(
        self, image: str, attribution: Any, target: str | int | None
    ) -> ImageAttribution:
        picture = _open(image)
        pixels = self._process(picture)
        with torch.no_grad():
            logits = self._logits(pixels)
        labels = labels_of(self.model)
        (predicted,) = find_target(None, labels, logits).tolist()
        (wanted,) = find_target(target, labels, logits).tolist()
        explanation = attribution.explain(pixels, target=wanted)
        scores = explanation.scores[0]
        if 0 not in explanation.elements:
            raise ValueError(
                f"the model {type(self.model).__name__} does not make each of its "
                f"{len(scores)} tokens of pixels of its own, in patches that do not "
                "overlap; its scores cannot be shown in the image"
            )
        outputs = logits.softmax(-1) if logits.shape[-1] > 1 else logits
        return ImageAttribution(
            image=image,
            patches=_patches(explanation.elements[0][0].cpu(), scores.tolist()),
            predicted=labels[predicted],
            probability=float(outputs[0, predicted]),
            target=labels[wanted],
            flow_value=float(explanation.flow_value[0]),
            pixels=self._process(picture, do_normalize=False)[0].clamp(0, 1).cpu(),
        )

    def _process(self, picture: Image.Image, **options: bool) -> Tensor:
        processed = self.processor(picture, return_tensors="pt", **options)
        pixels: Tensor = processed["pixel_values"]
        return pixels.to(self.model.device)


def _open(image: str) -> Image.Image:
    if not Path(image).is_file():
        raise FileNotFoundError(f"there is no image file {image!r}")
    try:
        return ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{image!r} is too large to be read safely: {error}"
        ) from error


def _patches(tokens: Tensor, scores: list[float]) -> tuple[Patch, ...]:
    """Find the pixels of every token that has some.

    Args:
        tokens (Tensor): Shape ``(C, H, W)``, int64, the token of every pixel or -1.
        scores (list of float): One per token.
    """
    patches = []
    for token in tokens.unique().tolist():
        if token >= 0:
            _, rows, columns = (tokens == token).nonzero().unbind(1)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            left, top, right, bottom = (int(edge) for edge in box)
            patches.append(Patch((left, top, right, bottom), scores[token]))
    return tuple(sorted(patches, key=lambda patch: patch.box[1::-1]))
