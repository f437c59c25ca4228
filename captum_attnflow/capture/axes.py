"""Which axis of a tensor is which of another, and which holds the keys.

Keys are the axis that a softmax runs over, wherever a model keeps them and wherever it
moves them to; sizes do not tell, since heads, rows and tokens may be as many. Calls
that move axes are run once more on an empty tensor, whose sizes and strides are all
different. Where the axes of one tensor are in the graph of another, gradients tell.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

if TYPE_CHECKING:
    from captum_attnflow.capture.graph import DependencyGraph

Axes = tuple[int | None, ...]
"""For each axis of a tensor the axis of another that it is; None if it is none."""

_SWAPS = {"swapaxes", "swapdims", "t", "transpose"}
TRANSPOSITIONS = _SWAPS | {"T", "H", "mT", "mH", "adjoint"}
TRANSPOSITIONS |= {"moveaxis", "movedim", "permute"}
# Which of a tensor's axes these keep does not depend on sizes; of views it does.
_SLICES = {"__getitem__", "narrow", "unsqueeze"}
_VIEWS = {"expand", "reshape", "squeeze", "unflatten", "view", "view_as", "reshape_as"}


def name_of(func: Callable[..., Any]) -> str:
    """Name a torch function; an attribute, such as ``mT``, by its own name."""
    name = func.__name__
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")  # type: ignore[attr-defined]
    return name


def axes_after(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operand: Tensor,
    output: Tensor,
) -> Axes:
    """Find the axes of an operand in what a call made of it.

    Args:
        func (Callable): A torch function that contracts nothing.
        args (tuple): Its arguments.
        kwargs (dict): Its named arguments.
        operand (Tensor): One of the arguments.
        output (Tensor): What it returned.

    Returns:
        tuple: For each axis of the output the operand's; None for one that is new, cut
        out, or made of several.

    Examples::

        >>> x = torch.ones(2, 3, 3)
        >>> axes_after(torch.transpose, (x, 1, 2), {}, x, x.transpose(1, 2))
        (0, 2, 1)
        >>> axes_after(torch.flatten, (x, 0, 1), {}, x, x.flatten(0, 1))
        (None, 2)
    """
    name, n_dims = name_of(func), operand.dim()
    shape: tuple[int, ...] | None = None
    if name in TRANSPOSITIONS:
        shape = tuple(range(2, 2 + n_dims))
    elif name in _SLICES or name == "flatten":
        shape = tuple(size + 1 for size in operand.shape)
    elif name in _VIEWS:
        shape = tuple(operand.shape)
    moved = None if shape is None else _again(func, args, kwargs, operand, shape)
    if shape is not None and moved is not None:
        return _by_strides(shape, moved, cut=name in _SLICES)
    missing = output.dim() - n_dims
    if missing < 0:
        return (None,) * output.dim()
    return tuple(
        axis - missing
        if axis >= missing and operand.shape[axis - missing] == size
        else None
        for axis, size in enumerate(output.shape)
    )


def compose(axes: Axes, before: Axes) -> Axes:
    """Follow axes through a further call: those of its operand were ``before``."""
    return tuple(None if axis is None else before[axis] for axis in axes)


def _again(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operand: Tensor,
    shape: tuple[int, ...],
) -> Tensor | None:
    """Run a call on an empty tensor of some shape; None if it cannot be."""
    empty = torch.empty(shape, device="meta")

    def replaced(arg: Any) -> Any:
        return empty if arg is operand else arg

    try:
        with torch._C.DisableTorchFunction():
            moved = func(
                *map(replaced, args),
                **{key: replaced(value) for key, value in kwargs.items()},
            )
    except (RuntimeError, IndexError, NotImplementedError, TypeError):
        return None
    return moved if isinstance(moved, Tensor) and moved._is_view() else None


def _by_strides(shape: tuple[int, ...], moved: Tensor, cut: bool) -> Axes:
    """Know axes of a contiguous tensor of a shape again, in a view of it.

    Axes of size 1 have no stride of their own: they are taken in their order, from the
    last.
    """
    strides = torch.empty(shape, device="meta").stride()
    axes: list[int | None] = [None] * moved.dim()
    left = list(range(len(shape)))
    places = sorted(
        range(moved.dim()), key=lambda axis: (moved.shape[axis] == 1, -axis)
    )
    for place in places:
        size, stride = moved.shape[place], moved.stride(place)
        found = [
            axis
            for axis in left
            if shape[axis] == size == 1
            or (strides[axis] == stride and shape[axis] > 1 and size == shape[axis])
            or (cut and strides[axis] == stride and 0 < size < shape[axis])
        ]
        if found:
            axes[place] = found[-1]
            left.remove(found[-1])
    return tuple(axes)


def einsum_letters(
    equation: Any, operands: Sequence[Any]
) -> tuple[list[str], str] | tuple[None, str]:
    """Read an einsum, a letter for each axis; None where it is not a string."""
    if not isinstance(equation, str) or not all(
        isinstance(operand, Tensor) for operand in operands
    ):
        return None, ""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    # Axes behind an ellipsis are counted from the last.
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    n_dots = 0
    for i, (own, operand) in enumerate(zip(letters, operands, strict=True)):
        if "..." in own:
            n_own = operand.dim() - (len(own) - 3)
            letters[i] = own.replace("...", "".join(spare[:n_own][::-1]))
            n_dots = max(n_dots, n_own)
    dots = "".join(spare[:n_dots][::-1])
    if not arrow:
        counted = "".join(letters)
        once = sorted(letter for letter in set(counted) if counted.count(letter) == 1)
        output = "".join(letter for letter in once if letter not in dots)
        output = f"...{output}"
    return letters, output.replace("...", dots)


def shape_at(edge: GradientEdge) -> torch.Size:
    """Return the shape of what is at a place in the graph."""
    return torch.Size(edge.node._input_metadata[edge.output_nr].shape)


def shapes_with_tokens(
    shape: Sequence[int], n_tokens: int
) -> list[tuple[tuple[int, ...], int]]:
    """List how a tensor may have tokens, as shapes with an axis.

    Where no size is that of the tokens, rows and tokens may be one axis.
    """
    axes = [axis for axis, size in enumerate(shape) if size == n_tokens]
    if axes or not shape or shape[0] % n_tokens:
        return [(tuple(shape), axis) for axis in axes]
    n_rows, features = shape[0] // n_tokens, shape[1:]
    return [((n_rows, n_tokens, *features), 1), ((n_tokens, n_rows, *features), 0)]


def axes_of_tokens(edge: GradientEdge, n_tokens: int, selected: Tensor) -> list[int]:
    """List the axes of a tensor that may be those of the tokens.

    Beside the rows and the features it has one: (rows, classes) have none. Where there
    are as many rows as tokens, the axis of rows is the one of which each row's output
    depends on its own index alone.

    Args:
        edge (GradientEdge): Where the tensor is in the graph.
        n_tokens (int): So many.
        selected (Tensor): One output per row, in the graph.
    """
    shape = shape_at(edge)
    if len(shape) < 3:
        return []
    axes = [axis for axis, size in enumerate(shape) if size == n_tokens]
    if len(selected) != n_tokens:
        return axes
    of_rows = set(axes)
    for row in {0, n_tokens // 2, n_tokens - 1}:
        (gradient,) = torch.autograd.grad(
            [selected[row]], [edge], retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            places = (gradient != 0).nonzero()
            of_rows = {axis for axis in of_rows if bool((places[:, axis] == row).all())}
    # Rows that are each read at the token of their number leave it open.
    return axes if len(of_rows) > 1 else [axis for axis in axes if axis not in of_rows]


@dataclass(frozen=True)
class TracedAxis:
    """An axis of a tensor that may be that of tokens, without holding the tensor.

    Attributes:
        edge (GradientEdge): Where the tensor is in the graph.
        shape (Size): Its shape.
        axis (int): The axis.
        zero (Tensor): Of its dtype, on its device.
    """

    edge: GradientEdge
    shape: torch.Size
    axis: int
    zero: Tensor

    @staticmethod
    def of(tensor: Tensor, axis: int) -> TracedAxis:
        """Note an axis of a tensor, which requires a gradient."""
        return TracedAxis.at(get_gradient_edge(tensor), axis)

    @staticmethod
    def at(
        edge: GradientEdge, axis: int, shape: Sequence[int] | None = None
    ) -> TracedAxis:
        """Note an axis of what is at a place in the graph, seen in a shape."""
        like = edge.node._input_metadata[edge.output_nr]
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return TracedAxis(edge, torch.Size(shape or shape_at(edge)), axis, zero)

    @property
    def size(self) -> int:
        """Its size."""
        return self.shape[self.axis]

    def others(
        self,
        key: int,
        sources: Sequence[Tensor] | Sequence[GradientEdge],
        axis: int = -2,
    ) -> set[int] | None:
        """Find on which other tokens depends what a key has; None if on several.

        Args:
            key (int): It.
            sources (sequence): Where tokens are apart.
            axis (int): The axis of the tokens there.
        """
        others: set[int] = set()
        for gradient in self.gradients(key, sources):
            if gradient is not None:
                found = (gradient != 0).movedim(axis, -2).any(-1).flatten(0, -2)
                found[:, key] = False
                if bool((found.sum(1) > 1).any()):
                    return None
                others.update(found.any(0).nonzero()[:, 0].tolist())
        return others

    def gradients(
        self, key: int, sources: Sequence[Tensor] | Sequence[GradientEdge]
    ) -> tuple[Tensor | None, ...]:
        """Take gradients, in some sources, of what a key has."""
        of_key = self.zero.repeat(self.shape)
        of_key.select(self.axis, key).fill_(1)
        of_key = of_key.reshape(shape_at(self.edge))
        return torch.autograd.grad(
            [self.edge], sources, [of_key], retain_graph=True, allow_unused=True
        )


@dataclass
class Weights:
    """The output of one softmax, shared by the marks of all that is made of it.

    Attributes:
        shape (Size): Shape of the output.
        keys (int): The axis that the softmax ran over.
        n_heads (int, optional): Heads, if ``F.multi_head_attention_forward`` runs.
        map_shape (tuple of int, optional): Queries and keys, set once the weights were
            multiplied with values; None marks a softmax that is no attention so far.
        scores (TracedAxis, optional): The input of the softmax, if it requires a
            gradient.
    """

    shape: torch.Size
    keys: int
    n_heads: int | None
    map_shape: tuple[int, int] | None = None
    scores: TracedAxis | None = None

    def heads_of(self, n_queries: int) -> int | None:
        """Return the number of heads, None where rows and heads share a dimension."""
        if len(self.shape) == 3:
            return self.n_heads
        map_size = n_queries * self.shape[self.keys]
        return self.shape.numel() // max(1, self.shape[0] * map_size)

    def may_be(self, map_shape: tuple[int, int]) -> bool:
        """Whether the shape allows a map of this many queries and keys."""
        n_queries, n_keys = map_shape
        if self.shape[self.keys] != n_keys or len(self.shape) < 3:
            return False
        if self.keys == len(self.shape) - 1:
            return self.shape[-2] == n_queries
        return n_queries in (*self.shape[: self.keys], *self.shape[self.keys + 1 :])


class Contraction(NamedTuple):
    """A call in which weights are summed over their keys, with values.

    Attributes:
        queries (int, optional): The axis of the queries in the weights; a lone one has
            none.
        holder (int): Which operand holds the values.
        keys (int): The axis of the keys in those.
    """

    queries: int | None
    holder: int
    keys: int


@dataclass(frozen=True)
class Mark:
    """Says which axes of a tensor are which axes of the softmax' output behind it.

    Attributes:
        weights (Weights): That output.
        axes (tuple): For each axis of the tensor the output's, None for a new one.
    """

    weights: Weights
    axes: Axes

    @property
    def keys(self) -> int:
        """The axis of the keys."""
        return self.axes.index(self.weights.keys)

    def is_pooling(self, n_queries: int) -> bool:
        """Whether the weights are those of a head that pools the tokens.

        A head scores ``(rows, tokens, r)`` and has no axis of heads, nor the keys last.
        """
        shape, keys = self.weights.shape, self.weights.keys
        return len(shape) == 3 and keys == 1 and n_queries != shape[keys]

    def queries(self, candidates: Sequence[int]) -> int | None:
        """Choose the axis of the queries among those that meet no axis of values.

        Usually that is one. Where heads share their values, as in multi-query
        attention, the axis of the heads is a candidate, too: then the queries are the
        axis just before the keys. None if there is no such axis.
        """
        if len(candidates) == 1:
            return candidates[0]
        before = [
            axis for axis in candidates if self.axes[axis] == self.weights.keys - 1
        ]
        return before[0] if before else None

    def in_einsum(
        self, mine: int, letters: Sequence[str], output: str
    ) -> Contraction | None:
        """Find what an einsum sums over the keys; None if it does not.

        Values are summed over keys, query by query and batch by batch.

        Args:
            mine (int): Which operand the weights are.
            letters (sequence of str): Of the operands' axes.
            output (str): Of those of the output.
        """
        own = letters[mine]
        key = own[self.keys]
        others = "".join(other for i, other in enumerate(letters) if i != mine)
        holders = [i for i, other in enumerate(letters) if i != mine and key in other]
        by_batch = any(letter in others and letter in output for letter in own)
        if key in output or not holders or not by_batch:
            return None
        candidates = [
            axis
            for axis, letter in enumerate(own)
            if letter in output and letter not in others
        ]
        queries = self.queries(candidates)
        if candidates and queries is None:
            return None
        return Contraction(queries, holders[0], letters[holders[0]].index(key))

    def in_sum(
        self,
        weights: torch.Size,
        values: torch.Size,
        product: torch.Size,
        dims: Sequence[Any],
    ) -> Contraction | None:
        """Find what a sum over weights times values sums; None if not over keys.

        Args:
            weights (Size): Shape of the weights.
            values (Size): Shape of the values.
            product (Size): Shape of the elementwise product.
            dims (sequence): The dimensions that are summed over.
        """
        keys, n_dims = self.keys, len(product)
        if not len(weights) == len(values) == n_dims:
            return None
        has_features = any(
            self.axes[axis] is None and values[axis] == product[axis]
            for axis in range(n_dims)
        )
        if tuple(dims) not in ((keys,), (keys - n_dims,)) or not has_features:
            return None
        if values[keys] != weights[keys]:
            return None
        candidates = [
            axis
            for axis, origin in enumerate(self.axes)
            if origin is not None
            and axis != keys
            and values[axis] == 1
            # One token alone has no axis that is longer.
            and (weights[axis] > 1 or weights[keys] == 1)
        ]
        queries = self.queries(candidates)
        if candidates and queries is None:
            return None
        return Contraction(queries, 1, keys)


@dataclass(frozen=True)
class Product:
    """A product of two tensors, which may have mixed positions.

    Attributes:
        name (str): Of the call.
        node (Node): Where in the graph its output is.
        factors (tuple of TracedAxis): Its factors, by the axis that it sums over.
        output (TracedAxis, optional): What it is, by another axis as long.
        is_outer (bool): Whether it has features of both its factors, as that of keys
            and values in linear attention.
        sums_features (bool): Whether it sums over the last axis of both.
    """

    name: str
    node: Node
    factors: tuple[TracedAxis, ...]
    output: TracedAxis | None
    is_outer: bool
    sums_features: bool


class Products:
    """Notes products that may mix positions in a forward pass, without their tensors.

    Attributes:
        noted (list of Product): Of two tensors of the graph, in their order.
    """

    def __init__(self) -> None:
        self.noted: list[Product] = []

    def note_product(
        self, name: str, factors: Sequence[tuple[Any, int]], output: Any
    ) -> None:
        """Note a product that is none of captured weights and values.

        Args:
            name (str): Of the call.
            factors (sequence of tuple): What is multiplied, with the axis that is
                summed over.
            output (Any): What it returned.
        """
        parts = tuple(
            TracedAxis.of(factor, axis)
            for factor, axis in factors
            if isinstance(factor, Tensor) and factor.grad_fn is not None
        )
        if len(parts) > 1:
            self._note(name, parts, output)

    def note_sum(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Note a sum of an elementwise product."""
        x = args[0] if args else kwargs["input"]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(dim, (tuple, list)) and len(dim) == 1:
            (dim,) = dim
        node = x.grad_fn if isinstance(dim, int) else None
        if node is None or node.name() != "MulBackward0":
            return
        behind_last = dim % x.dim() - x.dim()  # factors are broadcast from the last
        parts = []
        for factor, number in node.next_functions:
            if factor is None:
                return
            edge = GradientEdge(factor, number)
            n_axes = len(shape_at(edge))
            if n_axes >= -behind_last:
                parts.append(TracedAxis.at(edge, behind_last % n_axes))
        if len(parts) > 1:
            self._note("sum", tuple(parts), output, behind_last == -1)

    def _note(
        self,
        name: str,
        factors: tuple[TracedAxis, ...],
        output: Tensor,
        sums_features: bool = False,
    ) -> None:
        if output.grad_fn is None:
            return
        summed = factors[0].size
        as_long = [axis for axis in (-2, -1) if summed in output.shape[axis:][:1]]
        kept = TracedAxis.of(output, as_long[0] % output.dim()) if as_long else None
        features = [factor.shape.numel() // max(1, factor.size) for factor in factors]
        is_outer = output.numel() > max(features)
        self.noted.append(
            Product(name, output.grad_fn, factors, kept, is_outer, sums_features)
        )

    def over(self, lengths: Collection[int]) -> list[Product]:
        """Return those that sum over as many as the tokens, and keep features."""
        return [
            of
            for of in self.noted
            if of.factors[0].size in lengths and not of.sums_features
        ]

    def without_softmax(
        self, of_tokens: DependencyGraph, lengths: Collection[int]
    ) -> list[str]:
        """Return the names of products that sum over tokens, where none is captured.

        Args:
            of_tokens (DependencyGraph): What depends on the inputs.
            lengths (collection of int): How many tokens there may be.
        """
        return sorted(
            {
                of.name
                for of in self.noted
                if of.factors[0].size in lengths
                and not of.sums_features
                and (of.is_outer or of.output is not None)  # gates that pool are not
                and all(of_tokens.depends(part.edge.node) for part in of.factors)
            }
        )


def products_behind(start: Node) -> Iterator[Node]:
    """Go back to the products of matrices that something is made of."""
    pending, seen = [start], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if "mm" in node.name().lower():
            yield node
        else:
            pending.extend(parent for parent, _ in node.next_functions if parent)
