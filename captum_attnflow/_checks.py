"""Options are named, with literal values; anything else is refused when given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import wraps
from inspect import Signature, signature
from numbers import Integral
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    TypeGuard,
    TypeVar,
    cast,
)

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_SHORT = 60  # characters
_MOST_COLUMNS = 100
_NO_VOWEL = ("one", "uint", "union", "user", "uuid")  # as they are spoken


class OneTextError(ValueError):
    """What is wrong with one text, in words that quote it or give its numbers.

    Args:
        message (str): What the error says.
        reason (str): The same in words that every such text has: tables count the rows
            of a reason.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)  # of both, an error is copied to a process

    @property
    def reason(self) -> str:
        """Why the text cannot be explained."""
        return str(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


def check_batch_size(given: object) -> None:
    """Refuse what is no positive number of rows, nor None.

    Raises:
        ValueError: Saying what was given.
    """
    is_number = isinstance(given, int) and not isinstance(given, bool)
    if given is not None and not (is_number and 0 < cast(int, given) < 2**63):
        raise ValueError(
            f"internal_batch_size={described(given)} must be a positive integer or None"
        )


def check_flags(**given: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ValueError: Saying what was given.
    """
    for name, flag in given.items():
        check_type(name, flag, bool, "True or False")


def check_grad_kwargs(given: object) -> None:
    """Refuse what ``torch.autograd.grad`` does not take.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    accepted = ("allow_unused", "create_graph", "materialize_grads", "retain_graph")
    names = given if isinstance(given, dict) else {}
    if given is not None and (not isinstance(given, dict) or set(names) - {*accepted}):
        raise ValueError(
            f"grad_kwargs={described(given)}; give a dict of arguments of "
            f"torch.autograd.grad: {', '.join(accepted)}"
        )


def check_integer(
    name: str, given: object, least: int | None = None, most: int = 2**63 - 1
) -> None:
    """Refuse what is no integer, or one that is not from the least to the most.

    Raises:
        ValueError: Saying what was given.
    """
    is_integer = isinstance(given, int) and not isinstance(given, bool)
    if not is_integer or (least is not None and cast(int, given) < least):
        accepted = "an integer" if least is None else f"an integer of at least {least}"
        raise ValueError(f"{name}={described(given)} must be {accepted}")
    if cast(int, given) > most:
        raise ValueError(f"{name}={described(given)} must be at most {most:,}")


def check_seed(given: object) -> None:
    """Refuse what seeds no generator of torch.

    Raises:
        ValueError: Saying what was given.
    """
    check_integer("seed", given, -(2**63))


def is_pipeline(given: object) -> bool:
    """Whether an object is a pipeline of transformers, which is not imported for it."""
    return any(kind.__name__ == "Pipeline" for kind in type(given).__mro__)


def check_callable(name: str, given: object) -> None:
    """Refuse what cannot be called.

    Raises:
        ValueError: Saying what was given.
    """
    if is_pipeline(given):
        raise ValueError(
            f"{name} is a transformers pipeline, which takes texts; give a function of "
            f"tensors, such as lambda ids: {name}.model(ids).logits"
        )
    if not callable(given) or isinstance(given, type):
        raise ValueError(
            f"{name}={described(given)} is {type_of(given)}, which cannot be "
            "called; give a model or a function of its inputs"
        )


def check_type(
    name: str, given: object, kinds: type | tuple[type, ...], accepted: str
) -> None:
    """Refuse objects of other types.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    if not isinstance(given, kinds):
        raise ValueError(
            f"{name}={described(given)} is {type_of(given)}; give {accepted}"
        )


def check_strings(name: str, given: object, accepted: str) -> None:
    """Refuse what is no list or tuple of str.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    check_type(name, given, (list, tuple), accepted)
    for one in cast(Sequence[object], given):
        if not isinstance(one, str):
            raise ValueError(
                f"{name} holds {described(one)}, {type_of(one)}; give {accepted}"
            )


def check_shape(shape: object) -> None:
    """Refuse what is no number of texts and of positions.

    Raises:
        ValueError: Saying what was given.
    """
    check_type("shape", shape, tuple, "texts and positions, (B, T)")
    for size in cast(tuple[object, ...], shape):
        check_integer("a size of shape", size, 0)
    if len(cast(tuple[object, ...], shape)) != 2:
        raise ValueError(f"shape={shape!r}; give texts and positions, (B, T)")


def with_article(name: str) -> str:
    """Put the indefinite article before the name of a type.

    Examples::

        >>> [with_article(name) for name in ("int", "str", "uint8", "ndarray")]
        ['an int', 'a str', 'a uint8', 'an ndarray']
        >>> [with_article(name) for name in ("UserDict", "UnionType", "UntypedStorage")]
        ['a UserDict', 'a UnionType', 'an UntypedStorage']
    """
    is_vowel = name[:1].lower() in "aeiou" and not name.lower().startswith(_NO_VOWEL)
    # "n" is read as a word where it counts dimensions.
    return f"{'an' if is_vowel or name.startswith('nd') else 'a'} {name}"


def type_of(given: object) -> str:
    """Say of which type something is: ``"an int"``."""
    return with_article(type(given).__name__)


def described(given: object) -> str:
    """Show what was given, or where that would be long say of which type it is."""
    shown = repr(given)
    return shown if len(shown) <= _SHORT else f"of type {type(given).__name__}"


def counted(number: int, thing: str) -> str:
    """Say how many there are.

    Examples::

        >>> counted(1, "part file"), counted(1200, "row")
        ('1 part file', '1,200 rows')
    """
    return f"{number:,} {thing}" + "s" * (number != 1)


def index_of_label(given: object, labels: Sequence[str]) -> int | None:
    """Return the index of a label that a name or an index gives; None of no label.

    An integer is an index also where labels are numbers; a str is a name first.

    Examples::

        >>> index_of_label("2", ["1", "2"]), index_of_label(0, ["1", "2"])
        (1, 0)
    """
    if isinstance(given, str) and given in labels:
        return labels.index(given)
    is_index = str(given).isdecimal() and int(str(given)) < len(labels)
    return int(str(given)) if is_index else None


def which_of(unit: str, number: int, total: int) -> str:
    """Say which of several is meant, without a number where there is one alone.

    Examples::

        >>> which_of("text", 1, 1), which_of("text", 2, 3)
        ('the text', 'text 2 of 3')
    """
    return f"the {unit}" if total == 1 else f"{unit} {number} of {total}"


_DELIMITERS = ",;\t|"


def check_column(
    name: str, column: str, there: Sequence[str], setting: str | None = None
) -> None:
    """Refuse the name of a column that a table does not have, or has twice.

    Args:
        name (str): Of the table.
        column (str): The column.
        there (sequence of str): The table's columns.
        setting (str, optional): What names the column, such as ``"text_column"``.

    Raises:
        ValueError: Naming those that there are, and what may be meant.

    Examples::

        >>> check_column("texts.csv", "text", ["text", "label"])
        >>> check_column("texts.csv", "text", ["Text", "label"])
        Traceback (most recent call last):
        ValueError: texts.csv has no column 'text'; it has 'Text', 'label'; give 'Text'
        >>> check_column("texts.csv", "text", ["review"], "text_column")
        Traceback (most recent call last):
        ValueError: texts.csv has no column 'text'; it has 'review'; give ...
    """
    if there.count(column) > 1:
        raise ValueError(
            f"{name} has the column {column!r} more than once; rename or remove all "
            "but one"
        )
    if column in there:
        return
    found = [delimiter for delimiter in _DELIMITERS if delimiter in "".join(there)]
    if len(there) == 1 and found:
        raise ValueError(
            f"{name} has no column {column!r}: its header was read as the one column "
            f"{there[0]!r}, whose names look separated by {found[0]!r}. Write it with "
            "commas as .csv, or with tabs as .tsv"
        )
    named = ", ".join(map(repr, there[:_MOST_COLUMNS])) or "none"
    meant = [each for each in there if _plain(each) == _plain(column)]
    advice = repr(meant[0]) if meant else "one of them"
    if setting is not None:
        advice = f"{setting}={meant[0]!r}" if meant else f"one by {setting}=..."
    raise ValueError(f"{name} has no column {column!r}; it has {named}; give {advice}")


def _plain(name: str) -> str:
    return name.strip().casefold()


def check_choice(name: str, given: object, accepted: Collection[str]) -> None:
    """Refuse a value that is not among those accepted.

    Raises:
        ValueError: Naming the option, what was given and what is accepted.
    """
    if not isinstance(given, str) or given not in list(accepted):
        choices = ", ".join(repr(choice) for choice in accepted)
        raise ValueError(f"{name}={described(given)} is unknown; give one of {choices}")


def check_example(given: object, n_examples: int) -> None:
    """Refuse what is no index into a batch, counted from 0.

    Raises:
        ValueError: Saying what was given and how large the batch is.
    """
    is_integer = isinstance(given, Integral) and not isinstance(given, bool)
    is_index = is_integer and 0 <= int(cast(Integral, given)) < n_examples
    if not is_index:
        raise ValueError(
            f"example={described(given)} is not in a batch of {n_examples}; give an "
            "integer, as examples are counted from 0"
        )


DTYPES = ("float32", "bfloat16", "float16", "float64")
"""The names of what scores, and the weights of a model, may be of."""
Kind = Literal["floats", "bools", "integers"]

_DTYPES = {
    "floats": DTYPES,
    "bools": ("bool",),
    "integers": ("int64", "int32", "int16", "int8", "uint8"),
}
_CONVERSIONS = {"floats": "double", "bools": "bool", "integers": "long"}


def _is_tensor(given: object) -> TypeGuard[Tensor]:
    # The command line checks its options without torch, whose import takes a second.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def check_tensor(
    name: str, given: object, kind: Kind, shape: Sequence[int | str] | None = None
) -> None:
    """Refuse what is no ordinary tensor of a kind and a shape.

    Args:
        name (str): Of the argument.
        given (object): What was given for it.
        kind (str): ``"floats"``, ``"bools"`` or ``"integers"``.
        shape (sequence of int or str, optional): Sizes, or letters of any size from 1
            on, the same for the same letter; ``"B"`` may be 0.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    if not _is_tensor(given):
        raise ValueError(
            f"{name} is {type_of(given)}; give a tensor, such as torch.as_tensor(...)"
        )
    _refuse_other_storage(name, given)
    if str(given.dtype).removeprefix("torch.") not in _DTYPES[kind]:
        raise ValueError(
            f"{name} is a Tensor of {given.dtype}; give one of {kind}, such as "
            f"{name}.{_CONVERSIONS[kind]}()"
        )
    if shape is not None and not _fits(tuple(given.shape), shape):
        wanted = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; give a tensor of shape ({wanted})"
        )


def check_dense(name: str, given: object, accepted: str) -> None:
    """Refuse what is no ordinary tensor of real numbers.

    Args:
        name (str): Of the argument.
        given (object): What was given for it.
        accepted (str): What is accepted, such as ``"token ids (B, T)"``.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    if not _is_tensor(given):
        raise ValueError(f"{name} is {type_of(given)}; give a tensor: {accepted}")
    _refuse_other_storage(name, given)
    if given.is_complex():
        raise ValueError(
            f"{name} is a tensor of {given.dtype}; give real numbers: {accepted}"
        )


def check_additional(given: tuple[object, ...] | None, n_rows: int) -> None:
    """Refuse further arguments that no pass over a part of a batch can be given.

    Args:
        given (tuple, optional): What is passed on behind the inputs.
        n_rows (int): Rows of the batch.

    Raises:
        ValueError: If one is a tensor that is not stored as a plain array, or holds
            rows of the batch where they are not cut with it: in a list, a tuple, a
            dict or an array of NumPy.
    """
    for number, argument in enumerate(given or ()):
        name = f"additional_forward_args[{number}]"
        if _is_tensor(argument):
            _refuse_other_storage(name, argument)
            continue
        kind = type_of(argument)
        if any(tuple(part.shape[:1]) == (n_rows,) for part in _tensors_in(argument)):
            raise ValueError(
                f"{name} is {kind} that holds tensors with one row per example, "
                "which are not cut with the batch there; give each tensor as an "
                "argument of its own, (mask, ...), and a forward_func that puts them "
                "together"
            )
        if getattr(argument, "shape", ())[:1] == (n_rows,):
            raise ValueError(
                f"{name} is {kind} with one row per example, which is not cut with "
                f"the batch; give a tensor, torch.as_tensor({name})"
            )


def _tensors_in(given: object) -> Iterator[Tensor]:
    """Go through the tensors that a list, a tuple or a dict holds, at any depth."""
    parts = given.values() if isinstance(given, dict) else given
    if isinstance(given, (list, tuple, dict)):
        for part in cast(Iterable[object], parts):
            if _is_tensor(part) and not part.is_nested:
                yield part
            yield from _tensors_in(part)


def check_finite(name: str, given: Tensor) -> None:
    """Refuse a tensor with entries that are NaN or infinite.

    Raises:
        ValueError: Saying how many there are.
    """
    is_other = ~given.isfinite()
    if bool(is_other.any()):
        raise ValueError(
            f"{name} holds numbers that are NaN or infinite, "
            f"{int(is_other.sum())} of {given.numel()}; give finite ones, by a model "
            "and inputs that make them"
        )


def _refuse_other_storage(name: str, given: Tensor) -> None:
    if given.is_nested:
        kind, advice = "nested", f"{name}.to_padded_tensor(0)"
    elif given.is_quantized:
        kind, advice = "quantized", f"{name}.dequantize()"
    elif str(given.layout) != "torch.strided":
        kind, advice = "sparse", f"{name}.to_dense()"
    elif given.is_meta:
        kind, advice = "meta", "one on a device that holds its values"
    else:
        return
    raise ValueError(f"{name} is a {kind} tensor; give {advice}")


def _fits(given: tuple[int, ...], wanted: Sequence[int | str]) -> bool:
    if len(given) != len(wanted):
        return False
    sizes: dict[int | str, int] = {}
    return all(
        size == (name if isinstance(name, int) else sizes.setdefault(name, size))
        and (isinstance(name, int) or name == "B" or size > 0)
        for size, name in zip(given, wanted, strict=True)
    )


def call_by(
    owner: type, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call a method that a base holds, with errors of arguments that name the class.

    Python names the class that a method is written in, which users may never have seen.

    Args:
        owner (type): The class that the user calls.
        name (str): The method's name.
        function (Callable): The method.
        args (Any): Its arguments, itself included.
        kwargs (Any): Its named arguments.

    Raises:
        TypeError: If the arguments do not fit the method's signature.
    """
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        accepted = signature(function)
        try:
            accepted.bind(*args, **kwargs)
        except TypeError:
            names = ", ".join(list(accepted.parameters)[1:])
            called = owner.__name__ + ("" if name == "__init__" else f".{name}")
            # Such as "Base.method() got an unexpected keyword argument".
            what = str(error).partition("() ")[2]
            raise TypeError(f"{called}() {what}; it takes {names}") from None
        raise


def names_its_class(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method of a base name the class it is called of, where arguments fail."""

    @wraps(method)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        found: T = call_by(type(args[0]), method.__name__, method, *args, **kwargs)
        return found

    return named


def signature_at_layer(
    of_layer: Callable[..., Any],
    of_method: Callable[..., Any],
    without: tuple[str, ...] = (),
) -> Signature:
    """Name a method's options in the signature of its Layer form's constructor.

    Args:
        of_layer (Callable): That constructor, which takes ``**options``.
        of_method (Callable): That of the method.
        without (tuple of str): Options that the Layer form does not have.
    """
    shown = [
        part
        for part in signature(of_layer).parameters.values()
        if part.kind is not part.VAR_KEYWORD
    ]
    shown += [
        part
        for part in signature(of_method).parameters.values()
        if part.kind is part.KEYWORD_ONLY and part.name not in without
    ]
    return Signature(shown)


def constructor_at_layer(
    cls: type[Any], of_layer: Callable[..., Any], of_method: Callable[..., Any]
) -> Callable[..., None]:
    """Make the constructor of a Layer form, which names the options of its method.

    Args:
        cls (type): The Layer form.
        of_layer (Callable): The constructor of its base, which takes ``**options``.
        of_method (Callable): That of the method.
    """

    def construct(self: Any, *args: Any, **options: Any) -> None:
        initialise: Any = super(cls, self).__init__
        initialise(*args, **options)

    def constructor(*args: Any, **options: Any) -> None:
        call_by(type(args[0]), "__init__", construct, *args, **options)

    for function in (construct, constructor):
        shown = signature_at_layer(of_layer, of_method)
        function.__signature__ = shown  # type: ignore[attr-defined]
    return constructor


def check_contrast(attribution: object) -> None:
    """Refuse a contrast of outputs by a method that does not see what differs in them.

    Args:
        attribution (Attribution): The method, as it was made.

    Raises:
        ValueError: If its scores are the same for all outputs.
    """
    if getattr(attribution, "reads_attention_alone", False):
        raise ValueError(
            f"against was given with {type(attribution).__name__}, which reads "
            "attention alone: its scores are the same for every output. Leave against "
            "out, or take a method that follows the output, such as RelevanceFlow"
        )
