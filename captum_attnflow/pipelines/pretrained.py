"""How explained models load, and what they take."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from inspect import Parameter, Signature
from os import PathLike, fspath
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from captum_attnflow._checks import (
    DTYPES,
    OneTextError,
    check_choice,
    check_type,
    described,
    is_pipeline,
    type_of,
    which_of,
    with_article,
)
from captum_attnflow._files import read_json
from captum_attnflow._warnings import no_loading_bar

if TYPE_CHECKING:
    from transformers import Pipeline

Given: TypeAlias = "str | PathLike[str] | Pipeline"
"""What a model is loaded from: a folder, a hub id, or a pipeline that holds it."""

_HUB = "https://huggingface.co"
_LONGEST_REASON = 300  # characters of what a library says, which may list 100 classes
_COMPANION_FILES = {
    "tokenizer": ("tokenizer*.json", "vocab*", "*.model", "sentencepiece*"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}
_EXPLAINERS = {
    "ForSequenceClassification": (
        "a sequence classifier", "TextClassifier", "--task text-classification",
    ),
    "ForTokenClassification": (
        "a token classifier", "TokenClassifier", "--task token-classification",
    ),
    "ForQuestionAnswering": (
        "a model of question answering", "QuestionAnswerer",
        "--task question-answering",
    ),
    "ForImageClassification": (
        "an image classifier", "ImageClassifier", "--task image-classification",
    ),
    "LMHeadModel": ("a language model", "TextGenerator", "--task text-generation"),
    "ForCausalLM": ("a language model", "TextGenerator", "--task text-generation"),
}  # fmt: skip
"""By how a model's class ends: its kind, what explains it, and in the shell."""

# By the kind that a model is loaded as, in the words of errors: classes of pipelines
# that hold such a model, and their attribute that makes its arguments. A task may have
# other names, such as "ner", and a pipeline made of its class has none.
_PIPELINES: dict[str, tuple[tuple[str, ...], str]] = {
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
# Of a text generation's call, what changes the tokens of a prompt.
_OF_PROMPTS = (
    "add_special_tokens",
    "prefix",
    "truncation",
    "tokenizer_encode_kwargs",
    "handle_long_generation",
)

DeviceMap: TypeAlias = "str | Mapping[str, str | int]"
"""How a model is split: a strategy, such as ``"auto"``, or each module's device."""


@dataclass(frozen=True)
class Kind:
    """What a task loads.

    Attributes:
        name (str): What the model is, in the words of errors; by it the pipelines are
            known that hold such models.
        model_class (type): The model's ``AutoModelFor...`` class.
        load_companion (Callable): Loads its tokenizer or image processor, from the same
            name and by the same options.
        companion_files (str): The companion's files, for errors.
        unused (tuple of str): How names of weights begin that the task does not read;
            these may be missing.
    """

    name: str
    model_class: Any
    load_companion: Callable[..., Any]
    companion_files: str = "tokenizer files"
    unused: tuple[str, ...] = ()


def load_pretrained(
    name: Given,
    kind: Kind,
    *,
    device: str | None = None,
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a model with its tokenizer or image processor.

    Only safetensors weights are read and no code of the model's repository runs.

    Args:
        name (str, path or Pipeline): A folder saved by ``save_pretrained``, or a hub
            id. A folder is read without network access. Of a pipeline of transformers
            the parts are taken as they are, on their device and in their dtype.
        kind (Kind): What the model is to be.
        device (str, optional): Where the model runs, such as ``"cuda"``; the CPU by
            default.
        dtype (str): Of its weights, such as ``"bfloat16"``. Flows are solved in float64
            all the same.
        device_map (str or mapping, optional): How accelerate splits the model over
            devices, such as ``"auto"``, or the device of each module; in place of
            ``device``. Scores are those of one device.

    Returns:
        tuple: The model, in eval mode, and its companion.

    Raises:
        FileNotFoundError: If there is no such folder and ``name`` is no hub id.
        ValueError: If the model cannot be loaded as one of its kind, or the pipeline
            serves another task.
    """
    if is_pipeline(name):
        if device is not None or device_map is not None or dtype != "float32":
            raise ValueError(
                "a pipeline has its own device and dtype; give none of device, dtype "
                "and device_map, or the folder of its model"
            )
        return _parts_of_pipeline(cast("Pipeline", name), kind.name)
    if not isinstance(name, (str, PathLike)):
        raise ValueError(
            f"{described(name)} is {type_of(name)} and names no model; give a "
            "folder, a hub id or a pipeline of transformers. A model and its companion "
            "go to the class itself, such as TextClassifier(model, tokenizer)"
        )
    name = fspath(name)
    check_choice("dtype", dtype, DTYPES)
    place = _device_options(device, device_map)
    is_folder = _is_model_folder(name)
    options = {"local_files_only": is_folder, "trust_remote_code": False}
    if not is_folder and not _hub_has_an_address():
        options["local_files_only"] = True  # what the hub's cache holds
    try:
        companion = kind.load_companion(name, **options)
        with no_loading_bar() if is_folder else nullcontext(), _no_loading_report():
            model, report = kind.model_class.from_pretrained(
                name,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in words
                **place,
                **options,
            )
    # Whatever a broken folder raises, down to the parsers of its files.
    except Exception as error:
        raise ValueError(
            f"{_why_not_loaded(name, kind, error, options['local_files_only'])}\n"
            f"{_loadable(kind)}"
        ) from error
    wrong = [
        f"{key} is of shape {tuple(found)}, and config.json makes it {tuple(made)}"
        for key, found, made in sorted(report["mismatched_keys"])
    ]
    if wrong:
        raise ValueError(
            f"the weights of {name!r} do not fit its config.json: "
            f"{shorten('; '.join(wrong), _LONGEST_REASON)}. {_loadable(kind)}"
        )
    missing = sorted(
        key for key in report["missing_keys"] if not key.startswith(kind.unused)
    )
    if missing:
        raise ValueError(
            f"{name!r} has no weights for {missing}, which would be random: it is not "
            f"trained as {kind.name}{_saved_as(name, kind)}. {_loadable(kind)}"
        )
    if getattr(model.config, "pad_token_id", 0) is None:
        # Classifiers on decoders find a row's last token by it, in batches.
        model.config.pad_token_id = getattr(companion, "pad_token_id", None)
    if device is not None:
        model = model.to(device)
    return model.eval(), companion


def _parts_of_pipeline(pipeline: Pipeline, kind: str) -> tuple[PreTrainedModel, Any]:
    """Return a pipeline's model, and its tokenizer or image processor.

    Args:
        pipeline (Pipeline): Of transformers.
        kind (str): What the model is to be, such as ``"a sequence classifier"``.

    Raises:
        ValueError: If the pipeline serves another task, or its model is in training
            mode, in which outputs are random.
    """
    classes, attribute = _PIPELINES[kind]
    if not {each.__name__ for each in type(pipeline).__mro__} & {*classes}:
        raise ValueError(
            f"{type_of(pipeline)} was given, and its "
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


@contextmanager
def _no_loading_report() -> Iterator[None]:
    """Let transformers print no table of weights: what is wrong is an error below."""
    was = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(was)


def _loadable(kind: Kind) -> str:
    return (
        f"Give a folder with config.json, model.safetensors and {kind.companion_files},"
        " or the hub id of such a model"
    )


def _is_model_folder(name: str) -> bool:
    """Tell a folder from a hub id, and refuse what is neither.

    Raises:
        FileNotFoundError: If it reads like a path and there is no such folder.
        ValueError: If it is empty, or the name of a file.
    """
    if not name.strip():
        raise ValueError(
            f"model={name!r} names no model; give a folder saved by save_pretrained(), "
            'or a hub id such as "owner/name"'
        )
    if Path(name).is_file():
        raise ValueError(
            f"{name!r} is a file; give the folder that it lies in, with config.json "
            "beside the weights"
        )
    is_folder = Path(name).is_dir()
    is_path = name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name
    if not is_folder and is_path:
        raise FileNotFoundError(
            f"there is no model folder {name!r}. Give an existing folder saved by "
            'save_pretrained(), or a hub id such as "owner/name"'
        )
    return is_folder


def _hub_has_an_address() -> bool:
    """Whether the hub's name is known here; without a network it is asked for long."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", _HUB)).hostname
    if getproxies() or host is None:
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _why_not_loaded(name: str, kind: Kind, error: Exception, is_offline: bool) -> str:
    """Say what a folder lacks, or else what the loading library says."""
    folder = Path(name)
    reason = shorten(str(error), _LONGEST_REASON)
    if not folder.is_dir():
        network = ", and the hub cannot be reached" if is_offline else ""
        return (
            f"there is no folder {name!r}{network}; {name!r} could not be loaded as "
            f"{kind.name}: {reason}"
        )
    held = sorted(file.name for file in folder.iterdir())
    companion = "tokenizer" if "tokenizer" in kind.companion_files else "processor"
    patterns = {
        "config.json": ("config.json",),
        "model.safetensors": ("*.safetensors", "*.safetensors.index.json"),
        f"files of a {companion}": _COMPANION_FILES[companion],
    }
    lacking = [
        what
        for what, among in patterns.items()
        if not any(fnmatch(file, pattern) for file in held for pattern in among)
    ]
    if not lacking:
        return f"{name!r} could not be loaded as {kind.name}: {reason}"
    files = f"; it holds {shorten(', '.join(held), 120)}" if held else ""
    advice = ""
    pickled = [file for file in held if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled and "model.safetensors" in lacking:
        advice = (
            f". {pickled[0]} is not read, as it may run code; load the model where you "
            "trust it, and save it by save_pretrained()"
        )
    return (
        f"{name!r} could not be loaded as {kind.name}: it has no "
        f"{' and no '.join(lacking)}{files}{_saved_as(name, kind)}{advice}"
    )


def _saved_as(name: str, kind: Kind) -> str:
    """Say which model a folder holds, where its config.json names one of another kind.

    Args:
        name (str): The folder; of a hub id nothing is said.
        kind (Kind): What was wanted.
    """
    file = Path(name) / "config.json"
    try:
        named = read_json(file.read_bytes())["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
    for ending, (of_kind, explainer, task) in _EXPLAINERS.items():
        if str(named).endswith(ending) and of_kind != kind.name:
            saved = with_article(str(named))
            return f"; it was saved as {saved}: give it to {explainer}, {task}"
    return ""


def _device_options(
    device: str | None, device_map: DeviceMap | None
) -> dict[str, DeviceMap]:
    """Check where a model is to run before it is read.

    Raises:
        ValueError: If there is no such device, or accelerate is not there.
    """
    if device is not None and device_map is not None:
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} were given; give one"
        )
    if device is not None:
        try:
            torch.empty(1, device=device)
        # Torch raises several kinds, by the device.
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"device={device!r} is not to be had here: {reason}. Give cpu, or a "
                "device that torch has, such as cuda, cuda:1 or mps"
            ) from error
    if device_map is None:
        return {}
    if find_spec("accelerate") is None:
        raise ValueError(
            f"device_map={device_map!r} needs accelerate: pip install "
            '"captum-attnflow[devices]"'
        )
    if isinstance(device_map, Mapping):
        return {"device_map": dict(device_map)}
    return {"device_map": device_map}


def logits_by_position(
    model: PreTrainedModel, names: Sequence[str], first: str = "input_ids"
) -> Callable[..., Tensor]:
    """Return a forward function as Captum calls it, whose arguments have no names.

    Args:
        model (PreTrainedModel): With a classification head.
        names (sequence of str): Of the model's arguments behind the first one.
        first (str): ``"input_ids"`` or ``"inputs_embeds"``.
    """
    return outputs_by_position(
        lambda **arguments: model(**arguments).logits, names, first
    )


def outputs_by_position(
    function: Callable[..., Tensor], names: Sequence[str], first: str = "input_ids"
) -> Callable[..., Tensor]:
    """Let a function that takes its arguments by name take them by position.

    Its signature says which is which: SLALOM finds the attention mask by its name, as
    token type ids of pairs of sentences also hold zeros and ones.

    Args:
        function (Callable): Of named tensors.
        names (sequence of str): Of the arguments behind the first one.
        first (str): The name of that.
    """

    def forward(inputs: Tensor, *others: Tensor) -> Tensor:
        return function(**{first: inputs}, **dict(zip(names, others, strict=True)))

    kind = Parameter.POSITIONAL_ONLY
    shown = Signature([Parameter(name, kind) for name in (first, *names)])
    forward.__signature__ = shown  # type: ignore[attr-defined]
    return forward


NOT_GIVEN: Any = None
"""Default of a model's companion: to give none is refused in words, not by Python."""


def check_parts(task: str, model: object, companion: object, kind: str) -> None:
    """Refuse anything but a model with its tokenizer or image processor.

    Args:
        task (str): The class that was given them, for errors.
        model (Module): The model.
        companion (Callable): What makes its arguments.
        kind (str): ``"tokenizer"`` or ``"processor"``.

    Raises:
        ValueError: Saying what was given and what to give.
    """
    for name, part in (("model", model), (kind, companion)):
        fits = isinstance(part, nn.Module) if part is model else callable(part)
        if is_pipeline(part) or not fits:
            given = (
                "was not given"
                if part is NOT_GIVEN
                else f"is {type_of(part)} and no {name} of transformers"
            )
            advice = (
                f"of a pipeline take {task}.load(pipeline)"
                if is_pipeline(part)
                else f"give a model and its {kind}, or to {task}.load a folder, a hub "
                "id or a pipeline"
            )
            raise ValueError(f"{name} {given}; {advice}")


TextOrPair = str | tuple[str, str]


def check_texts(unit: str, texts: object) -> None:
    """Refuse what is no list of texts that a tokenizer can read.

    Args:
        unit (str): What one text is called, for errors.
        texts (sequence of str): The texts.

    Raises:
        ValueError: Naming the text.
    """
    listed = _listed(unit, texts)
    for number, text in enumerate(listed, 1):
        where = which_of(unit, number, len(listed))
        if not isinstance(text, str):
            raise ValueError(
                f"{where} is {type_of(text)}, {text!r}, and no str; give each "
                f"{unit} as one str"
            )
        _check_text(where, text)


def check_texts_or_pairs(texts: object) -> None:
    """Refuse what is no list of texts or of pairs of them, as tuples.

    Args:
        texts (sequence of str or tuple): The texts and pairs.

    Raises:
        ValueError: Naming the text.
    """
    listed = _listed("text", texts)
    for number, given in enumerate(listed, 1):
        where = which_of("text", number, len(listed))
        if isinstance(given, str):
            _check_text(where, given)
            continue
        is_pair = isinstance(given, tuple) and len(given) == 2
        if not is_pair or not all(isinstance(part, str) for part in given):
            raise ValueError(
                f"{where} is {type_of(given)}, {given!r}, and no text; give a "
                "str, or a pair of sentences, encoded by tokenizer(first, second), as "
                "a tuple of two, (first, second)"
            )
        for side, part in zip(("first", "second"), given, strict=True):
            _check_text(f"the {side} sentence of {where}", part)


def check_pairs(first: str, second: str, pairs: object) -> None:
    """Refuse what is no list of pairs of texts.

    Args:
        first (str): What the first text of a pair is called, for errors.
        second (str): And the second one.
        pairs (sequence of tuple): The pairs.

    Raises:
        ValueError: Naming the pair.
    """
    listed = _listed("pair", pairs)
    for number, pair in enumerate(listed, 1):
        where = which_of("pair", number, len(listed))
        is_pair = isinstance(pair, tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(part, str) for part in pair):
            raise ValueError(
                f"{where} is {type_of(pair)}, {pair!r}, and no pair of texts; "
                f"give a tuple of two str, ({first}, {second})"
            )
        for name, part in zip((first, second), pair, strict=True):
            _check_text(f"the {name} of {where}", part)


def parts_of_text(text: TextOrPair) -> tuple[str, str | None]:
    """Return a text and its pair, None for a single text."""
    return text if isinstance(text, tuple) else (text, None)


def _listed(unit: str, texts: object) -> Sequence[Any]:
    is_list = isinstance(texts, Sequence) and not isinstance(texts, (str, bytes))
    if not isinstance(texts, Sequence) or not is_list or not texts:
        raise ValueError(f"{unit}s={texts!r}; give a list of at least one {unit}")
    return texts


def _check_text(where: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{where} is empty; remove it")
    check_encodable(where, text)


def check_encodable(where: str, text: str) -> None:
    """Refuse half a character, which no tokenizer reads and no file holds.

    JSON can write a lone surrogate as an escape. Python reads each byte of the shell's
    arguments that is not UTF-8 as one.

    Raises:
        ValueError: Saying where it is.
    """
    check_type(where, text, str, "a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}, {shorten(text, 40)!r}, holds {text[error.start]!r}, which is no "
            "UTF-8: half of a pair (a surrogate), or a byte in another encoding; mend "
            "it, or give the text in UTF-8"
        ) from None


def check_ids(model: PreTrainedModel, ids: Tensor) -> None:
    """Refuse tokens that the model has no embedding of.

    Args:
        model (PreTrainedModel): The model.
        ids (Tensor): Ids by its tokenizer.

    Raises:
        ValueError: Naming the id, and how many there are.
    """
    n_known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if n_known is not None and ids.numel() and int(ids.max()) >= n_known:
        has = (
            f"the {type(model).__name__} has embeddings of {n_known} tokens only: the "
            "tokenizer is of another model. Give the one that the model was trained "
            "with"
        )
        raise OneTextError(
            f"the tokenizer makes the token id {int(ids.max())}, and {has}",
            f"the tokenizer makes another token id, and {has}",
        )
