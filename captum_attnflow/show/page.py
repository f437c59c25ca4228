"""Any picture as an HTML page of its own, and any attribution as terminal text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Protocol, get_args, runtime_checkable

from matplotlib.figure import Figure
from rich.text import Text
from typing_extensions import TypeIs

from captum_attnflow._checks import check_choice, check_type, described
from captum_attnflow._files import replace_file
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.scored_tokens import escaped
from captum_attnflow.show.document import figure_image, html_document, legend
from captum_attnflow.show.generated_page import GeneratedResult, generated_page
from captum_attnflow.show.text import (
    LabelledText,
    Shown,
    TextPicture,
    attribution_text,
)
from captum_attnflow.show.text_page import (
    ShownText,
    shown_record,
    shown_text,
    text_script,
    text_section,
)


class ShownInNotebook(Protocol):
    """What a notebook shows as HTML: every picture and result of this package."""

    def _repr_html_(self) -> str: ...


@runtime_checkable
class Page(Protocol):
    """A picture that is a page of its own, scripts included."""

    def to_html(self) -> str:
        """Return a complete HTML document."""
        ...


@runtime_checkable
class SeveralTexts(Protocol):
    """A result that holds scored texts, such as both of a compared pair."""

    @property
    def attributions(self) -> Sequence[LabelledText]:
        """The texts with their scores, each with its ``index`` among those given."""


def html_page(
    picture: ShownInNotebook | Figure | Sequence[ShownInNotebook | Figure],
    model: str | None = None,
) -> str:
    """Render a picture as a page of its own.

    Args:
        picture (picture or sequence): What :func:`visualize_text` or another picture
            of this package returns, a figure such as :func:`slalom_plane`, a result of
            ``explain()``, or several of these. A text is shown by its words: hover or
            focus one, by the arrow keys too, for its score and share. Generated text
            alone, of one prompt or of several, is an interactive page: one chooses a
            generated token by click or arrow keys, and the text before it is coloured
            for it.
        model (str, optional): The model's name, which the page then says.

    Returns:
        str: A complete HTML document without references to anything outside.

    Raises:
        ValueError: If a flow diagram is one of several pictures.
    """
    if isinstance(picture, Page):
        return picture.to_html()
    check_type("model", model, (str, type(None)), "the model's name, or None")
    pictures = picture if isinstance(picture, Sequence) else [picture]
    for item in pictures:
        if not isinstance(item, (Page, Figure)):
            _check_shows("picture", item, "_repr_html_")
    if any(isinstance(item, Page) for item in pictures):
        raise ValueError(
            "a flow diagram is a whole page, and its script runs in no other page; "
            "write it to a file of its own"
        )
    by_model = f"Model: {model}" if model else ""
    generated = [item for item in pictures if _is_generated(item)]
    if generated and len(generated) == len(pictures):
        return generated_page(generated, by_model)
    texts = list(_texts(pictures))
    sections = [text_section(text, several=len(texts) > 1) for text in texts]
    for item in pictures:
        if isinstance(item, Figure):
            said = "; ".join(axes.get_title() for axes in item.axes)
            sections.append(figure_image(item, said))
        elif not isinstance(item, TextPicture) and not _scored_texts(item):
            sections.append(f'<div class="section">{item._repr_html_()}</div>')
    header = "<h1>What the output rests on</h1>"
    if by_model:
        header += f'<p class="caption">{escaped(by_model)}</p>'
    if texts:
        header += legend(any(text.is_signed for text in texts))
    script = text_script() if texts else None
    return html_document(
        "texts", "Attributions", header, "\n".join(sections), script=script
    )


def _texts(pictures: Sequence[ShownInNotebook | Figure]) -> Iterator[ShownText]:
    """All texts of the pictures, numbered; labels of one text share its number."""
    number = 0
    for item in pictures:
        if isinstance(item, TextPicture):
            for record in item.records:
                number += 1
                yield shown_record(record, number)
        elif texts := _scored_texts(item):
            number += 1
            for text in texts:
                yield shown_text(text, getattr(text, "index", number - 1) + 1)


def _scored_texts(item: object) -> Sequence[LabelledText]:
    """The texts of a result, which may have explained none of its words."""
    if _shows_several_texts(item):
        return item.attributions
    return [item] if isinstance(item, LabelledText) else []


def _shows_several_texts(item: object) -> TypeIs[SeveralTexts]:
    # The scores of an image have the same name.
    return isinstance(item, SeveralTexts) and isinstance(item.attributions, Sequence)


def _is_generated(
    picture: object,
) -> TypeIs[GenerationExplanation | GeneratedResult]:
    return isinstance(picture, (GenerationExplanation, GeneratedResult))


def save_html(
    picture: ShownInNotebook | Figure | Sequence[ShownInNotebook | Figure],
    path: str | PathLike[str],
    model: str | None = None,
) -> None:
    """Write a picture to a file that any browser opens, without network access.

    Args:
        picture: See :func:`html_page`.
        path (str or path): The file; one that exists is replaced, as a whole.
        model (str, optional): The model's name, which the page then says.

    Raises:
        OSError: If it cannot be written, naming the file, which is then as it was.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum_attnflow.show import text_records, visualize_text
        >>> records = text_records(torch.tensor([[0.5, 2.0]]), [["so", "funny"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html(visualize_text(records), f"{folder}/scores.html")
    """
    check_type("path", path, (str, PathLike), "the name of a file, or its path")
    replace_file(path, html_page(picture, model))


def _check_shows(name: str, given: object, member: str) -> None:
    if isinstance(given, type) or not hasattr(given, member):
        raise ValueError(
            f"{name}={described(given)} is a {type(given).__name__}; give a result of "
            "explain(), or a picture of this package"
        )


class ShownInTerminal(Protocol):
    """What rich prints as text."""

    def __rich__(self) -> Text: ...


def terminal_text(attribution: ShownInTerminal, by: Shown = "word") -> Text:
    """Render an attribution for a terminal.

    The deeper the colour behind a word, the higher its share of the text's largest
    score, blue for the target; orange, and with a minus sign, against it. Characters
    that are not printable are shown as escapes.

    Args:
        attribution (TextAttribution or result of ``explain()``): The attribution.
        by (str): Texts that know their words are shown by each ``"word"``, or by each
            ``"token"`` of the model, such as ``##ing``.

    Returns:
        Text: By word what ``rich.print(attribution)`` prints.

    Raises:
        ValueError: If ``by`` is something else.
    """
    check_choice("by", by, get_args(Shown))
    _check_shows("attribution", attribution, "__rich__")
    if by == "token" and _shows_several_texts(attribution):
        parts = [attribution_text(text, by) for text in attribution.attributions]
        return Text("\n").join(parts)
    if by == "token" and isinstance(attribution, LabelledText):
        return attribution_text(attribution, by)
    return attribution.__rich__()
