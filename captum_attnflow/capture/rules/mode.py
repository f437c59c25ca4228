"""The mode that applies rules to every torch call of a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from captum_attnflow.capture.axes import name_of
from captum_attnflow.capture.graph import DependencyGraph
from captum_attnflow.capture.record import (
    Propagation,
    UnsupportedAttentionError,
)
from captum_attnflow.capture.refusals import refuse_kernels_without_gradient
from captum_attnflow.capture.rules.call import (
    OWN_NODES,
    Call,
    ElementwiseFunctions,
    Gates,
    ScoreProducts,
    nodes_between,
    out_of_place,
    scale_gradient,
    tensors_in,
)
from captum_attnflow.capture.rules.table import (
    CASTS,
    CONTRACTIONS,
    ELEMENTWISE,
    FOLLOWED,
    LINEAR,
    REPLACED_NODES,
    RULE_OF,
    along_secant,
)

Rules = Literal["gradient", "attnlrp", "cp-lrp"]
"""Whose rules relevance follows: none but the chain rule, AttnLRP's or CP-LRP's."""
RULES: tuple[str, ...] = get_args(Rules)
"""The names that :data:`Rules` admits."""

# What attention weights get of the relevance of weights times values.
_SHARE_OF_WEIGHTS = {"attnlrp": 0.5, "cp-lrp": 0.0}


class PropagationRules(TorchFunctionMode):
    """Changes the backward pass of what runs while it is active.

    Only what depends on the tokens takes part: parameters are constants also where they
    require gradients. Sources of such dependence are named by :meth:`add_source`.

    Args:
        rules (str): ``"attnlrp"`` or ``"cp-lrp"``.

    Attributes:
        share_of_weights (float): What attention weights get of the relevance of weights
            times values, where both depend on the tokens.
        counts (Counter): How often a rule met an operation, by ``(rule, operation)``.
        unknown (set of str): Operations without a rule that are not known to be linear;
            they kept their gradients.
        without_gradient (set of str): Operations of integer-quantised kernels.
        functions (ElementwiseFunctions): What is an elementwise function of what.
        gates (Gates): What routers put out.
        scores (ScoreProducts): What comes from which product of queries and keys.

    Examples::

        >>> x = torch.tensor([2.0, -1.0], requires_grad=True)
        >>> with PropagationRules("attnlrp") as rules:
        ...     rules.add_source(x)
        ...     y = (x * x).sum()
        >>> torch.autograd.grad(y, x)[0]  # x * (f(x) / x), f(x) / x constant
        tensor([ 2., -1.])
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.share_of_weights = _SHARE_OF_WEIGHTS[rules]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unknown: set[str] = set()
        self.without_gradient: set[str] = set()
        self.functions = ElementwiseFunctions()
        self.gates = Gates()
        self.scores = ScoreProducts()
        self._graph = DependencyGraph(())
        self._shares = WeakTensorKeyDictionary()  # of attention weights
        self._hidden = ElementwiseFunctions()  # computed without a graph
        self._seen_through = WeakTensorKeyDictionary()
        self._inside_unknown: set[Node] = set()
        self._last: Tensor | None = None  # what the last attention put out
        self._mixed = 0  # which source that is
        self._streams = WeakTensorKeyDictionary()

    # -- what the capture tells and asks

    def add_source(self, tensor: Tensor) -> None:
        """Name a tensor of the graph that depends on the tokens."""
        if tensor.requires_grad:
            self._graph.add(tensor)

    def add_attention(self, probed: Tensor) -> None:
        """Name what an attention put out, its weights or its output."""
        self.add_source(probed)
        self._last, self._mixed = probed, self._graph.n_sources - 1

    def share(self, scored: Sequence[Any], values: Any) -> float:
        """What attention weights get of the relevance of weights times values.

        Args:
            scored (sequence): What the weights are computed from.
            values (Any): What they weigh.
        """
        if self.share_of_weights == 0 or not any(map(self.is_active, scored)):
            return 0.0
        return self.share_of_weights if self.is_active(values) else 1.0

    def above_weights(self, weights: Tensor, share: float) -> Tensor:
        """Apply the rule of attention weights, whose own gradient is then the whole.

        Args:
            weights (Tensor): Attention weights that are about to mix values.
            share (float): See :meth:`share`.
        """
        self.counts["attention", "matmul"] += 1
        # Scaled by 0 and not cut: the graph tells which layer feeds on which.
        return scale_gradient(weights, share)

    def add_weights(self, weights: Tensor, share: float) -> None:
        """Name attention weights as the product with the values will see them.

        Args:
            weights (Tensor): What the probe returned.
            share (float): See :meth:`share`.
        """
        self.add_attention(weights)
        self._shares[weights] = share

    def share_with(self, weights: Tensor, laid_out: Tensor) -> None:
        """Name another layout of attention weights that are named."""
        self._shares[laid_out] = self._shares[weights]

    def share_of(self, operand: Any) -> float | None:
        """The share of attention weights that are named; None for other operands."""
        share: float | None = None
        if isinstance(operand, Tensor):
            share = self._shares.get(operand)
        return share

    def stream_behind(self, probed: Tensor) -> Tensor | None:
        """Return where an attention joined what led past it, the residual stream."""
        stream: Tensor | None = self._streams.get(probed)
        return stream

    def check(self, selected: Tensor) -> None:
        """Look whether all operations between the tokens and an output were seen.

        Args:
            selected (Tensor): The output.

        Raises:
            UnsupportedAttentionError: If some ran where no rule can change them, or
                have no gradient.
            ValueError: If the output does not depend on the tokens.
        """
        if self.without_gradient:
            refuse_kernels_without_gradient(self.without_gradient)
        if not self.is_active(selected):
            raise ValueError(
                "the output does not depend on the inputs through autograd: "
                "forward_func may run under torch.no_grad(), detach what it computes, "
                "be TorchScript, or run in worker threads, whose operations are not "
                "seen: pass DataParallel's .module"
            )
        names = {
            node.name()
            for node in self._graph.dependent_nodes(selected)
            if node not in self._inside_unknown
        }
        # TorchScript puts its own nodes in their place after the first calls.
        scripted = {name for name in names if "torch::jit" in name}
        unseen = sorted(names & REPLACED_NODES | scripted)
        if unseen:
            raise UnsupportedAttentionError(
                f"{', '.join(unseen)} in the graph of the output ran where no rule can "
                "change them: TorchScript and worker threads hide their operations. "
                "Pass the Python model itself, in the calling thread"
            )
        self.unknown |= {
            name for name in names - OWN_NODES if name.endswith("Backward")
        }

    def summary(self) -> Propagation:
        """Return what the rules did."""
        counts = {f"{rule}: {name}": n for (rule, name), n in self.counts.items()}
        return Propagation(counts, tuple(sorted(self.unknown)))

    # -- what rules tell and ask

    def is_active(self, operand: Any) -> bool:
        """Whether an operand depends on the tokens through autograd."""
        return (
            isinstance(operand, Tensor)
            and operand.requires_grad
            and self._graph.depends(operand)
        )

    def note(self, rule: str, call: Call) -> None:
        """Count a rule that met an operation."""
        self.counts[rule, call.name] += 1

    def note_sum(self, call: Call, output: Any) -> None:
        """Note where the last attention joins what does not depend on it."""
        if self._last is None or not isinstance(output, Tensor):
            return
        behind = [
            self._graph.depends_on(arg, self._mixed)
            for arg in call.tensors()
            if self.is_active(arg)
        ]
        if len(behind) == 2 and behind[0] != behind[1]:
            self._streams[self._last] = output

    # -- the mode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle one torch call; the mode is inactive inside."""
        kwargs, name = kwargs or {}, name_of(func)
        # An attribute, such as a shape, but not a transposed tensor.
        if func.__name__ == "__get__" and name not in FOLLOWED:
            return func(*args, **kwargs)
        call = Call(name, func, args, kwargs)
        if not torch.is_grad_enabled():
            return self._run_without_graph(call)
        if len(self._hidden):
            call = self._see_through(call)
        in_place = out_of_place(call)
        if in_place is not None and in_place.name in RULE_OF and self._any(call):
            return self._run_in_place(call, in_place)
        return self._run(call)

    def _run(self, call: Call) -> Any:
        output = self._apply(call)
        if call.name not in CONTRACTIONS:
            self.scores.follow(call, output)
        return output

    def _apply(self, call: Call) -> Any:
        rule = RULE_OF.get(call.name)
        if rule is not None and self._any(call):
            return rule(self, call)
        output = call.run()
        if call.name in FOLLOWED:
            self.gates.follow(call, output)
            if call.name in CASTS:
                self._follow_cast(call, output)
        elif call.name not in LINEAR and rule is None and self._any(call):
            # Their graph is there, but yields zeros.
            if str(call.func).startswith("quantized."):
                self.without_gradient.add(str(call.func))
            elif any(self.is_active(part) for part in tensors_in(output)):
                self.unknown.add(call.name)
                self._inside_unknown |= nodes_between(call.tensors(), output)
        return output

    def _follow_cast(self, call: Call, output: Any) -> None:
        if call.args and output is call.args[0]:
            return
        function = self.functions.compose(call, output, self.is_active, curves=False)
        if function is not None and function.root is not output:
            self.functions.note(output, function)

    def _run_in_place(self, call: Call, in_place: Call) -> Tensor:
        """Compute what an in-place call writes by its rule, then write it.

        Of a copy: gradients need what was there before.
        """
        place, target = call.operand(0, "input")
        copy = target.clone()
        self.functions.note(copy, self.functions.of(target))
        self.gates.overwrite(copy, target)
        self.scores.keep(target, copy)
        value = self._run(in_place.with_arguments({place: copy}))
        function = self.functions.get(value)
        written: Tensor = target.copy_(value)
        self.gates.overwrite(written, value)
        self.scores.overwrite(written, value)
        if function is not None and function.root is not written:
            self.functions.note(written, function)
        return written

    def _any(self, call: Call) -> bool:
        return any(self.is_active(arg) for arg in call.tensors())

    def _run_without_graph(self, call: Call) -> Any:
        """Run a call where autograd is off, as inside an autograd Function.

        A Function may be an activation that is written out: what it computes from one
        tensor of the graph is an elementwise function, whose gradient it brings.
        """
        output = call.run()
        if call.name in ELEMENTWISE | CASTS and isinstance(output, Tensor):
            function = self._hidden.compose(
                call,
                output,
                lambda arg: self._hidden.get(arg) is not None or self.is_active(arg),
                curves=True,
            )
            if function is not None and function.root is not output:
                self._hidden.note(output, function)
        return output

    def _see_through(self, call: Call) -> Call:
        """Replace what autograd Functions put out by secants, where they are such."""
        replaced = {
            place: self._secant_of(arg)
            for place, arg in call.operands()
            if isinstance(arg, Tensor) and isinstance(arg.grad_fn, BackwardCFunction)
        }
        return call.with_arguments(replaced) if replaced else call

    def _secant_of(self, operand: Tensor) -> Tensor:
        known: Tensor | None = self._seen_through.get(operand)
        if known is not None:
            return known
        function = self._hidden.get(operand)
        if function is None or not _is_elementwise(operand, function.root):
            return operand
        # The derivative at 0 is the Function's own; the clone has it, too.
        output = along_secant(operand.clone(), function)
        if output is None:
            return operand
        self.counts["identity", type(operand.grad_fn).__name__] += 1
        self.functions.note(output, function)
        self._seen_through[operand] = output
        return output


def _is_elementwise(output: Tensor, root: Tensor) -> bool:
    """Ask the gradient of an autograd Function whether it mixes no elements.

    Of an elementwise function the gradient of a weighted sum is the weights times that
    of the plain sum.
    """
    weights = torch.rand_like(output)
    try:
        plain, weighted = (
            torch.autograd.grad(total, root, retain_graph=True, allow_unused=True)[0]
            for total in (output.sum(), (weights * output).sum())
        )
    except RuntimeError:  # reentrant checkpoints have no gradient of their own
        return False
    if plain is None or weighted is None:
        return False
    scale = plain.abs().amax().clamp_min(torch.finfo(plain.dtype).tiny)
    return bool(((weighted - weights * plain).abs() <= 1e-2 * scale).all())
