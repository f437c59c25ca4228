"""Explanations from the scores of a network."""

from __future__ import annotations

from dataclasses import replace

from captum_attnflow.explanation import Explanation
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import (
    Game,
    GameSolver,
    Normalization,
    normalize,
    score_tokens,
)


def explain_maximum_flows(
    network: LayeredNetwork,
    game: Game,
    solver: GameSolver,
    normalization: Normalization,
) -> Explanation:
    """Score tokens by maximum flows, see :mod:`captum_attnflow.flow.scores`."""
    scored = score_tokens(network, game, solver)
    explanation = Explanation(
        scored.scores, network, scored.joint_flow, scored.diagnostics
    )
    return normalize_scores(explanation, normalization)


def normalize_scores(
    explanation: Explanation, normalization: Normalization
) -> Explanation:
    """Normalise the scores and keep those before; flow and flow value stay."""
    scores = explanation.scores
    normalized = normalize(scores, explanation.network, normalization)
    if normalization is None:
        return explanation
    return replace(explanation, scores=normalized, unnormalized_scores=scores)
