"""The attribution of one image, and how it shows itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from itertools import groupby

import torch
from matplotlib.figure import Figure
from rich.text import Text
from torch import Tensor

from captum_attnflow.scored_tokens import escaped, printable, relative
from captum_attnflow.show.figures import drawable
from captum_attnflow.show.image import image_overlay

_N_TOP_PATCHES = 5
_INCHES = 4
_SHADES = " ░▒▓█"


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
class ImageAttribution:
    """The attribution of one image.

    The value of a notebook's cell is shown as Captum's overlay, and rich prints it as
    a grid of patches: the darker one is, the higher its share of the largest score,
    green for the target, red and with a minus sign against it.

    Attributes:
        image (str): Its file.
        patches (tuple of Patch): In reading order. Tokens without pixels, such as
            [CLS], are left out.
        predicted (str): The predicted label. Of a multi-label model, whose labels do
            not exclude each other, and of regression it is the target.
        probability (float, optional): Its probability; None in regression.
        target (str): The label that the scores belong to.
        flow_value (float): The value of the flow behind the scores.
        pixels (Tensor): Shape ``(C, H, W)``, in [0, 1], the image as the model sees it:
            resized and cropped, but not normalised.
        value (float, optional): The output, in regression; None for a label.
    """

    image: str
    patches: tuple[Patch, ...]
    predicted: str
    probability: float | None
    target: str
    flow_value: float
    pixels: Tensor = field(repr=False)
    value: float | None = None

    @property
    def attributions(self) -> Tensor:
        """Shape ``(C, H, W)``; every pixel has an equal share of its patch's score."""
        shares = torch.zeros_like(self.pixels)
        for patch in self.patches:
            left, top, right, bottom = patch.box
            area = shares[:, top:bottom, left:right]
            area[:] = patch.score / area.numel()
        return shares

    @property
    def prediction(self) -> str:
        """The predicted label with its probability, or with its value."""
        number = self.probability if self.value is None else self.value
        return f"{self.predicted} {number:.3f}"

    def _repr_html_(self) -> str:
        return ImageOverlays((self,))._repr_html_()

    def __rich__(self) -> Text:
        text = Text.assemble(
            f"{printable(self.image)}: ", (printable(self.prediction), "bold")
        )
        if self.target != self.predicted:
            text.append(f"  (scores for {printable(self.target)})")
        shares = relative([patch.score for patch in self.patches])
        shaded = zip(self.patches, shares, strict=True)
        for _, row in groupby(shaded, key=lambda pair: pair[0].box[1]):
            text.append("\n")
            for _, share in row:
                shade = _SHADES[round(abs(share) * (len(_SHADES) - 1))]
                if share < 0:
                    text.append(f"{shade}-", "red")  # told also without colours
                else:
                    text.append(2 * shade, "green")
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
