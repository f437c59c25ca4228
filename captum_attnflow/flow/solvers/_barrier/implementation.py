"""Which implementation works on the edges, and how autograd is kept out of it."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from captum_attnflow._warnings import warn_caller
from captum_attnflow.flow.solvers._barrier.by_torch.passes import TorchPasses
from captum_attnflow.flow.solvers._barrier.passes import EdgePasses
from captum_attnflow.flow.solvers._barrier.undisturbed import undisturbed


def choose_passes(compiled: bool | None, device: torch.device) -> type[EdgePasses]:
    """Torch's on GPUs and where other code traces; else as asked, or Numba's."""
    is_traced = torch.compiler.is_compiling() or _is_transformed()
    if is_traced or compiled is False or device.type != "cpu":
        return TorchPasses
    return numba_passes() or TorchPasses


@cache
def numba_passes() -> type[EdgePasses] | None:
    """The passes compiled by Numba, where it is installed, works and compiles."""
    try:
        numba = undisturbed(_import_numba)
        _start_threads_of(numba)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            # It depends on what else is installed in ways that it tells by any error.
            warn_caller(
                "flows are solved without Numba, which is installed but cannot be "
                f"loaded ({type(error).__name__}: {error}). Mend what this names, or "
                "reinstall it by pip install 'captum-attnflow[compiled]', or uninstall "
                "it"
            )
        return None
    if numba.config.DISABLE_JIT:
        return None
    return undisturbed(_import_passes)


def _import_numba() -> ModuleType:
    import numba

    module: ModuleType = numba
    return module


def _import_passes() -> type[EdgePasses]:
    from captum_attnflow.flow.solvers._barrier.by_numba.passes import NumbaPasses

    return NumbaPasses


def _start_threads_of(numba: ModuleType) -> None:
    """Start the threads that Numba would start with the first kernel that needs them.

    Its OpenMP may be torch's, whose number of threads it then sets, once a process.
    """
    before = torch.get_num_threads()
    try:
        numba.get_num_threads()
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def untracked() -> torch.no_grad | torch.inference_mode:
    """Switch autograd off, by inference mode, which saves a sixth of the time.

    Not within a transform of ``torch.func``, which does not know inference tensors.
    """
    return torch.no_grad() if _is_transformed() else torch.inference_mode()


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which wraps all tensors."""
    return torch._C._functorch.maybe_current_level() is not None
