"""The token axis of inputs and arguments, and which tokens are special or padding.

Where columns of the input are deleted or repeated, so are those of every argument that
shares its token axis, and position ids are counted anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnflow._checks import (
    check_dense,
    check_integer,
    check_shape,
    check_type,
    counted,
    type_of,
)
from captum_attnflow._warnings import warn_caller

# Other special tokens are left out: the unknown and the mask token stand for words, and
# the attention mask marks padding.
_NAMES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True, eq=False)
class TokenAxis:
    """The token axis of a batch of texts.

    Attributes:
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at padding.
    """

    padding: Tensor

    def is_shared(self, argument: Any) -> bool:
        """Whether an argument's shape has this token axis."""
        if not isinstance(argument, Tensor):
            return False
        return bool(_token_axes(argument, *self.padding.shape))

    def take(self, argument: Any, rows: Tensor, columns: Tensor) -> Any:
        """Take rows of an argument, and columns where it shares the token axis.

        A mask of at least three dimensions that ends in ``(T, T)`` or ``(1, T)`` has
        its tokens there, with any number of heads. Every other tensor ``(B, T, ...)``
        or ``(1, T, ...)`` has them in dimension 1; a mask ``(B, H, S, T)`` in the last.
        Integers ``(B, T)`` that go up by 1 from token to token are positions: they are
        counted anew from the first one of the text.

        Args:
            argument (Any): An additional argument of the forward function.
            rows (Tensor): Shape ``(N,)``, int64, the text of each new row.
            columns (Tensor): Shape ``(N, L)``, int64, its positions in the text.

        Returns:
            Any: The argument for ``N`` texts of ``L`` tokens; unchanged if it has
            neither texts nor tokens.
        """
        n_texts = len(self.padding)
        if not isinstance(argument, Tensor):
            return argument
        rows, columns = rows.to(argument.device), columns.to(argument.device)
        axes = _token_axes(argument, *self.padding.shape)
        if not axes:
            return rows_of(argument, n_texts, rows)
        argument = argument.expand(n_texts, *argument.shape[1:])
        if self._are_positions(argument):
            padding = self.padding.to(argument.device)[rows]
            first = (~padding).int().argmax(1, keepdim=True)
            count = torch.arange(columns.shape[1], device=argument.device)
            return argument[rows].gather(1, first) + count
        return columns_of(argument[rows], columns, axes)

    def take_arguments(
        self,
        additional: tuple[Any, ...] | None,
        rows: Tensor,
        columns: Tensor,
        whole: frozenset[int] = frozenset(),
    ) -> tuple[Any, ...] | None:
        """Take rows and columns of all arguments; of those in ``whole`` only rows."""
        return additional and tuple(
            rows_of(argument, len(self.padding), rows)
            if number in whole
            else self.take(argument, rows, columns)
            for number, argument in enumerate(additional)
        )

    def _are_positions(self, argument: Tensor) -> bool:
        # Of two tokens, 0 and 1 may be positions or types; three decide.
        if argument.dim() != 2 or argument.dtype not in (torch.int32, torch.int64):
            return False
        padding = self.padding.to(argument.device)
        neighbours = ~(padding[:, 1:] | padding[:, :-1])
        if not neighbours.numel() or int(neighbours.sum(1).max()) < 2:
            return False
        return bool((argument.diff(dim=1) == 1)[neighbours].all())


def has_rows(argument: Any, n_texts: int) -> bool:
    """Whether an argument is a tensor with one row per text."""
    is_array = isinstance(argument, Tensor) and argument.dim() > 0
    return is_array and len(argument) == n_texts


def rows_of(argument: Any, n_texts: int, rows: Tensor | slice) -> Any:
    """Take the rows of an argument that has one per text; others pass through."""
    if not has_rows(argument, n_texts):
        return argument
    return argument[rows if isinstance(rows, slice) else rows.to(argument.device)]


def columns_of(tensor: Tensor, columns: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Take each row's own columns along the token axes.

    Args:
        tensor (Tensor): Shape ``(N, ...)``.
        columns (Tensor): Shape ``(N, L)``, int64.
        axes (tuple of int): Dimensions of ``tensor`` that are tokens.
    """
    for axis in axes:
        shape = [1] * tensor.dim()
        shape[0], shape[axis] = columns.shape
        tensor = tensor.take_along_dim(columns.reshape(shape), axis)
    return tensor


def find_padding(
    forward_func: Callable[..., Any],
    n_inputs: int,
    additional: Sequence[Any] | None,
    shape: tuple[int, int],
) -> Tensor:
    """Find which positions are padding, from the attention mask among the arguments.

    The mask is the argument ``(B, T)`` whose parameter has ``mask`` or ``padding`` in
    its name; true means padding in the latter case, a token otherwise. Where the
    forward function does not name its parameters (``*args``), it is the only argument
    of that shape that holds only zeros and ones, with a one in every row. Such an
    argument with another name is not taken for a mask; a warning says so, since its
    padding counts as tokens.

    Args:
        forward_func (Callable): The forward function.
        n_inputs (int): Parameters before the additional arguments.
        additional (sequence, optional): The additional arguments.
        shape (tuple[int, int]): Texts and positions, ``(B, T)``.

    Returns:
        Tensor: Shape ``(B, T)``, bool, ``True`` at padding.

    Raises:
        ValueError: If several arguments could be the mask.
    """
    check_shape(shape)
    accepted = "the tuple of additional arguments, or None"
    check_type("additional", additional, (tuple, list, type(None)), accepted)
    arguments = list(additional or ())
    names = parameter_names(forward_func, n_inputs, len(arguments))
    alike = [
        (name, argument)
        for name, argument in zip(names, arguments, strict=True)
        if isinstance(argument, Tensor)
        and not argument.is_nested
        and tuple(argument.shape) == shape
        # In an encoder-decoder the explained tokens are the encoder's.
        and "decoder" not in name
    ]
    for name, argument in alike:
        check_dense(name or "an additional argument", argument, f"of shape {shape}")
    found = [
        (name, argument.cpu() != 0)
        for name, argument in alike
        if "mask" in name or "padding" in name or (not name and _is_mask(argument))
    ]
    if not found:
        _warn_of_unread_masks(alike)
        return torch.zeros(shape, dtype=torch.bool)
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} of the additional arguments look like attention masks "
            f"{[name or 'unnamed' for name, _ in found]}; give forward_func named "
            'parameters, of which only the mask has "mask" in its name'
        )
    name, mask = found[0]
    return mask if "padding" in name else ~mask


def parameter_names(
    forward_func: Callable[..., Any], n_inputs: int, n_additional: int
) -> list[str]:
    """Name the parameters of the additional arguments.

    Args:
        forward_func (Callable): The forward function.
        n_inputs (int): Parameters before the additional arguments.
        n_additional (int): How many arguments there are.

    Returns:
        list of str: Empty where a parameter has no name, as of ``*args``.
    """
    check_integer("n_inputs", n_inputs, 0)
    check_integer("n_additional", n_additional, 0)
    while isinstance(forward_func, nn.DataParallel):
        forward_func = forward_func.module
    if isinstance(forward_func, nn.Module):
        forward_func = forward_func.forward
    try:
        parameters = inspect.signature(forward_func).parameters.values()
    except (TypeError, ValueError):
        return [""] * n_additional
    named = [
        parameter.name
        for parameter in parameters
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ][n_inputs : n_inputs + n_additional]
    return named + [""] * (n_additional - len(named))


def config_of(forward_func: Callable[..., Any]) -> object | None:
    """Find the config of transformers, where the forward function shows one.

    Args:
        forward_func (Callable): A model, a module around one, or a method of either.
            What a plain function calls is not known.

    Returns:
        object: The config of the outermost module that has one; None without any.
    """
    owner: Any = getattr(forward_func, "__self__", forward_func)
    modules = owner.modules() if isinstance(owner, nn.Module) else iter([owner])
    configs = (getattr(module, "config", None) for module in modules)
    return next((config for config in configs if config is not None), None)


def find_special_tokens(
    ids: Tensor, forward_func: Callable[..., Any], tokenizer: object | None
) -> Tensor:
    """Mark a text's special tokens by the ids of the tokenizer or the model's config.

    Args:
        ids (Tensor): Token ids, of any shape.
        forward_func (Callable): The forward function, of which :func:`config_of` may
            read a config.
        tokenizer (object, optional): A tokenizer of transformers.

    Returns:
        Tensor: Bool, shaped like the ids; all ``False`` if neither has such ids, which
        are never guessed.

    Raises:
        ValueError: If the tokenizer has no special tokens.
    """
    check_tokenizer(tokenizer)
    check_dense("ids", ids, "token ids, integers")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids are of dtype {ids.dtype}; give token ids, integers")
    return _are_among(ids, _NAMES, forward_func, tokenizer)


def _are_among(
    ids: Tensor,
    names: Sequence[str],
    forward_func: Callable[..., Any],
    tokenizer: object | None,
) -> Tensor:
    """Mark ids that the tokenizer, or else the model's config, gives these names."""
    source = config_of(forward_func) if tokenizer is None else tokenizer
    named: set[Any] = set()
    for name in names:
        given = getattr(source, name, None)
        named.update(given if isinstance(given, (list, tuple)) else [given])
    known = sorted(index for index in named if isinstance(index, int))
    return torch.isin(ids, torch.tensor(known, dtype=ids.dtype, device=ids.device))


def warn_of_unmarked_padding(
    ids: Tensor,
    padding: Tensor,
    forward_func: Callable[..., Any],
    tokenizer: object | None,
) -> None:
    """Warn of texts that begin or end with the padding token, but not as padding.

    Args:
        ids (Tensor): Shape ``(B, T)``, token ids.
        padding (Tensor): Shape ``(B, T)``, bool, ``True`` at what is taken for padding,
            or is not in play for another reason.
        forward_func (Callable): As :func:`find_special_tokens` takes it.
        tokenizer (object, optional): The same.
    """
    is_pad = _are_among(ids, ("pad_token_id",), forward_func, tokenizer)
    # Some models pad with the token that ends a text.
    is_pad &= ~_are_among(ids, _NAMES, forward_func, tokenizer)
    unmarked = is_pad & ~padding
    rows = (unmarked[:, 0] | unmarked[:, -1]).nonzero()[:, 0].tolist()
    if rows:
        warn_caller(
            f"the texts {rows} begin or end with padding tokens that no attention mask "
            "marks, and which count as tokens; give the mask among "
            "additional_forward_args, to a parameter that is named attention_mask"
        )


def check_tokenizer(tokenizer: object) -> None:
    """Refuse a tokenizer without special tokens, such as the name of one.

    Raises:
        ValueError: If it has none of the attributes that tokenizers of transformers
            have.
    """
    knows = any(hasattr(tokenizer, name) for name in _NAMES)
    if tokenizer is not None and not knows:
        raise ValueError(
            f"tokenizer={tokenizer!r} is {type_of(tokenizer)} that has none of "
            f"{list(_NAMES)}; give a tokenizer of transformers itself, such as "
            "AutoTokenizer.from_pretrained(name), or None and mark special tokens by "
            "keep"
        )


def read_keep(keep: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Validate a mask of tokens that stay in every query.

    Raises:
        ValueError: If it is not a bool tensor of the texts' shape.
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
            f"keep has shape {tuple(keep.shape)} for {counted(shape[0], 'text')} of "
            f"{counted(shape[1], 'position')}; give shape {shape}, or (1, {shape[1]}) "
            "under Captum's NoiseTunnel, which repeats texts, but not keep"
        )
    return keep.cpu().expand(shape)


def _token_axes(argument: Tensor, n_texts: int, n_tokens: int) -> tuple[int, ...]:
    """Dimensions that are tokens; see :meth:`TokenAxis.take`."""
    if argument.dim() < 2 or len(argument) not in (1, n_texts):
        return ()
    last_two = (argument.dim() - 2, argument.dim() - 1)
    pairwise = tuple(axis for axis in last_two if argument.shape[axis] == n_tokens)
    ends_as_mask = argument.shape[-1] == n_tokens and argument.shape[-2] in (
        1,
        n_tokens,
    )
    if argument.dim() > 2 and ends_as_mask:
        return pairwise
    if argument.shape[1] == n_tokens:
        return (1,)
    return pairwise if argument.dim() == 4 else ()


def _warn_of_unread_masks(arguments: Sequence[tuple[str, Tensor]]) -> None:
    for name, argument in arguments:
        # Token type ids of pairs of texts also hold zeros and ones.
        if "type" not in name and _is_mask(argument) and not bool(argument.all()):
            warn_caller(
                f"the argument {name!r} holds zeros and ones like an attention mask, "
                "but its name does not say so, and all positions are taken for tokens. "
                "If it is one, name forward_func's parameter attention_mask"
            )


def _is_mask(argument: Tensor) -> bool:
    binary = ((argument == 0) | (argument == 1)).all()
    return bool(binary) and bool((argument == 1).any(1).all())
