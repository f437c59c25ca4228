"""Attention flow attributions for Captum.

The way of the data, and of the folders::

    attribute() -> capture -> capacity -> network -> solve -> game -> Captum's shapes

Relevance by propagation rules needs no solver::

    attribute() -> capture, by rules -> conserved flow -> Captum's shapes

SLALOM takes another way, by queries alone::

    attribute() -> perturbation -> surrogate -> Captum's shapes

- :mod:`captum_attnflow.attr`: the attribution methods, Captum's interface.
- :mod:`captum_attnflow.capture`: attention and gradients of any forward function.
- :mod:`captum_attnflow.capacity`: information tensors, residual edges, the network.
- :mod:`captum_attnflow.network`: the layered flow network.
- :mod:`captum_attnflow.conserved`: relevance as a flow that sums to the output.
- :mod:`captum_attnflow.solve`: the barrier solver and exact ones.
- :mod:`captum_attnflow.game`: from flows to token scores.
- :mod:`captum_attnflow.normalization`: position bias taken out of them.
- :mod:`captum_attnflow.perturbation`: parts of texts, put to a forward function.
- :mod:`captum_attnflow.surrogate`: the SLALOM function, its queries, fit and scores.
- :mod:`captum_attnflow.result`: what ``explain()`` returns.
- :mod:`captum_attnflow.generation`: what it returns for generated text.
- :mod:`captum_attnflow.tasks`: texts and images in, attributions out, for the shell.
- :mod:`captum_attnflow.metrics`: faithfulness of any attribution.
- :mod:`captum_attnflow.study`: methods compared on models and texts.
- :mod:`captum_attnflow.display`: how results show themselves.
- :mod:`captum_attnflow.visualization`: pictures: texts, flows, SLALOM, images.
- :mod:`captum_attnflow.cli`: the same from the shell.
- :mod:`captum_attnflow.demo`: the small model that comes along, and its training.
"""

from captum_attnflow._version import __version__
from captum_attnflow.attr import (
    SLALOM,
    AttentionFlow,
    AttentionRollout,
    AttnLRP,
    CheferRelevance,
    GeneralizedAttentionFlow,
    GenerationAttribution,
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerAttnLRP,
    LayerCheferRelevance,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
    LayerSLALOM,
    RelevanceFlow,
)
from captum_attnflow.capture import UnsupportedAttentionError
from captum_attnflow.generation import GenerationExplanation
from captum_attnflow.network import LayeredNetwork
from captum_attnflow.result import Explanation
from captum_attnflow.solve import (
    BarrierSolver,
    FlowError,
    FlowSolution,
    NetworkXSolver,
    SciPySolver,
    solve_flow,
)
from captum_attnflow.surrogate import SlalomExplanation

__all__ = [
    "AttentionFlow",
    "AttentionRollout",
    "AttnLRP",
    "BarrierSolver",
    "CheferRelevance",
    "Explanation",
    "FlowError",
    "FlowSolution",
    "GeneralizedAttentionFlow",
    "GenerationAttribution",
    "GenerationExplanation",
    "LayerAttentionFlow",
    "LayerAttentionRollout",
    "LayerAttnLRP",
    "LayerCheferRelevance",
    "LayerGeneralizedAttentionFlow",
    "LayerRelevanceFlow",
    "LayerSLALOM",
    "LayeredNetwork",
    "NetworkXSolver",
    "RelevanceFlow",
    "SLALOM",
    "SciPySolver",
    "SlalomExplanation",
    "UnsupportedAttentionError",
    "__version__",
    "solve_flow",
]
