"""The attribution methods by name: one table for pipelines, shell, studies and tests.

A name stands for one class with its defaults, wherever it is given. Nothing here
imports torch, so that a help text can list the names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any

import captum_attnflow
from captum_attnflow._checks import check_choice

METHODS: dict[str, str] = {
    "relevance-flow": "RelevanceFlow",
    "generalized-attention-flow": "GeneralizedAttentionFlow",
    "attention-flow": "AttentionFlow",
    "attention-rollout": "AttentionRollout",
    "chefer-relevance": "CheferRelevance",
    "attnlrp": "AttnLRP",
    "slalom": "SLALOM",
}
"""The public class of :mod:`captum_attnflow` that each method is."""
IMAGE_METHODS = tuple(name for name in METHODS if name != "slalom")
"""The methods of images: SLALOM deletes tokens, and an image has no shorter form."""
GENERATION_METHODS = IMAGE_METHODS
"""The methods of generated text: all that explain several outputs of one pass."""
DEFAULT_METHOD = "relevance-flow"
_OF_FLOWS = ("attention-flow", "generalized-attention-flow")
_NEVER_COMPILED = ("scipy", "networkx")


def method_class(name: str) -> Callable[..., Any]:
    """Return the class of a method.

    Args:
        name (str): A key of :data:`METHODS`.

    Returns:
        Callable: What takes a forward function and options.

    Raises:
        ValueError: If there is no such method.

    Examples::

        >>> method_class("attention-rollout").__name__
        'AttentionRollout'
    """
    check_choice("method", name, METHODS)
    found: Callable[..., Any] = getattr(captum_attnflow, METHODS[name])
    return found


def find_method(
    method: str, options: Mapping[str, Any], accepted: Collection[str]
) -> Callable[..., Any]:
    """Return the class of a method that has such options.

    Args:
        method (str): The method.
        options (mapping): What its constructor is to take.
        accepted (collection of str): The keys of :data:`METHODS` that the task has.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if isinstance(method, str) and method in METHODS and method not in accepted:
        raise ValueError(
            f"method={method!r} does not serve this task; give one of "
            f"{', '.join(accepted)}"
        )
    check_choice("method", method, accepted)
    own = _options_of(method)
    for name in options:
        if name not in own:
            having = [other for other in accepted if name in _options_of(other)]
            elsewhere = f"; {name!r} is one of {', '.join(having)}" if having else ""
            raise ValueError(
                f"{method} has no option {name!r}; it has {', '.join(own)}{elsewhere}"
            )
    return method_class(method)


def solves_flows(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a method with such options solves flows by what may be compiled."""
    if options.get("solver") in _NEVER_COMPILED:
        return False
    return method in _OF_FLOWS or options.get("flow") == "maximum"


def compile_for(
    method: str, options: Mapping[str, Any], show_progress: bool = False
) -> None:
    """Compile what a method solves flows by, before the first of several texts.

    Args:
        method (str): The method.
        options (mapping): Of its constructor.
        show_progress (bool): As :func:`captum_attnflow.flow.compile_kernels` takes it.
    """
    if solves_flows(method, options):
        from captum_attnflow import flow

        flow.compile_kernels(show_progress)


def _options_of(method: str) -> list[str]:
    parameters = signature(method_class(method)).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
