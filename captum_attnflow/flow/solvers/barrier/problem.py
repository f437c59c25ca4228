"""The barrier problem of a batch in flat arrays, and an iterate."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from captum_attnflow.flow.network import LayeredNetwork, empty
from captum_attnflow.flow.solvers.barrier.laplacian import ClosedForm, IterativeSolver

# Slack of an edge that never binds, and the inverse of the flow on one that is missing,
# in units of the value; and the least capacity that counts as an edge.
UNLIMITED = 1e100
_UNLIMITED = {torch.float64: UNLIMITED, torch.float32: 1e25}
_LEAST = {torch.float64: 0.0, torch.float32: 1e-20}


@dataclass(frozen=True)
class BarrierProblem:
    """What stays fixed; edges are flat: inner ``L*T*T``, then source, then sink.

    A missing edge carries nearly 0, and one that never binds has nearly unlimited
    slack. Neither changes in a step, and both keep their barrier terms, so that no step
    length needs a mask.
    """

    capacity: Tensor  # (B, E), in units of scale; unlimited where not bounded
    alive: Tensor  # (B, E), bool, where there is an edge
    scale: Tensor  # (B,), float64, upper bound of the value
    n_terms: Tensor  # (B,), barrier terms
    n_products: Tensor  # (B,), complementarity products, two an edge
    is_precise: Tensor  # (B,), bool, whether the dtype can hold every capacity
    is_causal: Tensor  # (B,), bool, whether edges lead to later positions alone
    n_layers: int
    n_tokens: int
    unlimited: float

    @staticmethod
    def of(
        network: LayeredNetwork, bound: Tensor, dtype: torch.dtype
    ) -> BarrierProblem:
        """The problem of a trimmed network and its ``node_bound()``."""
        inner = network.capacity.flatten(1)
        terminals = torch.cat([network.source, network.sink], 1)
        scale = bound.sum(-1).amin(-1)
        unlimited = _UNLIMITED[dtype]
        n_inner, n_edges = inner.shape[1], inner.shape[1] + terminals.shape[1]
        alive = empty((len(inner), n_edges), like=terminals)
        capacity = empty(alive.shape, like=inner.new_empty(0, dtype=dtype))
        torch.gt(inner, 0, out=alive[:, :n_inner])
        alive[:, n_inner:] = terminals
        # Scaled before rounding. Division into another dtype would be slow.
        layers, _, _ = split(
            capacity, (network.n_layers, network.n_tokens, network.n_tokens)
        )
        scaled = empty(layers[:, 0].shape, like=inner)
        is_precise = torch.ones_like(scale, dtype=torch.bool)
        for layer, rounded in enumerate(layers.unbind(1)):
            given = network.capacity[:, layer]
            rounded.copy_(torch.div(given, scale[:, None, None], out=scaled))
            if unlimited < UNLIMITED:
                binds = (scaled >= unlimited) & (scaled < UNLIMITED)
                is_precise &= ~binds.flatten(1).any(1)
        capacity[:, n_inner:] = unlimited
        capacity.masked_fill_(~alive, unlimited).clamp_max_(unlimited)
        is_precise &= capacity.amin(1) >= _LEAST[dtype]
        # Counted as floats, row by row: sums of bools would copy all to new memory.
        count = empty(alive.shape, like=capacity)
        rows = count.unflatten(1, (-1, network.n_tokens))
        count.copy_(alive)
        n_alive = rows.sum(2).double().sum(1)
        torch.lt(capacity, unlimited, out=count)
        n_terms = n_alive + rows.sum(2).double().sum(1)
        layers, _, _ = split(
            alive, (network.n_layers, network.n_tokens, network.n_tokens)
        )
        return BarrierProblem(
            capacity=capacity,
            alive=alive,
            scale=scale,
            n_terms=n_terms,
            n_products=2 * n_alive,
            is_precise=is_precise,
            is_causal=~layers.triu(1).flatten(1).any(1),
            n_layers=network.n_layers,
            n_tokens=network.n_tokens,
            unlimited=unlimited,
        )

    def select(self, index: Tensor) -> BarrierProblem:
        """Return the problem of some networks of the batch."""
        return replace(
            self,
            capacity=self.capacity[index],
            alive=self.alive[index],
            scale=self.scale[index],
            n_terms=self.n_terms[index],
            n_products=self.n_products[index],
            is_precise=self.is_precise[index],
            is_causal=self.is_causal[index],
        )

    def split(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the inner edges and of those of the source and of the sink."""
        return split(edges, (self.n_layers, self.n_tokens, self.n_tokens))

    def value(self, flow: Tensor) -> Tensor:
        """Flow into the sink, ``(B,)``."""
        return flow[:, -self.n_tokens :].double().sum(1)


@dataclass
class Iterate:
    """The slacks of the bounds ``0 <= x <= u`` of the flow, and their multipliers.

    The upper slack ``y = u - x`` is kept with the opposite sign, and so is its
    multiplier, so that a change of flow changes both slacks alike.
    Edges are held in the dtype of the problem, and nodes in float64.
    """

    slack: Tensor  # (2, B, E): x and -y, kept apart since x - u cancels
    multiplier: Tensor  # (2, B, E): z and -s, at the optimum mu / slack
    p: Tensor  # (B, L + 1, T) potential

    @staticmethod
    def empty(problem: BarrierProblem) -> Iterate:
        """An iterate that is still to be filled."""
        capacity = problem.capacity
        slack, multiplier = empty((2, 2, *capacity.shape), like=capacity)
        nodes = (len(capacity), problem.n_layers + 1, problem.n_tokens)
        return Iterate(slack, multiplier, problem.n_terms.new_empty(nodes))

    def select(self, index: Tensor) -> Iterate:
        """Return the iterate of some networks of the batch."""
        return Iterate(self.slack[:, index], self.multiplier[:, index], self.p[index])


def split(
    edges: Tensor, shape: tuple[int, int, int], has_terminals: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of flat edges: the inner ones in a shape, the source's and the sink's."""
    n_terminals = shape[-1] if has_terminals else 0
    n_inner = edges.shape[1] - 2 * n_terminals
    inner, source, sink = edges.split([n_inner, n_terminals, n_terminals], 1)
    return inner.unflatten(1, shape), source, sink


P = ParamSpec("P")
T = TypeVar("T")


def undisturbed(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do some work that no signal interrupts, such as one by the user.

    An import of Numba that ends halfway cannot be had again in the same process, and
    LLVM calls Python back, where an exception is lost together with the code. But
    signals raise exceptions in the main thread alone, which therefore waits for another
    one, and raises when that is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(*arguments, **options)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments, **options).result()


class EdgePasses(Protocol):
    """The passes over the edges of a batch, in the order of a step.

    The Newton equations of the optimum in ``solver`` reduce, edge by edge, to
    ``dx = weight * (correction + rise(p + dp))`` with
    ``1 / weight = z / x + s / y``. The rise is that of the potential along an edge. The
    correction sums, over the two slacks ``x`` and ``-y`` of an edge, the barrier's
    ``mu / slack`` and Mehrotra's second-order term of the predictor.

    Args:
        problem (BarrierProblem): The problem.
        iterate (Iterate): An iterate of it, changed by :meth:`advance`.

    Attributes:
        dtypes (tuple): Of the edges, to be tried in turn until all networks are solved.
        weight (Tensor): Shape ``(B, L, T, T)``, of the inner edges.
        iterative_solver (type): What solves Laplacian systems as fast.
        iterative_from_tokens (int): From how many tokens on it is the cheaper one.
        banded_solver (type, optional): What to try before factors of whole layers,
            where the networks are causal.
        closed_form (type): What does the work on the edges near the optimum.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    iterative_solver: ClassVar[type[IterativeSolver]]
    iterative_from_tokens: ClassVar[int]
    closed_form: ClassVar[type[ClosedForm]]
    banded_solver: type[IterativeSolver] | None
    weight: Tensor

    def __init__(self, problem: BarrierProblem, iterate: Iterate) -> None: ...

    def set_weights(self) -> Tensor:
        """Set the weights of the iterate, and sum them as :func:`node_sums` does."""
        ...

    def predict(self, potential: Tensor, predicting: Tensor) -> tuple[Tensor, ...]:
        """Begin a step by the second-order terms of the affine-scaling predictor.

        Args:
            potential (Tensor): Shape ``(B, L + 1, T)``, after that step.
            predicting (Tensor): Shape ``(B,)``, bool; other networks centre.

        Returns:
            tuple[Tensor, ...]: The least and the largest ratio ``dx / slack``, and the
            sums of ``dx`` times both multipliers and times the rise, each ``(B,)``.
        """
        ...

    def centre(self) -> None:
        """Begin a step without predictor and second-order terms."""
        ...

    def correct(self, step_mu: Tensor) -> Tensor:
        """Set the right side for a barrier parameter, at the potential as it is.

        Args:
            step_mu (Tensor): Shape ``(B,)``, barrier parameter of the step.

        Returns:
            Tensor: Shape ``(B, L + 1, T)``, divergence of the change of flow so far.
        """
        ...

    def ratio_test(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Complete the step's direction by the change of the potential.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B,)``, the largest shares by which a slack
            and a multiplier would fall in a full step; at most 0 where none falls.
        """
        ...

    def advance(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step with these step lengths, of shape ``(B,)``; then measure."""
        ...

    def measure(self) -> tuple[Tensor, Tensor]:
        """Return the flow's divergence and the sum of the edges' products."""
        ...


def untracked() -> torch.no_grad | torch.inference_mode:
    """Switch autograd off, by inference mode, which saves a sixth of the time.

    Not within a transform of ``torch.func``, which does not know inference tensors.
    """
    return torch.no_grad() if is_transformed() else torch.inference_mode()


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which wraps all tensors."""
    return torch._C._functorch.maybe_current_level() is not None
