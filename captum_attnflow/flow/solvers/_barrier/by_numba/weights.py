"""How compiled kernels keep the weights of edges.

Beside edges in float32 these are bfloat16, which halves what conjugate gradients read.
A step is solved with the same rounded weights as it changes flows by, and so conserves
flow; prices change as if they were exact. Off by up to 1 in 256, they cost some steps
in a hundred.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

_DTYPE_BESIDE = {torch.float32: torch.bfloat16, torch.float64: torch.float64}


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights beside edges in another one."""
    return _DTYPE_BESIDE[dtype]


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The same memory for NumPy, which knows of bfloat16 no more than the bits."""
    return tuple(
        tensor.view(torch.int16).numpy().view(np.uint16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for tensor in tensors
    )


def encode(weight, array):
    """Return a weight as an element of an array; for compiled code alone.

    Halfway it is rounded up. Of what is no number, only what arithmetic makes stays so.
    """
    raise NotImplementedError


def decode(element):
    """Return the weight that an element stands for; for compiled code alone."""
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
