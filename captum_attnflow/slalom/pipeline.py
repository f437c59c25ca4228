"""From texts to SLALOM explanations: sample queries, run them, link, fit, warn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from captum_attnflow._captum import TargetType
from captum_attnflow._checks import (
    OneTextError,
    check_batch_size,
    check_choice,
    check_seed,
    counted,
)
from captum_attnflow._warnings import warn_caller
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
from captum_attnflow.slalom.link import LinkedOutputs, link_outputs
from captum_attnflow.slalom.queries import MOST_QUERIES
from captum_attnflow.texts import (
    PerturbableTexts,
    Query,
    config_of,
    evaluate_queries,
    targets_of_texts,
)

# A tenth of the queries per text in the paper.
_LEAST_DEFAULT_SAMPLES = 500
_DEFAULT_SAMPLES_PER_TYPE = 4

# Held-out queries of each kind, on which explain() tests the fit.
_HELD_OUT = 64

# SLALOM-eff needs 2 V queries; of the others, one in this number is a half of the text.
# This and the weight of single tokens, which fit worse than triples, were tuned on
# sentences of SST-2's train and dev splits: more halves, and more weight on the
# text, lower the errors of deletions and raise those of triples.
_SPARE_PER_HALF = 50
_WEIGHT_OF_SINGLES = 0.5

# Least share of the differences of importances that the queries must determine. On
# every sentence of the benchmarks "eff" is above it and "fidel" below.
_IDENTIFIED = 0.85

# Largest error at the text, as a share of the outputs' spread. Among 25 sentences of
# SST-2, those with a larger one have log-odds off by 2.3 to 6.7, three of them with the
# wrong sign; the others are off by 1.8 at most.
_MISSED = 0.5

# Largest residual on the fit's own queries, as a share of the outputs' spread.
_UNEXPLAINED = 0.9

# Errors below this share of the log-odds are not warned of, even where the outputs'
# spread is smaller still.
_HARMLESS = 0.25


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
                f"n_samples={self.n_samples!r} must be a positive integer of at most "
                f"{MOST_QUERIES:,}, or None"
            )
        if not (self.sink is None or isinstance(self.sink, bool)):
            raise ValueError(f"sink={self.sink!r} must be True, False or None")
        if isinstance(self.seed, int):
            check_seed(self.seed)
        elif not isinstance(self.seed, torch.Generator):
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
            raise OneTextError(
                f"n_samples={self.n_samples} is too few for text {text + 1} of "
                f"{counted(n_types, 'distinct token')}: give at least {needed}"
                f"{' with a sink' if self.has_sink else ''}",
                f"n_samples={self.n_samples} is too few for the text's distinct tokens",
            )
        return self.n_samples

    def new_seed(self) -> int:
        """Return the number from which every text of a call is sampled."""
        if isinstance(self.seed, int):
            return self.seed
        return int(torch.randint(2**62, (), generator=self.seed))


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

    Without a target, a function is fitted to each output of a row; only the forward
    function of Captum's wrapper of language models returns several.

    Args:
        forward_func (Callable): The forward function.
        texts (PerturbableTexts): The texts.
        target (int, tuple, Tensor or list, optional): As Captum takes it.
        options (SlalomOptions): The options.
        internal_batch_size (int, optional): Most rows per forward pass.
        show_progress (bool): Show Captum's progress bar.
        hold_out (bool): Also run queries that the fit does not use, and report how
            well it predicts them.
    """
    check_batch_size(internal_batch_size)
    seed = options.new_seed()
    samples = [
        _sample_queries(texts, text, options, seed, hold_out)
        for text in range(len(texts.types))
    ]
    queries = [sample.distinct() for sample in samples]
    linked = _run_and_link(
        forward_func,
        texts,
        queries,
        target,
        options,
        internal_batch_size,
        show_progress,
    )
    rows, columns = linked.rows, linked.columns

    def data(name: str) -> QueryData:
        parts = [
            samples[row].data(name, texts.types[row], column)
            for row, column in zip(rows, columns, strict=True)
        ]
        return QueryData.pad(*map(list, zip(*parts, strict=True)))

    fit = fit_slalom(data("fit"), options.has_sink)
    n_queries = torch.tensor([len(samples[row].fit) for row in rows])
    return SlalomExplanation(
        fit=fit,
        type_index=_type_index(texts)[rows],
        score=options.score or _default_score(texts, linked.n_classes),
        output=torch.stack(
            [
                column[queries[row].index(samples[row].full)]
                for row, column in zip(rows, columns, strict=True)
            ]
        ),
        link=(linked.link,) * len(rows),
        caveats=linked.caveats,
        r2_short=r_squared(fit.model, data("short")),
        r2_deletions=r_squared(fit.model, data("deletions")),
        n_queries=n_queries,
        n_held_out=torch.tensor([len(queries[row]) for row in rows]) - n_queries,
    )


def texts_log_odds(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    target: TargetType,
    options: SlalomOptions,
) -> LinkedOutputs:
    """Return the log-odds of the whole texts, one row per text."""
    queries = [[tuple(range(len(types)))] for types in texts.types]
    return _run_and_link(forward_func, texts, queries, target, options)


def warn_of_explanation(
    explanation: SlalomExplanation, options: SlalomOptions, in_full: bool
) -> None:
    """Warn of caveats, bad fits, scores that are all 0 and unidentified scores.

    A text that the fit misses gets no further advice: none of its scores is to be read.

    Args:
        explanation (SlalomExplanation): The explanation.
        options (SlalomOptions): The options of its queries.
        in_full (bool): Warn of unidentified importances also where the scores do not
            depend on them.
    """
    warn_of_caveats(explanation.caveats)
    missed = _missed(explanation)
    _warn_of_misfits(explanation, options.strategy, missed)
    zero = (explanation.scores == 0).all(1).nonzero()[:, 0].tolist()
    if zero:
        warn_caller(
            f"all {explanation.score} scores of the examples {zero} are 0: the outputs "
            "for all queries are 0 or equal, or the text has one token only"
        )
    if in_full or explanation.score in ("importance", "linearized"):
        _warn_of_importances(explanation, options, ~missed)


def warn_of_caveats(caveats: Sequence[str]) -> None:
    """Warn of what the model's outputs leave open."""
    for caveat in caveats:
        warn_caller(caveat)


@dataclass(frozen=True)
class _SampledQueries:
    """The queries of one text: those of the fit, held-out ones, the whole text."""

    fit: list[Query]
    short: list[Query]
    deletions: list[Query]
    full: Query
    strategy: Strategy

    def distinct(self) -> list[Query]:
        """Return all queries, each once."""
        return list(dict.fromkeys([*self.fit, *self.short, *self.deletions, self.full]))

    def data(
        self, name: str, types: Sequence[int], outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return counts, outputs and weights of the queries of that name.

        Args:
            name (str): ``"fit"``, ``"short"`` or ``"deletions"``.
            types (sequence of int): Type of each token of the text.
            outputs (Tensor): Of the queries in :meth:`distinct`, in their order.
        """
        queries = getattr(self, name)
        place = {query: number for number, query in enumerate(self.distinct())}
        found = outputs[[place[query] for query in queries]]
        return count_types(types, queries), found, self._weights(queries)

    def _weights(self, queries: Sequence[Query]) -> Tensor:
        lengths = torch.tensor([len(query) for query in queries], dtype=torch.float64)
        if self.strategy == "fidel":
            # The function does not fit interactions of deleted tokens. Their number,
            # and so the residual variance, grows as the square of the deletions.
            return (len(self.full) - lengths).clamp_min(1) ** -2
        return 1 - (1 - _WEIGHT_OF_SINGLES) * (lengths == 1)


def _sample_queries(
    texts: PerturbableTexts,
    text: int,
    options: SlalomOptions,
    seed: int,
    hold_out: bool,
) -> _SampledQueries:
    """Draw a text's queries, independently of the other texts of the batch."""
    types = texts.types[text]
    budget = options.budget(max(types) + 1, text)
    # Where absent tokens hold a baseline, each position is a type of its own.
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
        return _SampledQueries(fit, [], [], full, options.strategy)
    other = torch.Generator().manual_seed(seed + 1)
    n_alone = len(set(places))
    n_drawn = len(fit) + n_alone + _HELD_OUT
    held_short = unseen(short(n_drawn, other)[n_alone:])
    held_deletions = unseen(draw_random_deletions(places, n_drawn, other))
    return _SampledQueries(fit, held_short, held_deletions, full, options.strategy)


def _run_and_link(
    forward_func: Callable[..., Any],
    texts: PerturbableTexts,
    queries: Sequence[Sequence[Query]],
    target: TargetType,
    options: SlalomOptions,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> LinkedOutputs:
    """Run the queries of each text and turn their outputs into log-odds."""
    targets = targets_of_texts(target, len(texts.types))
    outputs = evaluate_queries(
        forward_func, texts, queries, targets, internal_batch_size, show_progress
    )
    if targets is None and texts.max_rows != 1:
        _refuse_several_outputs(outputs)
    excluding = labels_exclude_each_other(forward_func)
    return link_outputs(outputs, targets, options.link, excluding)


def labels_exclude_each_other(forward_func: Callable[..., Any]) -> bool | None:
    """Whether a model's config says that one label applies; None if it says nothing."""
    problem = getattr(config_of(forward_func), "problem_type", None)
    return {
        "single_label_classification": True,
        "multi_label_classification": False,
    }.get(str(problem))


def _default_score(texts: PerturbableTexts, n_classes: int) -> Score:
    """Choose the score whose sign says whether a token is evidence for the class.

    Undecided log-odds are ``-log(C - 1)`` for ``C`` classes. They are 0 for two, and
    only there a contribution has that sign. Captum's wrapper of language models, which
    takes one row at a time, returns log probabilities of words.
    """
    of_words = texts.max_rows == 1
    return "removal" if of_words or n_classes > 2 else "contribution"


def _refuse_several_outputs(outputs: Sequence[Tensor]) -> None:
    n_outputs = max(classes.shape[1] for classes in outputs)
    if n_outputs > 1:
        raise ValueError(
            f"forward_func returned {n_outputs} outputs per input and target is None; "
            "give target to choose which of them to explain"
        )


def _type_index(texts: PerturbableTexts) -> Tensor:
    """Return the type of every position, -1 where there is none, ``(B, T)``."""
    index = torch.full((len(texts.types), texts.n_positions), -1)
    for row, (types, places) in enumerate(
        zip(texts.types, texts.positions, strict=True)
    ):
        index[row, places] = torch.tensor(types)
    return index


def _is_positive(number: object) -> bool:
    is_integer = isinstance(number, int) and not isinstance(number, bool)
    return is_integer and 0 < cast(int, number) <= MOST_QUERIES


def _missed(explanation: SlalomExplanation) -> Tensor:
    """Mark texts at which, or on whose queries, the function is off, ``(B,)``."""
    fit = explanation.fit
    error, harmless = explanation.delta.abs(), _HARMLESS * explanation.output.abs()
    at_text = (error > _MISSED * fit.spread) & (error > harmless)
    return at_text | (fit.noise > _UNEXPLAINED * fit.spread) & (fit.noise > harmless)


def _warn_of_misfits(
    explanation: SlalomExplanation, strategy: Strategy, missed: Tensor
) -> None:
    bad = missed.nonzero()[:, 0].tolist()
    if not bad:
        return
    held_out = [
        f", held-out R2 of {name} {_figures(r2[bad])}"
        for name, r2 in (
            ("short inputs", explanation.r2_short),
            ("deletions", explanation.r2_deletions),
        )
        if not bool(r2[bad].isnan().all())
    ]
    # Of 17 sentences of SST-2 that "eff" misses "fidel" misses one: the median error at
    # the text falls from 2.6 to 0.2. It identifies the importances of two.
    why, nearer = {
        "eff": (
            "What holds for short inputs does not hold there",
            'strategy="fidel", which asks near the text, for contributions and '
            "removals (it seldom identifies importances), or ",
        ),
        "fidel": (
            "The model does there what no weighted mean of its tokens' values does",
            "",
        ),
    }[strategy]
    warn_caller(
        f"the fit misses the examples {bad}: where the model has log-odds of "
        f"{_figures(explanation.output[bad])}, the fit says "
        f"{_figures(explanation.predicted[bad])}{''.join(held_out)}. {why}; do not "
        f"read these scores, take {nearer}a method that reads the model itself, such "
        "as RelevanceFlow"
    )


def _warn_of_importances(
    explanation: SlalomExplanation, options: SlalomOptions, hold: Tensor
) -> None:
    """Warn of importances that the queries do not determine, where the fits hold."""
    identified = explanation.fit.identified
    budgets = torch.tensor(
        [
            options.budget(n_types, text)
            for text, n_types in enumerate(explanation.fit.model.types.sum(1).tolist())
        ]
    )
    exhausted = explanation.n_queries < budgets
    advice = {
        # Of 14 sentences of SST-2, "eff" identifies the importances of 2 by four
        # queries per distinct token, and of 13 by ten.
        "To read importances, give more n_samples": ~exhausted,
        "More n_samples cannot help: these texts have no further queries": exhausted,
    }
    if options.strategy == "fidel":
        # Of 58 such sentences "eff" identified all, and 43 without missing the text.
        advice = {
            'Importances in short inputs are those of strategy="eff", which warns '
            "where they do not hold at the text": torch.ones_like(exhausted)
        }
    for what_to_do, rows in advice.items():
        unclear = ((identified < _IDENTIFIED) & hold & rows).nonzero()[:, 0].tolist()
        if unclear:
            # Between two seeds contributions and removals changed by a third as much.
            warn_caller(
                f"the importances of the examples {unclear} are not identified: "
                f"queries determine {_figures(identified[unclear])} of their "
                "differences, the prior the rest, as where tokens have equal values. "
                "Do not read importances and linearized scores; contributions and "
                f"removals depend on them less. {what_to_do}"
            )


def _figures(numbers: Tensor) -> list[float]:
    return [round(number, 2) for number in numbers.tolist()]
