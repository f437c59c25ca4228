"""Chats that show an image: what a processor takes of them, and where messages are.

A chat's template puts its own tokens around the messages, and around the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from textwrap import shorten
from typing import Any

from torch import Tensor

from captum_attnflow.explanation import Part
from captum_attnflow.texts import token_pieces
from captum_attnflow.texts.prompts import find_contents, marks_of


def image_places(processor: Any) -> tuple[str, ...]:
    """What may stand for the image in a prompt: of Gemma 3 it is the first."""
    named = (getattr(processor, name, None) for name in ("boi_token", "image_token"))
    return tuple(dict.fromkeys(token for token in named if token))


def image_chat(
    image: Mapping[str, object], prompt: str, system: str | None = None
) -> list[dict[str, Any]]:
    """What a processor's chat template takes."""
    chat = [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]
    if system is not None:
        of_system = [{"type": "text", "text": system}]
        chat.insert(0, {"role": "system", "content": of_system})
    return chat


def parts_of_chat(
    processor: Any,
    ids: Tensor,
    parts: Sequence[Part],
    prompt: str,
    system: str | None = None,
) -> list[Part]:
    """Tell the tokens of a chat's messages from those of its template.

    Args:
        processor (ProcessorMixin): With a chat template.
        ids (Tensor): Shape ``(1, T)``, what it made of :func:`image_chat`.
        parts (sequence of str): ``"image"`` where a token is the image's.
        prompt (str): The user's message.
        system (str, optional): The system's.

    Returns:
        list of str: Of each token, ``"image"``, ``"prompt"``, ``"system"`` or
        ``"template"``.

    Raises:
        ValueError: If the template changes or drops a message, or its tokens spell
            something else.
    """
    named: dict[Part, str] = {"prompt": prompt}
    if system is not None:
        named["system"] = system
    rendered, spans = _fill_template(processor, list(named.values()))
    tokenizer = processor.tokenizer
    # Tokens of places in an image, such as <row_1_col_1>, are special by themselves,
    # and none of the tokenizer's. Not every tokenizer says what was added to it.
    added = {
        token: known.content
        for token, known in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if known.special
    }
    special = {*tokenizer.all_special_ids, *added}
    listed = ids[0].tolist()
    pieces = token_pieces(listed, tokenizer)
    # An image takes many tokens, and some tokenizers change white space: places in what
    # was rendered are none in what the tokens spell, but their order is.
    whole = "".join(
        _blank(piece) if part == "image" or token in special else piece
        for part, token, piece in zip(parts, listed, pieces, strict=True)
    )
    # Longest first, as tokenizers take them: one may begin as another.
    marks = {*tokenizer.all_special_tokens, *added.values(), *image_places(processor)}
    pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    rendered = re.sub(pattern, lambda mark: _blank(mark[0]), rendered)
    ends = list(accumulate(map(len, pieces)))
    found_parts: list[Part] = [
        "image" if part == "image" else "template" for part in parts
    ]
    for number, (part, content) in enumerate(named.items()):
        span = spans.get(number)
        said = f"the {part} {shorten(content, 40)!r}"
        known = (
            "so that its tokens are not known; give prompts with the template's text, "
            "without chat and system"
        )
        if span is None:
            raise ValueError(f"the chat template changes or drops {said}, {known}")
        found = _same_place(rendered, span, whole)
        if found is None:
            raise ValueError(
                f"the tokens do not spell {said} as often as the chat template has it, "
                f"as the tokenizer changes the text or the processor adds some, {known}"
            )
        for place, end in enumerate(ends):
            if end > found[0] and end - len(pieces[place]) < found[1]:
                found_parts[place] = part
    return found_parts


def _fill_template(
    processor: Any, contents: Sequence[str]
) -> tuple[str, dict[int, tuple[int, int]]]:
    """Return what the template makes, and where each message stands that is there."""
    rendered, marked = (
        processor.apply_chat_template(
            image_chat({"type": "image"}, *given), add_generation_prompt=True
        )
        for given in (contents, marks_of(contents))
    )
    spans = {
        number: (start, stop)
        for start, stop, number in find_contents(marked, contents, rendered)
    }
    return rendered, spans


def _blank(text: str) -> str:
    return "\0" * len(text)


def _same_place(text: str, span: tuple[int, int], other: str) -> tuple[int, int] | None:
    """Find in another text the occurrence that a span is of its characters.

    Returns:
        tuple[int, int], optional: Start and stop; None if they occur another number of
        times.
    """
    start, stop = span
    sought = re.compile(f"(?={re.escape(text[start:stop])})")
    here, there = (
        [match.start() for match in sought.finditer(each)] for each in (text, other)
    )
    if len(here) != len(there):
        return None
    found = there[here.index(start)]
    return found, found + stop - start
