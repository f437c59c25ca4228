"""What ``explain`` can explain: one entry per kind of input."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captum_attnflow._files import replace_file
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.pipelines.image_classification import (
    ImageAttribution,
    ImageClassifier,
    ImageOverlays,
)
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.pipelines.text_generation import GeneratedText, TextGenerator


@dataclass(frozen=True)
class Task:
    """One kind of input and its results.

    Attributes:
        load (Callable): Loads by its name what has a method ``explain(batch, method,
            target, **options)``, which returns the results of a batch, which show
            themselves.
        unit (str): What one line of the input is.
        default_model (str, optional): Where none is given.
        fields (Callable): Makes one result a dictionary for JSON.
        save_picture (Callable, optional): Writes results to a picture file.
        reads_text (bool): Whether a line is a text; otherwise it is a file's name,
            which may be any bytes.
    """

    load: Callable[[str], Any]
    unit: str
    default_model: str | None
    fields: Callable[[Any], dict[str, Any]]
    save_picture: Callable[[Sequence[Any], Path], None] | None = None
    reads_text: bool = True


def _given_fields(result: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if value is not None}


def _image_fields(result: ImageAttribution) -> dict[str, Any]:
    fields = _given_fields(result)
    del fields["pixels"]
    return fields


def _save_figure(results: Sequence[ImageAttribution], file: Path) -> None:
    picture = io.BytesIO()
    figure = ImageOverlays(tuple(results)).figure()
    figure.savefig(picture, format=file.suffix[1:].lower())
    replace_file(file, picture.getvalue())


TASKS = {
    "text-classification": Task(
        load=TextClassifier.load,
        unit="text",
        default_model=str(DEMO_MODEL_PATH),
        fields=_given_fields,
    ),
    "text-generation": Task(
        load=TextGenerator.load,
        unit="prompt",
        default_model=None,
        fields=GeneratedText.to_dict,
    ),
    "image-classification": Task(
        load=ImageClassifier.load,
        unit="image file",
        default_model=None,
        fields=_image_fields,
        save_picture=_save_figure,
        reads_text=False,
    ),
}
