"""Any picture as an HTML page of its own, and any attribution as terminal text."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

from rich.text import Text
from typing_extensions import TypeIs

from captum_attnflow._files import replace_file
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import escaped
from captum_attnflow.show.generated_page import GeneratedResult, generated_page
from captum_attnflow.show.text import LabelledText, text_records, visualize_text

# Tokens of Captum's picture are <mark>.
_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Token attributions</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<style>body {{ font-family: sans-serif }} mark:hover {{ outline: 2px solid }}</style>
</head><body>{body}</body></html>
"""


class ShownInNotebook(Protocol):
    """What a notebook shows as HTML: every picture and result of this package."""

    def _repr_html_(self) -> str: ...


@runtime_checkable
class Page(Protocol):
    """A picture that is a page of its own, scripts included."""

    def to_html(self) -> str:
        """Return a complete HTML document."""
        ...


def html_page(picture: ShownInNotebook | Sequence[ShownInNotebook]) -> str:
    """Render a picture as a page of its own.

    Args:
        picture (picture or sequence): What :func:`visualize_text` or another picture
            of this package returns, a result of ``explain()``, or several of these;
            text attributions make one table. Generated text alone, of one prompt or of
            several, is an interactive page: one chooses a generated token by click or
            arrow keys, and the text before it is coloured for it.

    Returns:
        str: A complete HTML document without references to anything outside.

    Raises:
        ValueError: If a flow diagram is one of several pictures.
    """
    if isinstance(picture, Page):
        return picture.to_html()
    pictures = picture if isinstance(picture, Sequence) else [picture]
    if any(isinstance(item, Page) for item in pictures):
        raise ValueError(
            "a flow diagram is a whole page, and its script runs in no other page; "
            "write it to a file of its own"
        )
    generated = [item for item in pictures if _is_generated(item)]
    if generated and len(generated) == len(pictures):
        return generated_page(generated)
    texts = [item for item in pictures if isinstance(item, LabelledText)]
    others = [item for item in pictures if not isinstance(item, LabelledText)]
    tables = [visualize_text(text_records(texts))] if texts else []
    # Captum's table has no place for how a text was read that exceeds a model's limit.
    notes = [
        f"<p>text {number}: {escaped(note)}</p>"
        for number, item in enumerate(texts, 1)
        if (note := getattr(item, "note", ""))
    ]
    body = "\n".join(
        [
            *(str(table.data) for table in tables),
            *notes,
            *(item._repr_html_() for item in others),
        ]
    )
    return _PAGE.format(body=body)


def _is_generated(
    picture: object,
) -> TypeIs[GenerationExplanation | GeneratedResult]:
    return isinstance(picture, (GenerationExplanation, GeneratedResult))


def save_html(
    picture: ShownInNotebook | Sequence[ShownInNotebook], path: str | PathLike[str]
) -> None:
    """Write a picture to a file that any browser opens, without network access.

    Args:
        picture: See :func:`html_page`.
        path (str or path): The file; one that exists is replaced, as a whole.

    Raises:
        OSError: If it cannot be written, naming the file, which is then as it was.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> records = text_records(torch.tensor([[0.5, 2.0]]), [["so", "funny"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html(visualize_text(records), f"{folder}/scores.html")
    """
    replace_file(path, html_page(picture))


class ShownInTerminal(Protocol):
    """What rich prints as text."""

    def __rich__(self) -> Text: ...


def terminal_text(attribution: ShownInTerminal) -> Text:
    """Render an attribution for a terminal.

    The deeper the colour behind a token, the higher its share of the text's largest
    score, green for the target and red against it. Characters that are not printable
    are shown as escapes.

    Args:
        attribution (TextAttribution or result of ``explain()``): The attribution.

    Returns:
        Text: What ``rich.print(attribution)`` prints.
    """
    return attribution.__rich__()
