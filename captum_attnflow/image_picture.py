"""Pictures of image attributions: Captum's overlay, and a grid for a terminal."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from itertools import groupby

from captum.attr import visualization as captum_visualization
from matplotlib.figure import Figure
from rich.text import Text

from captum_attnflow.image import ImageAttribution

_N_TOP_PATCHES = 5
_INCHES_PER_IMAGE = 4
_SHADES = " ░▒▓█"
_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Image attributions</title></head>
<body>{body}</body></html>
"""


def image_figure(attributions: Sequence[ImageAttribution]) -> Figure:
    """Draw every image beside itself under its attributions.

    The overlay is Captum's ``visualize_image_attr``: green for the target, and red
    against it where scores have a sign.

    Args:
        attributions (sequence of ImageAttribution): The attributions, one row each.

    Returns:
        Figure: Without pyplot, so nothing has to be closed.
    """
    size = (2 * _INCHES_PER_IMAGE, _INCHES_PER_IMAGE * len(attributions))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(attributions), 2, squeeze=False)
    for (left, right), attribution in zip(axes, attributions, strict=True):
        picture = attribution.pixels.permute(1, 2, 0).numpy()
        scores = attribution.attributions.permute(1, 2, 0).numpy()
        for axis, method, title in (
            (left, "original_image", _prediction(attribution)),
            (right, "blended_heat_map", f"scores for {attribution.target}"),
        ):
            captum_visualization.visualize_image_attr(
                scores,
                picture,
                method=method,
                sign="all" if scores.min() < 0 else "positive",
                plt_fig_axis=(figure, axis),
                use_pyplot=False,
            )
            # Labels are no formulas: a dollar sign stays one.
            axis.set_title(title, parse_math=False)
    return figure


def image_page(attributions: Sequence[ImageAttribution]) -> str:
    """Render the pictures as a page of its own, labels and file names escaped.

    Args:
        attributions (sequence of ImageAttribution): The attributions.

    Returns:
        str: A complete HTML document without scripts or outside references.
    """
    body = []
    for attribution in attributions:
        stored = io.BytesIO()
        image_figure([attribution]).savefig(stored, format="png")
        data = base64.b64encode(stored.getvalue()).decode("ascii")
        caption = html.escape(f"{attribution.image}: {_prediction(attribution)}")
        body.append(
            f'<figure><img alt="" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _PAGE.format(body="\n".join(body))


def terminal_image(attribution: ImageAttribution) -> Text:
    """Render prediction, a grid of patches and the highest scores for a terminal.

    The darker a patch, the higher its share of the largest score; green is for the
    target and red against it.

    Args:
        attribution (ImageAttribution): The attribution of one image.
    """
    text = Text(f"{_printable(attribution.image)}: ")
    text.append(_printable(_prediction(attribution)), "bold")
    if attribution.target != attribution.predicted:
        text.append(f"  (scores for {_printable(attribution.target)})")
    patches = attribution.patches
    largest = max((abs(patch.score) for patch in patches), default=0.0) or 1.0
    for _, row in groupby(patches, key=lambda patch: patch.box[1]):
        text.append("\n")
        for patch in row:
            shade = _SHADES[round(abs(patch.score) / largest * (len(_SHADES) - 1))]
            text.append(2 * shade, "green" if patch.score >= 0 else "red")
    ranked = sorted(patches, key=lambda patch: patch.score, reverse=True)
    top = [
        "x {0}-{2}, y {1}-{3}: {score:.3g}".format(*patch.box, score=patch.score)
        for patch in ranked[:_N_TOP_PATCHES]
    ]
    text.append(f"\nhighest: {'; '.join(top)}")
    return text


def _prediction(attribution: ImageAttribution) -> str:
    return f"{attribution.predicted} {attribution.probability:.3f}"


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else repr(char).strip("'") for char in text
    )
