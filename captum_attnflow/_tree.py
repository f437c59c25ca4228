"""Frozen dataclasses of tensors: compared, and as a tree of JSON beside tensors.

Nothing that is read decides what is called: only the classes in :data:`CLASSES` are
made, of fields whose types fit their annotations. In the tree stand for

- a tensor ``{"tensor": name}``,
- a tuple ``{"tuple": [...]}``, and a tuple of floats ``{"floats": [start, stop]}``,
  entries of one float64 tensor that all such tuples share,
- a mapping ``{"mapping": [[key, value], ...]}``,
- a float that JSON has no number for ``{"float": "nan"}``,
- a dataclass ``{"class": name, "fields": {...}}``,

and for everything else what JSON has for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from captum_attnflow._checks import check_dense, described, type_of

CLASSES: dict[str, str] = {
    "AnswerAttribution": "captum_attnflow.pipelines.question_answering",
    "ConservationDiagnostics": "captum_attnflow.explanation",
    "Explanation": "captum_attnflow.explanation",
    "FlowDiagnostics": "captum_attnflow.flow.scores",
    "FlowSolution": "captum_attnflow.flow.solvers.base",
    "GeneratedFromImage": "captum_attnflow.pipelines.image_text_generation",
    "GeneratedText": "captum_attnflow.pipelines.text_generation",
    "GenerationExplanation": "captum_attnflow.explanation",
    "GivenFlow": "captum_attnflow.explanation",
    "ImageAttribution": "captum_attnflow.pipelines.image_classification",
    "LabelledWord": "captum_attnflow.pipelines.token_classification",
    "LabelledWords": "captum_attnflow.pipelines.token_classification",
    "LayeredNetwork": "captum_attnflow.flow.network",
    "Patch": "captum_attnflow.pipelines.image_classification",
    "Propagation": "captum_attnflow.capture.record",
    "Provenance": "captum_attnflow.storage",
    "SideAttribution": "captum_attnflow.pipelines.sentence_similarity",
    "SimilarityAttribution": "captum_attnflow.pipelines.sentence_similarity",
    "SlalomExplanation": "captum_attnflow.slalom.model",
    "SlalomFit": "captum_attnflow.slalom.model",
    "SlalomModel": "captum_attnflow.slalom.model",
    "SlalomReading": "captum_attnflow.slalom.model",
    "TextAttribution": "captum_attnflow.pipelines.text_classification",
    "TokenSequence": "captum_attnflow.capture.record",
    "Word": "captum_attnflow.texts.units",
    "WordAttribution": "captum_attnflow.pipelines.token_classification",
}
"""The module of each class that can be written and read, imported when it is read."""
FLOATS = "floats"
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def alike(one: object, other: object) -> bool:
    """Whether two objects hold the same, to the last bit.

    Types, dtypes and shapes count, devices do not, nor does the order of a mapping's
    entries. NaN is NaN, whatever its bits, and 0.0 is not -0.0.

    Args:
        one (object): Built of what the module's first lines list; what is anything
            else is compared by ``==``.
        other (object): The same.

    Examples::

        >>> alike((1.0, float("nan")), (1.0, float("nan"))), alike(1, 1.0)
        (True, False)
    """
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _alike_tensors(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        if one != other:
            return math.isnan(one) and math.isnan(other)
        return math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            alike(value, other[key]) for key, value in one.items()
        )
    if is_dataclass(one) and not isinstance(one, Compared):
        return _alike_fields(one, other)
    return bool(one == other)


class Compared:
    """A dataclass that equals what holds the same to the last bit, by :func:`alike`.

    The ``==`` that Python makes compares tensors by ``==``, which is a tensor again,
    and takes a NaN for another than itself.
    """

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same class and holds the same."""
        if type(self) is not type(other):
            return NotImplemented
        return self is other or _alike_fields(self, other)

    def __hash__(self) -> int:
        """Hash texts and counts alone: a tensor may be changed in place."""
        assert is_dataclass(self)
        values = [getattr(self, field.name) for field in fields(self)]
        plain = [value for value in values if isinstance(value, (str, int))]
        return hash((type(self), *plain))


def _alike_fields(one: object, other: object) -> bool:
    assert is_dataclass(one)
    names = [field.name for field in fields(one) if field.compare]
    return all(alike(getattr(one, name), getattr(other, name)) for name in names)


def _alike_tensors(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.layout != torch.strided or other.layout != torch.strided:
        return one.layout == other.layout and alike(one.to_dense(), other.to_dense())
    first, second = one.detach().cpu(), other.detach().cpu()
    equal = first == second
    if not first.is_floating_point():
        return bool(equal.all())
    # An equal zero may have the other sign; NaN is never equal, even to itself.
    signed = equal & (first.signbit() == second.signbit())
    return bool((signed | (first.isnan() & second.isnan())).all())


class Packing:
    """Takes objects apart.

    Attributes:
        tensors (dict): The tensors so far, dense, on the CPU, by their place in the
            tree.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._floats: list[float] = []
        self._storages: set[int] = set()

    def finish(self) -> dict[str, Tensor]:
        """Return the tensors, with that of the floats."""
        if not self._floats:
            return self.tensors
        return {
            **self.tensors,
            FLOATS: torch.tensor(self._floats, dtype=torch.float64),
        }

    def pack(self, place: str, given: object) -> Any:
        """Return the tree of an object, and keep its tensors.

        Args:
            place (str): Where it stands, for the names of tensors and for errors.
            given (object): Built of what the module's first lines list.

        Raises:
            ValueError: Naming what cannot be written.
        """
        if given is None or isinstance(given, (bool, int, str)):
            return given
        if isinstance(given, float):
            number = float(given)
            return number if math.isfinite(number) else {"float": str(number)}
        if isinstance(given, Tensor):
            self.tensors[place] = self._alone(place, given)
            return {"tensor": place}
        if isinstance(given, tuple):
            if given and all(type(entry) is float for entry in given):
                start = len(self._floats)
                self._floats += given
                return {"floats": [start, start + len(given)]}
            return {"tuple": self._entries(place, given)}
        if isinstance(given, list):
            return self._entries(place, given)
        if isinstance(given, Mapping):
            keys = self._entries(f"{place}.keys", list(given))
            values = self._entries(place, list(given.values()))
            return {"mapping": [list(pair) for pair in zip(keys, values, strict=True)]}
        name = type(given).__name__
        if is_dataclass(given) and CLASSES.get(name) == type(given).__module__:
            own = {
                field.name: self.pack(
                    f"{place}.{field.name}", getattr(given, field.name)
                )
                for field in fields(given)
            }
            return {"class": name, "fields": own}
        raise ValueError(
            f"{place}={described(given)} is {type_of(given)}, which a file of results "
            "cannot hold; give numbers, texts, tensors, lists, dicts and the results "
            "of this package"
        )

    def _entries(self, place: str, given: Sequence[object]) -> list[Any]:
        return [self.pack(f"{place}.{i}", entry) for i, entry in enumerate(given)]

    def _alone(self, place: str, tensor: Tensor) -> Tensor:
        check_dense(place, tensor, "numbers that a file can hold")
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{place} is a tensor of {tensor.dtype}; give one of "
                + ", ".join(str(dtype) for dtype in _DTYPES)
            )
        dense = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, as one would be two when read.
        memory = dense.untyped_storage().data_ptr()
        if memory in self._storages:
            return dense.clone()
        self._storages.add(memory)
        return dense


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Make an object of its tree; the inverse of :meth:`Packing.pack`.

    Fields that the class does not have are ignored: a later version may write more.

    Args:
        tree (object): As ``pack`` makes it, but from anywhere.
        tensors (mapping): Its tensors by name.

    Raises:
        ValueError: If it is no such tree. What fits the annotations of a class may
            still be refused by the class itself.
    """
    if isinstance(tree, list):
        return [unpack(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"tensor": str(name)}:
            return _tensor(name, tensors)
        case {"floats": [int(start), int(stop)]}:
            floats = _tensor(FLOATS, tensors)
            if not 0 <= start <= stop <= len(floats):
                raise ValueError(f"it names floats {start} to {stop} of {len(floats)}")
            return tuple(floats[start:stop].tolist())
        case {"float": "nan" | "inf" | "-inf" as number}:
            return float(number)
        case {"tuple": list(entries)}:
            return tuple(unpack(entries, tensors))
        case {"mapping": list(pairs)}:
            return dict(unpack(pairs, tensors))
        case {"class": str(name), "fields": dict(given)}:
            return _instance(name, given, tensors)
    raise ValueError(f"{described(tree)} stands for nothing that is known")


def _tensor(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing")
    return tensors[name]


def _instance(name: str, given: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if name not in CLASSES:
        raise ValueError(f"{described(name)} is no class of results")
    made: Any = getattr(import_module(CLASSES[name]), name)
    hints, known = _hints(made), {}
    for field in fields(made):
        if field.name in given:
            value = unpack(given[field.name], tensors)
            if not fits(value, hints[field.name]):
                raise ValueError(
                    f"{field.name} of the {name} is {type_of(value)} and no "
                    f"{field.type}"
                )
            known[field.name] = value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"the {name} has no {field.name!r}")
    return made(**known)


@cache
def _hints(made: type) -> dict[str, Any]:
    return get_type_hints(made)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of the type that an annotation names.

    Args:
        value (object): The value.
        hint (type): As ``get_type_hints`` resolves it.

    Examples::

        >>> fits((1, 2), tuple[int, ...]), fits([1, "b"], list[int])
        (True, False)
    """
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if kind is Literal:
        return value in arguments
    if hint is Any or not isinstance(value, kind or hint):
        # An int is a number where a float is wanted.
        return hint is Any or (hint is float and type(value) is int)
    if not arguments:
        return True
    if isinstance(value, Mapping):
        of_keys, of_values = arguments
        return all(
            fits(key, of_keys) and fits(entry, of_values)
            for key, entry in value.items()
        )
    if isinstance(value, tuple) and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    assert isinstance(value, Collection)
    return all(fits(entry, arguments[0]) for entry in value)
