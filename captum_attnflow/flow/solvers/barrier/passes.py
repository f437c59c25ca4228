"""The passes over all edges that a Newton step makes: what implementations share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from captum_attnflow.flow.solvers.barrier.dual import ClosedForm
from captum_attnflow.flow.solvers.barrier.laplacian import IterativeSolver
from captum_attnflow.flow.solvers.barrier.problem import BarrierProblem, Iterate

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
        memory (Tensor, optional): Flat memory to work in; by default, or if it is not
            enough, the workspace's.

    Attributes:
        dtypes (tuple): Of the edges, to be tried in turn until all networks are solved.
        n_arrays (int): How many arrays of edges a solve needs.
        memory (Tensor): The memory worked in.
        weight (Tensor): Shape ``(B, L, T, T)``, of the inner edges.
        iterative_solver (type): What solves Laplacian systems as fast.
        iterative_from_tokens (int): From how many tokens on it is the cheaper one.
        closed_form (type): What does the work on the edges near the optimum.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    n_arrays: ClassVar[int]
    iterative_solver: ClassVar[type[IterativeSolver]]
    iterative_from_tokens: ClassVar[int]
    closed_form: ClassVar[type[ClosedForm]]
    memory: Tensor
    weight: Tensor

    def __init__(
        self,
        problem: BarrierProblem,
        iterate: Iterate,
        memory: Tensor | None = None,
    ) -> None: ...

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
        """Return the flow's divergence and the sum of complementarity products."""
        ...


def untracked() -> torch.no_grad | torch.inference_mode:
    """Switch autograd off, by inference mode, which saves a sixth of the time.

    Not within a transform of ``torch.func``, which does not know inference tensors.
    """
    return torch.no_grad() if is_transformed() else torch.inference_mode()


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which wraps all tensors."""
    return torch._C._functorch.maybe_current_level() is not None
