"""From one score per token position to tensors shaped as Captum's users expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnflow.capture import TokenSequence
from captum_attnflow.capture.layer import TensorLike

_MAX_PREFIX_TOKENS = 16


def shape_like_inputs(
    scores: Tensor,
    inputs: Sequence[TensorLike],
    sequences: Sequence[TokenSequence] = (),
) -> tuple[Tensor, ...]:
    """Spread token scores over the inputs that hold the tokens.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        inputs (sequence of TensorLike): Token ids ``(B, T)``, embeddings
            ``(B, T, D)`` or pixels ``(B, C, H, W)``.
        sequences (sequence of TokenSequence): An encoder's and a decoder's, which have
            an input each, or one of them; one sequence has one input.

    Returns:
        tuple[Tensor, ...]: One attribution per input, whose sum over all but the
        first two dimensions is the token's score; for pixels, whose sum over a patch.

    Raises:
        ValueError: If there are more inputs than sequences, or no tokens in an input.
    """
    if len(sequences) < 2:
        refuse_several(inputs)
        return (_shape_like_input(scores, inputs[0]),)
    parts = split_sequences(scores, sequences)
    held: dict[int, list[int]] = {}
    for index, template in enumerate(inputs):
        seen = [i for i, sequence in enumerate(sequences) if index in sequence.inputs]
        held.setdefault((seen or [only_fitting(parts, template)])[0], []).append(index)
    for indices in held.values():
        refuse_several([inputs[index] for index in indices])
    sequence_of = {index: sequence for sequence, (index,) in held.items()}
    return tuple(
        _shape_like_input(parts[sequence_of[index]], template)
        for index, template in enumerate(inputs)
    )


def split_sequences(
    scores: Tensor, sequences: Sequence[TokenSequence]
) -> tuple[Tensor, ...]:
    """Split scores ``(B, T)`` into those of each sequence."""
    return torch.split(scores, [sequence.length for sequence in sequences], 1)


def only_fitting(parts: Sequence[Tensor], template: TensorLike) -> int:
    """Return which sequence's scores a tensor may hold by its shape.

    Raises:
        ValueError: If it may hold none, or several.
    """
    fitting = [i for i, part in enumerate(parts) if _has_tokens(template, part)]
    if len(fitting) != 1:
        raise ValueError(
            f"a tensor of shape {template.shape} was not seen to become tokens of the "
            f"encoder or of the decoder, and {len(fitting)} of them have its length "
            f"(encoder and decoder: {[part.shape[1] for part in parts]} tokens). Pass "
            "(encoder tokens, decoder tokens), or attribute to the embeddings of one "
            "of them with the Layer... class"
        )
    return fitting[0]


def _shape_like_input(scores: Tensor, template: TensorLike) -> Tensor:
    if _has_tokens(template, scores):
        return _fill(scores, template)
    spread = _spread_over_patches(scores, template)
    if spread is None:
        raise ValueError(
            f"the input has shape {template.shape}, but the attention maps have "
            f"{scores.shape[1]} tokens for {scores.shape[0]} examples; the input is "
            "not made of these tokens. Attribute to the layer that makes the tokens "
            "with the Layer... class, or pass this input in additional_forward_args"
        )
    return spread


def refuse_several(inputs: Sequence[TensorLike]) -> None:
    """Refuse inputs between which token scores would have to be split.

    Raises:
        ValueError: If there is more than one.
    """
    if len(inputs) > 1:
        raise ValueError(
            f"{len(inputs)} inputs were given, of shapes "
            f"{[template.shape for template in inputs]}, but there is one score per "
            "token position, which cannot be split between them (word, position and "
            "type embeddings, ids and masks). Pass the tokens as the only input and "
            "the others in additional_forward_args, or attribute to the whole "
            "embeddings module with the Layer... class"
        )


def shape_like_layer(
    scores: Tensor, outputs: Sequence[TensorLike]
) -> tuple[Tensor, ...]:
    """Spread token scores over what a layer emits; other tensors than tokens get 0.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        outputs (sequence of TensorLike): The tensors of the layer.

    Returns:
        tuple[Tensor, ...]: One attribution per tensor.

    Raises:
        ValueError: If none or several of the tensors have the shape of the tokens.
    """
    n_holders = sum(_has_tokens(template, scores) for template in outputs)
    if n_holders != 1:
        raise ValueError(
            f"the layer has tensors of shapes {[t.shape for t in outputs]}, of which "
            f"{n_holders} start with (examples, tokens) = {tuple(scores.shape)}; one "
            "must, such as the output (B, T, D) of the embeddings module. Only tensors "
            "that the layer returns, or takes by position, are seen"
        )
    return tuple(
        _fill(scores, template)
        if _has_tokens(template, scores)
        else _new(template, scores.new_zeros(()))
        for template in outputs
    )


def sum_over_tokens(features: Tensor, n_tokens: int) -> Tensor:
    """Sum what belongs to each token, the reverse of spreading a score.

    Args:
        features (Tensor): Shape ``(B, T, ...)``, or pixels ``(B, C, H, W)``.
        n_tokens (int): ``T``.

    Returns:
        Tensor: Shape ``(B, T)``; tokens without pixels get 0.

    Raises:
        ValueError: If the features are not those of so many tokens.
    """
    if features.dim() >= 2 and features.shape[1] == n_tokens:
        return features.reshape(*features.shape[:2], -1).sum(-1)
    grid = _patch_grid(tuple(features.shape), n_tokens)
    if grid is None:
        raise ValueError(
            f"the input has shape {tuple(features.shape)}, but the attention maps have "
            f"{n_tokens} tokens for {len(features)} examples; the path through it "
            "cannot be told apart by token. Pass the tokens or their embeddings as the "
            "first input, or path_steps=0, which takes no path"
        )
    n_prefix, patch = grid
    blocks = features.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return F.pad(blocks.sum((1, 3, 5)).flatten(1), (n_prefix, 0))


def _has_tokens(template: TensorLike, scores: Tensor) -> bool:
    return template.shape[:2] == tuple(scores.shape)


def _new(template: TensorLike, values: Tensor) -> Tensor:
    """Contiguous copy of values, broadcast and cast as attributions are."""
    dtype = torch.float64 if template.dtype == torch.float64 else torch.float32
    values = values.to(device=template.device, dtype=dtype)
    return values.expand(template.shape).contiguous()


def _fill(scores: Tensor, template: TensorLike) -> Tensor:
    features = template.shape[2:]
    share = scores / max(1, torch.Size(features).numel())
    return _new(template, share.reshape(*scores.shape, *(1 for _ in features)))


def _spread_over_patches(scores: Tensor, template: TensorLike) -> Tensor | None:
    """Give every pixel its share of its patch's score; None without a patch grid."""
    if template.shape[0] != len(scores):
        return None
    found = _patch_grid(template.shape, scores.shape[1])
    if found is None:
        return None
    n_prefix, patch = found
    _, channels, height, width = template.shape
    grid = scores[:, n_prefix:].unflatten(1, (1, height // patch, width // patch))
    pixels = grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return _new(template, pixels / (channels * patch**2))


def _patch_grid(shape: tuple[int, ...], n_tokens: int) -> tuple[int, int] | None:
    """Tokens before the patches, which have no pixels, and the side of a patch.

    Before the patches stand [CLS], distillation tokens and registers.
    """
    if len(shape) != 4:
        return None
    height, width = shape[2:]
    for n_prefix in range(min(_MAX_PREFIX_TOKENS, n_tokens)):
        side = (height * width / (n_tokens - n_prefix)) ** 0.5
        patch = round(side)
        if patch == side and height % patch == 0 and width % patch == 0:
            return n_prefix, patch
    return None
