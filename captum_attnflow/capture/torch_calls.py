"""The torch calls that attention is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax}
PRODUCT = {
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.bmm,
    torch.Tensor.bmm,
}
# Calls that keep queries in the last dimension but one and keys in the last.
TRANSPARENT = {
    "__getitem__",
    "__truediv__",
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

# Calls that mix positions, if not along the features: of convolutional and recurrent
# layers, state spaces, shifts and Fourier transforms.
MIXES_POSITIONS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cumprod",
    "cumsum",
    "fft_fft",
    "fft_fft2",
    "fft_fftn",
    "fft_rfft",
    "flip",
    "gru",
    "lstm",
    "rnn_relu",
    "rnn_tanh",
    "roll",
}


def mixes_positions(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of :data:`MIXES_POSITIONS` mixes more than features."""
    if name.startswith("conv"):
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        return bool(max(weight.shape[2:]) > 1)
    if name in ("gru", "lstm", "rnn_relu", "rnn_tanh"):
        return True
    x = args[0] if args else kwargs["input"]
    place = 2 if name == "roll" else 1
    named = next((kwargs[key] for key in ("dim", "dims") if key in kwargs), -1)
    dims = args[place] if len(args) > place else named
    if dims is None or dims == ():
        return True
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    return any(dim % x.dim() != x.dim() - 1 for dim in dims)
