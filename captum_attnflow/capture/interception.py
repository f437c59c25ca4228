"""Routes every attention map of a running forward pass through a probe module.

A :class:`torch.overrides.TorchFunctionMode` sees each torch call. It marks the output
of a softmax over keys, follows the mark through dropout, casts, views and masks, and
when a matrix product consumes a marked tensor, sends that operand through an identity
module first. The model, its configuration and its kernels are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.attention_call import AttentionCall
from captum_attnflow.capture.attention_layer import FusedLayer, attention_weights
from captum_attnflow.capture.entries import InputEntries, traceable
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.rules import PropagationRules
from captum_attnflow.capture.streams import DependencyGraph
from captum_attnflow.capture.torch_calls import (
    KEEPS_IDS,
    MIXES_POSITIONS,
    PRODUCT,
    SOFTMAX,
    TRANSPARENT,
    mixes_positions,
)


@dataclass
class _Softmax:
    """A softmax over the last dimension, followed until it meets its values."""

    shape: torch.Size
    n_heads: int | None
    reached_values: bool = False


class AttentionInterception(TorchFunctionMode):
    """Sends attention maps through a probe while it is active.

    Modes are local to a thread: calls in worker threads are not seen.

    Args:
        entries (InputEntries): Told of embedding lookups.
        path (InputPath, optional): Entered where the model looks its input up.
        rules (PropagationRules, optional): Told of sources and of attention; active
            below this mode.
    """

    def __init__(
        self,
        entries: InputEntries,
        path: InputPath | None = None,
        rules: PropagationRules | None = None,
    ) -> None:
        super().__init__()
        self._entries = entries
        self._path = path
        self.rules = rules
        self.probe: nn.Module = nn.Identity()
        self.calls: list[AttentionCall] = []
        self.dropout = False  # whether any took part
        self._mixed: list[tuple[str, Tensor]] = []  # outside attention
        self._softmaxes: list[_Softmax] = []
        if rules is not None:
            for tensor in entries.inputs:
                rules.add_source(tensor)
            if path is not None:
                path.on_entry = rules.add_source
        self._masks: list[tuple[Tensor, int]] = []  # with their versions
        self._marked = WeakTensorKeyDictionary()
        self._probed = WeakTensorKeyDictionary()
        self._n_heads: int | None = None  # of the multi-head attention that runs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle one torch call; the mode is inactive inside."""
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # an attribute, such as a shape
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._run_multi_head_attention(func, args, kwargs)
        if func is F.embedding:
            return self._look_up(func, args, kwargs)
        if func in PRODUCT:
            args, kwargs = self._probe_left_operand(args, kwargs)
            return func(*args, **kwargs)
        if func is torch.einsum or func is torch.functional.einsum:
            return func(*self._probe_einsum(args), **kwargs)
        output = func(*args, **kwargs)
        if func.__name__ in MIXES_POSITIONS:
            self._note_mixing(func.__name__, output, args, kwargs)
        if func is F.dropout and _drops(args, kwargs):
            self.dropout = True
        if func in SOFTMAX:
            self._mark_softmax(output, args, kwargs)
        elif func.__name__ in TRANSPARENT and isinstance(output, Tensor):
            self._follow(output, args)
        if func.__name__ in KEEPS_IDS and isinstance(output, Tensor):
            self._entries.follow(output, args)
        elif func.__name__ == "__setitem__":
            self._entries.follow(args[0], args[2:])
        return output

    def _look_up(
        self, lookup: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        output = lookup(*args, **kwargs)
        if self._path is not None:
            entered = self._path.enter_lookup(output, args)
        else:
            ids = args[0] if args else kwargs["input"]
            entered = self._entries.enter_lookup(ids, output)
            if self.rules is not None and self._entries.is_of_further(ids):
                entered = traceable(output)
        if self.rules is not None and entered is not output:
            self.rules.add_source(entered)
        return entered

    def missed(self) -> int:
        """Count softmaxes of a captured map's shape that met no values."""
        captured = {call.shape[-2:] for call in self._softmaxes if call.reached_values}
        return sum(
            not softmax.reached_values and softmax.shape[-2:] in captured
            for softmax in self._softmaxes
        )

    def _note_mixing(
        self, name: str, output: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        mixed = output[0] if isinstance(output, tuple) else output
        is_seen = mixed.requires_grad and mixed.dim() > 2
        if is_seen and mixes_positions(name, args, kwargs):
            self._mixed.append((name, mixed))

    def mixing_between(self) -> list[str]:
        """Return what mixes positions behind an attention and in front of another."""
        probed = [call.probed for call in self.calls]
        behind = DependencyGraph(probed)
        return sorted(
            {
                name
                for name, mixed in self._mixed
                if behind.depends(mixed)
                and any(map(DependencyGraph([mixed]).depends, probed))
            }
        )

    def overwritten(self) -> int:
        """Count masks of fused kernels that were changed in place since."""
        return sum(_version(mask) != version for mask, version in self._masks)

    def _run_multi_head_attention(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._n_heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
        try:
            with self:
                return _without_dispatch(func)(*args, **kwargs)
        finally:
            self._n_heads = None

    def _mark_softmax(
        self, output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if output.dim() >= 3 and dim in (-1, output.dim() - 1):
            self._mark(output)

    def _mark(self, weights: Tensor) -> None:
        folded = weights.dim() == 3
        n_heads = self._n_heads if folded else weights.shape[1:-2].numel()
        softmax = _Softmax(weights.shape, n_heads)
        self._softmaxes.append(softmax)
        self._marked[weights] = softmax

    def _follow(self, output: Tensor, args: tuple[Any, ...]) -> None:
        for arg in args:
            if self._is_marked(arg):
                same_queries = output.dim() >= 3 and output.shape[-2] == arg.shape[-2]
                if same_queries and output.shape[-1] <= arg.shape[-1]:
                    self._marked[output] = self._marked[arg]

    def _probe_left_operand(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        left = args[0] if args else kwargs.get("input")
        by_name = kwargs.get("other", kwargs.get("mat2"))
        right = args[1] if len(args) > 1 else by_name
        # A gate of experts is a softmax too, but meets a plain matrix.
        if not self._is_marked(left) or not isinstance(right, Tensor):
            return args, kwargs
        if right.dim() != left.dim():
            return args, kwargs
        if args:
            return (self._probe(left, right), *args[1:]), kwargs
        return args, {**kwargs, "input": self._probe(left, right)}

    def _probe_einsum(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args:
            return args
        equation, *operands = args
        if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
            operands = list(operands[0])
        if isinstance(equation, str) and len(operands) == 2 and "->" in equation:
            sides, output = equation.replace(" ", "").split("->")
            letters = sides.split(",")
            for mine, other in ((0, 1), (1, 0)):
                if self._is_marked(operands[mine]) and _mixes_values(
                    letters[mine], letters[other], output
                ):
                    operands[mine] = self._probe(operands[mine], operands[other])
        return (equation, *operands)

    def _is_marked(self, operand: Any) -> TypeGuard[Tensor]:
        return isinstance(operand, Tensor) and operand in self._marked

    def _probe(self, weights: Tensor, values: Tensor) -> Tensor:
        """Send a marked tensor through the probe, once for all its uses."""
        earlier: Tensor | None = self._probed.get(weights)
        if earlier is not None:
            return earlier
        softmax = self._marked[weights]
        softmax.reached_values = True
        if self.rules is None:
            probed: Tensor = self.probe(weights)
            scores, share = None, 0.0
        else:
            scores = self.rules.scores.of(weights)
            share = self.rules.share([weights], values)
            probed = self.probe(self.rules.above_weights(weights, share))
            self.rules.add_weights(probed, share)
        self._probed[weights] = probed
        self.calls.append(
            AttentionCall(
                probed,
                values,
                softmax.n_heads,
                scores=scores,
                share_of_weights=share,
            )
        )
        return probed

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Keep what goes into the fused kernel, or do its work where a map is needed.

        Dropout and folded heads need the map itself.
        """
        self.dropout |= dropout_p > 0
        if query.dim() == 4 and dropout_p == 0:
            return self._attend_fused(
                query, key, value, attn_mask, is_causal, scale, enable_gqa
            )
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key = key.repeat_interleave(groups, -3)
            value = value.repeat_interleave(groups, -3)
        weights = attention_weights(query, key, attn_mask, is_causal, scale)
        weights = F.dropout(weights, dropout_p)
        self._mark(weights)
        return self._probe(weights, value) @ value

    def _attend_fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=is_causal,
            scale=scale,
            **({"enable_gqa": True} if enable_gqa else {}),
        )
        if mask is not None:
            self._masks.append((mask, _version(mask)))
            mask = mask.detach()
        # Under autocast the kernel casts what it takes.
        fused = partial(
            FusedLayer,
            query.detach().to(output.dtype),
            key.detach().to(output.dtype),
            value.detach().to(output.dtype),
            mask,
            is_causal,
            scale,
            0.0 if self.rules is None else self.rules.share([query, key], value),
        )
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        self._softmaxes.append(_Softmax(shape, None, True))
        probed: Tensor = self.probe(output)
        if self.rules is not None:
            self.rules.add_attention(probed)
        self.calls.append(AttentionCall(probed, value, None, fused))
        return probed


def _drops(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``F.dropout`` leaves anything out."""
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return bool(training and rate > 0)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, where torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _mixes_values(weights: str, values: str, output: str) -> bool:
    """Whether an einsum sums values over keys, query by query, batch by batch."""
    batch, query, key = weights[0], weights[-2], weights[-1]
    return (
        key in values
        and key not in output
        and query in output
        and query not in values
        and batch in values
        and batch in output
    )


def _without_dispatch(func: Callable[..., Any]) -> Callable[..., Any]:
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
