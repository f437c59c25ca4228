"""Images in, patch attributions out: the pipeline behind the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from captum_attnflow.pipelines.image_attribution import ImageAttribution, Patch
from captum_attnflow.pipelines.inputs import check_parts
from captum_attnflow.pipelines.predictions import (
    Prediction,
    labels_of,
    read_predictions,
)
from captum_attnflow.pipelines.pretrained import (
    ATTENTION_METHODS,
    DEFAULT_METHOD,
    find_method,
    load_pretrained,
)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read. Others of Pillow's run programs of the system, as EPS does."""
MAX_PIXELS = 1 << 26
"""Of one image: 8192 x 8192, which is read within 520 MB."""


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

    def __post_init__(self) -> None:
        check_parts("ImageClassifier", self.model, self.processor, "processor")

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
            images (sequence of str): Their files, in one of :data:`FORMATS`, of at
                most :data:`MAX_PIXELS` pixels.
            method (str): A key of :data:`ATTENTION_METHODS`.
            target (str or int, optional): Label or index to attribute; what the model
                predicts of each image by default.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[ImageAttribution]: One per image. Without a target a multi-label model
            has one per image and label above a probability of 0.5, and regression one
            per image and value, see
            :func:`captum_attnflow.pipelines.predictions.read_predictions`.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file is no image, of another format or too large, the
                method, an option or the target is unknown, or the model does not make
                tokens of patches that do not overlap.
        """
        if isinstance(images, (str, bytes, PathLike)):
            raise ValueError(f"images={images!r}; give a list of files")
        attribution = find_method(method, options, ATTENTION_METHODS)(
            self._logits, **options
        )
        # One by one: processors that keep the aspect ratio give several sizes.
        return [
            result
            for image in images
            for result in self._explain(image, attribution, target)
        ]

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits

    def _explain(
        self, image: str, attribution: Any, target: str | int | None
    ) -> Iterator[ImageAttribution]:
        picture = _open(image)
        pixels = self._process(picture)
        with torch.no_grad():
            logits = self._logits(pixels)
        shown = self._process(picture, do_normalize=False)[0].clamp(0, 1).cpu()
        for prediction in read_predictions(self.model, logits, target, [image]):
            yield self._attribution(image, attribution, pixels, shown, prediction)

    def _attribution(
        self,
        image: str,
        attribution: Any,
        pixels: Tensor,
        shown: Tensor,
        prediction: Prediction,
    ) -> ImageAttribution:
        explanation = attribution.explain(pixels, target=prediction.target)
        scores = explanation.scores[0]
        if 0 not in explanation.elements:
            raise ValueError(
                f"the model {type(self.model).__name__} does not make each of its "
                f"{len(scores)} tokens of pixels of its own, in patches that do not "
                "overlap; its scores cannot be shown in the image"
            )
        labels = labels_of(self.model)
        return ImageAttribution(
            image=image,
            patches=_patches(explanation.elements[0][0].cpu(), scores.tolist()),
            predicted=labels[prediction.predicted],
            probability=prediction.probability,
            target=labels[prediction.target],
            flow_value=float(explanation.flow_value[0]),
            pixels=shown,
            value=prediction.value,
        )

    def _process(self, picture: Image.Image, **options: bool) -> Tensor:
        processed = self.processor(picture, return_tensors="pt", **options)
        pixels: Tensor = processed["pixel_values"]
        return pixels.to(self.model.device)


def _open(image: str) -> Image.Image:
    """Read a file's first image, upright and in colours.

    The size is read before any pixel: a file of a few KB may claim any size.
    """
    if not Path(image).is_file():
        raise FileNotFoundError(f"there is no image file {image!r}")
    try:
        with Image.open(image, formats=FORMATS) as opened:
            n_pixels = opened.width * opened.height
            if n_pixels <= MAX_PIXELS:
                return _in_colours(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(image, str(error)) from error
    # Whatever a broken file raises, down to the decoders of its parts.
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{image!r} is no image that can be read: {error}. Give a whole file in "
            f"one of the formats {', '.join(FORMATS)}"
        ) from error
    raise _too_large(image, f"{opened.width} x {opened.height} pixels")


def _too_large(image: str, size: str) -> ValueError:
    return ValueError(
        f"{image!r} is too large to be read: {size}; give an image of at most "
        f"{MAX_PIXELS:,} pixels, of which a model sees a few hundred on each side"
    )


def _in_colours(picture: Image.Image) -> Image.Image:
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    # Pillow 10 reads the 16 bits of a PNG into mode I.
    deep_png = picture.mode == "I" and picture.format == "PNG"
    if picture.mode.startswith("I;16") or deep_png:
        # Pillow cuts 16 bits off at 255, which leaves all but the darkest white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are numbers of no known range (mode {picture.mode}); save it "
            "with 8 bits per colour"
        )
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
