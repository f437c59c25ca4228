"""Images in, patch attributions out: the pipeline behind the command line."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from rich.text import Text
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from captum_attnflow._checks import check_type
from captum_attnflow.attr import AttentionRollout, AttnLRP
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, refuse_tokens
from captum_attnflow.pipelines.methods import (
    DEFAULT_METHOD,
    IMAGE_METHODS,
    find_method,
)
from captum_attnflow.pipelines.predictions import (
    Prediction,
    labels_of,
    read_predictions,
)
from captum_attnflow.pipelines.pretrained import NOT_GIVEN, Kind, check_parts
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.scored_tokens import escaped, printable
from captum_attnflow.show.figures import drawable
from captum_attnflow.show.image import image_overlay, shaded_boxes, spread_over_boxes
from captum_attnflow.storage import Storable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read. Others of Pillow's run programs of the system, as EPS does."""
MAX_PIXELS = 1 << 26
"""Of one image: 8192 x 8192, which is read within 520 MB."""
_N_TOP_PATCHES = 5
_INCHES = 4


@dataclass(frozen=True)
class Patch:
    """The pixels that make one token.

    Attributes:
        box (tuple of int): Left, top, right and bottom in pixels of the image that the
            model sees, right and bottom exclusive.
        score (float): The token's score.
    """

    box: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True, eq=False)
class ImageAttribution(Storable, LongForm):
    """The attribution of one image.

    The value of a notebook's cell is shown as Captum's overlay, and rich prints it as
    a grid of patches: the darker one is, the higher its share of the largest score,
    blue for the target, yellow and with a minus sign against it.

    Attributes:
        image (str): Its file.
        patches (tuple of Patch): In reading order. Tokens without pixels, such as
            [CLS], are left out.
        predicted (str): The predicted label. Of a multi-label model, whose labels do
            not exclude each other, and of regression it is the target.
        probability (float, optional): Its probability; None in regression.
        target (str): The label that the scores belong to.
        flow_value (float, optional): The value of the flow behind the scores; None
            for ``attnlrp``.
        pixels (Tensor): Shape ``(C, H, W)``, in [0, 1], the image as the model sees it:
            resized and cropped, but not normalised.
        value (float, optional): The output, in regression; None for a label.
    """

    image: str
    patches: tuple[Patch, ...]
    predicted: str
    probability: float | None
    target: str
    flow_value: float | None
    pixels: Tensor = field(repr=False)
    value: float | None = None

    @property
    def attributions(self) -> Tensor:
        """Shape ``(C, H, W)``; every pixel has an equal share of its patch's score."""
        scores = [patch.score for patch in self.patches]
        return spread_over_boxes(scores, [p.box for p in self.patches], self.pixels)

    @property
    def prediction(self) -> str:
        """The predicted label with its probability, or with its value."""
        number = self.probability if self.value is None else self.value
        return f"{self.predicted} {number:.3f}"

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        refuse_tokens(self, tokens)
        same = {
            "example": first,
            "image": self.image,
            "label": self.target,
            "predicted": self.predicted,
            "probability": self.probability,
            "value": self.value,
        }
        edges = ("left", "top", "right", "bottom")
        beside = {
            edge: [patch.box[i] for patch in self.patches]
            for i, edge in enumerate(edges)
        }
        scores = [patch.score for patch in self.patches]
        yield ScoredRows(scores, same, beside=beside)

    def _repr_html_(self) -> str:
        return ImageOverlays((self,))._repr_html_()

    def __rich__(self) -> Text:
        text = Text.assemble(
            f"{printable(self.image)}: ", (printable(self.prediction), "bold")
        )
        if self.target != self.predicted:
            text.append(f"  (scores for {printable(self.target)})")
        scores = [patch.score for patch in self.patches]
        text.append("\n").append(
            shaded_boxes(scores, [patch.box for patch in self.patches])
        )
        ranked = sorted(self.patches, key=lambda patch: patch.score, reverse=True)
        top = [
            "x {0}-{2}, y {1}-{3}: {score:.3g}".format(*patch.box, score=patch.score)
            for patch in ranked[:_N_TOP_PATCHES]
        ]
        return text.append(f"\nhighest: {'; '.join(top)}")


@dataclass(frozen=True)
class ImageOverlays:
    """Images beside themselves under their attributions, one row each.

    Attributes:
        images (tuple of ImageAttribution): The attributions.
    """

    images: tuple[ImageAttribution, ...]

    def figure(self) -> Figure:
        """Draw the images with matplotlib, without pyplot."""
        size = (2 * _INCHES, _INCHES * len(self.images))
        figure = Figure(figsize=size, layout="constrained")
        rows = figure.subplots(len(self.images), 2, squeeze=False)
        for (plain, overlaid), shown in zip(rows, self.images, strict=True):
            plain.imshow(shown.pixels.permute(1, 2, 0).numpy())
            plain.set_axis_off()
            image_overlay(
                shown.attributions[None],
                shown.pixels[None],
                plt_fig_axis=(figure, overlaid),
            )
            titles = {plain: shown.prediction, overlaid: f"scores for {shown.target}"}
            for axis, title in titles.items():
                drawn, families = drawable(title)
                # Labels are no formulas: a dollar sign stays one.
                axis.set_title(drawn, family=families, parse_math=False)
        return figure

    def _repr_html_(self) -> str:
        return "\n".join(_picture(image) for image in self.images)


def _picture(image: ImageAttribution) -> str:
    stored = io.BytesIO()
    ImageOverlays((image,)).figure().savefig(stored, format="png")
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    caption = escaped(f"{image.image}: {image.prediction}")
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


@dataclass(frozen=True)
class ImageClassifier(KnownParts):
    """An image classifier with its image processor.

    Attributes:
        model (PreTrainedModel): A vision transformer with a classification head, in
            eval mode.
        processor (BaseImageProcessor): The model's image processor.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor = NOT_GIVEN
    _kind = Kind(
        "an image classifier",
        AutoModelForImageClassification,
        # The other backend needs torchvision.
        partial(AutoImageProcessor.from_pretrained, backend="pil"),
        "preprocessor_config.json",
    )

    def __post_init__(self) -> None:
        check_parts("ImageClassifier", self.model, self.processor, "processor")

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
            method (str): One of
                :data:`captum_attnflow.pipelines.methods.IMAGE_METHODS`.
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
        attribution = find_method(method, options, IMAGE_METHODS)(
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
        picture = open_image(image)
        pixels = self._process(picture)
        with torch.no_grad():
            logits = self._logits(pixels)
        plain = self._process(picture, do_normalize=False)[0]
        shown = plain.float().clamp(0, 1).cpu()
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
        by_rules = isinstance(attribution, AttnLRP)
        # Rules know pixels only. Which of them make a token, attention shows.
        reader = AttentionRollout(self._logits) if by_rules else attribution
        explanation = reader.explain(pixels, target=prediction.target)
        scores = explanation.scores[0]
        if 0 not in explanation.elements:
            raise ValueError(
                f"the model {type(self.model).__name__} does not make each of its "
                f"{len(scores)} tokens of pixels of its own, in patches that do not "
                "overlap; its scores cannot be shown in the image"
            )
        tokens = explanation.elements[0][0]
        if by_rules:
            relevance = attribution.attribute(pixels, target=prediction.target)[0]
            scores = torch.zeros_like(scores).index_add(
                0, tokens[tokens >= 0], relevance[tokens >= 0].to(scores)
            )
        labels = labels_of(self.model)
        return ImageAttribution(
            image=image,
            patches=_patches(tokens.cpu(), scores.tolist()),
            predicted=labels[prediction.predicted],
            probability=prediction.probability,
            target=labels[prediction.target],
            flow_value=None if by_rules else float(explanation.flow_value[0]),
            pixels=shown,
            value=prediction.value,
        )

    def _process(self, picture: Image.Image, **options: bool) -> Tensor:
        processed = self.processor(picture, return_tensors="pt", **options)
        pixels: Tensor = processed["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)


def open_image(image: str) -> Image.Image:
    """Read a file's first image, upright and in colours.

    The size is read before any pixel: a file of a few KB may claim any size.

    Args:
        image (str): The file, in one of :data:`FORMATS`, of at most :data:`MAX_PIXELS`
            pixels.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no image, of another format or too large.
    """
    check_type("an image", image, (str, PathLike), "the name of a file")
    if not Path(image).is_file():
        found = "a folder" if Path(image).is_dir() else "not there"
        raise FileNotFoundError(
            f"there is no image file {image!r}: it is {found}; give an existing file"
        )
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
