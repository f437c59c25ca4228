r"""The SLALOM function, a weighted mean of values of tokens; what it says of a text.

Softmax-Linked Additive Log-Odds Model, Leemann, Fastowski, Pfeiffer & Kasneci (TMLR
2025, arXiv 2405.13536). Every type, that is every distinct token of a text, has a value
:math:`v_j` and an importance :math:`s_j`. For a sequence that holds type ``j``
:math:`n_j` times the function predicts the log-odds

.. math::
    F(n) = \frac{\sum_j n_j e^{s_j} v_j}{\sum_j n_j e^{s_j}}.

Adding a constant to every ``s`` changes nothing; importances are centred.

A score per type is made of the function: with :math:`w = e^s` a type's weight and
:math:`F` the function at the text, :math:`\alpha_j = w_j / \sum_k n_k w_k` is the share
of one occurrence of type ``j`` in the mass of the text, the sink's included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_dense, check_type
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, rows_of_batch
from captum_attnflow.scored_tokens import ShownByTokens
from captum_attnflow.slalom.link import Link
from captum_attnflow.slalom.queries import QueryData
from captum_attnflow.storage import Storable


@dataclass(frozen=True, eq=False)
class SlalomModel:
    r"""SLALOM functions of a batch of texts, padded to the same number of types.

    A sink, if there is one, is a token of every sequence, also of the empty one. With
    its weight :math:`w_0 = e^{s_0}` and value :math:`v_0`,

    .. math::
        F(n) = \frac{w_0 v_0 + \sum_j n_j e^{s_j} v_j}{w_0 + \sum_j n_j e^{s_j}}.

    It represents special tokens and whatever else the model adds to a text. For
    :math:`w_0 \to \infty` the function becomes additive.

    Attributes:
        value (Tensor): Shape ``(B, V)``, float64, in units of the output: the
            function at the type alone. 0 where there is no type.
        importance (Tensor): Shape ``(B, V)``, float64, natural logarithm of the weight,
            centred over the types of each text. 0 where there is no type.
        types (Tensor): Shape ``(B, V)``, bool, ``False`` where there is no type.
        sink_value (Tensor, optional): Shape ``(B,)``, float64, value of the sink.
        sink_importance (Tensor, optional): Shape ``(B,)``, float64, importance of the
            sink, on the scale of the centred ones.

    Examples::

        >>> model = SlalomModel(
        ...     value=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        ...     importance=torch.tensor([[0.0, 0.0]], dtype=torch.float64),
        ...     types=torch.tensor([[True, True]]),
        ... )
        >>> model(torch.tensor([[[1, 0], [1, 1], [1, 2]]])).tolist()
        [[2.0, 0.5, 0.0]]
    """

    value: Tensor
    importance: Tensor
    types: Tensor
    sink_value: Tensor | None = None
    sink_importance: Tensor | None = None

    def __call__(self, counts: Tensor) -> Tensor:
        """Predict the output for sequences.

        Args:
            counts (Tensor): Shape ``(B, Q, V)``, how often each type occurs.

        Returns:
            Tensor: Shape ``(B, Q)``, float64; NaN for an empty sequence if there is
            no sink.
        """
        share, sink_share = self.shares(counts)
        predicted = (share * self.value[:, None]).sum(-1)
        if self.sink_value is not None:
            predicted = predicted + sink_share * self.sink_value[:, None]
        return predicted

    def shares(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the share :math:`n_j \alpha_j` of each type in the sequence's mass.

        Args:
            counts (Tensor): Shape ``(B, Q, V)``.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B, Q, V)``, and of the sink ``(B, Q)``.
        """
        n_texts, n_types = self.types.shape
        accepted = f"({n_texts}, Q, {n_types}), how often each type occurs"
        check_dense("counts", counts, accepted)
        if counts.dim() != 3 or counts.shape[::2] != self.types.shape:
            raise ValueError(
                f"counts have shape {tuple(counts.shape)}; give {accepted}"
            )
        # The largest weight is made 1, so that no exponential overflows.
        present = self.importance.masked_fill(~self.types, -torch.inf)
        largest = present.amax(1)
        if self.sink_importance is not None:
            largest = torch.maximum(largest, self.sink_importance)
        mass = counts * (present - largest[:, None]).exp()[:, None]
        sink = torch.zeros_like(mass[..., 0])
        if self.sink_importance is not None:
            sink = sink + (self.sink_importance - largest).exp()[:, None]
        total = mass.sum(-1) + sink
        return mass / total[..., None], sink / total


Score = Literal["value", "importance", "linearized", "contribution", "removal"]
"""A key of :data:`SCORES`."""


def value(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`v_j`, the function at the type alone."""
    return model.value


def importance(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`s_j`, centred over the types of the text."""
    return model.importance


def linearized(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`v_j e^{s_j}`, the paper's linearised score."""
    return model.value * model.importance.exp()


def contribution(model: SlalomModel, counts: Tensor) -> Tensor:
    r""":math:`\alpha_j v_j`; over all occurrences, and the sink, they sum to ``F``."""
    return _share_of_one(model, counts) * model.value


def removal(model: SlalomModel, counts: Tensor) -> Tensor:
    r""":math:`F(n) - F(n - e_j) = \alpha_j (v_j - F) / (1 - \alpha_j)`.

    The fall of ``F`` when one occurrence is left out; 0 for the only token of a text
    without a sink, where nothing would be left.
    """
    share = _share_of_one(model, counts)
    fall = share * (model.value - model(counts[:, None]))
    alone = 1 - share < torch.finfo(share.dtype).eps
    return torch.where(alone, 0.0, fall / torch.where(alone, 1.0, 1 - share))


SCORES: dict[str, Callable[[SlalomModel, Tensor], Tensor]] = {
    "value": value,
    "importance": importance,
    "linearized": linearized,
    "contribution": contribution,
    "removal": removal,
}
"""For each name, the function from a model and token counts to a score per type."""


def score_types(name: Score, model: SlalomModel, counts: Tensor) -> Tensor:
    """Score every type of each text.

    Args:
        name (str): A key of :data:`SCORES`.
        model (SlalomModel): The functions.
        counts (Tensor): Shape ``(B, V)``, how often each type occurs in the text.

    Returns:
        Tensor: Shape ``(B, V)``, float64, the score of one occurrence; 0 where there
        is no type.

    Examples::

        >>> model = SlalomModel(
        ...     value=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        ...     importance=torch.tensor([[0.0, 0.0]], dtype=torch.float64),
        ...     types=torch.tensor([[True, True]]),
        ... )
        >>> score_types("removal", model, torch.tensor([[1.0, 1.0]])).tolist()
        [[1.5, -1.5]]
    """
    check_choice("name", name, SCORES)
    check_type("model", model, SlalomModel, "a SlalomModel, as fit_slalom(...).model")
    check_dense("counts", counts, f"of shape {tuple(model.types.shape)}")
    if counts.shape != model.types.shape:
        raise ValueError(
            f"counts have shape {tuple(counts.shape)}; give one count per type of each "
            f"text, {tuple(model.types.shape)}"
        )
    return torch.where(model.types, SCORES[name](model, counts), 0.0)


def _share_of_one(model: SlalomModel, counts: Tensor) -> Tensor:
    share, _ = model.shares(counts[:, None])
    return share[:, 0] / counts.clamp_min(1)


@dataclass(frozen=True, eq=False)
class SlalomFit:
    """Fitted SLALOM functions of a batch of texts.

    Attributes:
        model (SlalomModel): The functions.
        value_standard_error (Tensor): Shape ``(B, V)``, in units of the output.
        importance_standard_error (Tensor): Shape ``(B, V)``, of the centred
            importances. Where the data say nothing it is the spread of the prior.
        identified (Tensor): Shape ``(B,)``, in [0, 1], share of the ``V - 1``
            differences of importances that the data determine rather than the prior;
            1 for a text of one type.
        noise (Tensor): Shape ``(B,)``, standard deviation of an output around the
            function, in units of the output.
        spread (Tensor): Shape ``(B,)``, standard deviation of the outputs; 1 where they
            are equal up to rounding.
        steps (Tensor): Shape ``(B,)``, int64, Levenberg-Marquardt steps taken.
    """

    model: SlalomModel
    value_standard_error: Tensor
    importance_standard_error: Tensor
    identified: Tensor
    noise: Tensor
    spread: Tensor
    steps: Tensor


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
