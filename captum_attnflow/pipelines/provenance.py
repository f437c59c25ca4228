"""Models with what makes their arguments, and which of them made results, by hashes.

They depend on contents alone. A model has the same hash from a folder, from the hub or
made in memory, on any device, with any kernel of attention; a tokenizer before and
after it was used.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from captum_attnflow._checks import check_choice
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS
from captum_attnflow.pipelines.pretrained import (
    DeviceMap,
    Given,
    Kind,
    load_pretrained,
)
from captum_attnflow.storage import Provenance

_Parts = TypeVar("_Parts", bound="KnownParts")

# Where a config was read, by what, and how it runs; none of it changes a model.
_NOT_HASHED = (
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def hash_of_model(model: nn.Module) -> str:
    """Hash a model's class, config and weights.

    Args:
        model (Module): The model; all its weights are read, two seconds a gigabyte.

    Returns:
        str: SHA-256, 64 hexadecimal digits.

    Raises:
        ValueError: If weights are on a disk, where a ``device_map`` left them.

    Examples::

        >>> one, same = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> hash_of_model(one) == hash_of_model(same)
        False
        >>> same.load_state_dict(one.state_dict())
        <All keys matched successfully>
        >>> hash_of_model(one) == hash_of_model(same)
        True
    """
    digest = hashlib.sha256(_described(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(
                f"the weights {name!r} of the model are on a disk, by its device_map, "
                "and are not read for a hash; load the model without device_map to "
                "say where results come from"
            )
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous()
        # One element is contiguous at any stride, but not seen as bytes.
        flat = flat.as_strided((flat.numel(),), (1,))
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def hash_of_companion(companion: Any) -> str:
    """Hash a tokenizer, an image processor, or a processor of both.

    Args:
        companion (Callable): What makes the model's arguments. Of a tokenizer that is
            written in Python its vocabulary and special tokens are hashed.

    Returns:
        str: SHA-256, 64 hexadecimal digits.
    """
    described = _described(companion)
    backend = getattr(companion, "backend_tokenizer", None)
    if backend is not None:
        # Every call leaves its own padding and truncation there.
        content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        described = _sorted_json([type(companion).__name__, content])
    elif hasattr(companion, "get_vocab"):
        content = [companion.get_vocab(), companion.special_tokens_map]
        described = _sorted_json([type(companion).__name__, content])
    tokenizer = getattr(companion, "tokenizer", None)
    if tokenizer is not None:  # of a processor, whose own settings do not hold it
        described = _sorted_json([described, hash_of_companion(tokenizer)])
    return hashlib.sha256(described.encode()).hexdigest()


def _described(part: Any) -> str:
    settings: Any = part if hasattr(part, "to_dict") else getattr(part, "config", None)
    known = settings.to_dict() if hasattr(settings, "to_dict") else {}
    kept = {name: value for name, value in known.items() if name not in _NOT_HASHED}
    return _sorted_json([type(part).__name__, kept])


def _sorted_json(content: object) -> str:
    return json.dumps(content, sort_keys=True, default=str)


class KnownParts:
    """A model with its tokenizer or image processor, which says what results come from.

    Attributes:
        model (PreTrainedModel): The model.
        tokenizer (Callable): What makes its arguments; of images the ``processor``.
    """

    model: PreTrainedModel
    _kind: ClassVar[Kind]

    @classmethod
    def load(
        cls: type[_Parts],
        name: Given,
        device: str | None = None,
        dtype: str = "float32",
        device_map: DeviceMap | None = None,
    ) -> _Parts:
        """Load the model from a local folder, by its hub id, or from a pipeline.

        Args:
            name (str, path or Pipeline): As :func:`load_pretrained` takes it, like what
                follows, and which says what is read. Of a pipeline its inputs become
                what they are there.
            device (str, optional): Where the model runs.
            dtype (str): Of its weights.
            device_map (str or mapping, optional): How it is split over devices.

        Raises:
            FileNotFoundError: As :func:`load_pretrained`.
            ValueError: As :func:`load_pretrained`, or if what was loaded does not fit
                the task.
        """
        model, companion = load_pretrained(
            name, cls._kind, device=device, dtype=dtype, device_map=device_map
        )
        return cls._of_loaded(name, model, companion)

    @classmethod
    def _of_loaded(
        cls: type[_Parts], name: Given, model: PreTrainedModel, companion: Any
    ) -> _Parts:
        """Put the parts together; a class may read more of where they came from."""
        make: Any = cls
        made: _Parts = make(model, companion)
        return made

    def provenance(
        self, method: str = DEFAULT_METHOD, target: Any = None, **options: Any
    ) -> Provenance:
        """Say where the results of ``explain`` come from, to be saved with them.

        All weights are read for their hash.

        Args:
            method (str): As given to ``explain``.
            target (str or int, optional): As given to it.
            **options: All else that was given to it. What is no number, text or list
                of these, such as a solver, is kept as what it prints.

        Raises:
            ValueError: If the method is unknown.
        """
        check_choice("method", method, METHODS)
        is_text = hasattr(self, "tokenizer")
        return Provenance(
            method=method,
            options={name: _plain(value) for name, value in options.items()},
            model=getattr(self.model, "name_or_path", None) or None,
            model_sha256=hash_of_model(self.model),
            tokenizer_sha256=hash_of_companion(
                getattr(self, "tokenizer" if is_text else "processor")
            ),
            target=_plain(target),
        )


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return repr(value)
