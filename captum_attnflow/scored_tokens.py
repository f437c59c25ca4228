"""How scored tokens look, in a notebook and in a terminal.

Plain tokens and numbers in, HTML and rich text out. Nothing here knows a result, so
that every result can show itself by it.
"""

from __future__ import annotations

import html
import math
import re
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from captum.attr import visualization as captum_visualization
from rich.text import Text
from torch import Tensor

from captum_attnflow._checks import check_type, counted

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""
# Blue and orange differ in lightness and hue for all kinds of colour vision; black
# letters stand out from both.
FOR_COLOUR: Colour = (100, 168, 222)
AGAINST_COLOUR: Colour = (240, 138, 93)
MINUS = "\N{MINUS SIGN}"
WEAKEST_SIGN = 0.1
"""Scores below this share of the largest are nearly white, and get no minus sign."""
FAINT = 0.05
"""Scores below this share of the largest are not coloured, wherever they are shown."""
_N_TOP_TOKENS = 5
_LONGEST = 40
"""Characters of a token that a list quotes; the text above it has it whole."""
# Not printable alone, but they join the letters or emoji beside them.
_JOINERS = "\u200c\u200d"


def relative(scores: Sequence[float]) -> list[float]:
    """Divide scores by the largest of them, so that colours compare tokens.

    Args:
        scores (sequence of float): Scores of any sign and scale.

    Returns:
        list[float]: In [-1, 1]. All 0 if all scores are; 0 for a score that is not
        finite, which Captum's picture would paint in full colour.
    """
    finite = [score if math.isfinite(score) else 0.0 for score in scores]
    largest = max(map(abs, finite), default=0.0)
    return [score / largest if largest else 0.0 for score in finite]


def printable(text: str) -> str:
    """Show characters that are not printable, such as terminal codes, as escapes."""
    return "".join(
        char if char.isprintable() or char in _JOINERS else repr(char).strip("'")
        for char in text
    )


def rounded(number: float) -> str:
    """Write a number in two digits, and a larger one as a whole.

    Args:
        number (float): Such as per cent.

    Examples::

        >>> rounded(0.0123), rounded(4.56), rounded(100.0)
        ('0.012', '4.6', '100')
    """
    return f"{number:.0f}" if abs(number) >= 9.95 else f"{number:.2g}"


def escaped(text: str) -> str:
    """Make a text safe to stand in HTML."""
    return html.escape(printable(text))


def position_labels(n_tokens: int) -> list[str]:
    """Return labels for tokens whose texts are not known: their positions."""
    return [str(position) for position in range(n_tokens)]


def colour(share: float) -> str:
    """Return the colour behind a share, as CSS and rich write it.

    Args:
        share (float): In [-1, 1]; the deeper blue the nearer to 1, white at 0, the
            deeper orange the nearer to -1.

    Examples::

        >>> colour(1.0), colour(0.0), colour(-1.0)
        ('rgb(100,168,222)', 'rgb(255,255,255)', 'rgb(240,138,93)')
    """
    deepest = FOR_COLOUR if share >= 0 else AGAINST_COLOUR
    red, green, blue = (round(255 - (255 - part) * abs(share)) for part in deepest)
    return f"rgb({red},{green},{blue})"


def recoloured(picture: str) -> str:
    """Show what Captum paints green in blue, and what it paints red in orange.

    Captum's text pictures tell a score's sign by red and green alone, which one in
    twelve men cannot tell apart.

    Args:
        picture (str): HTML of Captum, with every token escaped.
    """
    for red_or_green, hue in (("0", "22"), ("120", "208")):
        # A token cannot begin a tag: its "<" is escaped.
        begin = '<mark style="background-color: hsl({},'
        picture = picture.replace(begin.format(red_or_green), begin.format(hue))
        sample = rf"(<span style=[^<>]*background-color:\s+hsl\(){red_or_green},"
        picture = re.sub(sample, rf"\g<1>{hue},", picture)
    return picture


def coloured_tokens(
    tokens: Sequence[str], scores: Sequence[float], dimmed: Collection[int] = ()
) -> Text:
    """Colour tokens for a terminal, and name the strongest for and against.

    The deeper the colour behind a token, the higher its share of the text's largest
    score; blue is for and orange against. What speaks against has a minus sign too,
    which a pipe keeps. What has next to no score is in the terminal's own colours.

    Args:
        tokens (sequence of str): The tokens.
        scores (sequence of float): One per token.
        dimmed (collection of int): Which of them are special tokens.

    Examples::

        >>> shown = coloured_tokens(["so", "not"], [1.0, -3.0]).plain.splitlines()
        >>> shown[1:], shown[0] == f" so  {MINUS}not "
        (['for: "so" 25 %', 'against: "not" 75 %'], True)
    """
    text = Text()
    for place, (token, share) in enumerate(zip(tokens, relative(scores), strict=True)):
        text.append_text(coloured_token(token, share, place in dimmed))
    sides = [f"{side}: {named}" for side, named in _sides(tokens, scores)]
    for line in sides or [strongest(tokens, scores)]:
        text.append(f"\n{line}")
    return text


def coloured_token(token: str, share: float, is_dimmed: bool = False) -> Text:
    """Colour one token for a terminal.

    Args:
        token (str): The token.
        share (float): Its score over the largest, in [-1, 1].
        is_dimmed (bool): Whether it is no word of the text.
    """
    sign = MINUS if share <= -WEAKEST_SIGN else ""
    style = f"black on {colour(share)}" if abs(share) >= FAINT else ""
    if is_dimmed:
        style = "dim"
    return Text(f" {sign}{printable(token)} ", style)


def strongest(tokens: Sequence[str], scores: Sequence[float]) -> str:
    """Name the tokens that speak most for the output, and against it, in words.

    Each comes with its share of the sum of absolute scores. Tokens are quoted, as a
    comma is one, too, and one of several alike is followed by what tells it from them,
    see :func:`which_of_several`.

    Args:
        tokens (sequence of str): The tokens.
        scores (sequence of float): One per token; those that are not finite count for
            nothing.

    Examples::

        >>> strongest(["so", "funny", ",", "not"], [1.0, 6.0, 0.0, -3.0])
        'for: "funny" 60 %, "so" 10 %; against: "not" 30 %'
        >>> strongest(["so", "dull", ",", "so", "long"], [0.0, 3.0, 0.0, 1.0, 0.0])
        'for: "dull" 75 %, "so" (, so long) 25 %'
    """
    return "; ".join(f"{side}: {named}" for side, named in _sides(tokens, scores)) or (
        "all scores are 0" if tokens else "no token"
    )


def strongest_places(scores: Sequence[float]) -> dict[str, list[tuple[int, str]]]:
    """Rank the strongest for and against.

    Args:
        scores (sequence of float): Those that are not finite count for nothing.

    Returns:
        dict: By side, ``"for"`` before ``"against"``, at most five places with their
        shares of the sum of absolute scores, in per cent. A side without any is left
        out.

    Examples::

        >>> strongest_places([1.0, 6.0, 0.0, -3.0])
        {'for': [(1, '60 %'), (0, '10 %')], 'against': [(3, '30 %')]}
    """
    finite = [score if math.isfinite(score) else 0.0 for score in scores]
    total = sum(map(abs, finite))
    ranked = sorted(range(len(finite)), key=lambda place: -abs(finite[place]))
    sides = {
        "for": [place for place in ranked if finite[place] > 0],
        "against": [place for place in ranked if finite[place] < 0],
    }
    return {
        side: [
            (place, f"{rounded(100 * abs(finite[place]) / total)} %")
            for place in places[:_N_TOP_TOKENS]
        ]
        for side, places in sides.items()
        if places
    }


def which_of_several(tokens: Sequence[str], place: int) -> str:
    """Tell a token from others of the same text.

    Args:
        tokens (sequence of str): The tokens.
        place (int): Of the one that is named.

    Returns:
        str: Empty where no other is alike. Otherwise the token with its neighbours, or
        where another has the same ones, its number among those alike.

    Examples::

        >>> which_of_several(["her", "keys", "in", "his", "keys"], 3)
        ''
        >>> which_of_several(["her", "keys", "in", "his", "keys"], 4)
        'his keys'
        >>> which_of_several(["so", "so", "so", "so"], 2)
        '3rd of 4'
    """
    alike = [at for at, token in enumerate(tokens) if token == tokens[place]]
    if len(alike) == 1:
        return ""
    contexts = [tuple(tokens[max(at - 1, 0) : at + 2]) for at in alike]
    number = alike.index(place)
    if contexts.count(contexts[number]) == 1:
        return " ".join(map(briefly, contexts[number]))
    return f"{_ordinal(number + 1)} of {len(alike)}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def briefly(token: str) -> str:
    """Make a token printable and short enough for a list."""
    shown = printable(token)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}\u2026"


def _sides(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The strongest for and against, in words; a side without any is left out."""
    return [
        (side, ", ".join(f"{_named(tokens, at)} {share}" for at, share in places))
        for side, places in strongest_places(scores).items()
    ]


def _named(tokens: Sequence[str], place: int) -> str:
    which = which_of_several(tokens, place)
    return f'"{briefly(tokens[place])}"' + (f" ({which})" if which else "")


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of one text with their scores.

    Attributes:
        heading (str): What the scores are, in a line.
        tokens (tuple of str): The tokens.
        scores (tuple of float): One per token.
    """

    heading: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class TokenTable:
    """Texts with scored tokens; the value of a notebook's cell, or printed by rich.

    Attributes:
        rows (tuple of ScoredTokens): One per text.

    Examples::

        >>> table = TokenTable((ScoredTokens("flow", ("so", "funny"), (0.5, 2.0)),))
        >>> table.__rich__().plain.splitlines()
        ['flow', ' so  funny ', 'for: "funny" 80 %, "so" 20 %']
    """

    rows: tuple[ScoredTokens, ...]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escaped(row.heading)}</td>"
            + recoloured(
                captum_visualization.format_word_importances(
                    [escaped(token) for token in row.tokens], relative(row.scores)
                )
            )
            + "</tr>"
            for row in self.rows
        )
        return f"<table>{rows}</table>"

    def __rich__(self) -> Text:
        return Text("\n").join(
            Text(printable(row.heading), "bold")
            + Text("\n")
            + coloured_tokens(row.tokens, row.scores)
            for row in self.rows
        )


class ShownByTokens:
    """A result with token scores of a batch, which shows itself."""

    @abstractmethod
    def _shown(self) -> tuple[list[str], Tensor]:
        """Return a line on each example, and the scores, shape ``(B, T)``."""

    def show(self, tokens: Sequence[Sequence[str]] | None = None) -> TokenTable:
        """Colour the tokens of every example by their scores.

        Notebooks and rich show the result itself, too, with positions for tokens.

        Args:
            tokens (sequence of sequence of str, optional): The tokens of every
                example, one per position, special tokens and padding included; their
                positions by default.

        Returns:
            TokenTable: The value of a notebook's cell, or for rich to print.

        Raises:
            ValueError: If an example has not one token per position.
        """
        headings, scores = self._shown()
        if tokens is None:
            tokens = [position_labels(scores.shape[1])] * len(scores)
        check_tokens(tokens, scores)
        return TokenTable(
            tuple(
                ScoredTokens(heading, tuple(row), tuple(row_scores))
                for heading, row, row_scores in zip(
                    headings, tokens, scores.tolist(), strict=True
                )
            )
        )

    def _repr_html_(self) -> str:
        return self.show()._repr_html_()

    def __rich__(self) -> Text:
        return self.show().__rich__()


def check_tokens(tokens: Sequence[Sequence[str]], scores: Tensor) -> None:
    """Refuse tokens that are not one per score.

    Args:
        tokens (sequence of sequence of str): The tokens of every text.
        scores (Tensor): Shape ``(B, T)``.

    Raises:
        ValueError: Saying what was given for which scores.
    """
    n_texts, n_tokens = scores.shape
    check_type("tokens", tokens, (list, tuple), "a list of tokens for each text")
    if any(isinstance(row, str) for row in tokens):
        raise ValueError(
            f"tokens={tokens!r} are those of one text, but the scores of shape "
            f"{(n_texts, n_tokens)} are a batch; give a list of lists"
        )
    for row in tokens:
        check_type("a text of tokens", row, (list, tuple), "a list of its tokens")
    lengths = [len(row) for row in tokens]
    if lengths != [n_tokens] * n_texts:
        raise ValueError(
            f"tokens holds {counted(len(lengths), 'text')} of {lengths} tokens for "
            f"scores of shape {(n_texts, n_tokens)}; give {counted(n_tokens, 'token')} "
            f"for each of {counted(n_texts, 'text')}, special tokens and padding "
            "included"
        )
