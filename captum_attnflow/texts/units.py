"""Words, sentences and lines of tokenised texts, whose scores are sums of tokens'."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import index as as_index
from typing import Any, Literal, NamedTuple, get_args

import torch
from tokenizers import decoders
from torch import Tensor

from captum_attnflow._checks import (
    check_choice,
    check_dense,
    check_integer,
    check_strings,
    check_type,
    counted,
    described,
    type_of,
)

Unit = Literal["token", "word", "sentence", "line"]
"""What scores may be summed over."""

# Where a unit ends: behind the match.
_ENDS = {
    "token": re.compile(r"(?!)"),  # no match: tokens are known without
    # Behind spaces, and between a word, with its apostrophes, and punctuation.
    "word": re.compile(
        r"\s+(?=\S)|(?<=\w)(?=[^\w\s'\u2019-])|(?<=[^\w\s'\u2019-])(?=\S)"
    ),
    "sentence": re.compile(
        # Behind them closing quotes and brackets; then the full stops of Chinese.
        r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=\S)|[\u3002\uff01\uff1f]+|\n+"
    ),
    "line": re.compile(r"\n+"),
}
_REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to


def token_pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token, such that joined they are the whole text.

    A tokenizer writes no space before a piece that stands alone, and a character may
    take several tokens: a piece is what the text is longer by, behind its token. Of a
    character's tokens the last one has it, and the others have nothing.

    Args:
        ids (sequence of int): The tokens.
        tokenizer (PreTrainedTokenizer): Decodes them.

    Returns:
        list[str]: One per token.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> token_pieces(tokenizer("a gripping film").input_ids, tokenizer)
        ['[CLS]', ' a', ' gripping', ' film', ' [SEP]']
    """
    accepted = "a list of the ids of tokens, such as ids.tolist()"
    check_type("ids", ids, (list, tuple), accepted)
    for one in ids:
        check_integer("an id", one)
    if not callable(getattr(tokenizer, "decode", None)):
        raise ValueError(
            f"tokenizer={described(tokenizer)} is {type_of(tokenizer)}, which "
            "decodes nothing; give a tokenizer of transformers"
        )

    def decode(start: int, stop: int) -> str:
        text: str = tokenizer.decode(
            ids[start:stop],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return text

    pieces = []
    # Decoded anew is the last whole piece, for its space, and what came behind it.
    before, start = 0, 0
    for stop in range(1, len(ids) + 1):
        text, known = decode(before, stop), decode(before, start)
        if text.endswith(_REPLACEMENT) and stop < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(known) :])
        before, start = start, stop
    return pieces


# A letter or digit of a script that puts spaces between words: not of Chinese,
# Japanese, Thai, Lao, Burmese and Khmer.
_SPACED = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff"
    r"\uf900-\ufaff\U00020000-\U0003ffff]"
)


def find_text(text: str, whole: str) -> list[int]:
    """Find where a text stands in another: as words, or if nowhere, within words.

    Args:
        text (str): The text, with a character at least.
        whole (str): The other.

    Returns:
        list[int]: The place of its first character, of each occurrence.

    Examples::

        >>> find_text("art", "no artist is in the art party"), find_text("art", "party")
        ([20], [1])
    """
    before = f"(?<!{_SPACED})" if re.match(_SPACED, text) else ""
    behind = f"(?!{_SPACED})" if re.match(_SPACED, text[-1]) else ""
    for pattern in (
        f"{before}(?={re.escape(text)}{behind})",
        f"(?={re.escape(text)})",
    ):
        found = [match.start() for match in re.finditer(pattern, whole)]
        if found:
            break
    return found


class Units(NamedTuple):
    """Scores summed over units of a text.

    Attributes:
        texts (list of str): The ``U`` units.
        scores (Tensor): Shape ``(..., U)``.
        members (list of list of int): The tokens of each.
    """

    texts: list[str]
    scores: Tensor
    members: list[list[int]]


def sum_over_units(
    scores: Tensor,
    pieces: Sequence[str],
    units: Unit | Sequence[tuple[int, int]],
    parts: Sequence[object] | None = None,
) -> Units:
    """Sum the scores of tokens over words, sentences, lines or given spans.

    Args:
        scores (Tensor): Shape ``(..., T)``, one score per token.
        pieces (sequence of str): The text of each token, see :func:`token_pieces`.
        units (str or sequence of (int, int)): ``"token"``, ``"word"``, ``"sentence"``
            or ``"line"``, or spans of characters of the joined pieces, start inclusive
            and end exclusive; between these, what is left is one unit each.
        parts (sequence, optional): What each token belongs to, such as the prompt or
            the answer; no unit reaches from one part into another.

    Returns:
        Units: In the order of the text. A token belongs to the unit of its first
        character that is no space.

    Raises:
        ValueError: If units are unknown, or spans overlap or lie outside of the text.

    Examples::

        >>> pieces = ["Good", " day", ".", " I", " see", "."]
        >>> summed = sum_over_units(torch.arange(6.0), pieces, "sentence")
        >>> summed.texts, summed.scores
        (['Good day.', ' I see.'], tensor([ 3., 12.]))
    """
    check_dense("scores", scores, "(..., T), one score per token")
    check_strings("pieces", pieces, "a list of the text of each token")
    kinds = (list, tuple, type(None))
    check_type("parts", parts, kinds, "a list of what each token belongs to, or None")
    if parts is not None and len(parts) != len(pieces):
        raise ValueError(
            f"parts are {len(parts)} for {counted(len(pieces), 'piece')}; give one per "
            "token, or None"
        )
    if not scores.dim():
        raise ValueError("scores have no dimension; give (..., T), one per token")
    if scores.shape[-1] != len(pieces):
        raise ValueError(
            f"pieces holds {counted(len(pieces), 'piece')} for scores of "
            f"{counted(scores.shape[-1], 'token')}; "
            "give one per token"
        )
    text = "".join(pieces)
    if not isinstance(units, str):
        ends = _ends_of_spans(units, len(text))
    else:
        check_choice("units", units, get_args(Unit))
        ends = [match.end() for match in _ENDS[units].finditer(text)]
    members: list[list[int]] = []
    previous: tuple[object, int] | None = None
    for token, first in enumerate(_first_characters(pieces)):
        part = None if parts is None else parts[token]
        if units == "token":
            number = token
        elif previous and part == previous[0] and not pieces[token].strip():
            number = previous[1]  # spaces end a unit
        else:
            number = bisect_right(ends, first)
        if (part, number) == previous:
            members[-1].append(token)
        else:
            members.append([token])
        previous = (part, number)
    unit_of = torch.tensor(
        [unit for unit, tokens in enumerate(members) for _ in tokens],
        dtype=torch.int64,
        device=scores.device,
    )
    sums = scores.new_zeros(*scores.shape[:-1], len(members))
    return Units(
        ["".join(pieces[token] for token in tokens) for tokens in members],
        sums.index_add(-1, unit_of, scores),
        members,
    )


def _first_characters(pieces: Sequence[str]) -> list[int]:
    """Return where each token's first character that is no space stands.

    A token without characters of its own has that of the token behind, which holds the
    character that both make.
    """
    found: list[int] = []
    end = sum(map(len, pieces))
    for piece in reversed(pieces):
        end -= len(piece)
        inside = end + len(piece) - len(piece.lstrip())
        found.append(inside if piece or not found else found[-1])
    return found[::-1]


def _ends_of_spans(spans: Sequence[tuple[int, int]], n_characters: int) -> list[int]:
    """Return where spans begin and end, in order."""
    try:
        ordered = sorted((as_index(start), as_index(stop)) for start, stop in spans)
    # Whatever a thing raises that holds no pairs, such as a tensor of some layout.
    except Exception as error:
        raise ValueError(
            f"units={described(spans)} are no spans; give one of "
            f"{', '.join(get_args(Unit))}, or pairs (start, stop) of characters"
        ) from error
    flat = [edge for span in ordered for edge in span]
    if flat != sorted(flat) or any(start >= stop for start, stop in ordered):
        raise ValueError(
            f"units={list(spans)} overlap or are empty; give spans (start, stop) of "
            "characters that follow each other"
        )
    if flat and (flat[0] < 0 or flat[-1] > n_characters):
        raise ValueError(
            f"units={list(spans)} reach beyond the text of "
            f"{counted(n_characters, 'character')}; give spans (start, stop) within it"
        )
    return flat


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
            f"{counted(len(word_ids), 'word id')} for "
            f"{counted(len(tokens), 'token')}; give one per token, None for a "
            "special one"
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
