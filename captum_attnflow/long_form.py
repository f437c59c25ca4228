"""Results as tables in long form, a row for each token: pandas and Arrow.

Long form is what grouping, joining and plotting libraries take. Libraries are imported
when a table is made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, described, type_of
from captum_attnflow.scored_tokens import check_tokens
from captum_attnflow.texts.units import PIECES, Pieces, merge_words, sum_over_units

if TYPE_CHECKING:
    import pandas
    import pyarrow

RowUnit = Literal["token", "word"]
Tokens = Sequence[Sequence[str]]

COLUMNS: dict[str, Literal["int64", "float64", "string"]] = {
    "example": "int64",
    "image": "string",
    "text": "string",
    "generated": "string",
    "generated_start": "int64",
    "generated_stop": "int64",
    "explained": "string",
    "log_probability": "float64",
    "position": "int64",
    "token": "string",
    "word": "string",
    "part": "string",
    "left": "int64",
    "top": "int64",
    "right": "int64",
    "bottom": "int64",
    "score": "float64",
    "share": "float64",
    "label": "string",
    "predicted": "string",
    "probability": "float64",
    "value": "float64",
}
"""The columns of all tables in their order; a table has those that its results know."""


@dataclass(frozen=True)
class ScoredRows:
    """Scores that belong together: of one text, one image, one generated token.

    Attributes:
        scores (sequence of float): One per row.
        same (mapping): By column, what all rows have.
        tokens (sequence of str, optional): One per row; None where they are not known,
            or where there are none.
        beside (mapping): By column, an entry per row.
        texts (sequence of str, optional): The text of each token, such that joined they
            are the whole text, where it is known.
    """

    scores: Sequence[float]
    same: Mapping[str, Any]
    tokens: Sequence[str] | None = None
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    texts: Sequence[str] | None = None


@dataclass(frozen=True)
class _Words:
    """How tokens become words."""

    units: RowUnit
    pieces: Pieces | None
    special_tokens: Collection[str]

    def __post_init__(self) -> None:
        check_choice("units", self.units, get_args(RowUnit))
        if self.pieces is not None:
            check_choice("pieces", self.pieces, PIECES)
        if self.units == "token" and self.pieces is not None:
            raise ValueError(
                f'pieces={self.pieces!r} was given for tokens; give units="word" with '
                "it, or leave it out"
            )
        given: Any = self.special_tokens
        is_list = isinstance(given, Collection) and not isinstance(given, (str, Tensor))
        if not is_list or not all(isinstance(token, str) for token in given):
            raise ValueError(
                f"special_tokens={described(self.special_tokens)} is no list of "
                "tokens; give one, such as tokenizer.all_special_tokens"
            )

    def merge(self, rows: ScoredRows) -> ScoredRows:
        """Merge the tokens of a text to words, if words are wanted."""
        if self.units == "token":
            return rows
        if rows.texts is not None:
            if self.pieces is not None or self.special_tokens:
                raise ValueError(
                    "pieces or special_tokens were given for results that know the "
                    "text of each token and which part it belongs to; leave them out"
                )
            return _by_texts(rows, rows.texts)
        if rows.tokens is None:
            raise ValueError(
                'units="word" needs tokens to merge, and these results know none; '
                'give tokens, or units="token"'
            )
        if self.pieces is None:
            raise ValueError(
                'units="word" was given without pieces; say how the tokenizer marks '
                f"pieces of words: one of {', '.join(PIECES)}"
            )
        words, scores = merge_words(
            rows.tokens,
            rows.scores,
            self.pieces,
            special_tokens=self.special_tokens,
        )
        return ScoredRows(scores, rows.same, words)


def _by_texts(rows: ScoredRows, texts: Sequence[str]) -> ScoredRows:
    """Merge tokens whose texts are known, which need no marks of pieces."""
    scores = torch.tensor(rows.scores, dtype=torch.float64)
    words = sum_over_units(scores, texts, "word", rows.beside.get("part"))
    firsts = [members[0] for members in words.members]
    return ScoredRows(
        words.scores.tolist(),
        rows.same,
        [text.strip() for text in words.texts],
        {name: [column[i] for i in firsts] for name, column in rows.beside.items()},
    )


class LongForm:
    """A result that makes a table."""

    @abstractmethod
    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        """Yield the result's scores, part by part.

        Args:
            first (int): The number of its first example, where it knows none.
            tokens (sequence, optional): The tokens of every example, where it knows
                none.
        """

    def to_pandas(
        self,
        tokens: Tokens | None = None,
        *,
        units: RowUnit = "token",
        pieces: Pieces | None = None,
        special_tokens: Collection[str] = (),
    ) -> pandas.DataFrame:
        """Make a data frame with a row for each token, see :func:`to_arrow`.

        Takes the arguments of :meth:`to_arrow`.

        Raises:
            ImportError: If pandas is not installed.
            ValueError: As :meth:`to_arrow`.
        """
        return to_pandas(
            self, tokens, units=units, pieces=pieces, special_tokens=special_tokens
        )

    def to_arrow(
        self,
        tokens: Tokens | None = None,
        *,
        units: RowUnit = "token",
        pieces: Pieces | None = None,
        special_tokens: Collection[str] = (),
    ) -> pyarrow.Table:
        """Make an Arrow table with a row for each token, see :func:`to_arrow`.

        Args:
            tokens (sequence of sequence of str, optional): The tokens of every
                example, one per position, for a result that does not know them.
            units (str): ``"token"``, or ``"word"`` for a row for each word.
            pieces (str, optional): For words, how the tokenizer marks their pieces, see
                :func:`captum_attnflow.show.merge_words`.
            special_tokens (collection of str): For words, tokens that belong to none.

        Raises:
            ImportError: If pyarrow is not installed.
            ValueError: If an argument is unknown, or tokens and scores do not fit.
        """
        return to_arrow(
            self, tokens, units=units, pieces=pieces, special_tokens=special_tokens
        )


def rows_of_batch(
    scores: Tensor, first: int, tokens: Tokens | None
) -> Iterator[ScoredRows]:
    """Yield the scores of a batch of texts that are known as tensors alone.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        first (int): The number of the first text.
        tokens (sequence of sequence of str, optional): The tokens of every text.

    Raises:
        ValueError: If there is not one token per score.
    """
    if tokens is not None:
        check_tokens(tokens, scores)
    for row, of_text in enumerate(scores.tolist()):
        known = None if tokens is None else tokens[row]
        yield ScoredRows(of_text, {"example": first + row}, known)


def refuse_tokens(result: object, tokens: Tokens | None) -> None:
    """Refuse tokens for a result that knows its own.

    Raises:
        ValueError: If there are some.
    """
    if tokens is not None:
        raise ValueError(
            f"tokens were given for {type_of(result)}, which knows its own; "
            "leave them out"
        )


def to_pandas(
    results: LongForm | Sequence[LongForm],
    tokens: Tokens | None = None,
    *,
    units: RowUnit = "token",
    pieces: Pieces | None = None,
    special_tokens: Collection[str] = (),
) -> pandas.DataFrame:
    """Make one data frame of results, such as all that a pipeline returned.

    Takes the arguments of :func:`to_arrow`, and has the same columns.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: As :func:`to_arrow`.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> from captum_attnflow.pipelines.text_classification import TextClassifier
        >>> classifier = TextClassifier(*load_demo_model())
        >>> results = classifier.explain(["a gripping film", "dull"], "attnlrp")
        >>> table = to_pandas(results)
        >>> list(table.columns[:6])
        ['example', 'text', 'position', 'token', 'score', 'share']
        >>> table.loc[table.groupby("example").score.idxmax(), "token"].tolist()
        ['gripping', 'dull']
    """
    columns = _columns(results, tokens, _Words(units, pieces, special_tokens))
    library = _library("pandas")
    return library.DataFrame(
        {
            name: library.Series(column, dtype=COLUMNS[name])
            for name, column in columns.items()
        }
    )


def to_arrow(
    results: LongForm | Sequence[LongForm],
    tokens: Tokens | None = None,
    *,
    units: RowUnit = "token",
    pieces: Pieces | None = None,
    special_tokens: Collection[str] = (),
) -> pyarrow.Table:
    """Make one Arrow table of results, such as all that a pipeline returned.

    The columns, of which there are those that the results know:

    - ``example``: which text or image it is, counted from 0; of a TextAttribution its
      ``index``; with its ``text`` or ``image``, and the ``generated`` text,
    - of generated text, whose tokens or spans have a row for every token before them:
      ``generated_start`` and ``generated_stop``, their positions in the whole text,
      ``explained``, their text, and their ``log_probability``,
    - ``position`` and ``token``, or ``word``; in generated text the ``part`` that it
      belongs to; of an image's patch ``left``, ``top``, ``right`` and ``bottom``, in
      pixels,
    - ``score``, and ``share``: the score over the sum of the absolute scores of the
      text, 0 where this is 0,
    - ``label`` that the scores belong to, ``predicted`` label and its ``probability``;
      in regression the ``value``.

    Args:
        results (result or sequence of results): One or several of one class.
        tokens (sequence of sequence of str, optional): For one Explanation or
            SlalomExplanation the tokens of every example, one per position, special
            tokens and padding included. Other results know theirs.
        units (str): ``"token"``, or ``"word"`` for a row for each word, whose score is
            the sum of its tokens'.
        pieces (str, optional): For words, how the tokenizer marks their pieces:
            ``"wordpiece"``, ``"sentencepiece"`` or ``"byte-level"``. Generated text
            knows its words without.
        special_tokens (collection of str): For words, tokens that belong to none, such
            as ``tokenizer.all_special_tokens``.

    Returns:
        pyarrow.Table: A row for each token; texts come one after another.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If an argument is unknown, there is no result, or tokens and scores
            do not fit.

    Examples::

        >>> import torch
        >>> from captum_attnflow import GenerationExplanation
        >>> explanation = GenerationExplanation(
        ...     tokens=["a", "b", "c"],
        ...     scores=torch.tensor([[3.0, 0.0, 0.0], [1.0, 3.0, 0.0]]),
        ...     log_probabilities=torch.zeros(2),
        ...     flow_value=torch.tensor([3.0, 4.0]),
        ... )
        >>> table = to_arrow(explanation)
        >>> table.select(["explained", "token", "share"]).to_pylist()[1:]
        [{'explained': 'c', 'token': 'a', 'share': 0.25}, \
{'explained': 'c', 'token': 'b', 'share': 0.75}]
    """
    columns = _columns(results, tokens, _Words(units, pieces, special_tokens))
    library = _library("pyarrow")
    schema = library.schema([(name, COLUMNS[name]) for name in columns])
    return library.table(columns, schema)


def _columns(
    results: LongForm | Sequence[LongForm], tokens: Tokens | None, words: _Words
) -> dict[str, list[Any]]:
    many = _of_one_class(results)
    for row in [] if tokens is None else [tokens, *_listed("tokens", tokens)]:
        _listed("a row of tokens", row)
    if tokens is not None and len(many) > 1:
        raise ValueError(
            f"tokens were given for {len(many)} results; give them for one, as "
            "result.to_arrow(tokens)"
        )
    columns: dict[str, list[Any]] = {}
    first = 0
    for result in many:
        examples = {first - 1}
        for part in result._scored_rows(first, tokens):
            examples.add(part.same["example"])
            for name, column in _table_of(words.merge(part), words.units).items():
                columns.setdefault(name, []).extend(column)
        first = max(examples) + 1
    return {name: columns[name] for name in COLUMNS if name in columns}


def _listed(name: str, given: object) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(
            f"{name}={described(given)} is no list; give a list of tokens for every "
            "example, special tokens and padding included"
        )
    return list(given)


def _of_one_class(results: object) -> list[LongForm]:
    many: list[Any] = list(results) if isinstance(results, (list, tuple)) else [results]
    kinds = {type(each) for each in many}
    if len(kinds) != 1 or not all(isinstance(each, LongForm) for each in many):
        raise ValueError(
            f"results={described(results)} must be a result of this package, such as "
            "an Explanation or a TextAttribution, or a list of results of one class"
        )
    return many


def _table_of(rows: ScoredRows, units: RowUnit) -> dict[str, Sequence[Any]]:
    n_rows = len(rows.scores)
    total = sum(map(abs, rows.scores))
    return {
        **{name: [value] * n_rows for name, value in rows.same.items()},
        "position": range(n_rows),
        **({} if rows.tokens is None else {units: rows.tokens}),
        **rows.beside,
        "score": rows.scores,
        "share": [score / total if total else 0.0 for score in rows.scores],
    }


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this table needs {name}, which is not installed or does not work "
            f'({error}); install it: pip install "captum-attnflow[tables]"'
        ) from error
