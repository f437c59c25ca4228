"""The methods that read attention, by a name that says how, for tests over all."""

from __future__ import annotations

from collections.abc import Callable

from captum_attnflow import RelevanceFlow
from captum_attnflow.pipelines.methods import GENERATION_METHODS, method_class

METHODS: dict[str, Callable[..., object]] = {
    # Attention Flow reads the maps that rollout reads, and takes longer.
    **{
        name: method_class(name)
        for name in GENERATION_METHODS
        if name not in ("attention-flow", "attnlrp")
    },
    "relevance-flow, cp-lrp": lambda f: RelevanceFlow(f, rules="cp-lrp"),
    "relevance-flow, gradient": lambda f: RelevanceFlow(f, rules="gradient"),
}
