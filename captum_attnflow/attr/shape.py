"""From one score per token position to tensors shaped as Captum's users expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from captum_attnflow.capture import TokenSequence
from captum_attnflow.capture.watched_layer import LayerCall, TensorLike


def shape_like_inputs(
    scores: Tensor,
    inputs: Sequence[TensorLike],
    sequences: Sequence[TokenSequence] = (),
    elements: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Spread token scores over the inputs that hold the tokens.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        inputs (sequence of TensorLike): Token ids ``(B, T)``, embeddings
            ``(B, T, D)``, or what tokens are made of, such as pixels ``(B, C, H, W)``.
        sequences (sequence of TokenSequence): An encoder's and a decoder's, which have
            an input each, or one of them; one sequence has one input.
        elements (dict, optional): The token of each element of an input, by the number
            of the input; see :class:`captum_attnflow.Explanation`. Where there is none,
            dimension 1 of an input is that of the tokens.

    Returns:
        tuple[Tensor, ...]: One attribution per input, whose sum over the elements of a
        token is the token's score.

    Raises:
        ValueError: If there are more inputs than sequences, or no tokens in an input.
    """
    elements = elements or {}
    if len(sequences) < 2:
        own = [elements.get(index) for index in range(len(inputs))]
        if not _make_own_tokens(own, scores.shape[1]):
            refuse_several(inputs)
        return tuple(
            _shape_like_input(scores, template, elements.get(index))
            for index, template in enumerate(inputs)
        )
    parts = split_sequences(scores, sequences)
    held: dict[int, list[int]] = {}
    for index, template in enumerate(inputs):
        seen = [i for i, sequence in enumerate(sequences) if index in sequence.inputs]
        held.setdefault((seen or [only_fitting(parts, template)])[0], []).append(index)
    for sequence, indices in held.items():
        own = [elements.get(index) for index in indices]
        if not _make_own_tokens(own, parts[sequence].shape[1]):
            refuse_several([inputs[index] for index in indices])
    sequence_of = {
        index: sequence for sequence, indices in held.items() for index in indices
    }
    return tuple(
        _shape_like_input(parts[sequence_of[index]], template, elements.get(index))
        for index, template in enumerate(inputs)
    )


def _make_own_tokens(elements: Sequence[Tensor | None], n_tokens: int) -> bool:
    """Whether inputs make tokens of their own each, as words and pixels do."""
    makers = torch.zeros(1, n_tokens + 1, dtype=torch.long)
    for tokens in elements:
        if tokens is None:
            return False
        made = tokens.cpu().flatten(1)
        made = made.where(made >= 0, n_tokens)
        makes = torch.zeros(len(made), n_tokens + 1, dtype=torch.long)
        makers = makers + makes.scatter_(1, made, 1)
    return bool((makers[:, :n_tokens] <= 1).all())


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


def _shape_like_input(
    scores: Tensor, template: TensorLike, elements: Tensor | None
) -> Tensor:
    if elements is not None:
        return _spread(scores, template, elements)
    # In more than three dimensions there may be as many channels as tokens.
    if len(template.shape) <= 3 and _has_tokens(template, scores):
        return _fill(scores, template)
    raise ValueError(
        f"the input has shape {template.shape}, but the attention maps have "
        f"{scores.shape[1]} tokens for {scores.shape[0]} examples; the input is "
        "not made of these tokens, each element belonging to one of them, such as ids, "
        "embeddings or patches that do not overlap. Attribute to the layer that makes "
        "the tokens with the Layer... class, or pass this input in "
        "additional_forward_args"
    )


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
    scores: Tensor, outputs: Sequence[TensorLike], tokens: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Spread token scores over what a layer emits; other tensors than tokens get 0.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        outputs (sequence of TensorLike): The tensors of the layer.
        tokens (Tensor, optional): The token that each element of the first of them
            makes, where the dimensions do not tell.

    Returns:
        tuple[Tensor, ...]: One attribution per tensor.

    Raises:
        ValueError: If none or several of the tensors have the shape of the tokens.
    """
    # What comes first is what the rest of the model computes with; masks follow.
    holders = [i for i, of in enumerate(outputs) if _has_tokens(of, scores)]
    if not holders and tokens is not None:
        first, *others = outputs
        return _spread(scores, first, tokens), *(
            _new(template, scores.new_zeros(())) for template in others
        )
    if not holders or (len(holders) > 1 and holders[0] > 0):
        raise ValueError(
            f"the layer has tensors of shapes {[t.shape for t in outputs]}, of which "
            f"{len(holders)} start with (examples, tokens) = {tuple(scores.shape)}; "
            "the first or only one must, such as the output (B, T, D) of the "
            "embeddings module. Only tensors that it returns, or takes by position, "
            "are seen"
        )
    holder = outputs[holders[0]]
    if holder.is_sequence_first is None and 1 < holder.shape[0] == holder.shape[1]:
        raise ValueError(
            f"the layer has a tensor of shape {holder.shape}, of which the output's "
            "gradient does not show which dimension holds the examples and which the "
            "tokens. Pass another number of examples, such as by internal_batch_size=1"
        )
    return tuple(
        _fill(scores, template)
        if index == holders[0]
        else _new(template, scores.new_zeros(()))
        for index, template in enumerate(outputs)
    )


def sum_over_tokens(features: Tensor, n_tokens: int, elements: Tensor | None) -> Tensor:
    """Sum what belongs to each token, the reverse of spreading a score.

    Args:
        features (Tensor): Shape ``(B, T)``, ``(B, T, D)`` or that of the first input.
        n_tokens (int): ``T``.
        elements (Tensor, optional): The token of each element, of the features' shape.

    Returns:
        Tensor: Shape ``(B, T)``; tokens without elements get 0.

    Raises:
        ValueError: If the features are not those of so many tokens.
    """
    if elements is not None and elements.shape == features.shape:
        owned = elements >= 0
        sums = features.new_zeros(len(features), n_tokens)
        return sums.scatter_add(
            1, elements.clamp_min(0).flatten(1), features.where(owned, 0).flatten(1)
        )
    if 2 <= features.dim() <= 3 and features.shape[1] == n_tokens:
        return features.reshape(*features.shape[:2], -1).sum(-1)
    raise ValueError(
        f"the path leads through a tensor of shape {tuple(features.shape)}, but the "
        f"attention maps have {n_tokens} tokens for {len(features)} examples; the path "
        "cannot be told apart by token. Pass the tokens or their embeddings as the "
        "first input, or path_steps=0, which takes no path"
    )


def _has_tokens(template: TensorLike, scores: Tensor) -> bool:
    return template.shape[:2] == tuple(scores.shape)


def _new(template: TensorLike, values: Tensor) -> Tensor:
    """Contiguous copy of values, broadcast and cast as attributions are."""
    dtype = torch.float64 if template.dtype == torch.float64 else torch.float32
    values = values.to(device=template.device, dtype=dtype).expand(template.shape)
    if template.is_sequence_first:
        values = values.transpose(0, 1)
    return values.contiguous()


def _fill(scores: Tensor, template: TensorLike) -> Tensor:
    features = template.shape[2:]
    share = scores / max(1, torch.Size(features).numel())
    return _new(template, share.reshape(*scores.shape, *(1 for _ in features)))


def _spread(scores: Tensor, template: TensorLike, elements: Tensor) -> Tensor:
    """Give every element an equal share of its token's score, and 0 without one."""
    elements = elements.to(scores.device).flatten(1)
    owned = elements >= 0
    token = elements.clamp_min(0)
    n_elements = torch.zeros_like(scores).scatter_add(1, token, owned.to(scores))
    shares = (scores / n_elements.clamp_min(1)).gather(1, token).where(owned, 0)
    return _new(template, shares.view(template.shape))


def layer_templates(
    layer: nn.Module,
    calls: list[LayerCall],
    n_examples: int,
    rows_per_example: int,
) -> list[TensorLike]:
    """Describe what the layer saw or emitted for the whole batch.

    A layer may run in several parts of the batch, several times (ALBERT), and over
    several rows per example.
    """
    if not calls:
        raise ValueError(
            f"the layer {type(layer).__name__} did not run in the forward function; "
            "pass a layer of the model that forward_func calls"
        )
    templates = []
    for tensors in zip(*(call.tensors for call in calls), strict=True):
        last = tensors[-1]
        rows = sum(tensor.shape[0] if tensor.shape else 1 for tensor in tensors)
        # One call over other rows than the batch is not cut along the batch.
        in_parts = len(calls) > 1 or rows_per_example > 1
        if in_parts and last.shape and rows % (n_examples * rows_per_example) == 0:
            last = replace(last, shape=(n_examples, *last.shape[1:]))
        templates.append(last)
    return templates
