"""SLALOM's way from texts to an explanation: draw, ask, link, fit, hold out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from captum._utils.typing import TargetType
from torch import Tensor

from captum_attnflow._options import check_batch_size, check_choice
from captum_attnflow.slalom import (
    SCORES,
    Link,
    QueryData,
    Score,
    SlalomExplanation,
    Strategy,
    count_types,
    draw_deletions,
    draw_halves,
    draw_random_deletions,
    draw_short,
    draw_subsets,
    fit_slalom,
    r_squared,
)
from captum_attnflow.slalom.links import Answers, link_outputs
from captum_attnflow.texts import PerturbableTexts, Query, ask, targets_of_texts

# A tenth of what the authors ask for in their paper.
_LEAST_DEFAULT_SAMPLES = 500
_DEFAULT_SAMPLES_PER_TYPE = 4
# Queries of each kind, on which explain() tests the fit.
_HELD_OUT = 64
# Of the queries that SLALOM-eff can spare, one in so many is a half of the text. This
# and the weight of tokens alone, which fit worse than triples, are tuned on sentences
# of SST-2's train and dev splits: the more halves, and the more weight on the text, the
# lower the errors of deletions, and the higher those of triples.
_SPARE_PER_HALF = 50
_WEIGHT_OF_SINGLES = 0.5


@dataclass(frozen=True)
class SlalomOptions:
    """The options of SLALOM, validated; see :class:`captum_attnflow.SLALOM`."""

    strategy: Strategy
    score: Score | None
    n_samples: int | None
    sink: bool | None
    link: Link | Literal["auto"]
    seed: int | torch.Generator

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, get_args(Strategy))
        if self.score is not None:
            check_choice("score", self.score, SCORES)
        check_choice("link", self.link, ("auto", *get_args(Link)))
        if not (self.n_samples is None or _is_positive(self.n_samples)):
            raise ValueError(
                f"n_samples={self.n_samples!r} must be a positive integer or None"
            )
        if not (self.sink is None or isinstance(self.sink, bool)):
            raise ValueError(f"sink={self.sink!r} must be True, False or None")
        if not isinstance(self.seed, (int, torch.Generator)):
            raise ValueError(
                f"seed={self.seed!r} must be an integer or a torch.Generator"
            )

    @property
    def has_sink(self) -> bool:
        """Whether a sink is fitted; by default for deletions only."""
        return self.strategy == "fidel" if self.sink is None else self.sink

    def budget(self, n_types: int, text: int) -> int:
        """Return how many queries to draw for a text.

        Raises:
            ValueError: If ``n_samples`` is less than there are unknowns.
        """
        if self.n_samples is None:
            return max(_LEAST_DEFAULT_SAMPLES, _DEFAULT_SAMPLES_PER_TYPE * n_types)
        needed = 2 * n_types - 1 + 2 * self.has_sink
        if self.n_samples < needed:
            raise ValueError(
                f"n_samples={self.n_samples} is too few for text {text + 1}: its "
                f"{n_types} distinct tokens need at least {needed} queries"
                f"{' with a sink' if self.has_sink else ''}"
            )
        return self.n_samples

    def new_seed(self) -> int:
        """Return the number from which every text of a call is sampled."""
        if isinstance(self.seed, int):
            return self.seed
        return int(torch.randint(2**62, (), generator=self.seed))


_Part = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Draw:
    """The queries of one text: those of the fit, held-out ones, the text itself."""

    fit: list[Query]
    short: list[Query]
    deletions: list[Query]
    full: Query
    strategy: Strategy

    def asked(self) -> list[Query]:
        """All of them, none twice."""
        return list(dict.fromkeys([*self.fit, *self.short, *self.deletions, self.full]))

    def data(self, name: str, types: Sequence[int], answers: Tensor) -> _Part:
        """Take the queries of that name with their answers from those of all."""
        queries = getattr(self, name)
        place = {query: number for number, query in enumerate(self.asked())}
        found = answers[[place[query] for query in queries]]
        return count_types(types, queries), found, self._weights(queries)

    def _weights(self, queries: Sequence[Query]) -> Tensor:
        lengths = torch.tensor([len(query) for query in queries], dtype=torch.float64)
        if self.strategy == "fidel":
            # What is left over are interactions of the tokens deleted. Their number,
            # and with it the variance, grows as the square of that of the tokens.
            return (len(self.full) - lengths).clamp_min(1) ** -2
        return 1 - (1 - _WEIGHT_OF_SINGLES) * (lengths == 1)


def explain_texts(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    target: TargetType,
    options: SlalomOptions,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
    hold_out: bool = False,
) -> SlalomExplanation:
    """Explain each text by a SLALOM function of its own.

    A forward function of several outputs per row, and no target, is explained as so
    many functions; only Captum's LLM wrapper makes such ones.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        target (int, tuple, Tensor or list, optional): As Captum takes it.
        options (SlalomOptions): The options.
        internal_batch_size (int, optional): Most rows per forward pass.
        show_progress (bool): Show Captum's progress bar.
        hold_out (bool): Also ask queries that the fit does not see, and report how
            well it predicts them.
    """
    check_batch_size(internal_batch_size)
    seed = options.new_seed()
    draws = [
        _draw(texts, text, options, seed, hold_out) for text in range(len(texts.types))
    ]
    queries = [draw.asked() for draw in draws]
    answers = _answers(
        forward_func,
        texts,
        queries,
        target,
        options,
        internal_batch_size,
        show_progress,
    )
    rows, columns = answers.rows, answers.columns

    def data(name: str) -> QueryData:
        parts = [
            draws[row].data(name, texts.types[row], column)
            for row, column in zip(rows, columns, strict=True)
        ]
        return QueryData.pad(*map(list, zip(*parts, strict=True)))

    fit = fit_slalom(data("fit"), options.has_sink)
    n_queries = torch.tensor([len(draws[row].fit) for row in rows])
    return SlalomExplanation(
        fit=fit,
        type_index=_type_index(texts)[rows],
        score=options.score or _default_score(texts, answers),
        output=torch.stack(
            [
                column[queries[row].index(draws[row].full)]
                for row, column in zip(rows, columns, strict=True)
            ]
        ),
        link=(answers.link,) * len(rows),
        caveats=answers.caveats,
        r2_short=r_squared(fit.model, data("short")),
        r2_deletions=r_squared(fit.model, data("deletions")),
        n_queries=n_queries,
        n_held_out=torch.tensor([len(queries[row]) for row in rows]) - n_queries,
    )


def answer_texts(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    target: TargetType,
    options: SlalomOptions,
) -> Answers:
    """Ask for the log-odds of the texts alone, one row per text."""
    queries = [[tuple(range(len(types)))] for types in texts.types]
    return _answers(forward_func, texts, queries, target, options)


def _answers(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    queries: Sequence[Sequence[Query]],
    target: TargetType,
    options: SlalomOptions,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> Answers:
    targets = targets_of_texts(target, len(texts.types))
    outputs = ask(
        forward_func, texts, queries, targets, internal_batch_size, show_progress
    )
    if targets is None and texts.max_rows != 1:
        _refuse_several_outputs(outputs)
    return link_outputs(outputs, targets, options.link)


def _default_score(texts: PerturbableTexts, answers: Answers) -> Score:
    """Choose the score whose sign says whether a token speaks for the class.

    Undecided log-odds are ``-log(C - 1)`` for ``C`` classes, 0 for two: only there has
    a contribution that sign. What Captum's wrapper of language models gives, a row at
    a time, are log probabilities of words.
    """
    of_words = texts.max_rows == 1
    return "removal" if of_words or answers.n_classes > 2 else "contribution"


def _draw(
    texts: PerturbableTexts,
    text: int,
    options: SlalomOptions,
    seed: int,
    hold_out: bool,
) -> _Draw:
    """Draw a text's queries; its company in the batch plays no part."""
    types = texts.types[text]
    budget = options.budget(max(types) + 1, text)
    # Where positions stay, each is a place of its own, whatever its type.
    places = types if texts.absence == "deleted" else list(range(len(types)))

    def short(n_queries: int, generator: torch.Generator) -> list[Query]:
        if texts.absence == "deleted":
            return draw_short(places, n_queries, generator)
        return draw_subsets(len(places), n_queries, generator)

    full = tuple(range(len(types)))
    generator = torch.Generator().manual_seed(seed)
    if options.strategy == "eff":
        n_halves = max(0, budget - 2 * len(set(places))) // _SPARE_PER_HALF
        long = [*draw_halves(len(places), n_halves, generator), full]
        n_short = max(1, budget - len(long))
        fit = list(dict.fromkeys([*short(n_short, generator), *long]))
    else:
        fit = draw_deletions(places, budget, generator)
    seen = {tuple(places[index] for index in query) for query in fit}

    def unseen(queries: list[Query]) -> list[Query]:
        sequences = [tuple(places[index] for index in query) for query in queries]
        pairs = zip(queries, sequences, strict=True)
        return [query for query, sequence in pairs if sequence not in seen][:_HELD_OUT]

    if not hold_out:
        return _Draw(fit, [], [], full, options.strategy)
    other = torch.Generator().manual_seed(seed + 1)
    n_alone = len(set(places))
    n_drawn = len(fit) + n_alone + _HELD_OUT
    held_short = unseen(short(n_drawn, other)[n_alone:])
    held_deletions = unseen(draw_random_deletions(places, n_drawn, other))
    return _Draw(fit, held_short, held_deletions, full, options.strategy)


def _refuse_several_outputs(outputs: Sequence[Tensor]) -> None:
    n_outputs = max(classes.shape[1] for classes in outputs)
    if n_outputs > 1:
        raise ValueError(
            f"forward_func returned {n_outputs} outputs per input and target is None; "
            "give target to choose which of them to explain"
        )


def _type_index(texts: PerturbableTexts) -> Tensor:
    """Type of every position, -1 where there is none, ``(B, T)``."""
    index = torch.full((len(texts.types), texts.n_positions), -1)
    for row, (types, places) in enumerate(
        zip(texts.types, texts.positions, strict=True)
    ):
        index[row, places] = torch.tensor(types)
    return index


def _is_positive(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
