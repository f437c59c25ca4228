"""Templates of Captum as token inputs: their segments are slots of known tokens."""

from __future__ import annotations

import re
from textwrap import shorten
from typing import Any, Literal

import torch
from captum.attr import TextTemplateInput, TextTokenInput
from torch import Tensor

# Private characters, which no text means anything by.
_MARKED = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")


class TemplateTokens(TextTokenInput):
    """The tokens of a ``TextTemplateInput``, for what differentiates.

    Gradients have no meaning for a segment that is left out, but each token of a
    segment has its own score: a segment's is their sum.

    Args:
        template (TextTemplateInput): Its template and values; baselines are not read.
        tokenizer (PreTrainedTokenizer): A fast one, which knows the characters of its
            tokens.

    Attributes:
        text (str): The filled template.
        slots (tuple of int): The value that each token belongs to, by its number; -1
            for the template's own tokens. A token belongs to where its first character
            is that is no space.
        parts (tuple of str): ``"prompt"`` in slots, ``"template"`` elsewhere.

    Raises:
        ValueError: If the tokenizer is no fast one, or the template changes a value.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> given = TextTemplateInput("{} is {} .", ["the film", "funny"])
        >>> tokens = TemplateTokens(given, tokenizer)
        >>> list(zip(tokens.values, tokens.slots))[1:5]
        [('the', 0), ('film', 0), ('is', -1), ('funny', 1)]
    """

    def __init__(self, template: TextTemplateInput, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} does not say which characters a token "
                "stands for, so that the tokens of the template's values are not "
                "known; give a fast tokenizer"
            )
        self.template = template
        self.text = template.to_model_input()
        super().__init__(self.text, tokenizer)
        spans = _spans_of_values(template, self.text)
        offsets = tokenizer(self.text, return_offsets_mapping=True)["offset_mapping"]
        self.slots = tuple(_slot_of(self.text, span, spans) for span in offsets)
        self.parts: tuple[Literal["prompt", "template"], ...] = tuple(
            "template" if slot < 0 else "prompt" for slot in self.slots
        )

    def sum_over_slots(self, scores: Tensor) -> Tensor:
        """Sum scores of tokens over slots.

        Values that the template's mask groups all have the sum of their group, as
        Captum has it.

        Args:
            scores (Tensor): Shape ``(R, T)``, of the tokens of the prompt.

        Returns:
            Tensor: Shape ``(R, values)``.
        """
        template = self.template
        groups = list(range(template.n_features))
        if template.mask is not None:
            groups = template.formatted_mask
        group_of = torch.tensor(
            [groups[slot] if slot >= 0 else -1 for slot in self.slots],
            device=scores.device,
        )
        sums = scores.new_zeros(len(scores), max(groups, default=-1) + 1)
        sums.index_add_(1, group_of[group_of >= 0], scores[:, group_of >= 0])
        return sums[:, groups]


def _spans_of_values(
    template: TextTemplateInput, text: str
) -> list[tuple[int, int, int]]:
    """Return where values stand in the filled template: start, stop, number."""
    marks = [_MARKED.format(number) for number in range(template.n_features)]
    keys = template.dict_keys
    try:
        marked = (
            template.format_fn(**dict(zip(keys, marks, strict=True)))
            if keys
            else template.format_fn(*marks)
        )
    # Whatever a template raises of a text that is no value of its own.
    except Exception as error:
        raise _changes_values(template, f"it raises {error!r} for others") from error
    # Text and numbers of values by turns.
    pieces = _MARKS.split(marked)
    spans, filled = [], ""
    for place, piece in enumerate(pieces):
        added = template.values[int(piece)] if place % 2 else piece
        if place % 2:
            spans.append((len(filled), len(filled) + len(added), int(piece)))
        filled += added
    if filled != text:
        raise _changes_values(template, f"it makes {shorten(text, 60)!r} of them")
    return spans


def _changes_values(template: TextTemplateInput, reason: str) -> ValueError:
    return ValueError(
        f"the template changes its values {template.values!r}, so that their tokens "
        f"are not known: {reason}; give one that puts values into the text as they are"
    )


def _slot_of(
    text: str, characters: tuple[int, int], spans: list[tuple[int, int, int]]
) -> int:
    start, stop = characters
    first = stop - len(text[start:stop].lstrip())
    for begin, end, slot in spans:
        if begin <= min(first, stop - 1) < end:
            return slot
    return -1
