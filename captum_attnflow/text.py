"""Texts in, token attributions out: the pipeline behind the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from textwrap import shorten
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
    SLALOM,
    AttentionAttribution,
    AttentionFlow,
    AttentionRollout,
    GeneralizedAttentionFlow,
    RelevanceFlow,
)
from captum_attnflow.perturbation import special_token_ids
from captum_attnflow.result import Explanation
from captum_attnflow.surrogate import SlalomExplanation
from captum_attnflow.surrogate.reading import SlalomReading
from captum_attnflow.text_attribution import TextAttribution

__all__ = ["METHODS", "TextAttribution", "TextClassifier"]

METHODS: dict[str, Callable[..., AttentionAttribution | SLALOM]] = {
    "generalized-attention-flow": GeneralizedAttentionFlow,
    "attention-flow": AttentionFlow,
    "attention-rollout": AttentionRollout,
    "relevance-flow": RelevanceFlow,
    "slalom": SLALOM,
}


_LOADABLE = (
    "Give a folder with config.json, model.safetensors and tokenizer files, or the hub "
    "id of such a model"
)


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
        options: dict[str, Any] = {
            "local_files_only": is_folder,
            "trust_remote_code": False,
        }
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        # Whatever a broken folder raises, down to the parsers of its files.
        except Exception as error:
            where = "" if is_folder else f"there is no folder {name!r}, and "
            raise ValueError(
                f"{where}{name!r} could not be loaded as a sequence classifier: "
                f"{error}\n{_LOADABLE}"
            ) from error
        if report["missing_keys"]:
            raise ValueError(
                f"{name!r} has no weights for {sorted(report['missing_keys'])}, which "
                f"would be random: it is no trained sequence classifier. {_LOADABLE}"
            )
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(
                f"{name!r} has a tokenizer of special tokens only. {_LOADABLE}"
            )
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
            ValueError: If there is no text, a text is empty, or the method, an option
                or the target is unknown.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts={texts!r}; give a list of at least one text")
        make_attribution = _find_method(method, options)
        encoded = self.encode(texts)
        ids = encoded.pop("input_ids")
        names, others = tuple(encoded), tuple(encoded.values())

        def forward(ids: Tensor, *others: Tensor) -> Tensor:
            further = dict(zip(names, others, strict=True))
            logits: Tensor = self.model(input_ids=ids, **further).logits
            return logits

        with torch.no_grad():
            logits = forward(ids, *others)
        if logits.shape[-1] != len(self.labels):
            raise ValueError(
                f"the model has {logits.shape[-1]} outputs but id2label names "
                f"{self.labels}; mend id2label in its config.json"
            )
        predicted = logits.argmax(-1)
        targets = predicted if target is None else self._target(target, predicted)
        attribution = make_attribution(forward, **options)
        if isinstance(attribution, SLALOM):
            attribution.tokenizer = self.tokenizer
        explanation = attribution.explain(
            ids, self._baseline(ids), target=targets, additional_forward_args=others
        )
        mask = encoded["attention_mask"]
        probabilities = logits.softmax(-1) if logits.shape[-1] > 1 else logits
        return [
            TextAttribution(
                text=text,
                tokens=tuple(self.tokenizer.convert_ids_to_tokens(ids[row][kept])),
                scores=tuple(explanation.scores[row][kept].tolist()),
                predicted=self.labels[int(predicted[row])],
                probability=float(probabilities[row, predicted[row]]),
                target=self.labels[int(targets[row])],
                **_details(explanation, row, kept),
            )
            for row, (text, kept) in enumerate(zip(texts, mask.bool(), strict=True))
        ]

    @property
    def labels(self) -> list[str]:
        """The model's labels, by index."""
        names = self.model.config.id2label
        return [str(names[index]) for index in range(len(names))]

    def _target(self, target: str | int, like: Tensor) -> Tensor:
        if target in self.labels:
            return torch.full_like(like, self.labels.index(str(target)))
        if str(target).isdecimal() and int(target) < len(self.labels):
            return torch.full_like(like, int(target))
        raise ValueError(
            f"target={target!r} is unknown; give a label of {self.labels} or an index "
            f"from 0 to {len(self.labels) - 1}"
        )

    def _baseline(self, ids: Tensor) -> Tensor:
        """Replace all but special tokens by the mask token, or the unknown one."""
        special = sorted(special_token_ids(self.model, self.tokenizer))
        stand_ins = (self.tokenizer.mask_token_id, self.tokenizer.unk_token_id)
        stand_in = next((index for index in stand_ins if index is not None), 0)
        return ids.where(torch.isin(ids, ids.new_tensor(special)), stand_in)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn a batch of texts into the model's arguments.

        Args:
            texts (sequence of str): The texts; one longer than the model's limit is
                truncated with a warning.

        Returns:
            dict[str, Tensor]: ``input_ids`` and ``attention_mask``, ``(B, T)``, with
            what else the tokenizer adds, on the model's device.

        Raises:
            ValueError: If a text is empty.
        """
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise ValueError(f"text {number} of {len(texts)} is empty; remove it")
        limit = self._limit()
        if limit is not None:
            for text, ids in zip(texts, self._ids(texts), strict=True):
                if len(ids) > limit:
                    warnings.warn(
                        f"the text {shorten(text, 40)!r} has {len(ids)} tokens and is "
                        f"truncated to the model's limit of {limit}",
                        stacklevel=3,
                    )
        encoded: dict[str, Tensor] = self.tokenizer(
            list(texts),
            padding=True,
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        return dict(encoded)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return ids

    def _limit(self) -> int | None:
        """Most tokens that both tokenizer and position embeddings admit, if any."""
        limits = [self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "weight"):
                # RoBERTa counts positions from behind the padding index.
                unused = getattr(module, "padding_idx", None)
                limits.append(
                    len(module.weight) - (0 if unused is None else unused + 1)
                )
        # Tokenizers without a limit say 1e30.
        return min((int(limit) for limit in limits if limit < 1e9), default=None)


def _details(
    explanation: Explanation | SlalomExplanation, row: int, shown: Tensor
) -> dict[str, Any]:
    if isinstance(explanation, SlalomExplanation):
        return {"slalom": SlalomReading.of(explanation, row, shown.cpu())}
    return {"flow_value": float(explanation.flow_value[row])}


def _find_method(
    method: str, options: Mapping[str, Any]
) -> Callable[..., AttentionAttribution | SLALOM]:
    if method not in METHODS:
        raise ValueError(
            f"method={method!r} is unknown; give one of {', '.join(METHODS)}"
        )
    parameters = signature(METHODS[method]).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in accepted:
            raise ValueError(
                f"{method} has no option {name!r}; it has {', '.join(accepted)}"
            )
    return METHODS[method]
