"""Attention flow attributions for Captum.

The way of the data, and of the folders::

    attribute() -> capture -> flow -> Captum's shapes

Relevance by propagation rules needs no solver, but flows on the same network. SLALOM
takes another way, by queries alone::

    attribute() -> texts -> slalom -> Captum's shapes

- :mod:`captum_attnflow.attr`: the attribution methods, Captum's interface.
- :mod:`captum_attnflow.capture`: attention and gradients of any forward function.
- :mod:`captum_attnflow.flow`: information tensors, the network, its flows and scores.
- :mod:`captum_attnflow.texts`: parts of texts, put to a forward function.
- :mod:`captum_attnflow.slalom`: SLALOM: its queries, function, fit and scores.
- :mod:`captum_attnflow.explanation`: what ``explain()`` returns, of generated text too.
- :mod:`captum_attnflow.scored_tokens`: how results show themselves.
- :mod:`captum_attnflow.storage`: results in files.
- :mod:`captum_attnflow.long_form`: results as tables.
- :mod:`captum_attnflow.pipelines`: texts and images in, attributions out.
- :mod:`captum_attnflow.metrics`: faithfulness of any attribution.
- :mod:`captum_attnflow.study`: methods compared on models and texts.
- :mod:`captum_attnflow.tables`: tables of texts in, tables of explanations out.
- :mod:`captum_attnflow.summary`: what the explanations of a data set look like.
- :mod:`captum_attnflow.show`: pictures: texts, flows, SLALOM, images.
- :mod:`captum_attnflow.cli`: the same from the shell.
- :mod:`captum_attnflow.demo`: the small model that comes along, and its training.

Each public name is imported when it is first read, so that the package itself loads
neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from captum_attnflow._lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
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
    from captum_attnflow.explanation import Explanation, GenerationExplanation
    from captum_attnflow.flow.network import LayeredNetwork
    from captum_attnflow.flow.solvers import (
        BarrierSolver,
        DinicSolver,
        FlowError,
        FlowSolution,
        NetworkXSolver,
        SciPySolver,
        solve_flow,
    )
    from captum_attnflow.pipelines.image_classification import (
        ImageAttribution,
        ImageClassifier,
    )
    from captum_attnflow.pipelines.image_text_generation import (
        GeneratedFromImage,
        ImageTextGenerator,
    )
    from captum_attnflow.pipelines.question_answering import (
        AnswerAttribution,
        QuestionAnswerer,
    )
    from captum_attnflow.pipelines.sentence_similarity import (
        SentenceSimilarity,
        SideAttribution,
        SimilarityAttribution,
    )
    from captum_attnflow.pipelines.text_classification import (
        TextAttribution,
        TextClassifier,
    )
    from captum_attnflow.pipelines.text_generation import GeneratedText, TextGenerator
    from captum_attnflow.pipelines.token_classification import (
        LabelledWords,
        TokenClassifier,
        WordAttribution,
    )
    from captum_attnflow.slalom import SlalomExplanation
else:
    _MODULES = {
        "captum_attnflow.attr": (
            "AttentionFlow",
            "AttentionRollout",
            "AttnLRP",
            "CheferRelevance",
            "GeneralizedAttentionFlow",
            "GenerationAttribution",
            "LayerAttentionFlow",
            "LayerAttentionRollout",
            "LayerAttnLRP",
            "LayerCheferRelevance",
            "LayerGeneralizedAttentionFlow",
            "LayerRelevanceFlow",
            "LayerSLALOM",
            "RelevanceFlow",
            "SLALOM",
        ),
        "captum_attnflow.capture": ("UnsupportedAttentionError",),
        "captum_attnflow.explanation": ("Explanation", "GenerationExplanation"),
        "captum_attnflow.flow.network": ("LayeredNetwork",),
        "captum_attnflow.flow.solvers": (
            "BarrierSolver",
            "DinicSolver",
            "FlowError",
            "FlowSolution",
            "NetworkXSolver",
            "SciPySolver",
            "solve_flow",
        ),
        "captum_attnflow.pipelines.image_classification": (
            "ImageAttribution",
            "ImageClassifier",
        ),
        "captum_attnflow.pipelines.image_text_generation": (
            "GeneratedFromImage",
            "ImageTextGenerator",
        ),
        "captum_attnflow.pipelines.question_answering": (
            "AnswerAttribution",
            "QuestionAnswerer",
        ),
        "captum_attnflow.pipelines.sentence_similarity": (
            "SentenceSimilarity",
            "SideAttribution",
            "SimilarityAttribution",
        ),
        "captum_attnflow.pipelines.text_classification": (
            "TextAttribution",
            "TextClassifier",
        ),
        "captum_attnflow.pipelines.text_generation": (
            "GeneratedText",
            "TextGenerator",
        ),
        "captum_attnflow.pipelines.token_classification": (
            "LabelledWords",
            "TokenClassifier",
            "WordAttribution",
        ),
        "captum_attnflow.slalom": ("SlalomExplanation",),
    }
    # Behind the condition, as type checkers would admit any name of a __getattr__.
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "AnswerAttribution",
    "AttentionFlow",
    "AttentionRollout",
    "AttnLRP",
    "BarrierSolver",
    "CheferRelevance",
    "DinicSolver",
    "Explanation",
    "FlowError",
    "FlowSolution",
    "GeneralizedAttentionFlow",
    "GeneratedFromImage",
    "GeneratedText",
    "GenerationAttribution",
    "GenerationExplanation",
    "ImageAttribution",
    "ImageClassifier",
    "ImageTextGenerator",
    "LabelledWords",
    "LayerAttentionFlow",
    "LayerAttentionRollout",
    "LayerAttnLRP",
    "LayerCheferRelevance",
    "LayerGeneralizedAttentionFlow",
    "LayerRelevanceFlow",
    "LayerSLALOM",
    "LayeredNetwork",
    "NetworkXSolver",
    "QuestionAnswerer",
    "RelevanceFlow",
    "SLALOM",
    "SciPySolver",
    "SentenceSimilarity",
    "SideAttribution",
    "SimilarityAttribution",
    "SlalomExplanation",
    "TextAttribution",
    "TextClassifier",
    "TextGenerator",
    "TokenClassifier",
    "UnsupportedAttentionError",
    "WordAttribution",
    "__version__",
    "solve_flow",
]
