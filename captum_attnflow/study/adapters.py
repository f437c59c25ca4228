"""A batch of texts, and how each attribution method is run on it.

Every function that runs a method takes a batch, after it perhaps a method's name, and
settings. It returns one score per token, ``(B, T)``, for the logit of the predicted
class. Scores of special tokens and padding are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum import attr as captum_attr
from captum.attr import LayerIntegratedGradients, Lime
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import captum_attnflow
from captum_attnflow._captum import SkLearnLasso
from captum_attnflow.capture import AttentionRecord, capture_attention
from captum_attnflow.flow.information import information_tensor
from captum_attnflow.pipelines.methods import METHODS, method_class
from captum_attnflow.pipelines.pretrained import logits_by_position
from captum_attnflow.pipelines.text_classification import TextClassifier
from captum_attnflow.texts import find_special_tokens

ROWS_AT_ONCE = 64
"""Rows in one forward pass, of methods that take more than one per text."""


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
        """The arguments of :meth:`forward` after the ids."""
        return tuple(self.others.values())

    def rows(self, rows: Sequence[int]) -> TextBatch:
        """Select texts, and drop the columns that are padding in all of them."""
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


def own_method(batch: TextBatch, method: str, **settings: Any) -> Tensor:
    """Run a method of this package, by its name in :data:`METHODS`.

    The settings are those of its constructor.
    """
    attributions: Tensor = method_class(method)(batch.forward, **settings).attribute(
        batch.ids,
        batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
    )
    return attributions


def own_layer_method(batch: TextBatch, method: str, **settings: Any) -> Tensor:
    """Run the Layer form of a method of this package at the output of the embeddings.

    The settings are those of its constructor.
    """
    layer_class = getattr(captum_attnflow, f"Layer{METHODS[method]}")
    layer = _embeddings(batch.model)
    attributions: Tensor = layer_class(batch.forward, layer, **settings).attribute(
        batch.ids,
        batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
    )
    return attributions.sum(-1)


def slalom(batch: TextBatch, **settings: Any) -> Tensor:
    """Run SLALOM, seeded for the text; the settings are those of its constructor."""
    seed = int(torch.randint(1 << 31, ()))
    attributions: Tensor = captum_attnflow.SLALOM(
        batch.forward, seed=seed, **settings
    ).attribute(
        batch.ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
        internal_batch_size=ROWS_AT_ONCE,
        keep=batch.special,
    )
    return attributions


def embedding_method(
    batch: TextBatch, method: str, has_baseline: bool, **settings: Any
) -> Tensor:
    """Run a class of Captum on word embeddings; scores are sums over features.

    The baseline is the embedding of the reference token at every token that can be
    removed. The settings are those of ``attribute``.
    """
    words = batch.model.get_input_embeddings()
    if has_baseline:
        settings["baselines"] = words(batch.reference_ids).detach()
    explainer = getattr(captum_attr, method)(_FromEmbeddings(batch))
    attributions: Tensor = explainer.attribute(
        words(batch.ids).detach().requires_grad_(),
        target=batch.predicted,
        additional_forward_args=batch.arguments,
        **settings,
    )
    return attributions.detach().sum(-1)


class _FromEmbeddings(nn.Module):
    """The classifier as a module of word embeddings; DeepLift takes modules only."""

    def __init__(self, batch: TextBatch) -> None:
        super().__init__()
        self.model = batch.model
        names = tuple(batch.others)
        self._logits = logits_by_position(batch.model, names, "inputs_embeds")

    def forward(self, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        return self._logits(embeddings, *arguments)


def layer_integrated_gradients(batch: TextBatch, **settings: Any) -> Tensor:
    """Run LayerIntegratedGradients at the output of the embeddings, if there is one.

    Otherwise at the word embeddings. The baseline is the reference token at every token
    that can be removed. The settings are those of ``attribute``.
    """
    layer = _embeddings(batch.model)
    attributions: Tensor = LayerIntegratedGradients(batch.forward, layer).attribute(
        batch.ids,
        baselines=batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
        **settings,
    )
    return attributions.sum(-1)


def _embeddings(model: PreTrainedModel) -> nn.Module:
    """Return the whole embeddings module, if there is one, or the word embeddings."""
    words: nn.Module = model.get_input_embeddings()
    layer: nn.Module = getattr(model.base_model, "embeddings", words)
    return layer


def perturbation_method(batch: TextBatch, method: str, **settings: Any) -> Tensor:
    """Run a class of Captum that replaces token ids by the reference token.

    One feature per token that can be removed. The settings are those of ``attribute``.
    """
    return _perturbed(getattr(captum_attr, method)(batch.forward), batch, **settings)


def _perturbed(explainer: Any, batch: TextBatch, **settings: Any) -> Tensor:
    removable = ~(batch.special | batch.padding)
    # Special tokens share a feature with the first word. Their baseline is themselves,
    # so this adds no evaluation and changes no score.
    features = (removable.cumsum(1) - 1).clamp_min(0) * removable
    attributions: Tensor = explainer.attribute(
        batch.ids,
        baselines=batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
        feature_mask=features,
        perturbations_per_eval=ROWS_AT_ONCE,
        **settings,
    )
    return attributions


def lime_kernel(kept: Tensor, kernel_width: float) -> float:
    """Return the weight of a perturbed text in LIME's text explainer.

    It is a Gaussian of 100 times the cosine distance between the tokens kept and all.

    Args:
        kept (Tensor): Shape ``(1, n)``, 1 for every token kept.
        kernel_width (float): Width of the kernel.
    """
    distance = 100 * (1 - math.sqrt(kept.double().mean().item()))
    return math.exp(-((distance / kernel_width) ** 2) / 2)


def lime(
    batch: TextBatch, alpha: float, kernel_width: float, **settings: Any
) -> Tensor:
    """Run Lime with a Lasso of penalty ``alpha`` and the kernel of its text explainer.

    The other settings are those of ``attribute``.
    """

    def similarity(original: Any, perturbed: Any, kept: Tensor, **_: Any) -> float:
        return lime_kernel(kept, kernel_width)

    regression = SkLearnLasso(alpha=alpha)
    explainer = Lime(batch.forward, regression, similarity_func=similarity)
    return _perturbed(explainer, batch, **settings)


def _capture(batch: TextBatch) -> tuple[AttentionRecord, Tensor]:
    """Attention with its gradients, and the share of each read-out position."""
    record = capture_attention(
        batch.forward, (batch.ids,), batch.predicted, batch.arguments
    )
    share = record.read_out().double()
    return record, share / share.sum(1, keepdim=True).clamp_min(1)


def last_layer_attention(batch: TextBatch) -> Tensor:
    """Attention of the last layer at the read-out positions, mean over heads."""
    record, read_out = _capture(batch)
    last = information_tensor(record, "AF")[:, -1]  # (B, T, T)
    return torch.einsum("bi,bij->bj", read_out, last)


def random_scores(batch: TextBatch) -> Tensor:
    """Draw uniform scores."""
    return torch.rand(batch.ids.shape)
