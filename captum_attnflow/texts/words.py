"""Tokens merged to words: by the tokenizer's word ids, or by its marks of pieces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from tokenizers import decoders

from captum_attnflow._checks import check_choice

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
