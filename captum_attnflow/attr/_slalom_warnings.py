"""Warnings of SLALOM explanations that say less than they seem to."""

from __future__ import annotations

from collections.abc import Sequence

from captum_attnflow._warnings import warn_caller
from captum_attnflow.surrogate import SlalomExplanation

# Least share of the importances' differences that queries must determine. It parts the
# strategies on every sentence of the benchmarks: "eff" is above, "fidel" below.
_IDENTIFIED = 0.85


def warn_of_explanation(explanation: SlalomExplanation, in_full: bool) -> None:
    """Warn of caveats, of examples whose scores are all 0, of unidentified scores.

    In full, also where the scores do not depend on what is not identified.
    """
    warn_of_caveats(explanation.caveats)
    zero = (explanation.scores == 0).all(1).nonzero()[:, 0].tolist()
    if zero:
        warn_caller(
            f"all {explanation.score} scores of the examples {zero} are 0: the outputs "
            "for all queries are 0 or equal, or the text has one token only"
        )
    if in_full or explanation.score in ("importance", "linearized"):
        _warn_of_importances(explanation)


def warn_of_caveats(caveats: Sequence[str]) -> None:
    """Warn of what the model's outputs left open."""
    for caveat in caveats:
        warn_caller(caveat)


def _warn_of_importances(explanation: SlalomExplanation) -> None:
    identified = explanation.fit.identified
    unclear = (identified < _IDENTIFIED).nonzero()[:, 0].tolist()
    if unclear:
        warn_caller(
            f"the importances of the examples {unclear} are not identified: queries "
            f"determine {[round(float(identified[row]), 2) for row in unclear]} of "
            "their differences, the prior the rest. Values may be equal, or the "
            "deletions too noisy; trust predictions, such as contribution and removal "
            'scores, and read importances from strategy="eff" with more n_samples'
        )
