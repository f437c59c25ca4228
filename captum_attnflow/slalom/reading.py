"""What SLALOM says of one text, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from torch import Tensor

from captum_attnflow.slalom.explanation import SlalomExplanation


@dataclass(frozen=True)
class SlalomReading:
    """Values and importances of one text.

    Attributes:
        values (tuple of float): One per token, in units of the log-odds; None for
            special tokens, which are not explained.
        importances (tuple of float): The same, centred over the distinct tokens.
        value_standard_errors (tuple of float): The same.
        importance_standard_errors (tuple of float): The same.
        log_odds (float): What the model says of the text.
        predicted_log_odds (float): What the SLALOM function says of it.
        r2_short (float): Share of variance explained on short inputs that the fit has
            not seen; None if there are none.
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
