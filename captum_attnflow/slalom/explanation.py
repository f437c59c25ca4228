"""SLALOM explanations: of a batch of texts, and read as numbers of one text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from captum_attnflow._checks import check_type
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, rows_of_batch
from captum_attnflow.scored_tokens import ShownByTokens
from captum_attnflow.slalom.fit import SlalomFit
from captum_attnflow.slalom.link import Link
from captum_attnflow.slalom.model import Score, SlalomModel, score_types
from captum_attnflow.slalom.queries import QueryData
from captum_attnflow.storage import Storable


@dataclass(frozen=True, eq=False)
class SlalomExplanation(ShownByTokens, Storable, LongForm):
    """SLALOM functions of a batch of texts, with scores at the positions of the tokens.

    Notebooks and rich display it; :meth:`show` takes the tokens.

    Tensors of shape ``(B, T)`` are float64 and hold 0 where there is no type: at
    padding and at tokens that stay in every query.

    Attributes:
        fit (SlalomFit): The functions and their standard errors, per type.
        type_index (Tensor): Shape ``(B, T)``, int64, type of each position, -1 where
            there is none.
        score (str): Name of the score that :attr:`scores` holds.
        output (Tensor): Shape ``(B,)``, float64, the model's log-odds of the texts.
        link (tuple of str): Per text, the link by which outputs became log-odds; the
            same for all texts of a call.
        caveats (tuple of str): Sentences on what the outputs left open: a guessed
            link, clamped probabilities.
        r2_short (Tensor): Shape ``(B,)``, float64, share of variance explained on
            held-out short queries; NaN if there are none or all outputs are equal.
        r2_deletions (Tensor): The same on deletions.
        n_queries (Tensor): Shape ``(B,)``, int64, queries in the fit.
        n_held_out (Tensor): Shape ``(B,)``, int64, held-out queries, for R2.
    """

    fit: SlalomFit
    type_index: Tensor
    score: Score
    output: Tensor
    link: tuple[Link, ...]
    caveats: tuple[str, ...]
    r2_short: Tensor
    r2_deletions: Tensor
    n_queries: Tensor
    n_held_out: Tensor

    @property
    def scores(self) -> Tensor:
        """Token scores of kind :attr:`score`, shape ``(B, T)``."""
        return self.score_tokens(self.score)

    @property
    def values(self) -> Tensor:
        """Values, shape ``(B, T)``, in units of the log-odds."""
        return self.score_tokens("value")

    @property
    def importances(self) -> Tensor:
        """Importances, shape ``(B, T)``, centred over the types of each text."""
        return self.score_tokens("importance")

    @property
    def value_standard_errors(self) -> Tensor:
        """Standard errors of the values, shape ``(B, T)``."""
        return self._at_tokens(self.fit.value_standard_error)

    @property
    def importance_standard_errors(self) -> Tensor:
        """Standard errors of the importances, shape ``(B, T)``."""
        return self._at_tokens(self.fit.importance_standard_error)

    @property
    def predicted(self) -> Tensor:
        """The functions at the texts, F(text), shape ``(B,)``."""
        return self.fit.model(self._counts()[:, None])[:, 0]

    @property
    def delta(self) -> Tensor:
        """F(text) minus the model's log-odds of the text, shape ``(B,)``."""
        return self.predicted - self.output

    def score_tokens(self, score: Score) -> Tensor:
        """Return token scores of any kind, shape ``(B, T)``."""
        return self._at_tokens(score_types(score, self.fit.model, self._counts()))

    def _shown(self) -> tuple[list[str], Tensor]:
        outputs = zip(self.output.tolist(), self.predicted.tolist(), strict=True)
        headings = [
            f"example {example}: {self.score} scores; log-odds {output:+.2f}, "
            f"SLALOM {predicted:+.2f}"
            for example, (output, predicted) in enumerate(outputs)
        ]
        return headings, self.scores

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        return rows_of_batch(self.scores, first, tokens)

    def _counts(self) -> Tensor:
        n_types = self.fit.model.types.shape[1]
        one_hot = torch.nn.functional.one_hot(self.type_index + 1, n_types + 1)
        return one_hot.sum(1)[:, 1:].double()

    def _at_tokens(self, per_type: Tensor) -> Tensor:
        here = self.type_index.clamp_min(0)
        return torch.where(self.type_index >= 0, per_type.gather(1, here), 0.0)


def r_squared(model: SlalomModel, data: QueryData) -> Tensor:
    """Share of the variance of the outputs that the functions explain.

    Args:
        model (SlalomModel): The functions.
        data (QueryData): Queries and outputs.

    Returns:
        Tensor: Shape ``(B,)``, at most 1; NaN for a text without queries, or whose
        outputs are all equal.
    """
    check_type("model", model, SlalomModel, "a SlalomModel, as fit_slalom(...).model")
    check_type("data", data, QueryData, "QueryData, as QueryData.pad makes it")
    is_query = data.weights > 0
    # At padded queries a function without a sink is NaN.
    predicted = torch.where(is_query, model(data.counts), 0.0)
    mean = (data.outputs * is_query).sum(1) / is_query.sum(1)
    variance = ((data.outputs - mean[:, None]) ** 2 * is_query).sum(1)
    error = ((data.outputs - predicted) ** 2 * is_query).sum(1)
    return torch.where(variance > 0, 1 - error / variance, torch.nan)


@dataclass(frozen=True)
class SlalomReading:
    """Values and importances of one text.

    Attributes:
        values (tuple of float): One per token, in units of the log-odds; None for
            special tokens, which are not explained.
        importances (tuple of float): The same, centred over the distinct tokens.
        value_standard_errors (tuple of float): The same.
        importance_standard_errors (tuple of float): The same.
        log_odds (float): The model's log-odds of the text.
        predicted_log_odds (float): Those that the SLALOM function predicts.
        r2_short (float): Share of variance explained on held-out short queries; None
            if there are none.
        r2_deletions (float): The same on deletions.
    """

    values: tuple[float | None, ...]
    importances: tuple[float | None, ...]
    value_standard_errors: tuple[float | None, ...]
    importance_standard_errors: tuple[float | None, ...]
    log_odds: float
    predicted_log_odds: float
    r2_short: float | None
    r2_deletions: float | None

    @staticmethod
    def of(explanation: SlalomExplanation, row: int, shown: Tensor) -> SlalomReading:
        """Read a row of an explanation at the positions shown, ``(T,)``, bool."""
        explained = (explanation.type_index[row] >= 0)[shown].tolist()

        def at_tokens(scores: Tensor) -> tuple[float | None, ...]:
            pairs = zip(scores[row][shown].tolist(), explained, strict=True)
            return tuple(score if has_type else None for score, has_type in pairs)

        return SlalomReading(
            values=at_tokens(explanation.values),
            importances=at_tokens(explanation.importances),
            value_standard_errors=at_tokens(explanation.value_standard_errors),
            importance_standard_errors=at_tokens(
                explanation.importance_standard_errors
            ),
            log_odds=float(explanation.output[row]),
            predicted_log_odds=float(explanation.predicted[row]),
            r2_short=_or_none(explanation.r2_short[row]),
            r2_deletions=_or_none(explanation.r2_deletions[row]),
        )


def _or_none(number: Tensor) -> float | None:
    return None if isnan(number) else float(number)
