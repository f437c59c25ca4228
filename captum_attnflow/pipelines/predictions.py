"""What classifiers say: their labels, which of them is explained, and how probable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor
from transformers import PreTrainedModel

from captum_attnflow._checks import (
    check_choice,
    counted,
    described,
    index_of_label,
    type_of,
)
from captum_attnflow._warnings import warn_caller

if TYPE_CHECKING:
    from transformers import Pipeline

Problem = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]
# What makes probabilities of outputs, by the model's problem.
_FUNCTIONS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


def problem_type(model: PreTrainedModel) -> Problem:
    """Tell what a model's outputs are, in the words of transformers' ``config``.

    A model of one output gives a value, unless its ``config.problem_type`` says that
    this is the one label of several that any number of may apply.

    Raises:
        ValueError: If ``config.problem_type`` is none of transformers' three.
    """
    given = getattr(model.config, "problem_type", None)
    if given is not None:
        check_choice("config.problem_type", given, get_args(Problem))
    if given == "multi_label_classification":
        return "multi_label_classification"
    if given == "regression" or len(model.config.id2label) == 1:
        return "regression"
    return "single_label_classification"


def check_applied_function(given: Pipeline, problem: Problem) -> None:
    """Refuse a pipeline that makes other probabilities than the model's problem says.

    Args:
        given (Pipeline): The pipeline.
        problem (str): What :func:`problem_type` returns.

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


def labels_of(model: PreTrainedModel) -> list[str]:
    """Return a classifier's labels, by index.

    Raises:
        ValueError: If they are not numbered from 0.
    """
    names = model.config.id2label
    if sorted(names) != list(range(len(names))):
        raise ValueError(
            f"id2label in the model's config.json is {names}; number the labels from 0 "
            f"to {len(names) - 1}"
        )
    return [str(names[index]) for index in range(len(names))]


def labels_of_outputs(model: PreTrainedModel, n_outputs: int) -> list[str]:
    """Return a classifier's labels, by index, one for each of its outputs.

    Raises:
        ValueError: If they are not numbered from 0, or not as many as the outputs.
    """
    labels = labels_of(model)
    if n_outputs != len(labels):
        raise ValueError(
            f"the model has {counted(n_outputs, 'output')} but id2label names "
            f"{labels}; mend id2label in its config.json"
        )
    return labels


def check_outputs(outputs: Tensor) -> None:
    """Refuse outputs from which nothing can be read.

    Raises:
        ValueError: If any is NaN. Infinite ones exclude a label.
    """
    if bool(outputs.isnan().any()):
        raise ValueError(
            "an output of the model is NaN, as of damaged weights, or of half "
            'precision that overflows; load the model anew, or with dtype="float32"'
        )


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input, and what of it is attributed.

    Attributes:
        row (int): The input.
        predicted (int): The predicted label; of several labels or values the target.
        target (int): The label or value to attribute.
        probability (float, optional): Of ``predicted``; None for a value.
        value (float, optional): The output as it is, in regression; None for a label.
    """

    row: int
    predicted: int
    target: int
    probability: float | None
    value: float | None


def read_predictions(
    model: PreTrainedModel,
    logits: Tensor,
    target: str | int | None,
    inputs: Sequence[str],
) -> list[Prediction]:
    """Read a batch of outputs as the model's problem says.

    Of a single label, each input has one prediction, whose probability is a softmax. Of
    a multi-label model it has one for each label above a probability of 0.5, by a
    sigmoid, and where there is none, for the most probable one, with a warning. Of
    regression it has one for each value. With a target it has one for this.

    Args:
        model (PreTrainedModel): What the outputs are of.
        logits (Tensor): Shape ``(B, labels)``.
        target (str or int, optional): Label or index to attribute.
        inputs (sequence of str): The ``B`` inputs, for warnings.

    Returns:
        list[Prediction]: By input, then by label.

    Raises:
        ValueError: If there are not as many outputs as labels, an output is NaN, or
            there is no such target.
    """
    check_outputs(logits)
    labels, problem = labels_of_outputs(model, logits.shape[-1]), problem_type(model)
    wanted = None if target is None else find_target(target, labels)
    outputs = logits.detach().cpu()
    if problem == "single_label_classification":
        probabilities = outputs.softmax(-1)
        return [
            Prediction(
                row=row,
                predicted=predicted,
                target=predicted if wanted is None else wanted,
                probability=float(probabilities[row, predicted]),
                value=None,
            )
            for row, predicted in enumerate(outputs.argmax(-1).tolist())
        ]
    predictions = []
    for row, output in enumerate(outputs):
        if problem == "regression":
            chosen = range(len(labels)) if wanted is None else [wanted]
            predictions += [
                Prediction(row, i, i, None, float(output[i])) for i in chosen
            ]
        else:
            chosen = _labels_above(output, labels, inputs[row], wanted)
            probability = output.sigmoid()
            predictions += [
                Prediction(row, i, i, float(probability[i]), None) for i in chosen
            ]
    return predictions


def _labels_above(
    output: Tensor, labels: Sequence[str], given: str, wanted: int | None
) -> list[int]:
    """Indices of the labels with a probability above 0.5, whose logits exceed 0."""
    if wanted is not None:
        return [wanted]
    above: list[int] = (output > 0).nonzero()[:, 0].tolist()
    if not above:
        highest = int(output.argmax())
        warn_caller(
            f"no label of {shorten(given, 40)!r} has a probability above 0.5; the "
            f"highest, {labels[highest]!r}, is attributed"
        )
        return [highest]
    return above


def find_target(target: str | int, labels: Sequence[str], name: str = "target") -> int:
    """Return the index of a label.

    Args:
        target (str or int): A label or its index.
        labels (sequence of str): The labels, by index.
        name (str): Of the argument, for errors.

    Raises:
        ValueError: If there is no such target.
    """
    index = index_of_label(target, labels)
    if index is not None:
        return index
    given: object = target
    if isinstance(given, Tensor):  # a nested one has no shape to be asked for
        is_several = given.dim() > 0
    else:
        several = (list, tuple, set, dict)
        is_several = isinstance(given, several) or bool(getattr(given, "shape", None))
    if is_several:
        raise ValueError(
            f"{name}={described(target)} is {type_of(target)}, and all texts "
            f"of a call have one {name}; give one label of {list(labels)} or its "
            "index, and call once for each"
        )
    raise ValueError(
        f"{name}={described(target)} is unknown; give a label of {list(labels)} or an "
        f"index from 0 to {len(labels) - 1}"
    )
