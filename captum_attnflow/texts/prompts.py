"""Prompts as Captum's text inputs: chats and templates by tokens, and embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any, Literal

import torch
from captum.attr import TextTemplateInput, TextTokenInput
from torch import Tensor

from captum_attnflow._checks import counted

# Private characters, which no text means anything by.
_MARKED = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")

Message = Mapping[str, str]
"""A role, ``"system"``, ``"user"`` or ``"assistant"``, and a content."""


class ChatInput(TextTokenInput):
    """A chat for Captum's wrappers of language models, in place of ``TextTokenInput``.

    The tokenizer's chat template puts its own tokens around the messages. Which these
    are is known here, so that they can be left out.

    Args:
        messages (str or sequence of Message): What the user says, or a whole chat, as
            ``tokenizer.apply_chat_template`` takes it.
        tokenizer (PreTrainedTokenizer): A fast tokenizer with a chat template.
        system (str, optional): A system message in front.
        baselines (int or str): As in ``TextTokenInput``.
        skip_template (bool): Leave the template's tokens out of the interpretable
            features, as ``skip_tokens`` does with others.

    Attributes:
        parts (tuple of str): What each token belongs to: ``"prompt"``, the messages of
            the user and of the assistant; ``"system"``; or ``"template"``.

    Raises:
        ValueError: If the tokenizer has no chat template, is no fast one, or its
            template changes or drops a message.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> tokenizer.chat_template = (
        ...     "{% for m in messages %}{{ m.role }} : {{ m.content }} . {% endfor %}"
        ... )
        >>> chat = ChatInput("a funny film", tokenizer, system="good")
        >>> list(zip(chat.values, chat.parts))[2:4]
        [('good', 'system'), ('.', 'template')]
        >>> chat.values[-4:]
        ['a', 'funny', 'film', '.']
    """

    def __init__(
        self,
        messages: str | Sequence[Message],
        tokenizer: Any,
        system: str | None = None,
        baselines: int | str = 0,
        skip_template: bool = False,
    ) -> None:
        chat = _messages(messages, system)
        rendered = _render(chat, tokenizer)
        encoded = tokenizer(
            rendered, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = encoded["input_ids"]
        super().__init__("", _Encoded(tokenizer, ids), baselines)
        self.tokenizer = tokenizer
        self.text = rendered
        spans = _find_messages(chat, rendered, tokenizer)
        self.parts: tuple[Literal["system", "template", "prompt"], ...] = tuple(
            _part(span, spans) for span in encoded["offset_mapping"]
        )
        if skip_template:
            self.itp_mask = torch.tensor([[part != "template" for part in self.parts]])
            self.itp_tensor = self.inp_tensor[self.itp_mask][None]
            self.values = tokenizer.convert_ids_to_tokens(self.itp_tensor[0].tolist())
            self.n_itp_features = len(self.values)


class _Encoded:
    """A tokenizer that has encoded the text already, in front of the real one."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def encode(self, text: str, **_: Any) -> torch.Tensor:
        return torch.tensor([self._ids])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _messages(given: str | Sequence[Message], system: str | None) -> list[Message]:
    chat: list[Any] = (
        [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    )
    if system is not None:
        chat.insert(0, {"role": "system", "content": system})
    for message in chat:
        is_message = isinstance(message, Mapping) and {"role", "content"} <= set(
            message
        )
        if not is_message or not isinstance(message["content"], str):
            raise ValueError(
                f"{message!r} is no message; give a dict with the texts 'role' and "
                "'content', such as {'role': 'user', 'content': 'Who are you?'}"
            )
        if not message["content"].strip():
            raise ValueError(f"the {message['role']}'s message is empty; leave it out")
    return chat


def _render(chat: list[Message], tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, as those of base models have none; "
            "give the text itself, or the tokenizer of a model that was tuned for chats"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands "
            "for, so that the template's tokens are not known; give a fast tokenizer"
        )
    try:
        rendered: str = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
    # What a template raises of messages that it does not take, and Jinja's own.
    except Exception as error:
        raise ValueError(
            f"the tokenizer's chat template does not take these messages: {error}"
        ) from error
    return rendered


def _find_messages(
    chat: list[Message], rendered: str, tokenizer: Any
) -> list[tuple[int, int, bool]]:
    """Return where each message stands, and whether it is the system's."""
    contents = [message["content"] for message in chat]

    def find(marked: Collection[int]) -> list[tuple[int, int, int]]:
        """Find some of the messages, with marks in place of them alone."""
        chat_of_marks: list[Message] = [
            {**message, "content": mark} if number in marked else message
            for number, (message, mark) in enumerate(
                zip(chat, marks_of(contents), strict=True)
            )
        ]
        return find_contents(_render(chat_of_marks, tokenizer), contents, rendered)

    spans = find(range(len(chat)))
    found = {number for *_, number in spans}
    lost = [number for number in range(len(chat)) if number not in found]
    if lost:
        # One that is changed hides all; alone, each of the others is found.
        changed = [number for number in lost if not find([number])]
        message = chat[(changed or lost)[0]]
        raise ValueError(
            f"the chat template changes or drops the {message['role']}'s message "
            f"{shorten(message['content'], 40)!r}, so that its tokens are not known; "
            "leave the message out, or give the text itself"
        )
    return [
        (start, stop, chat[number]["role"] == "system") for start, stop, number in spans
    ]


def _part(
    characters: tuple[int, int], spans: list[tuple[int, int, bool]]
) -> Literal["system", "template", "prompt"]:
    start, stop = characters
    for first, behind, is_system in spans:
        if start < behind and stop > first:
            return "system" if is_system else "prompt"
    return "template"


class EmbeddedInput(TextTokenInput):
    """A prompt whose embeddings are not all those of its ids.

    Stands in for ``TextTokenInput`` in
    :meth:`captum_attnflow.GenerationAttribution.explain`, which then attributes to the
    embeddings: tokens of an image are features of a vision tower, and their ids are one
    placeholder.

    Args:
        ids (Tensor): Shape ``(1, T)``, the prompt, with a placeholder for every token
            that is not looked up.
        tokenizer (PreTrainedTokenizer): Spells them.
        embed (Callable): Takes ids ``(1, T')`` of the prompt and of the answer behind
            it, and returns what the model takes instead of them, by name:
            ``"inputs_embeds"`` of shape ``(1, T', D)``, and what belongs to it, such as
            ``"position_ids"``.
        parts (sequence of str): What each token belongs to, see
            :class:`captum_attnflow.GenerationExplanation`.

    Raises:
        ValueError: If there are not as many parts as tokens.

    Examples::

        >>> import torch
        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> ids = tokenizer("[MASK] [MASK] so dull", return_tensors="pt").input_ids
        >>> prompt = EmbeddedInput(
        ...     ids[:, 1:-1],
        ...     tokenizer,
        ...     lambda ids: {"inputs_embeds": torch.rand(*ids.shape, 16)},
        ...     ["image", "image", "prompt", "prompt"],
        ... )
        >>> prompt.values
        ['[MASK]', '[MASK]', 'so', 'dull']
    """

    def __init__(
        self,
        ids: Tensor,
        tokenizer: Any,
        embed: Callable[[Tensor], Mapping[str, Any]],
        parts: Sequence[str],
    ) -> None:
        # In place of Captum's constructor, which encodes a text.
        if ids.dim() != 2 or len(ids) != 1 or len(parts) != ids.shape[1]:
            raise ValueError(
                f"ids have shape {tuple(ids.shape)}, and parts holds "
                f"{counted(len(parts), 'part')}; "
                "give ids of one prompt, (1, T), and a part for each token"
            )
        self.inp_tensor = self.itp_tensor = ids
        self.itp_mask = None
        self.skip_tokens = None
        self.values = tokenizer.convert_ids_to_tokens(ids[0].tolist())
        self.tokenizer = tokenizer
        self.n_itp_features = len(self.values)
        self.baselines = 0
        self.embed = embed
        self.parts = tuple(parts)


def marks_of(contents: Sequence[str]) -> list[str]:
    """What stands for contents in a template, to be found again in what it makes."""
    return [_MARKED.format(number) for number in range(len(contents))]


def find_contents(
    marked: str, contents: Sequence[str], filled: str
) -> list[tuple[int, int, int]]:
    """Find contents in a filled template, as what it makes of marks tells.

    A short content may also occur in the template's own text. White space around a
    content may be gone: chat templates strip messages, those of some roles only.

    Args:
        marked (str): The template filled with :func:`marks_of` the contents.
        contents (sequence of str): The contents.
        filled (str): The template filled with them.

    Returns:
        list[tuple[int, int, int]]: Start, stop and number of each that is there,
        without white space around it; none where the template's text depends on them.

    Examples::

        >>> marked = "user: {} assistant:".format(*marks_of(["us"]))
        >>> find_contents(marked, ["us"], "user: us assistant:")
        [(6, 8, 0)]
    """
    # Text and numbers of contents by turns.
    first, *pieces = _MARKS.split(marked)
    numbers = [int(number) for number in pieces[::2]]
    pattern = re.escape(first)
    for number, behind in zip(numbers, pieces[1::2], strict=True):
        content = re.escape(contents[number].strip())
        pattern += rf"\s*({content})\s*{re.escape(behind)}"
    found = re.fullmatch(pattern, filled)
    if found is None:
        return []
    return [(*found.span(1 + at), number) for at, number in enumerate(numbers)]


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
    marks = marks_of(template.values)
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
