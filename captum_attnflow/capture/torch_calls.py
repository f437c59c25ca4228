"""The torch calls that attention is written in."""

from __future__ import annotations

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
