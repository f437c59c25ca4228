"""The methods that read attention, by a name that says how, for tests over all."""

from __future__ import annotations

from collections.abc import Callable

from captum_attnflow import (
    AttentionRollout,
    CheferRelevance,
    GeneralizedAttentionFlow,
    RelevanceFlow,
)

METHODS: dict[str, Callable[..., object]] = {
    "rollout": AttentionRollout,
    "generalized flow": GeneralizedAttentionFlow,
    "chefer": CheferRelevance,
    "relevance flow, attnlrp": lambda f: RelevanceFlow(f, rules="attnlrp"),
    "relevance flow, cp-lrp": lambda f: RelevanceFlow(f, rules="cp-lrp"),
    "relevance flow, gradient": lambda f: RelevanceFlow(f, rules="gradient"),
}
