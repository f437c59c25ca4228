"""Prompts of embeddings: what stands in for words that are features, as of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from captum.attr import TextTokenInput
from torch import Tensor


class EmbeddedInput(TextTokenInput):
    """A prompt whose embeddings are not all those of its ids.

    Stands in for ``TextTokenInput`` in
    :meth:`captum_attnflow.GenerationAttribution.explain`, which then attributes to the
    embeddings: tokens of an image are features of a vision tower, and their ids are one
    placeholder.

    Args:
        ids (Tensor): Shape ``(1, T)``, the prompt, with a placeholder for every token
            that is not looked up.
        tokenizer (PreTrainedTokenizer): Spells them.
        embed (Callable): Takes ids ``(1, T')`` of the prompt and of the answer behind
            it, and returns what the model takes instead of them, by name:
            ``"inputs_embeds"`` of shape ``(1, T', D)``, and what belongs to it, such as
            ``"position_ids"``.
        parts (sequence of str): What each token belongs to, see
            :class:`captum_attnflow.GenerationExplanation`.

    Raises:
        ValueError: If there are not as many parts as tokens.

    Examples::

        >>> import torch
        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> ids = tokenizer("[MASK] [MASK] so dull", return_tensors="pt").input_ids
        >>> prompt = EmbeddedInput(
        ...     ids[:, 1:-1],
        ...     tokenizer,
        ...     lambda ids: {"inputs_embeds": torch.rand(*ids.shape, 16)},
        ...     ["image", "image", "prompt", "prompt"],
        ... )
        >>> prompt.values
        ['[MASK]', '[MASK]', 'so', 'dull']
    """

    def __init__(
        self,
        ids: Tensor,
        tokenizer: Any,
        embed: Callable[[Tensor], Mapping[str, Any]],
        parts: Sequence[str],
    ) -> None:
        # In place of Captum's constructor, which encodes a text.
        if ids.dim() != 2 or len(ids) != 1 or len(parts) != ids.shape[1]:
            raise ValueError(
                f"ids have shape {tuple(ids.shape)} and {len(parts)} parts were given; "
                "give ids of one prompt, (1, T), and a part for each token"
            )
        self.inp_tensor = self.itp_tensor = ids
        self.itp_mask = None
        self.skip_tokens = None
        self.values = tokenizer.convert_ids_to_tokens(ids[0].tolist())
        self.tokenizer = tokenizer
        self.n_itp_features = len(self.values)
        self.baselines = 0
        self.embed = embed
        self.parts = tuple(parts)
