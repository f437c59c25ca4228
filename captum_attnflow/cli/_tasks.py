"""What ``explain`` can explain: one entry per kind of input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.image import ImageAttribution, ImageClassifier
from captum_attnflow.image_picture import image_figure, image_page, terminal_image
from captum_attnflow.text import TextClassifier
from captum_attnflow.visualization import html_page, terminal_text


@dataclass(frozen=True)
class Task:
    """One kind of input and its results.

    Attributes:
        load (Callable): Loads by its name what has a method ``explain(batch, method,
            target, **options)``, which returns one result per input of the batch.
        unit (str): What one line of the input is.
        default_model (str, optional): Where none is given.
        terminal (Callable): Renders one result for a terminal.
        page (Callable): Renders results as an HTML document.
        fields (Callable): Makes one result a dictionary for JSON.
        save_picture (Callable, optional): Writes results to a picture file.
    """

    load: Callable[[str], Any]
    unit: str
    default_model: str | None
    terminal: Callable[[Any], Any]
    page: Callable[[Sequence[Any]], str]
    fields: Callable[[Any], dict[str, Any]]
    save_picture: Callable[[Sequence[Any], Path], None] | None = None


def _given_fields(result: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if value is not None}


def _image_fields(result: ImageAttribution) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "pixels"}


def _save_figure(results: Sequence[ImageAttribution], file: Path) -> None:
    image_figure(results).savefig(file)


TASKS = {
    "text-classification": Task(
        load=TextClassifier.load,
        unit="text",
        default_model=str(DEMO_MODEL_PATH),
        terminal=terminal_text,
        page=html_page,
        fields=_given_fields,
    ),
    "image-classification": Task(
        load=ImageClassifier.load,
        unit="image file",
        default_model=None,
        terminal=terminal_image,
        page=image_page,
        fields=_image_fields,
        save_picture=_save_figure,
    ),
}
