"""Which tokens are special and stay in every query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnflow._options import check_shape
from captum_attnflow._tensors import check_dense

# The unknown token and the mask token stand for words, and padding is told by the
# attention mask.
_NAMES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what knows no special tokens, such as the name of a tokenizer.

    Raises:
        ValueError: If it has none of the attributes that tokenizers of transformers
            have.
    """
    knows = any(hasattr(tokenizer, name) for name in _NAMES)
    if tokenizer is not None and not knows:
        raise ValueError(
            f"tokenizer={tokenizer!r} is a {type(tokenizer).__name__} that has none of "
            f"{list(_NAMES)}; give a tokenizer of transformers itself, such as "
            "AutoTokenizer.from_pretrained(name), or None and mark special tokens by "
            "keep"
        )


def find_special_tokens(
    ids: Tensor, forward_func: Callable[..., Any], tokenizer: object | None
) -> Tensor:
    """Find the tokens that frame a text, by the tokenizer or the model's config.

    Args:
        ids (Tensor): Token ids, of any shape.
        forward_func (Callable): The forward function; its config is read if it is a
            model, or a method of one.
        tokenizer (object, optional): A tokenizer of transformers.

    Returns:
        Tensor: Bool, shaped like the ids; all ``False`` if neither knows any. Ids are
        never guessed.

    Raises:
        ValueError: If the tokenizer is none.
    """
    check_tokenizer(tokenizer)
    check_dense("ids", ids, "token ids, integers")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids are of dtype {ids.dtype}; give token ids, integers")
    source: Any = tokenizer
    if source is None:
        owner: Any = getattr(forward_func, "__self__", forward_func)
        while isinstance(owner, nn.DataParallel):
            owner = owner.module
        source = getattr(owner, "config", None)
    special: set[Any] = set()
    for name in _NAMES:
        given = getattr(source, name, None)
        special.update(given if isinstance(given, (list, tuple)) else [given])
    known = sorted(index for index in special if isinstance(index, int))
    return torch.isin(ids, torch.tensor(known, dtype=ids.dtype, device=ids.device))


def read_keep(keep: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Validate a mask of tokens that stay in every query.

    Raises:
        ValueError: If it is no bool tensor of the texts' shape.
    """
    check_shape(shape)
    if keep is None:
        return None
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        raise ValueError(
            f"keep={keep!r} must be a bool tensor, True at tokens that stay in every "
            "query"
        )
    check_dense("keep", keep, f"bool of shape {shape}")
    if tuple(keep.shape) not in (shape, (1, shape[1]), shape[1:]):
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}, but there are {shape[0]} texts of "
            f"{shape[1]} positions; give shape {shape}, or (1, {shape[1]}) under "
            "Captum's NoiseTunnel, which repeats texts, but not keep"
        )
    return keep.cpu().expand(shape)
