"""Texts in, token attributions out: the pipeline behind the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from rich.text import Text
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr import SLALOM, AttentionAttribution, AttnLRP
from captum_attnflow.explanation import Explanation
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, refuse_tokens
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from captum_attnflow.pipelines.pretrained import (
    Prediction,
    check_parts,
    check_texts,
    labels_of,
    load_pretrained,
    logits_by_position,
    problem_type,
    read_predictions,
)
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.scored_tokens import coloured_tokens, printable
from captum_attnflow.show.text import safe_record, visualize_text
from captum_attnflow.slalom import SlalomExplanation
from captum_attnflow.slalom.explanation import SlalomReading
from captum_attnflow.storage import Storable
from captum_attnflow.texts import find_special_tokens


@dataclass(frozen=True)
class TextAttribution(Storable, LongForm):
    """The attribution of one text.

    The value of a notebook's cell is shown as Captum's text picture, and rich prints
    it with coloured tokens.

    Attributes:
        text (str): The text.
        tokens (tuple of str): Its tokens, special tokens included, without padding.
        scores (tuple of float): One score per token; negative ones speak against the
            target.
        predicted (str): The predicted label. Of a multi-label model, whose labels do
            not exclude each other, and of regression it is the target.
        probability (float, optional): Its probability; None in regression.
        target (str): The label that the scores belong to.
        flow_value (float, optional): The value of the flow behind the scores.
        slalom (SlalomReading, optional): Value and importance of each token.
        value (float, optional): The output, in regression; None for a label.
        output (float, optional): What the scores of ``attnlrp`` account for; None for
            other methods.
        index (int): Which of the given texts it is, counted from 0. A text of several
            labels has several attributions.
    """

    text: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    predicted: str
    probability: float | None
    target: str
    flow_value: float | None = None
    slalom: SlalomReading | None = None
    value: float | None = None
    output: float | None = None
    index: int = 0

    @property
    def delta(self) -> float:
        """Sum of the scores minus the flow value, or minus the output for AttnLRP.

        For SLALOM the log-odds by its function minus those of the model.
        """
        if self.slalom is not None:
            return self.slalom.predicted_log_odds - self.slalom.log_odds
        accounted_for = self.flow_value if self.output is None else self.output
        return sum(self.scores) - (accounted_for or 0.0)

    @property
    def labels(self) -> dict[str, Any]:
        """What Captum's record says beside tokens and scores.

        The arguments of :func:`~captum_attnflow.show.text.safe_record`. The true label
        is not known. A label has its ``probability``, regression a ``value``.
        """
        return {
            "predicted": self.predicted,
            **(
                {"probability": self.probability}
                if self.value is None
                else {"value": self.value}
            ),
            "target": self.target,
            "total": sum(self.scores),
            "convergence": self.delta,
        }

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        refuse_tokens(self, tokens)
        same = {
            "example": self.index,
            "text": self.text,
            "label": self.target,
            "predicted": self.predicted,
            "probability": self.probability,
            "value": self.value,
        }
        yield ScoredRows(self.scores, same, self.tokens)

    def _repr_html_(self) -> str:
        record = safe_record(self.tokens, self.scores, **self.labels)
        return str(visualize_text([record]).data)

    def __rich__(self) -> Text:
        number = self.probability if self.value is None else self.value
        text = Text.assemble((printable(self.predicted), "bold"), f" {number:.3f}")
        if self.target != self.predicted:
            text.append(f"  (scores for {printable(self.target)})")
        text.append("\n").append_text(coloured_tokens(self.tokens, self.scores))
        if self.slalom is not None:
            text.append(_side_by_side(self.tokens, self.slalom))
        return text


def _side_by_side(tokens: Sequence[str], slalom: SlalomReading) -> str:
    """A line per explained token: value and importance, with their standard errors."""
    printed = [printable(token) for token in tokens]
    width = max(map(len, printed), default=0)
    lines = [f"\n{'':{width}}          value     importance"]
    for token, *numbers in zip(
        printed,
        slalom.values,
        slalom.value_standard_errors,
        slalom.importances,
        slalom.importance_standard_errors,
        strict=True,
    ):
        if None not in numbers:
            value, its_error, importance, error = numbers
            lines.append(
                f"{token:{width}} {value:+7.2f} ±{its_error:5.2f} "
                f"{importance:+7.2f} ±{error:5.2f}"
            )
    known = {"short inputs": slalom.r2_short, "deletions": slalom.r2_deletions}
    fits = [f"{name} {r2:.2f}" for name, r2 in known.items() if r2 is not None]
    if fits:
        lines.append(f"held-out R2: {', '.join(fits)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class TextClassifier(KnownParts):
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

    def __post_init__(self) -> None:
        check_parts("TextClassifier", self.model, self.tokenizer, "tokenizer")

    @staticmethod
    def load(name: str) -> TextClassifier:
        """Load a classifier from a local folder or by its hub id.

        Args:
            name (str): As :func:`load_pretrained` takes it, which says what is read.

        Raises:
            FileNotFoundError: As :func:`load_pretrained`.
            ValueError: As :func:`load_pretrained`, or if all tokens are special ones.
        """
        model, tokenizer = load_pretrained(
            name,
            AutoModelForSequenceClassification,
            AutoTokenizer.from_pretrained,
            "a sequence classifier",
            "tokenizer files",
        )
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(
                f"{name!r} has a tokenizer of special tokens only. Give one with its "
                "tokenizer files"
            )
        return TextClassifier(model, tokenizer)

    def explain(
        self,
        texts: Sequence[str],
        method: str = DEFAULT_METHOD,
        target: str | int | None = None,
        **options: Any,
    ) -> list[TextAttribution]:
        """Predict and attribute a batch of texts.

        Args:
            texts (sequence of str): The texts; one longer than the model's limit is
                truncated with a warning.
            method (str): A key of
                :data:`captum_attnflow.pipelines.methods.METHODS`.
            target (str or int, optional): Label or index to attribute; what the model
                predicts of each text by default.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[TextAttribution]: One per text. Without a target a multi-label model
            has one per text and label above a probability of 0.5, and regression one
            per text and value, see
            :func:`captum_attnflow.pipelines.pretrained.read_predictions`.

        Raises:
            ValueError: If there is no text, a text is empty or no text, or the method,
                an option or the target is unknown.
        """
        make_attribution = find_method(method, options, METHODS)
        encoded = self.encode(texts)
        ids = encoded.pop("input_ids")
        forward = logits_by_position(self.model, tuple(encoded))
        with torch.no_grad():
            logits = forward(ids, *encoded.values())
        predictions = read_predictions(self.model, logits, target, texts)
        if (
            make_attribution is SLALOM
            and problem_type(self.model) != "single_label_classification"
        ):
            # The logit of a label that excludes no other is its log-odds already.
            options = {"link": "identity", **options}
        attribution = make_attribution(forward, **options)
        if isinstance(attribution, SLALOM):
            attribution.tokenizer = self.tokenizer
        # Where texts have several labels, no batch is larger than that of the texts.
        size = len(texts)
        return [
            result
            for start in range(0, len(predictions), size)
            for result in self._explain(
                attribution, texts, ids, encoded, predictions[start : start + size]
            )
        ]

    def _explain(
        self,
        attribution: AttentionAttribution | AttnLRP | SLALOM,
        texts: Sequence[str],
        ids: Tensor,
        others: Mapping[str, Tensor],
        predictions: Sequence[Prediction],
    ) -> Iterator[TextAttribution]:
        """Attribute predictions together; a text stands once for each of its own."""
        rows = torch.tensor([each.row for each in predictions], device=ids.device)
        targets = torch.tensor([each.target for each in predictions], device=ids.device)
        ids, mask = ids[rows], others["attention_mask"][rows].bool()
        arguments: dict[str, Any] = {
            "target": targets,
            "additional_forward_args": tuple(other[rows] for other in others.values()),
        }
        explanation = (
            _explain_by_rules(attribution, ids, **arguments)
            if isinstance(attribution, AttnLRP)
            else attribution.explain(ids, self._baseline(ids), **arguments)
        )
        for row, (prediction, shown) in enumerate(zip(predictions, mask, strict=True)):
            yield TextAttribution(
                text=texts[prediction.row],
                tokens=tuple(self.tokenizer.convert_ids_to_tokens(ids[row][shown])),
                scores=tuple(explanation.scores[row][shown].tolist()),
                predicted=self.labels[prediction.predicted],
                probability=prediction.probability,
                target=self.labels[prediction.target],
                value=prediction.value,
                index=prediction.row,
                **_details(explanation, row, shown),
            )

    @property
    def labels(self) -> list[str]:
        """The model's labels, by index."""
        return labels_of(self.model)

    def _baseline(self, ids: Tensor) -> Tensor | None:
        """Replace all but special tokens by the mask token, if there is one."""
        if self.tokenizer.mask_token_id is None:
            return None
        special = find_special_tokens(ids, self.model, self.tokenizer)
        return ids.where(special, self.tokenizer.mask_token_id)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn a batch of texts into the model's arguments.

        Args:
            texts (sequence of str): The texts; one longer than the model's limit is
                truncated with a warning.

        Returns:
            dict[str, Tensor]: ``input_ids`` and ``attention_mask``, ``(B, T)``, with
            what else the tokenizer adds, on the model's device.

        Raises:
            ValueError: If there is no text, or a text is empty or no text.
        """
        check_texts("text", texts)
        limit = self._limit()
        if limit is not None:
            for text, ids in zip(texts, self._ids(texts), strict=True):
                if len(ids) > limit:
                    warn_caller(
                        f"the text {shorten(text, 40)!r} has {len(ids)} tokens and is "
                        f"truncated to the model's limit of {limit}"
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


@dataclass(frozen=True, eq=False)
class _RulesExplanation:
    """Scores by propagation rules ``(B, T)``, and the outputs ``(B,)``."""

    scores: Tensor
    output: Tensor


def _explain_by_rules(
    attribution: AttnLRP, ids: Tensor, **arguments: Any
) -> _RulesExplanation:
    scores, delta = attribution.attribute(
        ids, **arguments, return_convergence_delta=True
    )
    return _RulesExplanation(scores, scores.sum(1) - delta)


def _details(
    explanation: Explanation | SlalomExplanation | _RulesExplanation,
    row: int,
    shown: Tensor,
) -> dict[str, Any]:
    if isinstance(explanation, SlalomExplanation):
        return {"slalom": SlalomReading.of(explanation, row, shown.cpu())}
    if isinstance(explanation, _RulesExplanation):
        return {"output": float(explanation.output[row])}
    return {"flow_value": float(explanation.flow_value[row])}
