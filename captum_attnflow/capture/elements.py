"""Which token each element of an input makes: the pixels of a patch, and the like.

An input may make some of a sequence's tokens and another one the others, as words and
pixels do. Counts and shapes do not tell: [CLS], distillation tokens and registers stand
before the patches, detection tokens behind them, patches need not be square, pixels at
a border may belong to none, and models may shuffle, sort or drop tokens in each pass
anew. The graph of the pass itself tells. Up to its first attention a token depends on
its own elements alone, so the gradient of some of the tokens reaches just the elements
that make them. The bits of a token's index are read one by one, from the tokens in
whose index the bit is set, and from the others: an element that both reach makes
several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Some kernels leave rounding errors where nothing was sent: relative to an element's
# own gradient, and to the largest, of which a small one may be the difference.
_NOISE, _NOISE_OF_LARGEST = 1e-4, 1e-6


def tokens_of_elements(values: Sequence[Tensor], entered: Tensor) -> Tensor | None:
    """Find the token that each element of an input makes.

    Args:
        values (sequence of Tensor): What the first attention weighs, of shape
            ``(..., T, D)`` each, in the graph: one, or those of mini-batches.
        entered (Tensor): The input as it enters the graph, ``(B, ...)``.

    Returns:
        Tensor or None: Shape of the input, int64 in ``[-1, T)``; -1 where an element
        makes no token. None if an element makes several, or none makes any.

    Examples::

        >>> pixels = torch.rand(1, 1, 2, 4, requires_grad=True)
        >>> patches = pixels.reshape(1, -1, 2)  # of 1 x 2 pixels
        >>> tokens = torch.cat([torch.ones(1, 1, 2), patches], 1)
        >>> tokens_of_elements([tokens], pixels)
        tensor([[[[1, 1, 2, 2],
                  [3, 3, 4, 4]]]])
    """
    if not all(part.requires_grad for part in values):
        return None
    tokens = torch.stack([_mixed(part).flatten(0, -2).sum(0) for part in values]).sum(0)

    def gradient(weights: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            tokens,
            entered,
            weights.to(tokens),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return found

    index = torch.arange(len(tokens), device=tokens.device)
    if entered.dim() in (2, 3) and entered.shape[1] == len(tokens):
        # Embeddings, most likely, which two passes confirm.
        plain, weighted = gradient(torch.ones_like(index)), gradient(index + 1)
        features = entered.shape[2:]
        of_axis = index.view(1, -1, *(1 for _ in features))
        left = weighted - (of_axis + 1) * plain
        if bool(plain.any()) and left.norm() <= 1e-3 * weighted.norm():
            # Of some positions another input may make the tokens.
            makes_none = (plain == 0).reshape(*entered.shape[:2], -1).all(-1)
            makes_none = makes_none.view(*entered.shape[:2], *(1 for _ in features))
            return of_axis.expand_as(entered).masked_fill(makes_none, -1)
    found = torch.zeros_like(entered, dtype=torch.long)
    makes_none = torch.ones_like(entered, dtype=torch.bool)
    for bit in range(max(1, (len(tokens) - 1).bit_length())):
        is_set = (index >> bit) & 1
        reached, missed = gradient(is_set).abs(), gradient(1 - is_set).abs()
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
    return _completed(found.masked_fill(makes_none, -1))


def _completed(tokens: Tensor) -> Tensor:
    """Fill in from other examples, where all have the same layout.

    An example may hide a part of it: features that a ReLU cuts off have no gradient.
    Layouts are the same where every token that two examples show shares elements.
    """
    rows = tokens.flatten(1)
    layout = rows[0]
    for row in rows[1:]:
        shown = (row >= 0) & (layout >= 0)
        of_both = row[torch.isin(row, layout) & (row >= 0)]
        differ = bool((row != layout)[shown].any())
        if differ or not bool(torch.isin(of_both, row[shown]).all()):
            return tokens
        layout = torch.maximum(layout, row)
    return layout.view(tokens.shape[1:]).expand_as(tokens).contiguous()


def _mixed(values: Tensor) -> Tensor:
    """Weigh features unevenly: the sum of normalised ones is constant."""
    return values @ torch.arange(values.shape[-1]).to(values).cos()
