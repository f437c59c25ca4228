"""What a pipeline of transformers holds: its model, and how it makes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from captum_attnflow._checks import is_pipeline

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel

# By the kind that a model is loaded as, in the words of errors: classes of pipelines
# that hold such a model, and their attribute that makes its arguments. A task may have
# other names, such as "ner", and a pipeline made of its class has none.
_CLASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "a sequence classifier": (("TextClassificationPipeline",), "tokenizer"),
    "a token classifier": (("TokenClassificationPipeline",), "tokenizer"),
    "a model of question answering": (("QuestionAnsweringPipeline",), "tokenizer"),
    "an encoder of texts": (("FeatureExtractionPipeline",), "tokenizer"),
    "a language model": (
        ("TextGenerationPipeline", "Text2TextGenerationPipeline"),
        "tokenizer",
    ),
    "an image classifier": (("ImageClassificationPipeline",), "image_processor"),
    "a vision-language model": (("ImageTextToTextPipeline",), "processor"),
}
# Of a tokenizer's call, what changes the tokens of a text, and is kept. Padding and the
# kind of arrays are chosen here, and change nothing at the tokens that are no padding.
_KEPT = ("add_special_tokens", "max_length", "truncation")
_CHOSEN_HERE = ("padding", "pad_to_multiple_of", "padding_side", "return_tensors")
# Of a text generation's call, what changes the tokens of a prompt.
_OF_PROMPTS = (
    "add_special_tokens",
    "prefix",
    "truncation",
    "tokenizer_encode_kwargs",
    "handle_long_generation",
)

# What makes probabilities of outputs, by the model's problem.
_FUNCTIONS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


def parts_of_pipeline(pipeline: Pipeline, kind: str) -> tuple[PreTrainedModel, Any]:
    """Return a pipeline's model, and its tokenizer or image processor.

    Args:
        pipeline (Pipeline): Of transformers.
        kind (str): What the model is to be, such as ``"a sequence classifier"``.

    Raises:
        ValueError: If the pipeline serves another task, or its model is in training
            mode, in which outputs are random.
    """
    classes, attribute = _CLASSES[kind]
    if not {each.__name__ for each in type(pipeline).__mro__} & {*classes}:
        raise ValueError(
            f"a {type(pipeline).__name__} was given, and its "
            f"{type(pipeline.model).__name__} is not used as {kind}; give a "
            f"{' or '.join(classes)}"
        )
    if pipeline.model.training:
        raise ValueError(
            "the pipeline's model is in training mode, in which outputs are random by "
            "dropout; call pipeline.model.eval() before"
        )
    of_prompts = {
        name: given
        for name, given in pipeline._preprocess_params.items()
        if name in _OF_PROMPTS and given
    }
    if kind == "a language model" and of_prompts:
        raise ValueError(
            f"the pipeline was made with {of_prompts}, which changes the tokens of its "
            "prompts and is not read here; make it without, and write into the prompt "
            "what the model is to read"
        )
    return pipeline.model, getattr(pipeline, attribute)


def tokenizer_options(given: object) -> dict[str, Any]:
    """Return the options by which a pipeline calls its tokenizer, which change tokens.

    Args:
        given (object): A pipeline; anything else has no options.

    Returns:
        dict[str, Any]: ``add_special_tokens``, ``max_length`` and ``truncation``, where
        the pipeline was made with them.

    Raises:
        ValueError: If the pipeline was made with others, which are not read here.
    """
    if not is_pipeline(given):
        return {}
    options: Mapping[str, Any] = cast("Pipeline", given)._preprocess_params
    # What a pipeline of token classification always has, and is not asked for.
    known = (*_KEPT, *_CHOSEN_HERE, "is_split_into_words")
    others = {k: v for k, v in options.items() if k not in known and v is not None}
    if options.get("is_split_into_words"):
        others["is_split_into_words"] = True
    if others:
        raise ValueError(
            f"the pipeline was made with {others}, which changes its tokens and is not "
            f"read here; make it with no other options of its tokenizer than "
            f"{', '.join(_KEPT)}. A text longer than the model's limit is explained in "
            'overlapping windows by explain(..., truncation="window", stride=...)'
        )
    return {name: options[name] for name in _KEPT if name in options}


def check_applied_function(given: Pipeline, problem: str) -> None:
    """Refuse a pipeline that makes other probabilities than the model's problem says.

    Args:
        given (Pipeline): The pipeline.
        problem (str): In the words of transformers' ``config.problem_type``.

    Raises:
        ValueError: Naming both functions, and how to make them one.
    """
    function = given._postprocess_params.get("function_to_apply")
    # Without a function a pipeline gives the outputs that are attributed here.
    applied = str(getattr(function, "value", function)).lower()
    own = _FUNCTIONS[problem]
    if function is not None and applied not in ("none", own):
        fitting = [name for name, of in _FUNCTIONS.items() if of == applied]
        raise ValueError(
            f"the pipeline was made with function_to_apply={applied!r}, but the "
            f"model's problem is {problem!r}, whose outputs are read by {own!r}; set "
            f"pipeline.model.config.problem_type = {fitting[0]!r} if the pipeline is "
            "right, or make it without function_to_apply"
        )
