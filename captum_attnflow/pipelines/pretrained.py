"""What explained models have in common: how they load and run, the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captum_attnflow._progress import no_loading_bar
from captum_attnflow.attr import (
    AttentionAttribution,
    AttentionFlow,
    AttentionRollout,
    CheferRelevance,
    GeneralizedAttentionFlow,
    RelevanceFlow,
)

ATTENTION_METHODS: dict[str, Callable[..., AttentionAttribution]] = {
    "relevance-flow": RelevanceFlow,
    "generalized-attention-flow": GeneralizedAttentionFlow,
    "attention-flow": AttentionFlow,
    "attention-rollout": AttentionRollout,
    "chefer-relevance": CheferRelevance,
}
DEFAULT_METHOD = "relevance-flow"


def load_pretrained(
    name: str,
    model_class: Any,
    load_companion: Callable[..., Any],
    kind: str,
    companion_files: str,
) -> tuple[PreTrainedModel, Any]:
    """Load a model with its tokenizer or image processor.

    Only safetensors weights are read and no code of the model's repository runs.

    Args:
        name (str): A folder saved by ``save_pretrained``, or a hub id. A folder is read
            without network access.
        model_class (type): The model's ``AutoModelFor...`` class.
        load_companion (Callable): Takes the same name and options.
        kind (str): What the model is to be, for errors.
        companion_files (str): The companion's files, for errors.

    Returns:
        tuple: The model, float32 and in eval mode, and its companion.

    Raises:
        FileNotFoundError: If there is no such folder and ``name`` is no hub id.
        ValueError: If the model cannot be loaded as one of its kind.
    """
    is_folder = Path(name).is_dir()
    if not is_folder and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(
            f"there is no model folder {name!r}. Give an existing folder saved by "
            'save_pretrained(), or a hub id such as "owner/name"'
        )
    loadable = (
        f"Give a folder with config.json, model.safetensors and {companion_files}, or "
        "the hub id of such a model"
    )
    options = {"local_files_only": is_folder, "trust_remote_code": False}
    try:
        companion = load_companion(name, **options)
        with no_loading_bar() if is_folder else nullcontext():
            model, report = model_class.from_pretrained(
                name,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    # Whatever a broken folder raises, down to the parsers of its files.
    except Exception as error:
        where = "" if is_folder else f"there is no folder {name!r}, and "
        raise ValueError(
            f"{where}{name!r} could not be loaded as {kind}: {error}\n{loadable}"
        ) from error
    if report["missing_keys"]:
        raise ValueError(
            f"{name!r} has no weights for {sorted(report['missing_keys'])}, which "
            f"would be random: it is not trained as {kind}. {loadable}"
        )
    return model.eval(), companion


def logits_by_position(
    model: PreTrainedModel, names: Sequence[str], first: str = "input_ids"
) -> Callable[..., Tensor]:
    """Return a forward function as Captum calls it, whose arguments have no names.

    Args:
        model (PreTrainedModel): With a classification head.
        names (sequence of str): Of the model's arguments behind the first one.
        first (str): ``"input_ids"`` or ``"inputs_embeds"``.
    """

    def forward(inputs: Tensor, *others: Tensor) -> Tensor:
        further = dict(zip(names, others, strict=True))
        logits: Tensor = model(**{first: inputs}, **further).logits
        return logits

    return forward


def find_method(
    method: str, options: Mapping[str, Any], methods: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """Return the class of a method that has such options.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if method not in methods:
        raise ValueError(
            f"method={method!r} is unknown; give one of {', '.join(methods)}"
        )
    accepted = _options_of(methods[method])
    for name in options:
        if name not in accepted:
            having = [other for other in methods if name in _options_of(methods[other])]
            elsewhere = f"; {name!r} is one of {', '.join(having)}" if having else ""
            raise ValueError(
                f"{method} has no option {name!r}; it has {', '.join(accepted)}"
                f"{elsewhere}"
            )
    return methods[method]


def _options_of(method: Callable[..., Any]) -> list[str]:
    parameters = signature(method).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
