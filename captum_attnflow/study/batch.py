"""Encoded texts with what methods and metrics need of them, and counted rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from captum_attnflow.pipelines.pretrained import logits_by_position
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.texts import find_special_tokens


@dataclass(frozen=True, eq=False)
class TextBatch:
    """A padded batch of texts.

    Attributes:
        model (PreTrainedModel): The classifier.
        ids (Tensor): Shape ``(B, T)``, int64.
        others (dict[str, Tensor]): The model's other arguments, ``(B, T)`` each.
        special (Tensor): Shape ``(B, T)``, bool; tokens that are never removed.
        padding (Tensor): Shape ``(B, T)``, bool.
        reference_id (int): The token that stands for "nothing here".
        predicted (Tensor): Shape ``(B,)``, int64, the predicted classes.
    """

    model: PreTrainedModel
    ids: Tensor
    others: dict[str, Tensor]
    special: Tensor
    padding: Tensor
    reference_id: int
    predicted: Tensor

    @staticmethod
    def encode(
        classifier: TextClassifier, texts: Sequence[str], reference_token: str
    ) -> TextBatch:
        """Encode texts and predict nothing yet; predictions are -1."""
        encoded = classifier.encode(texts)
        ids = encoded.pop("input_ids")
        special = find_special_tokens(ids, classifier.model, classifier.tokenizer)
        padding = encoded["attention_mask"] == 0
        return TextBatch(
            model=classifier.model,
            ids=ids,
            others=encoded,
            special=special & ~padding,
            padding=padding,
            reference_id=find_token(classifier.tokenizer, reference_token),
            predicted=torch.full_like(ids[:, 0], -1),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        counts: list[int] = (~self.padding).sum(1).tolist()
        return counts

    @property
    def reference_ids(self) -> Tensor:
        """The ids with the reference token for all tokens that can be removed."""
        fixed = self.special | self.padding
        return torch.where(fixed, self.ids, self.reference_id)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What :meth:`forward` takes behind the ids."""
        return tuple(self.others.values())

    def rows(self, rows: Sequence[int]) -> TextBatch:
        """Take some of the texts, without columns that are padding in all of them."""
        chosen = torch.tensor(rows, device=self.ids.device)
        columns = (~self.padding[chosen]).any(0).nonzero()[:, 0]
        return replace(
            self,
            ids=self.ids[chosen][:, columns],
            others={k: v[chosen][:, columns] for k, v in self.others.items()},
            special=self.special[chosen][:, columns],
            padding=self.padding[chosen][:, columns],
            predicted=self.predicted[chosen],
        )

    @torch.no_grad()
    def predict(self) -> TextBatch:
        """Fill in the predicted classes."""
        logits = self.forward(self.ids, *self.arguments)
        return replace(self, predicted=logits.argmax(-1))

    def forward(self, ids: Tensor, *arguments: Tensor) -> Tensor:
        """Run the model on token ids; returns logits ``(B, C)``."""
        return logits_by_position(self.model, tuple(self.others))(ids, *arguments)


def find_token(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Find the id of a token: ``"mask"``, ``"pad"``, ``"unk"``, or one as written.

    Raises:
        ValueError: If the tokenizer has no such token.
    """
    special = {
        "mask": tokenizer.mask_token,
        "pad": tokenizer.pad_token,
        "unk": tokenizer.unk_token,
    }
    index = tokenizer.get_vocab().get(special.get(token, token))
    if index is None:
        raise ValueError(
            f"the tokenizer has no reference token {token!r}; give mask, pad, unk "
            f"(here {special}), or a token of its vocabulary"
        )
    return int(index)


@dataclass
class PassCount:
    """Rows, one text each, that went through a model.

    A batch of eight is eight rows in one call; a text that is attributed by 50 steps
    is 50 rows.

    Attributes:
        forward (int): Rows of forward passes.
        backward (int): Rows whose gradient came back into the model.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[PassCount]:
    """Count the rows through a transformers classifier while active.

    Args:
        model (Module): Returns an object with ``logits``.

    Yields:
        PassCount: Grows as the model runs.
    """
    count = PassCount()

    def count_backward(gradient: Tensor) -> None:
        count.backward += len(gradient)

    def count_forward(module: nn.Module, taken: Any, output: Any) -> None:
        count.forward += len(output.logits)
        if output.logits.requires_grad:
            output.logits.register_hook(count_backward)

    handle = model.register_forward_hook(count_forward)
    try:
        yield count
    finally:
        handle.remove()
