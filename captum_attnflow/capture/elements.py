"""Which token each element of an input makes: the pixels of a patch, and the like.

Counts and shapes do not tell: [CLS], distillation tokens and registers stand before the
patches, detection tokens behind them, patches need not be square, and pixels at a
border may belong to none. The model is asked instead. Up to its first attention a
token depends on its own elements alone, so the gradient of some of the tokens reaches
just the elements that make them. The bits of a token's index are read one by one, from
the tokens in whose index the bit is set, and from the others: an element that both
reach makes several tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _run_forward
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_attnflow.capture.torch_calls import SOFTMAX

# Some kernels leave rounding errors where nothing was sent: relative to an element's
# own gradient, and to the largest, of which a small one may be the difference.
_NOISE, _NOISE_OF_LARGEST = 1e-4, 1e-6


def tokens_of_elements(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    n_tokens: int,
    index: int = 0,
) -> Tensor | None:
    """Find the token that each element of an input makes.

    Runs the forward function on the inputs up to its first attention.

    Args:
        forward_func (Callable): Any function of tensors that runs a transformer.
        inputs (tuple[Tensor, ...]): Its inputs, one example, such as pixels
            ``(1, C, H, W)``.
        additional_forward_args (tuple, optional): Passed on behind ``inputs``.
        n_tokens (int): Tokens ``T`` of its attention maps.
        index (int): Which input.

    Returns:
        Tensor or None: Shape of the input without its dimension 0, int64 in
        ``[-1, T)``; -1 where an element makes no token. None if an element makes
        several, or none makes any.

    Examples::

        >>> def forward(pixels):  # patches of 1 x 2 pixels
        ...     tokens = torch.cat([torch.ones(1, 1, 2), pixels.reshape(1, -1, 2)], 1)
        ...     return ((tokens @ tokens.mT).softmax(-1) @ tokens).sum((1, 2))
        >>> tokens_of_elements(forward, (torch.rand(1, 1, 2, 4),), None, n_tokens=5)
        tensor([[[1, 1, 2, 2],
                 [3, 3, 4, 4]]])
    """
    if not inputs[index].is_floating_point():
        return None
    leaf = inputs[index].detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), _FirstAttention(n_tokens):
            # Copies, since models normalise pixels in place.
            entered = [tensor.clone() for tensor in inputs]
            entered[index] = leaf.clone()
            _run_forward(forward_func, entered, None, additional_forward_args)
    except _Reached as reached:
        return _read_bits(reached.tokens, leaf)
    return None


def _read_bits(tokens: Tensor, leaf: Tensor) -> Tensor | None:
    """Decode token indices from gradients of shape-``(T,)`` numbers in a leaf."""
    found = torch.zeros_like(leaf, dtype=torch.long)
    makes_none = torch.ones_like(leaf, dtype=torch.bool)
    if not tokens.requires_grad:
        return None
    index = torch.arange(len(tokens), device=tokens.device)
    for bit in range(max(1, (len(tokens) - 1).bit_length())):
        is_set = (index >> bit) & 1
        reached, missed = (
            torch.autograd.grad(
                tokens,
                leaf,
                chosen.to(tokens),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0].abs()
            for chosen in (is_set, 1 - is_set)
        )
        weaker, stronger = (
            torch.minimum(reached, missed),
            torch.maximum(reached, missed),
        )
        noise = torch.maximum(_NOISE * stronger, _NOISE_OF_LARGEST * stronger.amax())
        if bool((weaker > noise).any()):
            return None
        found |= (reached > missed).long() << bit
        makes_none &= stronger == 0
    if bool(makes_none.all()):
        return None
    return found.masked_fill(makes_none, -1)[0]


class _Reached(BaseException):
    """Leaves the forward function at its first attention; no error, no Exception."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens


class _FirstAttention(TorchFunctionMode):
    """Stops at the first attention over so many tokens, with a number for each."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self._n_tokens = n_tokens

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            if query.shape[-2] == self._n_tokens:
                raise _Reached(_mixed(query).flatten(0, -2).sum(0))
        if func is F.multi_head_attention_forward:
            query = args[0] if args else kwargs["query"]
            if query.shape[0] == self._n_tokens:
                raise _Reached(_mixed(query).sum(1))
        if func in SOFTMAX:
            scores = args[0] if args else kwargs["input"]
            if scores.shape[-2:] == (self._n_tokens, self._n_tokens):
                # A token's score of itself knows no other token.
                own = scores.diagonal(dim1=-2, dim2=-1)
                raise _Reached(own.reshape(-1, self._n_tokens).sum(0))
        return func(*args, **kwargs)


def _mixed(query: Tensor) -> Tensor:
    """Weigh features unevenly: the sum of normalised ones is constant."""
    return query @ torch.arange(query.shape[-1]).to(query).cos()
