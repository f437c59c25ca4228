"""The torch calls that attention is written in: the one list of what begins it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.checkpoint import CheckpointError
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.record import UnsupportedAttentionError

# Attention in one call.
ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
SOFTMAX = {
    F.softmax,
    F.softmin,
    torch.softmax,
    torch.Tensor.softmax,
    torch.special.softmax,
}
_LOG_SOFTMAX = {
    F.log_softmax,
    torch.log_softmax,
    torch.Tensor.log_softmax,
    torch.special.log_softmax,
}
_LOG_SUM = {torch.logsumexp, torch.Tensor.logsumexp, torch.special.logsumexp}
PRODUCT = {
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.linalg.matmul,
    torch.bmm,
    torch.Tensor.bmm,
}
EINSUM = {torch.einsum, torch.functional.einsum}
SUM = {torch.sum, torch.Tensor.sum}
TIMES = {torch.mul, torch.Tensor.mul, torch.multiply, torch.Tensor.multiply}
_QUOTIENT = {"div", "divide", "true_divide"}
# Calls behind which attention weights are still such, wherever their axes then are.
TRANSPARENT = {
    "__getitem__",
    "__truediv__",
    "adjoint",
    "alpha_dropout",
    "bfloat16",
    "clamp",
    "clone",
    "contiguous",
    "div",
    "div_",
    "double",
    "dropout",
    "dropout_",
    "mH",
    "mT",
    "moveaxis",
    "movedim",
    "permute",
    "swapaxes",
    "swapdims",
    "T",
    "transpose",
    "expand",
    "flatten",
    "float",
    "half",
    "masked_fill",
    "masked_fill_",
    "mul",
    "mul_",
    "nan_to_num",
    "reshape",
    "squeeze",
    "to",
    "true_divide",
    "type",
    "type_as",
    "unflatten",
    "unsqueeze",
    "view",
    "where",
}
# Calls that join, move, copy or replace token ids.
KEEPS_IDS = {
    "add",
    "clamp",
    "clamp_max",
    "clamp_min",
    "masked_fill",
    "masked_fill_",
    "sub",
    "where",
    "cat",
    "clone",
    "concat",
    "concatenate",
    "contiguous",
    "detach",
    "expand",
    "int",
    "long",
    "reshape",
    "to",
    "view",
}

# Calls behind which a sum is still the same sum, broadcast or kept from 0.
_KEEPS_SUM = {
    "__getitem__",
    "add",
    "clamp",
    "clamp_min",
    "contiguous",
    "double",
    "expand",
    "expand_as",
    "float",
    "maximum",
    "reshape",
    "to",
    "type_as",
    "unsqueeze",
    "view",
}
# Calls that hide some keys of exponentials, or change their type.
_KEEPS_EXPONENTIAL = {
    "clone",
    "contiguous",
    "double",
    "float",
    "masked_fill",
    "mul",
    "multiply",
    "to",
    "type_as",
    "where",
}


@dataclass(frozen=True)
class Softmax:
    """A softmax that a call completes.

    Attributes:
        scores (Tensor): What it is of.
        dim (int): The dimension of the keys, counted from 0.
        is_written_out (bool): Whether it is several calls, of which each would have a
            propagation rule of its own.
        beside (Tensor, optional): What is added to the sum that divides, such as an
            epsilon: a key more, of no value.
        factor (Tensor, optional): What keys are multiplied by afterwards.
    """

    scores: Tensor
    dim: int
    is_written_out: bool = False
    beside: Tensor | None = None
    factor: Tensor | None = None

    def weights(self) -> Tensor:
        """Compute the weights by ``torch.softmax``."""
        if self.beside is None:
            weights = self.scores.softmax(self.dim)
        else:
            n_keys = self.scores.shape[self.dim]
            scores = torch.cat([self.scores, self.beside.log()], self.dim)
            weights = scores.softmax(self.dim).narrow(self.dim, 0, n_keys)
        return weights if self.factor is None else weights * self.factor


class Softmaxes:
    """Recognises softmaxes in the calls of a forward pass, in one call or in several.

    Written out they are exponentials divided by their sum, or the exponential of
    logarithms of probabilities.

    Attributes:
        of_parts (list of Node): Where in the graph the scores are of what may be parts
            of a softmax: exponentials that weigh something before they are divided, or
            a softmax beside the logarithm of its sum, by which parts are put together.

    Examples::

        >>> softmaxes, x = Softmaxes(), torch.ones(2, 3)
        >>> exponentials = x.exp()
        >>> softmaxes.note(torch.exp, (x,), {}, exponentials)
        >>> total = exponentials.sum(1, keepdim=True)
        >>> softmaxes.note(torch.sum, (exponentials, 1), {}, total)
        >>> softmaxes.completed(torch.div, (exponentials, total), {}).dim
        1
    """

    def __init__(self) -> None:
        self._scores = WeakTensorKeyDictionary()  # of exponentials, with their root
        self._sums = WeakTensorKeyDictionary()  # of those, with the dimension
        self._inverses = WeakTensorKeyDictionary()  # of sums
        self._log_sums = WeakTensorKeyDictionary()
        self._log_probabilities = WeakTensorKeyDictionary()  # of scores, dimension
        self._shifted = WeakTensorKeyDictionary()  # by the same in some axes
        self._of_softmax = WeakTensorKeyDictionary()  # scores of one
        self._of_log_sum = WeakTensorKeyDictionary()
        self.of_parts: list[Node] = []

    def note_product(self, factor: Any) -> None:
        """Note what is multiplied by exponentials that nothing has divided yet.

        Keys in chunks are attended to in this way: all are divided afterwards.
        """
        if isinstance(factor, Tensor) and factor in self._scores:
            self._note_part(self._scores[factor][1])

    def _note_part(self, scores: Tensor) -> None:
        """Note the scores of what may be a part of a softmax."""
        if scores.grad_fn is not None:
            self.of_parts.append(scores.grad_fn)

    def completed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Softmax | None:
        """Return the softmax that a call is, or completes; None if it does not."""
        first = args[0] if args else kwargs.get("input")
        if not isinstance(first, Tensor):
            return None
        if func in SOFTMAX:
            dim = _dim(first, args, kwargs)
            if dim is None:
                return None
            if func is F.softmin:
                return Softmax(-first, dim, is_written_out=True)
            self._of_softmax[first] = True
            if first in self._of_log_sum:
                self._note_part(first)
            return Softmax(first, dim)
        name = func.__name__
        if name == "exp" and first in self._log_probabilities:
            return self._written_out(*self._log_probabilities[first])
        if not len(self._scores):
            return None
        if name == "normalize" and first in self._scores:
            _, scores = self._scores[first]
            p = kwargs.get("p", args[1] if len(args) > 1 else 2.0)
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 1)
            return self._written_out(scores, dim % first.dim()) if p == 1 else None
        second = args[1] if len(args) > 1 else kwargs.get("other")
        if not isinstance(second, Tensor):
            return None
        if name in _QUOTIENT:
            return self._quotient(first, second)
        if func in TIMES and first in self._inverses:
            return self._quotient(second, self._inverses[first])
        if func in TIMES and second in self._inverses:
            return self._quotient(first, self._inverses[second])
        return None

    def _quotient(self, numerator: Tensor, divisor: Tensor) -> Softmax | None:
        if numerator not in self._scores or divisor not in self._sums:
            return None
        root, scores = self._scores[numerator]
        root_of_sum, summed, dim = self._sums[divisor]
        same_dims = divisor.dim() == numerator.dim() and divisor.shape[dim] == 1
        if root is not root_of_sum or not same_dims:
            return None
        with torch.no_grad():
            exponentials, factor = numerator, None
            if scores is not summed:  # keys are hidden on one side only
                exponentials = summed.exp()
                factor = (numerator / exponentials).nan_to_num(0.0)
            beside = divisor - exponentials.sum(dim, keepdim=True)
            noise = 64 * torch.finfo(divisor.dtype).eps * divisor.abs()
            if bool((beside < -noise).any()):
                return None
            is_alone = bool((beside <= noise).all())
        if is_alone:
            return self._written_out(summed, dim, factor)
        return Softmax(summed, dim, True, beside.clamp_min(0), factor)

    def _written_out(
        self, scores: Tensor, dim: int, factor: Tensor | None = None
    ) -> Softmax:
        """Leave out shifts that are the same for all keys, which change nothing."""
        shifted = self._shifted.get(scores)
        while shifted is not None and dim in shifted[1]:
            scores = shifted[0]
            shifted = self._shifted.get(scores)
        return Softmax(scores, dim, True, factor=factor)

    def note(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """Note what a call made that a softmax may be completed from."""
        first = args[0] if args else kwargs.get("input")
        if not isinstance(first, Tensor) or not isinstance(output, Tensor):
            return
        name = func.__name__
        if name == "exp":
            self._scores[output] = (first, first)
        elif name == "exp_":  # what they were is gone
            self._scores[output] = (output, output)
        elif func in _LOG_SOFTMAX:
            dim = _dim(first, args, kwargs)
            if dim is not None:
                self._log_probabilities[output] = first, dim
        elif func in _LOG_SUM:
            dim = _dim(first, args, kwargs)
            if dim is not None:
                self._log_sums[output] = (first, dim)
                self._of_log_sum[first] = True
                if first in self._of_softmax:
                    self._note_part(first)
        elif name == "sub":
            self._note_difference(first, args, kwargs, output)
        elif len(self._scores) or len(self._sums) or len(self._log_sums):
            self._follow(func, first, args, kwargs, output)

    def _note_difference(
        self,
        scores: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        total = args[1] if len(args) > 1 else kwargs.get("other")
        if not isinstance(total, Tensor) or total.dim() != scores.dim():
            return
        sizes = zip(total.shape, scores.shape, strict=True)
        same = {axis for axis, (size, all_) in enumerate(sizes) if size == 1 != all_}
        if total in self._log_sums:
            summed, dim = self._log_sums[total]
            if summed is scores and total.shape[dim] == 1:
                self._log_probabilities[output] = scores, dim
        elif same and output.shape == scores.shape:
            self._shifted[output] = scores, same

    def _follow(
        self,
        func: Callable[..., Any],
        first: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        name = func.__name__
        second = args[1] if len(args) > 1 else kwargs.get("other")
        if func in SUM and first in self._scores:
            dim = _dim(first, args, kwargs)
            if dim is not None:
                self._sums[output] = (*self._scores[first], dim)
        elif name in ("reciprocal", "__rdiv__") and first in self._sums:
            if name == "reciprocal" or second == 1:
                self._inverses[output] = first
        elif name == "log" and first in self._sums:
            root, scores, dim = self._sums[first]
            if root is scores:
                self._log_sums[output] = (scores, dim)
        elif name in _KEEPS_SUM and output.numel() == first.numel():
            for known in (self._sums, self._log_sums):
                if first in known:
                    known[output] = known[first]
        if name in _KEEPS_EXPONENTIAL:
            self._follow_exponential(args, output)

    def _follow_exponential(self, args: tuple[Any, ...], output: Tensor) -> None:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        known = [arg for arg in tensors if arg in self._scores]
        if len(known) != 1 or output.shape != known[0].shape or output is known[0]:
            return
        others = [arg for arg in tensors if arg is not known[0]]
        if any(arg.requires_grad for arg in others):
            return
        root, scores = self._scores[known[0]]
        if others:  # a mask: its logarithm, to the scores
            with torch.no_grad():
                change = (output / known[0]).nan_to_num(0.0)
                hidden = change.log()
            if bool((change < 0).any()):
                return
            shifted = self._shifted.get(scores)
            scores = scores + hidden
            if shifted is not None:
                self._shifted[scores] = shifted[0] + hidden, shifted[1]
        self._scores[output] = (root, scores)


def begins_attention(
    softmaxes: Softmaxes,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether a call is attention, or completes its weights."""
    return func in ATTENTION or softmaxes.completed(func, args, kwargs) is not None


def _dim(operand: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The one dimension that a call works over; None if there are others."""
    given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if isinstance(given, (tuple, list)) and len(given) == 1:
        (given,) = given
    if not isinstance(given, int) or operand.dim() == 0:
        return None
    return given % operand.dim()


def drops(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``F.dropout`` leaves anything out."""
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return bool(training and rate > 0)


def without_dispatch(func: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a torch function that does not hand itself to the active mode.

    ``F.multi_head_attention_forward`` would run with the mode inactive, or hand itself
    over for ever; its copy lets the mode see the calls inside.
    """
    scope = {**func.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_lock = threading.Lock()
_within: list[Any] = []  # what restores torch's stance, per call that needs it


@contextmanager
def eager() -> Iterator[None]:
    """While active, ``torch.compile`` compiles nothing and runs nothing compiled.

    Its compiler would look into the modes themselves, and run their work without them
    from the second call on. The stance is one of the whole process, so that the first
    of several threads sets it and the last one restores it.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        yield
        return
    with _lock:
        stance = _within[0] if _within else torch.compiler.set_stance("force_eager")
        _within.append(stance)
    try:
        yield
    finally:
        with _lock:
            _within.pop()
            if not _within:
                stance.__exit__(None, None, None)


@contextmanager
def refusing_checkpoints() -> Iterator[None]:
    """Refuse in words what is run again in a backward pass.

    Raises:
        UnsupportedAttentionError: In the place of torch's own errors.
    """
    fix = "turn it off, such as by model.gradient_checkpointing_disable()"
    try:
        yield
    except CheckpointError as error:
        raise UnsupportedAttentionError(
            "gradient checkpointing runs parts of the model again in the backward "
            f"pass, where propagation rules do not see them; {fix}"
        ) from error
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise UnsupportedAttentionError(
            "forward_func checkpoints parts of the model by "
            "torch.utils.checkpoint(use_reentrant=True), whose gradients cannot be "
            "asked for, only accumulated in .grad. Checkpoint with "
            f"use_reentrant=False where attention is read by its gradient; or {fix}"
        ) from error
