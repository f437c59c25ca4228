"""The attribution of one text, and how it shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from captum_attnflow.scored_tokens import coloured_tokens, printable
from captum_attnflow.show.text import safe_record, visualize_text
from captum_attnflow.slalom.reading import SlalomReading


@dataclass(frozen=True)
class TextAttribution:
    """The attribution of one text.

    The value of a notebook's cell is shown as Captum's text picture, and rich prints
    it with coloured tokens.

    Attributes:
        text (str): The text.
        tokens (tuple of str): Its tokens, special tokens included, without padding.
        scores (tuple of float): One score per token; negative ones speak against the
            target.
        predicted (str): The predicted label. Of a multi-label model, whose labels do
            not exclude each other, and of regression it is the target.
        probability (float, optional): Its probability; None in regression.
        target (str): The label that the scores belong to.
        flow_value (float, optional): The value of the flow behind the scores.
        slalom (SlalomReading, optional): Value and importance of each token.
        value (float, optional): The output, in regression; None for a label.
    """

    text: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    predicted: str
    probability: float | None
    target: str
    flow_value: float | None = None
    slalom: SlalomReading | None = None
    value: float | None = None

    @property
    def delta(self) -> float:
        """Sum of the scores minus the flow value; for SLALOM, function minus model."""
        if self.slalom is not None:
            return self.slalom.predicted_log_odds - self.slalom.log_odds
        return sum(self.scores) - (self.flow_value or 0.0)

    @property
    def labels(self) -> dict[str, Any]:
        """What Captum's record says beside tokens and scores.

        The arguments of :func:`~captum_attnflow.show.text.safe_record`. The
        true label is not known; a value stands where a label has its probability.
        """
        return {
            "predicted": self.predicted,
            "probability": self.probability if self.value is None else self.value,
            "target": self.target,
            "total": sum(self.scores),
            "convergence": self.delta,
        }

    def _repr_html_(self) -> str:
        record = safe_record(self.tokens, self.scores, **self.labels)
        return str(visualize_text([record]).data)

    def __rich__(self) -> Text:
        number = self.labels["probability"]
        text = Text.assemble((printable(self.predicted), "bold"), f" {number:.3f}")
        if self.target != self.predicted:
            text.append(f"  (scores for {printable(self.target)})")
        text.append("\n").append_text(coloured_tokens(self.tokens, self.scores))
        if self.slalom is not None:
            text.append(_side_by_side(self.tokens, self.slalom))
        return text


def _side_by_side(tokens: Sequence[str], slalom: SlalomReading) -> str:
    """A line per explained token: value and importance, with their standard errors."""
    printed = [printable(token) for token in tokens]
    width = max(map(len, printed), default=0)
    lines = [f"\n{'':{width}}          value     importance"]
    for token, *numbers in zip(
        printed,
        slalom.values,
        slalom.value_standard_errors,
        slalom.importances,
        slalom.importance_standard_errors,
        strict=True,
    ):
        if None not in numbers:
            value, its_error, importance, error = numbers
            lines.append(
                f"{token:{width}} {value:+7.2f} ±{its_error:5.2f} "
                f"{importance:+7.2f} ±{error:5.2f}"
            )
    known = {"short inputs": slalom.r2_short, "deletions": slalom.r2_deletions}
    fits = [f"{name} {r2:.2f}" for name, r2 in known.items() if r2 is not None]
    if fits:
        lines.append(f"held-out R2: {', '.join(fits)}")
    return "\n".join(lines)
