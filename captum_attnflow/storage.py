"""Results in files: written whole or not at all, and read back to the last bit.

A file is one of safetensors: tensors, and text in its header. The text is JSON that
holds the versions of format and package, the kind of result, where the results come
from (:class:`Provenance`), and the results themselves but for their tensors. Nothing
in it is run: there is no pickle. The header also holds a checksum of the whole file,
taken with zeros in its own place, so that a byte changed anywhere is found. The same
results and provenance make the same bytes.

A version reads all files of its own format version and of earlier ones. Fields that it
does not know, which a later version of the package may have added, it ignores. Files
without a checksum, as earlier versions of the package wrote them, are read unchecked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor
from typing_extensions import Self

from captum_attnflow import __version__
from captum_attnflow._checks import check_type, counted, described, type_of
from captum_attnflow._files import BINARY_FORMATS, replace_file
from captum_attnflow._tree import Compared, Packing, unpack

FORMAT_VERSION = 1
"""It rises when files of this version would be misread by earlier ones."""
KINDS = (
    "Explanation",
    "GenerationExplanation",
    "SlalomExplanation",
    "TextAttribution",
    "GeneratedText",
    "GeneratedFromImage",
    "ImageAttribution",
    "AnswerAttribution",
    "WordAttribution",
    "LabelledWords",
    "SideAttribution",
    "SimilarityAttribution",
)
"""The classes of results that a file may hold."""
_KEY = "captum_attnflow"
_CHECKSUM = "sha256"
_CHECKSUM_KEY = f"{_KEY}_{_CHECKSUM}"
_NO_CHECKSUM = "0" * hashlib.sha256().digest_size * 2
_MAX_HEADER = 100_000_000  # bytes; safetensors reads no longer one
_WANTED = "give a file that save() or save_results() wrote"
_ENDING = ".safetensors"
_MAGIC = {
    **BINARY_FORMATS,
    b"\x80": "a pickle, which could run code when it is read",
    b"{": "JSON",
    b"<": "HTML or XML",
}


@dataclass(frozen=True, eq=False)
class Provenance(Compared):
    """Where results come from: what they do not say themselves.

    All is optional. The pipelines' ``provenance`` fills in what they know.

    Attributes:
        method (str, optional): The method's name.
        options (mapping): Its options.
        model (str, optional): The model's name or folder.
        model_sha256 (str, optional): Hash of its weights and config.
        tokenizer_sha256 (str, optional): Hash of its tokenizer or image processor.
        tokens (tuple, optional): The tokens of every example.
        target (int, str, tuple, list or Tensor, optional): What was attributed.
        notes (mapping): Anything else, of numbers, texts, lists and mappings.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_sha256: str | None = None
    tokenizer_sha256: str | None = None
    tokens: tuple[tuple[str, ...], ...] | None = None
    target: Any = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredResults(Compared):
    """What a file holds.

    Attributes:
        results (tuple): The results, in the order in which they were given.
        kind (str): Their class, one of :data:`KINDS`.
        provenance (Provenance): Where they come from.
        package_version (str): The version of this package that wrote the file.
    """

    results: tuple[Any, ...]
    kind: str
    provenance: Provenance
    package_version: str


class Storable(Compared):
    """A result that can be written to a file, and equals what is read from it.

    Two results are equal if they are of one class and hold the same to the last bit:
    tensors of the same dtype, shape and numbers on whatever device, NaN where the
    other has NaN. A joint flow that was not read is solved for it, if all else is
    equal.
    """

    def save(
        self, path: str | PathLike[str], provenance: Provenance | None = None
    ) -> None:
        """Write the result to a file, see :func:`save_results`.

        Args:
            path (str or path): The file, such as ``"scores.safetensors"``.
            provenance (Provenance, optional): Where it comes from.

        Raises:
            OSError: If the file cannot be written; it then is as it was.
            ValueError: If an argument is of another type, or the file's name ends in
                another format.
        """
        save_results(self, path, provenance)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a result from a file.

        Tensors come on the CPU. :func:`load_results` tells where it comes from, too.

        Args:
            path (str or path): A file that :meth:`save` wrote.

        Returns:
            The result, equal to the last bit.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else, or several results, is damaged, or
                is of a later format version.
        """
        stored = load_results(path)
        if stored.kind != cls.__name__:
            raise ValueError(
                f"{os.fspath(path)} holds a result of the kind {stored.kind} and no "
                f"{cls.__name__}; give it to {stored.kind}.load or to load_results"
            )
        if len(stored.results) != 1:
            raise ValueError(
                f"{os.fspath(path)} holds {len(stored.results)} results, and load "
                "reads one; give the file to captum_attnflow.storage.load_results"
            )
        result: Self = stored.results[0]
        return result

    def __rich_repr__(self) -> Iterator[tuple[str, Any, Any]]:
        """Show a result in a list, where rich prints no picture, in a line or two.

        What is long is left out: scores and tokens, which ``rich.print(result)`` shows.
        """
        assert is_dataclass(self)
        explained = getattr(self, "explained", None)
        if explained != getattr(self, "target", None):  # such as a word and its label
            yield "explained", explained, None
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                yield f"{each.name}.shape", tuple(value.shape), None
            elif _is_short(value):
                yield each.name, value, each.default

    def _as_stored(self) -> Self:
        """Return what is written: the same, with all computed that is still to be."""
        return self


def _is_short(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(each, Storable) for each in value)
    return isinstance(value, (str, int, float, Storable))


def save_results(
    results: Storable | Sequence[Storable],
    path: str | PathLike[str],
    provenance: Provenance | None = None,
) -> None:
    """Write results to one file, such as all that a pipeline returned.

    A joint flow that was not read is solved for it.

    Args:
        results (result or sequence of results): One or several of one of
            :data:`KINDS`.
        path (str or path): The file, whose name ends in ``.safetensors`` or has no
            ending. One that exists is replaced in one step.
        provenance (Provenance, optional): Where they come from.

    Raises:
        FlowError: If a joint flow is still to be solved and cannot be.
        OSError: If the file cannot be written; it then is as it was.
        ValueError: If there is no result, they are of several kinds, one holds what no
            file can, or the file's name ends in another format.

    Examples::

        >>> import tempfile
        >>> from captum_attnflow.demo import load_demo_model
        >>> from captum_attnflow.pipelines.text_classification import TextClassifier
        >>> classifier = TextClassifier(*load_demo_model())
        >>> results = classifier.explain(["a gripping film", "dull"], "attnlrp")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/scores.safetensors"
        ...     save_results(results, file, classifier.provenance("attnlrp"))
        ...     stored = load_results(file)
        >>> list(stored.results) == results, stored.provenance.method
        (True, 'attnlrp')
    """
    check_type("path", path, (str, PathLike), "the name of a file")
    ending = Path(path).suffix
    if ending.lower() not in ("", _ENDING):
        raise ValueError(
            f"path={os.fspath(path)!r} ends in {ending}, and results are written in "
            f"the format of safetensors; give a file that ends in {_ENDING}"
        )
    if provenance is not None:
        check_type("provenance", provenance, Provenance, "a Provenance, or None")
    given, kind = _of_one_kind(results)
    packing = Packing()
    content = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "checksum": _CHECKSUM,
        "kind": kind,
        "provenance": packing.pack("provenance", provenance or Provenance()),
        "results": [
            packing.pack(f"results.{i}", each._as_stored())
            for i, each in enumerate(given)
        ],
    }
    text = json.dumps(content, allow_nan=False)
    header = {_KEY: text, _CHECKSUM_KEY: _NO_CHECKSUM}
    data = _in_one_order(safetensors_torch.save(packing.finish(), header))
    n_bytes = int.from_bytes(data[:8], "little")
    if n_bytes > _MAX_HEADER:
        raise ValueError(
            f"the texts and numbers of {counted(len(given), 'result')} fill "
            f"{n_bytes:,} bytes, and a file holds {_MAX_HEADER:,}, beside its "
            "tensors; save the results in several files"
        )
    replace_file(path, _with_checksum(data, _NO_CHECKSUM, _checksum(data)))


def _in_one_order(data: bytes) -> bytes:
    """Sort the header's texts, so that the same results make the same file.

    safetensors writes them in another order each time.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # tensors start at a multiple of 8 bytes
    return len(written).to_bytes(8, "little") + written + data[end:]


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _with_checksum(data: bytes, old: str, new: str) -> bytes:
    """Put another checksum into a file's header.

    Texts of results hold no such place: JSON puts a backslash before their quotes.
    """
    place = f'"{_CHECKSUM_KEY}":"%s"'
    return data.replace((place % old).encode(), (place % new).encode(), 1)


def _of_one_kind(results: object) -> tuple[list[Storable], str]:
    accepted = f"a result or a list of results of one kind: {', '.join(KINDS)}"
    many = results if isinstance(results, (list, tuple)) else [results]
    for each in many:
        if type(each).__name__ not in KINDS or not isinstance(each, Storable):
            raise ValueError(
                f"results={described(results)} has {type_of(each)}; give {accepted}"
            )
    kinds = sorted({type(each).__name__ for each in many})
    if len(kinds) != 1:
        found = f"are of the kinds {', '.join(kinds)}" if kinds else "are none"
        raise ValueError(f"the results {found}; give {accepted}")
    return list(many), kinds[0]


def load_results(path: str | PathLike[str]) -> StoredResults:
    """Read the results of a file, of whatever kind they are.

    Args:
        path (str or path): A file that :func:`save_results` or a result's ``save``
            wrote.

    Returns:
        StoredResults: The results, with tensors on the CPU, and where they come from.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, is damaged or was changed, or is of a
            later format version.
    """
    check_type("path", path, (str, PathLike), "the name of a file")
    name = os.fspath(path)
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "is not there"
        raise FileNotFoundError(f"the file {name!r} {what}; {_WANTED}")
    # Not mapped to memory: who cuts the file off later would end the process.
    content, tensors = _parse(name, Path(path).read_bytes())
    _check_version(name, content)
    try:
        stored = StoredResults(
            results=tuple(unpack(content["results"], tensors)),
            kind=content["kind"],
            provenance=unpack(content["provenance"], tensors),
            package_version=str(content["package_version"]),
        )
        kinds = {type(each).__name__ for each in stored.results}
        if kinds != {stored.kind} or stored.kind not in KINDS:
            raise ValueError(f"it is said to hold {stored.kind}, and holds {kinds}")
        check_type("provenance", stored.provenance, Provenance, "a Provenance")
    # What the classes themselves refuse, too, down to missing attributes of fields.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(name, error) from error
    return stored


def _parse(name: str, data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        tensors = safetensors_torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        text, checksum = metadata.get(_KEY), metadata.get(_CHECKSUM_KEY)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        for magic, what in _MAGIC.items():
            # A header's length may start with any of them; the header follows it.
            if data.startswith(magic) and data[8:9] != b"{":
                raise ValueError(
                    f"{name!r} is {what}, and no file of results; {_WANTED}"
                ) from error
        raise _damaged(name, error) from error
    if text is None:
        raise ValueError(
            f"{name!r} is a safetensors file of something else, such as a model's "
            f"weights, and holds no results of captum-attnflow; {_WANTED}"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from error
    _check_checksum(name, data, content, checksum)
    return content, tensors


def _check_checksum(
    name: str, data: bytes, content: object, checksum: str | None
) -> None:
    """Refuse a file that is not what was written, if it says what that was."""
    named = content.get("checksum") if isinstance(content, dict) else None
    if checksum is None and named != _CHECKSUM:
        return
    blank = _with_checksum(data, str(checksum), _NO_CHECKSUM)
    if _checksum(blank) != checksum:
        raise ValueError(
            f"{name!r} is no whole file of results: something in it was changed after "
            f"it was written, as its {_CHECKSUM} checksum says; copy it anew, or "
            "write it again by save() or save_results()"
        )


def _check_version(name: str, content: object) -> None:
    found = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or type(found) is not int or found < 1:
        raise _damaged(name, ValueError(f"its format version is {described(found)}"))
    if found > FORMAT_VERSION:
        raise ValueError(
            f"{name!r} is of format version {found}, written by captum-attnflow "
            f"{described(content.get('package_version'))}; this version, "
            f"{__version__}, reads up to {FORMAT_VERSION}. Give it to that version or "
            "a later one: pip install --upgrade captum-attnflow"
        )


def _damaged(name: str, error: Exception) -> ValueError:
    reason = str(error) if not isinstance(error, KeyError) else f"{error} is missing"
    return ValueError(
        f"{name!r} is no whole file of results: it is empty, was cut off or changed "
        f"({reason}); {_WANTED}"
    )
