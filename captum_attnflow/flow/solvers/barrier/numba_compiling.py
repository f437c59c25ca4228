"""How functions are compiled by Numba, and how they keep the weights of edges.

Beside edges in float32 weights are bfloat16, which halves what conjugate gradients
read. A step is solved with the same rounded weights as it changes flows by, and so
conserves flow; multipliers change as if the weights were exact. Weights off by up to 1
in 256 cost some steps in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from captum_attnflow.flow.solvers.barrier.passes import undisturbed

_DTYPE_BESIDE = {torch.float32: torch.bfloat16, torch.float64: torch.float64}


def compiled(
    any_order: bool = False, parallel: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function at its first call, and keep the result on disk.

    Args:
        any_order (bool): Whether arithmetic may be reordered and fused, as vector
            instructions need for sums. Without, equal expressions have equal results.
        parallel (bool): Whether its ``prange`` loops run in threads.
    """
    options = {
        "error_model": "numpy",
        "fastmath": {"contract", "nsz", "reassoc"} if any_order else set(),
        "nogil": True,
        "parallel": parallel,
    }

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Any
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:
            # No cache folder is writable.
            kernel = njit(**options)(function)
        else:
            _compile_one_at_a_time(kernel)
        kernel.compile = partial(undisturbed, kernel.compile)
        dispatcher: Callable[..., Any] = kernel
        return dispatcher

    return decorate


def _compile_one_at_a_time(kernel: Any) -> None:
    """Lock the cache while a process reads or writes it.

    Numba does not see to that: of two that keep the same function for different types,
    one may later load the code of the other, which ends the process.
    """
    compile_for = kernel.compile

    @wraps(compile_for)
    def locked(signature: Any) -> Any:
        with _lock(kernel.stats.cache_path):
            return compile_for(signature)

    kernel.compile = locked


@cache
def _lock(folder: str) -> FileLock:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(folder) / "captum_attnflow.lock")


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights beside edges in another one."""
    return _DTYPE_BESIDE[dtype]


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The same memory for NumPy, which has no bfloat16 and sees its bits."""
    return tuple(
        tensor.view(torch.int16).numpy().view(np.uint16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for tensor in tensors
    )


def encode(weight, array):
    """Return a weight as an element of an array; only in compiled code.

    Ties are rounded up. NaN stays NaN if arithmetic made it; other bit patterns of NaN
    may not.
    """
    raise NotImplementedError


def decode(element):
    """Return the weight that an element stands for; only in compiled code."""
    raise NotImplementedError


@overload(encode, inline="always")
def _encode(weight, array):
    if isinstance(array.dtype, types.Integer):
        return lambda weight, array: np.uint16(
            (np.float32(weight).view(np.uint32) + np.uint32(1 << 15)) >> np.uint32(16)
        )
    return lambda weight, array: weight


@overload(decode, inline="always")
def _decode(element):
    if isinstance(element, types.Integer):
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(
            np.float32
        )
    return lambda element: element
