"""Tokens merged to words: by the text that they spell, or by their own marks."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import decoders

from captum_attnflow._checks import check_choice
from captum_attnflow.texts.units import sum_over_units

Pieces = Literal["wordpiece", "sentencepiece", "byte-level"]


def _continues_wordpiece(token: str) -> bool:
    return token.startswith("##")


def _continues_sentencepiece(token: str) -> bool:
    return not token.startswith("▁")


def _continues_byte_level(token: str) -> bool:
    # Spaces, line feeds and tabs in the alphabet in which GPT-2 spells bytes.
    return not token.startswith(("Ġ", "Ċ", "ĉ"))


_CONVENTIONS: dict[str, tuple[Callable[[str], bool], decoders.Decoder]] = {
    "wordpiece": (_continues_wordpiece, decoders.WordPiece("##", cleanup=False)),
    "sentencepiece": (_continues_sentencepiece, decoders.Metaspace()),
    "byte-level": (_continues_byte_level, decoders.ByteLevel()),
}
PIECES = tuple(_CONVENTIONS)


def merge_words(
    tokens: Sequence[str],
    scores: Sequence[float],
    pieces: Pieces,
    word_ids: Sequence[int | None] | None = None,
    special_tokens: Collection[str] = (),
) -> tuple[list[str], list[float]]:
    """Merge the tokens of one text to words; a word's score is the sum of its tokens'.

    Args:
        tokens (sequence of str): The tokens.
        scores (sequence of float): One per token.
        pieces (str): How the tokenizer marks pieces of words: ``"wordpiece"``
            (``##ing`` goes on), ``"sentencepiece"`` (``▁begin``) or ``"byte-level"``
            (``Ġbegin``; bytes are decoded to characters).
        word_ids (sequence of int, optional): The word of each token, None for a
            special one, as ``tokenizer(...).word_ids(row)`` returns. They hold in every
            script. By default the marks of the pieces separate the words.
        special_tokens (collection of str): Tokens that belong to no word.

    Returns:
        tuple[list[str], list[float]]: **words** and their **scores**.

    Raises:
        ValueError: If ``pieces`` is unknown or lengths disagree.

    Examples::

        >>> merge_words(["[CLS]", "grip", "##ping"], [0.0, 1.0, 2.0], "wordpiece")
        (['[CLS]', 'gripping'], [0.0, 3.0])
        >>> merge_words(["Ġso", "ĠfÃ", "¼r"], [1.0, 2.0, 4.0], "byte-level")
        (['so', 'für'], [1.0, 6.0])
    """
    check_choice("pieces", pieces, PIECES)
    if word_ids is not None and len(word_ids) != len(tokens):
        raise ValueError(
            f"{len(word_ids)} word ids were given for {len(tokens)} tokens; give one "
            "per token, None for a special one"
        )
    continues, decoder = _CONVENTIONS[pieces]
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if not words or {token, tokens[position - 1]} & set(special_tokens):
            joined = False
        elif word_ids is not None:
            word = word_ids[position]
            joined = word is not None and word == word_ids[position - 1]
        else:
            joined = continues(token)
        if joined:
            words[-1].append(position)
        else:
            words.append([position])
    texts = [decoder.decode([tokens[index] for index in word]) for word in words]
    totals = [sum(scores[index] for index in word) for word in words]
    return [text.strip() for text in texts], totals


Kind = Literal["word", "unknown", "special"]


@dataclass(frozen=True)
class Word:
    """A word of a text as its writer spelled it, and the tokens that stand for it.

    Attributes:
        text (str): The word, or the name of a special token.
        tokens (tuple of int): Its tokens, by their position.
        kind (str): ``"unknown"`` where a token stands for anything that the model has
            no piece for; ``"special"`` for a token that is no word of the text.
    """

    text: str
    tokens: tuple[int, ...]
    kind: Kind = "word"


def words_of_text(
    tokens: Sequence[str],
    texts: Sequence[str],
    sequences: Sequence[int | None],
    spans: Sequence[tuple[int, int]],
    unknown: str | None,
) -> tuple[Word, ...]:
    """Find the words that tokens spell, in the spelling of the text.

    A word is what :func:`~captum_attnflow.texts.sum_over_units` takes for one; in
    scripts without spaces each wide character is its own.

    Args:
        tokens (sequence of str): The tokens of a text, or of a pair.
        texts (sequence of str): The text, or both of the pair.
        sequences (sequence of int): Of each token, which of the texts it is of; None
            for a special token.
        spans (sequence of tuple[int, int]): The characters that it spells.
        unknown (str, optional): The token for all that the model has no piece for.

    Examples::

        >>> words = words_of_text(
        ...     ["[CLS]", "grip", "##ping", "[UNK]"],
        ...     ["Gripping \N{CLAPPER BOARD}"],
        ...     [None, 0, 0, 0],
        ...     [(0, 0), (0, 4), (4, 8), (9, 10)],
        ...     "[UNK]",
        ... )
        >>> [word.text for word in words[:2]], words[1].tokens, words[2].kind
        (['[CLS]', 'Gripping'], (1, 2), 'unknown')
    """
    ends = dict.fromkeys(range(len(texts)), 0)
    pieces: list[str] = []
    parts: list[object] = []
    for place, (token, sequence, (start, stop)) in enumerate(
        zip(tokens, sequences, spans, strict=True)
    ):
        if sequence is None:
            pieces.append(token)
            parts.append(("special", place))
            continue
        text = texts[sequence]
        # With what stands in front and belongs to no token, such as a space.
        piece = text[min(ends[sequence], start) : stop]
        ends[sequence] = stop
        pieces.append(piece)
        is_wide = unicodedata.east_asian_width(piece.strip()[:1] or " ") in "WF"
        parts.append((sequence, place if is_wide else None))
    units = sum_over_units(torch.zeros(len(tokens)), pieces, "word", parts)
    found = []
    for text, members in zip(units.texts, units.members, strict=True):
        kind: Kind = "word"
        if sequences[members[0]] is None:
            kind = "special"
        elif any(tokens[place] == unknown for place in members):
            kind = "unknown"
        found.append(Word(text.strip() or text, tuple(members), kind))
    return tuple(found)
