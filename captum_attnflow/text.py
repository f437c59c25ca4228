"""Texts in, token attributions out: the pipeline behind the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow.attr import (
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
)
from captum_attnflow.attr._base import AttentionAttribution

METHODS: dict[str, Callable[..., AttentionAttribution]] = {
    "generalized-attention-flow": GeneralizedAttentionFlow,
    "attention-flow": AttentionFlow,
    "attention-rollout": AttentionRollout,
}


@dataclass(frozen=True)
class TextAttribution:
    """The attribution of one text.

    Attributes:
        text (str): The text.
        tokens (tuple of str): Its tokens, special tokens included, without padding.
        scores (tuple of float): One score per token, in ``[0, inf)``.
        predicted (str): The predicted label.
        probability (float): Its probability; the raw output of a model with one label.
        target (str): The label that the scores belong to.
        flow_value (float): The value of the flow behind the scores.
    """

    text: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    predicted: str
    probability: float
    target: str
    flow_value: float


@dataclass(frozen=True)
class TextClassifier:
    """A sequence classifier with its tokenizer.

    Attributes:
        model (PreTrainedModel): With a classification head, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> classifier = TextClassifier(*load_demo_model())
        >>> [result] = classifier.explain(["a gripping , funny film"])
        >>> result.predicted
        'positive'
        >>> result.tokens
        ('[CLS]', 'a', 'gripping', ',', 'funny', 'film', '[SEP]')
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @staticmethod
    def load(name: str) -> TextClassifier:
        """Load a classifier from a local folder or by its hub id.

        Only safetensors weights are read and no code of the model's repository runs.

        Args:
            name (str): A folder saved by ``save_pretrained``, or a hub id. A folder
                is read without network access.

        Raises:
            FileNotFoundError: If there is no such folder and ``name`` is no hub id.
            ValueError: If the model cannot be loaded as a sequence classifier.
        """
        is_folder = Path(name).is_dir()
        if not is_folder and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
            raise FileNotFoundError(
                f"there is no model folder {name!r}. Give an existing folder saved by "
                'save_pretrained(), or a hub id such as "owner/name"'
            )
        options: dict[str, Any] = {"local_files_only": is_folder}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, **options
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name!r} could not be loaded as a sequence classifier: {error}\nGive "
                "a folder with config.json, model.safetensors and tokenizer files, or "
                "the hub id of such a model"
            ) from error
        return TextClassifier(model.eval(), tokenizer)

    def explain(
        self,
        texts: Sequence[str],
        method: str = "generalized-attention-flow",
        target: str | int | None = None,
        **options: Any,
    ) -> list[TextAttribution]:
        """Predict and attribute a batch of texts.

        Args:
            texts (sequence of str): The texts; one longer than the model's limit is
                truncated with a warning.
            method (str): A key of :data:`METHODS`.
            target (str or int, optional): Label or index to attribute; the predicted
                one of each text by default.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[TextAttribution]: One per text.

        Raises:
            ValueError: If a text is empty, or the method or target is unknown.
        """
        if method not in METHODS:
            raise ValueError(
                f"method={method!r} is unknown; give one of {', '.join(METHODS)}"
            )
        encoded = self._encode(texts)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        with torch.no_grad():
            logits = self._logits(ids, mask)
        predicted = logits.argmax(-1)
        targets = predicted if target is None else self._target(target, predicted)
        attribution = METHODS[method](self._logits, **options)
        explanation = attribution.explain(
            ids, target=targets, additional_forward_args=(mask,)
        )
        probabilities = logits.softmax(-1) if logits.shape[-1] > 1 else logits
        return [
            TextAttribution(
                text=text,
                tokens=tuple(self.tokenizer.convert_ids_to_tokens(ids[row][kept])),
                scores=tuple(explanation.scores[row][kept].tolist()),
                predicted=self.labels[int(predicted[row])],
                probability=float(probabilities[row, predicted[row]]),
                target=self.labels[int(targets[row])],
                flow_value=float(explanation.flow_value[row]),
            )
            for row, (text, kept) in enumerate(zip(texts, mask.bool(), strict=True))
        ]

    @property
    def labels(self) -> list[str]:
        """The model's labels, by index."""
        names = self.model.config.id2label
        return [str(names[index]) for index in range(len(names))]

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits

    def _target(self, target: str | int, like: Tensor) -> Tensor:
        if target in self.labels:
            return torch.full_like(like, self.labels.index(str(target)))
        if str(target).isdecimal() and int(target) < len(self.labels):
            return torch.full_like(like, int(target))
        raise ValueError(
            f"target={target!r} is unknown; give a label of {self.labels} or an index "
            f"from 0 to {len(self.labels) - 1}"
        )

    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise ValueError(f"text {number} of {len(texts)} is empty; remove it")
        limit = self._limit()
        lengths = [
            len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]
        ]
        for number, length in enumerate(lengths, 1):
            if length > limit:
                warnings.warn(
                    f"text {number} of {len(texts)} has {length} tokens and is "
                    f"truncated to the model's limit of {limit}",
                    stacklevel=3,
                )
        encoded: dict[str, Tensor] = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(self.model.device)
        return encoded

    def _limit(self) -> int:
        """Most tokens that both tokenizer and position embeddings admit."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        # Tokenizers without a limit say 1e30.
        limits = [self.tokenizer.model_max_length, positions or 0]
        return min(int(limit) for limit in limits if 0 < limit < 1e9)
