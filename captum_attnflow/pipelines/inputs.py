"""What is no model, no tokenizer or no text is refused in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from torch import nn

from captum_attnflow._options import is_pipeline


def check_parts(task: str, model: object, companion: object, kind: str) -> None:
    """Refuse anything but a model with its tokenizer or image processor.

    Args:
        task (str): The class that was given them, for errors.
        model (Module): The model.
        companion (Callable): What makes its arguments.
        kind (str): ``"tokenizer"`` or ``"processor"``.

    Raises:
        ValueError: Saying what was given and what to give.
    """
    for name, part in (("model", model), (kind, companion)):
        fits = isinstance(part, nn.Module) if part is model else callable(part)
        if is_pipeline(part) or not fits:
            parts = f"pipeline.model, pipeline.{kind.replace('proc', 'image_proc')}"
            advice = (
                f"of a pipeline give {task}({parts})"
                if is_pipeline(part)
                else (f"give a model and a {kind}, such as {task}.load(folder) finds")
            )
            raise ValueError(
                f"{name} is a {type(part).__name__} and no {name} of transformers; "
                f"{advice}"
            )


def check_texts(unit: str, texts: object) -> None:
    """Refuse what is no list of texts that a tokenizer can read.

    Args:
        unit (str): What one text is called, for errors.
        texts (sequence of str): The texts.

    Raises:
        ValueError: Naming the text.
    """
    is_list = isinstance(texts, Sequence) and not isinstance(texts, (str, bytes))
    if not isinstance(texts, Sequence) or not is_list or not texts:
        raise ValueError(f"{unit}s={texts!r}; give a list of at least one {unit}")
    for number, text in enumerate(texts, 1):
        where = f"{unit} {number} of {len(texts)}"
        if not isinstance(text, str):
            raise ValueError(
                f"{where} is a {type(text).__name__}, {text!r}, and no str; give each "
                f"{unit} as one str. Of a pair of sentences, give the ids that "
                "tokenizer(first, second) makes to an attribution method, such as "
                "RelevanceFlow"
            )
        if not text.strip():
            raise ValueError(f"{where} is empty; remove it")
        check_encodable(where, text)


def check_encodable(where: str, text: str) -> None:
    """Refuse half a character, which no tokenizer reads and no file holds.

    JSON writes such as an escape, and Python makes one of each byte of the shell's that
    is no UTF-8.

    Raises:
        ValueError: Saying where it is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}, {shorten(text, 40)!r}, holds {text[error.start]!r}, which is no "
            "UTF-8: half of a pair (a surrogate), or a byte in another encoding; mend "
            "it, or give the text in UTF-8"
        ) from None
