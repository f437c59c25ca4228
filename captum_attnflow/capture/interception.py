"""Routes every attention map of a running forward pass through a probe module.

A :class:`torch.overrides.TorchFunctionMode` sees each torch call. The way of a map:

1. A softmax runs. Its output gets a mark, which says which axis holds the keys.
2. Dropout, casts, views, transpositions and masks make new tensors of it. The mark
   follows, with the axes where they then are.
3. A product sums values over the keys of a marked tensor: this is attention. The marked
   operand passes through an identity module, the probe, laid out as
   ``(..., queries, keys)``; gradients are later taken there.

A fused kernel forms no map. Its output passes through the probe, and what it took is
kept. The model, its configuration and its kernels are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.axes import (
    Mark,
    Products,
    TracedAxis,
    Weights,
    axes_after,
    compose,
    einsum_letters,
    name_of,
    products_behind,
)
from captum_attnflow.capture.composed import have_query_of_a_token
from captum_attnflow.capture.entries import InputEntries, traceable
from captum_attnflow.capture.gradients import AttentionCall
from captum_attnflow.capture.graph import DependencyGraph, suspects
from captum_attnflow.capture.mixing import mixing_beside
from captum_attnflow.capture.path import InputPath
from captum_attnflow.capture.record import FusedLayer, attention_weights
from captum_attnflow.capture.rules import PropagationRules
from captum_attnflow.capture.rules.call import nodes_between, tensors_in, version
from captum_attnflow.capture.torch_calls import (
    EINSUM,
    KEEPS_IDS,
    PRODUCT,
    SUM,
    TIMES,
    TRANSPARENT,
    Softmax,
    Softmaxes,
    drops,
    without_dispatch,
)

_ATTRIBUTES = {"T", "mT", "mH"}  # attributes that transpose; others are not followed
_RECURRENT = {"gru", "lstm", "rnn_relu", "rnn_tanh"}


class AttentionInterception(TorchFunctionMode):
    """Sends attention maps through a probe while it is active.

    Modes are local to a thread: calls in worker threads are not seen.

    Args:
        entries (InputEntries): Hears of every embedding lookup.
        path (InputPath, optional): Replaces what the model looks up for its input by
            the points of the path.
        rules (PropagationRules, optional): Hear where relevance ends (at what was
            looked up) and of attention. They are a mode themselves, active below this.
        keeps_operands (bool): Whether queries, keys and values of fused kernels get
            nodes of their own in the graph, for gradients in them.

    Attributes:
        probe (Module): The identity module that maps pass through.
        calls (list of AttentionCall): One per call of attention, in their order.
        dropout (bool): Whether any dropout was active.
        without_gradient (set of str): Kernels on integers, which cut gradients off.
    """

    def __init__(
        self,
        entries: InputEntries,
        path: InputPath | None = None,
        rules: PropagationRules | None = None,
        keeps_operands: bool = False,
    ) -> None:
        super().__init__()
        self._entries = entries
        self._keeps_operands = keeps_operands
        self._path = path
        self.rules = rules
        self.probe: nn.Module = nn.Identity()
        self.calls: list[AttentionCall] = []
        self.dropout = False
        self.without_gradient: set[str] = set()
        self._products = Products()
        self._softmaxes = Softmaxes()
        self._weights: list[Weights] = []
        if rules is not None:
            for tensor in entries.inputs:
                rules.add_source(tensor)
            if path is not None:
                path.on_entry = rules.add_source
        # Masks of fused kernels with torch's count of changes in place: maps are formed
        # of the masks after the pass, so that these must not have changed since.
        self._masks: list[tuple[Tensor, int]] = []
        self._marked = WeakTensorKeyDictionary()  # tensor: Mark
        self._probed = WeakTensorKeyDictionary()  # weights: (of the probe, call)
        # Products of weights and values, element by element, that a sum may follow.
        self._weighed = WeakTensorKeyDictionary()
        self._n_heads: int | None = None  # of the multi-head attention that runs
        self._recurrent: dict[Node, str] = {}  # what layers compute in many steps

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle one torch call.

        Torch switches the mode off inside, so that its own calls do not come back here.
        """
        kwargs, name = kwargs or {}, name_of(func)
        if func.__name__ == "__get__" and name not in _ATTRIBUTES:  # such as a shape
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._run_multi_head_attention(func, args, kwargs)
        if func is F.embedding:
            return self._look_up(func, args, kwargs)
        if func in PRODUCT:
            return self._multiply(func, args, kwargs)
        if func in EINSUM:
            return self._contract(func, args, kwargs)
        if func in SUM and len(self._weighed):
            summed = self._sum_weighed(func, args, kwargs)
            if summed is not None:
                return summed
        if name == "exp_":
            return self._exponentiate(args[0])
        softmax = self._softmaxes.completed(func, args, kwargs)
        if softmax is not None:
            return self._mark_softmax(softmax, func, args, kwargs)
        output = func(*args, **kwargs)
        if isinstance(func, OpOverloadPacket) and str(func).startswith("quantized."):
            given = [arg for arg in args if isinstance(arg, Tensor)]
            if any(arg.requires_grad for arg in given):
                self.without_gradient.add(str(func))
        if func is F.linear and torch.is_grad_enabled() and not output.requires_grad:
            # Weights of a tensor subclass, such as torchao's, choose their kernel.
            x = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if x.requires_grad:
                self.without_gradient.add(f"linear by {type(weight).__name__}")
        if func in SUM:
            self._products.note_sum(args, kwargs, output)
        if name in _RECURRENT:
            inside = nodes_between(tensors_in(args), output)
            self._recurrent |= dict.fromkeys(inside, name)
        if func is F.dropout and drops(args, kwargs):
            self.dropout = True
        self._softmaxes.note(func, args, kwargs, output)
        if isinstance(output, Tensor):
            if name in TRANSPARENT:
                self._follow(func, args, kwargs, output)
            if name in KEEPS_IDS:
                self._entries.follow(output, args)
        elif name == "__setitem__":
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
            table = args[1] if len(args) > 1 else kwargs["weight"]
            entered = self._entries.enter_lookup(ids, output, len(table))
            if self.rules is not None and self._entries.is_of_further(ids):
                entered = traceable(output)
        if self.rules is not None and entered is not output:
            self.rules.add_source(entered)
        return entered

    def missed(self) -> int:
        """Count softmaxes that met no values, but are those of attention.

        They have a captured map's shape, or the query of one token.
        """
        found = {weights.map_shape for weights in self._weights}
        captured = [shape for shape in found if shape is not None]
        return sum(
            weights.map_shape is None
            and (any(map(weights.may_be, captured)) or self._has_lone_query(weights))
            for weights in self._weights
        )

    def mixes_without_softmax(self) -> list[str]:
        """Return the names of what mixes positions in a pass without attention."""
        tokens = [entry.tensor for entry in self._entries.entered()]
        tokens += [tensor for tensor in self._entries.inputs if tensor.requires_grad]
        lengths = {size for of in tokens for size in of.shape[:2] if of.dim() > 2}
        return self._products.without_softmax(DependencyGraph(tokens), lengths)

    def mixes_beside(self, selected: Tensor) -> str:
        """Say in words what mixes positions beside the captured attention, if any does.

        Args:
            selected (Tensor): One output per row, in the graph.
        """
        tokens = [entry.tensor for entry in self._entries.entered()]
        products = self._products.over({call.lengths()[1] for call in self.calls})
        suspected = suspects(self.calls, tokens, selected, self._recurrent)
        if not products and not suspected:
            return ""
        return mixing_beside(
            self._products,
            suspected,
            self.calls,
            tokens,
            lambda: [
                weights.scores.edge.node
                for weights in self._weights
                if weights.scores is not None
            ],
            selected,
        )

    def attends_in_parts(self) -> bool:
        """Whether attention has a softmax over parts of the keys, put together later.

        Scores are a product of two tensors of tokens: that of a single one, of a linear
        layer, is a gate or a feature, whose exponentials linear attention sums.
        """
        return any(
            node.name().startswith("Bmm")
            for scores in self._softmaxes.of_parts
            for node in products_behind(scores)
        )

    def overwritten(self) -> int:
        """Count masks of fused kernels that were changed in place since."""
        return sum(version(mask) != before for mask, before in self._masks)

    def _run_multi_head_attention(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._n_heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
        try:
            with self:
                return without_dispatch(func)(*args, **kwargs)
        finally:
            self._n_heads = None

    def _mark_softmax(
        self,
        softmax: Softmax,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run a softmax and mark what it puts out.

        Under rules one that is written out runs as one call, whose gradient they keep.
        """
        if self.rules is not None and softmax.is_written_out:
            output = softmax.weights()
        else:
            output = func(*args, **kwargs)
        if output.dim() >= 2:
            self._mark(output, softmax.dim, softmax.scores)
        return output

    def _mark(self, output: Tensor, keys: int, scores: Tensor | None = None) -> None:
        weights = Weights(output.shape, keys, self._n_heads)
        if scores is not None and scores.requires_grad:
            weights.scores = TracedAxis.of(scores, keys)
        self._weights.append(weights)
        self._marked[output] = Mark(weights, tuple(range(output.dim())))

    def _exponentiate(self, target: Tensor) -> Tensor:
        """Run ``exp_`` as a copy and a write, since a softmax may need the scores."""
        scores = target.clone()
        if self.rules is not None:
            self.rules.scores.keep(target, scores)
        written = target.copy_(scores.exp())
        self._softmaxes.note(torch.exp, (scores,), {}, written)
        return written

    def _follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        operands = (*args, *kwargs.values())
        for operand in operands:
            if not self._is_marked(operand):
                continue
            mark = self._marked[operand]
            axes = compose(axes_after(func, args, kwargs, operand, output), mark.axes)
            if mark.weights.keys in axes and output.dim() >= 2:
                self._marked[output] = Mark(mark.weights, axes)
            if func in TIMES:
                other = next((arg for arg in operands if arg is not operand), None)
                if isinstance(other, Tensor) and not self._is_marked(other):
                    self._weighed[output] = (operand, other)

    def _multiply(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a product of matrices; weights may be its left or its right factor."""
        names = ("input", "other" if "other" in kwargs else "mat2")
        given: list[Any] = [
            args[i] if i < len(args) else kwargs.get(names[i]) for i in range(2)
        ]
        if func.__name__ == "__rmatmul__":
            given.reverse()
        for mine, (keys, queries) in enumerate(((-1, -2), (-2, -1))):
            weights, values = given[mine], given[1 - mine]
            # A gate of experts is a softmax too, but meets a plain matrix.
            if (
                self._is_marked(weights)
                and isinstance(values, Tensor)
                and values.dim() == weights.dim() > 2
                and self._marked[weights].keys == weights.dim() + keys
                and self._are_queries(weights, weights.dim() + queries)
            ):
                factors = list(given)
                of_keys = values.movedim((-2, -1)[mine], -2)
                factors[mine] = self._probe(weights, of_keys, weights.dim() + queries)
                return self._note_mixed(weights, torch.matmul(*factors))
        output = func(*args, **kwargs)
        for factor in given:
            self._softmaxes.note_product(factor)
        if not any(map(self._is_marked, given)):
            left, right = given
            axis = right.dim() - min(2, right.dim())
            factors = [(left, left.dim() - 1), (right, axis)]
            self._products.note_product("matmul", factors, output)
        return output

    def _contract(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an einsum, in which weights may be any factor, in any order of axes."""
        equation, *operands = args
        if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
            operands = list(operands[0])
        letters, kept = einsum_letters(equation, operands)
        if not any(map(self._is_marked, operands)):
            output = func(*args, **kwargs)
            for operand in operands:
                self._softmaxes.note_product(operand)
            for letter in sorted(set("".join(letters or ())) - set(kept)):
                factors = [
                    (operand, own.index(letter))
                    for operand, own in zip(operands, letters or (), strict=True)
                    if letter in own
                ]
                self._products.note_product("einsum", factors, output)
            return output
        for mine, weights in enumerate(operands):
            if not self._is_marked(weights) or letters is None:
                continue
            mark = self._marked[weights]
            found = mark.in_einsum(mine, letters, kept)
            if found is None or not self._are_queries(weights, found.queries):
                continue
            of_keys = operands[found.holder].movedim(found.keys, -2)
            operands[mine] = self._probe(weights, of_keys, found.queries)
            return self._note_mixed(weights, func(equation, *operands, **kwargs))
        return func(*args, **kwargs)

    def _sum_weighed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Run a sum over keys of weights times values; None if it is no such sum.

        The product was formed before it was known for attention. It is formed again of
        the weights behind the probe.
        """
        product = args[0] if args else kwargs.get("input")
        if not isinstance(product, Tensor) or product not in self._weighed:
            return None
        weights, values = self._weighed[product]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        mark = self._marked[weights]
        found = mark.in_sum(weights.shape, values.shape, product.shape, dims)
        if found is None or not self._are_queries(weights, found.queries):
            return None
        of_keys = values.movedim(mark.keys, -2)
        product = self._probe(weights, of_keys, found.queries) * values
        named = {key: value for key, value in kwargs.items() if key != "input"}
        summed: Tensor = func(product, *args[1:], **named)
        return self._note_mixed(weights, summed)

    def _is_marked(self, operand: Any) -> TypeGuard[Tensor]:
        return isinstance(operand, Tensor) and operand in self._marked

    def _are_queries(self, weights: Tensor, queries: int | None) -> bool:
        """Whether weights are those of queries of tokens, not of a pooling head.

        Args:
            weights (Tensor): A marked tensor.
            queries (int, optional): The axis of the queries; None if it has none.
        """
        mark = self._marked[weights]
        if queries is None or mark.axes[queries] is None:
            return self._has_lone_query(mark.weights)
        return not mark.is_pooling(weights.shape[queries])

    def _has_lone_query(self, weights: Weights) -> bool:
        """Whether weights without an axis of queries have the query of one token."""
        if weights.scores is None:
            return False
        tokens = [entry.tensor for entry in self._entries.entered()]
        lengths = {call.lengths()[1] for call in self.calls}
        lengths |= {size for of in tokens if of.dim() == 3 for size in of.shape[:2]}
        if weights.shape[weights.keys] not in lengths:
            return False
        return have_query_of_a_token(
            weights.scores, [*tokens, *(call.probed for call in self.calls)]
        )

    def _probe(self, weights: Tensor, values: Tensor, queries: int | None) -> Tensor:
        """Send a marked tensor through the probe, once for all its uses.

        Args:
            weights (Tensor): It.
            values (Tensor): What it weighs, with the keys last but one.
            queries (int, optional): The axis of the queries; a lone one may have none.
        """
        earlier: tuple[Tensor, AttentionCall] | None = self._probed.get(weights)
        if earlier is not None:
            return earlier[0]
        mark = self._marked[weights]
        if queries is None:
            with_axis = weights.unsqueeze(0)
            self._marked[with_axis] = Mark(mark.weights, (None, *mark.axes))
            of_axis = self._probe(with_axis, values, 0)
            probed = of_axis.squeeze(0)
            if self.rules is not None:
                self.rules.share_with(of_axis, probed)
            self._probed[weights] = probed, self._probed[with_axis][1]
            return probed
        new = [
            axis
            for axis, origin in enumerate(mark.axes)
            if origin is None
            and weights.shape[axis] == 1
            and weights.dim() > 3
            and axis != queries  # a lone one may be added behind the softmax
        ]
        kept = [axis for axis in range(weights.dim()) if axis not in new]
        places = kept.index(queries), kept.index(mark.keys)
        laid_out = weights
        for axis in reversed(new):
            laid_out = laid_out.squeeze(axis)
        is_plain = places == (len(kept) - 2, len(kept) - 1)
        if not is_plain:
            laid_out = laid_out.movedim(places, (-2, -1))
        call = self._probe_map(laid_out, values, mark.weights)
        probed = call.probed
        if not is_plain:
            probed = probed.movedim((-2, -1), places)
        for axis in new:
            probed = probed.unsqueeze(axis)
        if self.rules is not None:
            self.rules.share_with(call.probed, probed)
        self._probed[weights] = probed, call
        return probed

    def _probe_map(
        self, laid_out: Tensor, values: Tensor, weights: Weights
    ) -> AttentionCall:
        """Send weights ``(..., queries, keys)`` through the probe."""
        n_queries, n_keys = laid_out.shape[-2:]
        weights.map_shape = n_queries, n_keys
        scores: Tensor | None = None
        axes: tuple[int, ...] = ()
        share = 0.0
        if self.rules is None:
            probed: Tensor = self.probe(laid_out)
        else:
            scores, axes = self.rules.scores.of(laid_out) or (None, ())
            share = self.rules.share([laid_out], values)
            probed = self.probe(self.rules.above_weights(laid_out, share))
            self.rules.add_weights(probed, share)
        call = AttentionCall(
            probed,
            values,
            weights.heads_of(n_queries),
            rows_outside=weights.n_heads is not None,
            scores=scores,
            score_axes=axes,
            share_of_weights=share,
        )
        self.calls.append(call)
        return call

    def _note_mixed(self, weights: Tensor, mixed: Tensor) -> Tensor:
        """Note where in the graph values are that weights have mixed."""
        if mixed.requires_grad:
            self._probed[weights][1].mixed.append(get_gradient_edge(mixed))
        return mixed

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
        """Run the fused kernel and keep its operands, or form the map in its place.

        The map is needed where dropout changes it, and where rows and heads share a
        dimension, which only the map's own shape can tell apart later.
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
        self._mark(weights, weights.dim() - 1)
        mixed = self._probe(weights, value, weights.dim() - 2) @ value
        return self._note_mixed(weights, mixed)

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
        rules = self.rules
        operands: tuple[Tensor, ...] = ()
        if self._keeps_operands and all(
            part.requires_grad and (rules is None or rules.is_active(part))
            for part in (query, key, value)
        ):
            # Views have nodes of their own: gradients in them are this call's alone,
            # also where others use the same tensors.
            query, key, value = operands = tuple(
                part.view_as(part) for part in (query, key, value)
            )
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
            self._masks.append((mask, version(mask)))
            mask = mask.detach()
        # Under autocast the kernel casts its operands: keep them in the dtype it used.
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
        map_shape = (shape[-2], shape[-1])
        self._weights.append(Weights(shape, len(shape) - 1, None, map_shape))
        probed: Tensor = self.probe(output)
        if self.rules is not None:
            self.rules.add_attention(probed)
        call = AttentionCall(probed, value, None, fused=fused, operands=operands)
        self.calls.append(call)
        if probed.requires_grad:
            call.mixed.append(get_gradient_edge(probed))
        return probed
