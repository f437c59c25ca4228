"""Warnings of SLALOM explanations that say less than they seem to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_attnflow._warnings import warn_caller
from captum_attnflow.slalom import SlalomExplanation, Strategy

# Least share of the importances' differences that queries must determine. It parts the
# strategies on every sentence of the benchmarks: "eff" is above, "fidel" below.
_IDENTIFIED = 0.85
# Most by which the function may miss the text, as a share of the answers' spread. Of 25
# sentences of SST-2, those beyond have log-odds off by 2.3 to 6.7, three of them with
# the wrong sign; those within are off by 1.8 at most.
_MISSED = 0.5
# Most of the answers' spread that the function may leave over on its own queries.
_LEFT_OVER = 0.9
# Errors below this share of the log-odds mislead nobody, however alike the answers are.
_HARMLESS = 0.25


def warn_of_explanation(
    explanation: SlalomExplanation, strategy: Strategy, in_full: bool
) -> None:
    """Warn of caveats, bad fits, scores that are all 0 and unidentified scores.

    In full, also where the scores do not depend on what is not identified.
    """
    warn_of_caveats(explanation.caveats)
    _warn_of_misfits(explanation, strategy)
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


def _warn_of_misfits(explanation: SlalomExplanation, strategy: Strategy) -> None:
    fit = explanation.fit
    error, harmless = explanation.delta.abs(), _HARMLESS * explanation.output.abs()
    missed = (error > _MISSED * fit.spread) & (error > harmless)
    unrelated = (fit.noise > _LEFT_OVER * fit.spread) & (fit.noise > harmless)
    bad = (missed | unrelated).nonzero()[:, 0].tolist()
    if not bad:
        return

    def figures(numbers: Tensor) -> list[float]:
        return [round(float(numbers[row]), 2) for row in bad]

    held_out = [
        f", held-out R2 of {name} {figures(r2)}"
        for name, r2 in (
            ("short inputs", explanation.r2_short),
            ("deletions", explanation.r2_deletions),
        )
        if not bool(r2[bad].isnan().all())
    ]
    nearer = 'strategy="fidel", which asks near the text, or ' * (strategy == "eff")
    warn_caller(
        f"the fit misses the examples {bad}: where the model has log-odds of "
        f"{figures(explanation.output)}, the fit says {figures(explanation.predicted)}"
        f"{''.join(held_out)}. The model does there what no weighted mean of its "
        f"tokens' values does; do not read these scores, take {nearer}a method that "
        "reads the model itself, such as RelevanceFlow"
    )


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
