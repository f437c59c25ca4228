"""Texts as words with shares, and passages of them.

A word's share is its score over the sum of the absolute scores of all words of the
text; special tokens are no words. A word that occurs twice in a text has the sum of
both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captum_attnflow.show.text import shown_tokens
from captum_attnflow.summary.folder import Row
from captum_attnflow.texts.units import PIECES, Pieces

_MARKS: dict[Pieces, str] = {"wordpiece": "##", "sentencepiece": "▁", "byte-level": "Ġ"}
_WORDS_AROUND = 12  # of an example, on each side of the word
_LOOKS_SPECIAL = re.compile(r"\[[^\[\]\s]+\]|<[^<>\s]+>")


@dataclass(frozen=True)
class Tokenization:
    """How tokens become words.

    Attributes:
        pieces (str, optional): The convention of the pieces, see
            :func:`captum_attnflow.show.merge_words`; None where each token is a word.
        special_tokens (frozenset of str): Tokens that are no words.
        found_in (str): Where the special tokens were found: ``"manifest"`` or
            ``"texts"``.
    """

    pieces: Pieces | None
    special_tokens: frozenset[str]
    found_in: str

    @staticmethod
    def of(manifest: Mapping[str, Any], rows: Iterable[Row]) -> Tokenization:
        """Read it from a manifest, or find it in explained texts.

        The manifest's ``pieces`` and ``special_tokens`` go first. Else the convention
        is the one whose marks are in most texts. Special is then what looks like
        ``[X]`` or ``<x>`` and is in every text.

        Args:
            manifest (mapping): The folder's.
            rows (iterable of Row): Explained rows, the first of the folder.
        """
        texts = [set(row.tokens) for row in rows]
        given = manifest.get("special_tokens")
        in_manifest = isinstance(given, list)
        special = (
            frozenset(map(str, given or ()))
            if in_manifest
            else frozenset(
                token
                for token in set.intersection(*texts or [set()])
                if _LOOKS_SPECIAL.fullmatch(token)
            )
        )
        found_in = "manifest" if in_manifest else "texts"
        pieces = manifest.get("pieces")
        if pieces not in PIECES:
            pieces = _most_marked(texts)
        return Tokenization(pieces, special, found_in)


def _most_marked(texts: Sequence[set[str]]) -> Pieces | None:
    n_marked = {
        pieces: sum(any(token.startswith(mark) for token in text) for text in texts)
        for pieces, mark in _MARKS.items()
    }
    best = max(_MARKS, key=lambda pieces: n_marked[pieces])
    return best if n_marked[best] else None


@dataclass(frozen=True)
class WordShares:
    """One explained text, as words with their shares.

    Attributes:
        row (Row): The row that it is from.
        words (tuple of str): Its words, in order.
        shares (tuple of float): Their shares; their absolute values sum to 1.
        special_share (float): The special tokens' absolute scores over those of all
            tokens.
    """

    row: Row
    words: tuple[str, ...]
    shares: tuple[float, ...]
    special_share: float


def read_words(row: Row, tokenization: Tokenization) -> WordShares | None:
    """Merge a row's tokens to words and divide their scores by their absolute sum.

    Returns:
        WordShares: None where there are no shares: all scores of words are 0, or one is
        not finite.
    """
    special = tokenization.special_tokens
    words, scores = shown_tokens(
        row.tokens, row.scores, tokenization.pieces, None, special, "hidden"
    )
    of_words = math.fsum(map(abs, scores))
    of_special = math.fsum(
        abs(score)
        for token, score in zip(row.tokens, row.scores, strict=True)
        if token in special
    )
    if not (0 < of_words < math.inf and math.isfinite(of_special)):
        return None
    return WordShares(
        row,
        tuple(words),
        tuple(score / of_words for score in scores),
        of_special / (of_special + of_words),
    )


def shares_by_word(text: WordShares) -> dict[str, float]:
    """Sum the shares of a text by word; white space is no word."""
    total: dict[str, float] = {}
    for word, share in zip(text.words, text.shares, strict=True):
        if word:
            total[word] = total.get(word, 0.0) + share
    return total


@dataclass(frozen=True)
class Passage:
    """Successive words of a text with their shares.

    Attributes:
        words (tuple of str): The words.
        shares (tuple of float): Their shares of the whole text.
        spaced (tuple of bool): Whether white space stands before each in the text.
        marked (tuple of bool): Whether each is the word that is pointed at.
        is_cut (tuple of bool): Whether the text goes on before it, and after it.
    """

    words: tuple[str, ...]
    shares: tuple[float, ...]
    spaced: tuple[bool, ...]
    marked: tuple[bool, ...]
    is_cut: tuple[bool, bool]

    @staticmethod
    def of(
        text: WordShares, start: int, stop: int, marked: str | None = None
    ) -> Passage:
        """Cut a passage out of a text.

        Args:
            text (WordShares): The text.
            start (int): Its first word.
            stop (int): The word behind its last one.
            marked (str, optional): The word that is pointed at.
        """
        whole = " ".join(filter(None, [text.row.text, text.row.text_pair]))
        words = text.words[start:stop]
        return Passage(
            words,
            text.shares[start:stop],
            _spaces_before(whole, text.words[:stop])[start:],
            tuple(word == marked for word in words),
            (start > 0, stop < len(text.words)),
        )


def _spaces_before(text: str, words: Sequence[str]) -> tuple[bool, ...]:
    """Whether white space stands before each word, true of words not found.

    A tokenizer may have changed the text: words without their accents, say, are
    written apart, which is easily read.
    """
    folded = text.casefold()
    position = 0
    spaced = []
    for word in words:
        sought = word.casefold()
        start = folded.find(sought, position)
        if start < 0:
            spaced.append(True)
            continue
        spaced.append(start == 0 or folded[start - 1].isspace())
        position = start + len(sought)
    return tuple(spaced)


@dataclass(frozen=True)
class Example:
    """A passage around a word that speaks for or against a label.

    Attributes:
        row (int): The row in the data.
        id (str, optional): Its name in the data.
        share (float): The word's share of the text.
        predicted (str): The predicted label.
        probability (float, optional): Its probability.
        passage (Passage): Around the word where its share is largest.
    """

    row: int
    id: str | None
    share: float
    predicted: str
    probability: float | None
    passage: Passage

    @staticmethod
    def of(text: WordShares, word: str, share: float) -> Example:
        """Cut out the passage around a word."""
        at = [place for place, other in enumerate(text.words) if other == word]
        centre = max(at, key=lambda place: abs(text.shares[place]))
        start, stop = max(0, centre - _WORDS_AROUND), centre + _WORDS_AROUND + 1
        passage = Passage.of(text, start, stop, word)
        row = text.row
        return Example(row.row, row.id, share, row.predicted, row.probability, passage)
