"""Texts in, token attributions out: the pipeline behind the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
)

from captum_attnflow._checks import check_contrast, counted, is_pipeline
from captum_attnflow.attr import SLALOM
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, refuse_tokens
from captum_attnflow.pipelines.encoding import (
    EncodedTexts,
    ModelOfTexts,
    Truncation,
    Windowed,
)
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from captum_attnflow.pipelines.predictions import (
    check_applied_function,
    find_target,
    labels_of,
    problem_type,
    read_predictions,
)
from captum_attnflow.pipelines.pretrained import (
    Given,
    Kind,
    TextOrPair,
    check_texts_or_pairs,
    logits_by_position,
    parts_of_text,
)
from captum_attnflow.pipelines.token_scores import Output, OutputAttribution
from captum_attnflow.scored_tokens import escaped
from captum_attnflow.show.text import attribution_text, safe_record, visualize_text
from captum_attnflow.slalom.model import SlalomReading
from captum_attnflow.storage import Storable
from captum_attnflow.texts.units import Word


@dataclass(frozen=True, eq=False)
class TextAttribution(Storable, LongForm):
    """The attribution of one text.

    The value of a notebook's cell is shown as Captum's text picture, and rich prints
    it with coloured tokens.

    Attributes:
        text (str): The text, of a pair of sentences the first one.
        tokens (tuple of str): Its tokens, special tokens included, without padding. Of
            a pair those of both sentences, of a truncated text those that the model
            saw.
        scores (tuple of float): One score per token; negative ones speak against the
            target.
        predicted (str): The predicted label. Of a multi-label model, whose labels do
            not exclude each other, and of regression it is the target.
        probability (float, optional): Its probability; None in regression.
        target (str): The label that the scores belong to.
        flow_value (float, optional): The value of the flow behind the scores.
        slalom (SlalomReading, optional): Value and importance of each token.
        value (float, optional): The output, in regression; None for a label.
        output (float, optional): What the scores of ``attnlrp`` account for, and those
            of ``slalom`` that are means of several; None for other methods.
        index (int): Which of the given texts it is, counted from 0. A text of several
            labels has several attributions.
        text_pair (str, optional): The second sentence of a pair.
        n_truncated (int): Tokens that the model did not see, as the text is longer than
            its limit.
        n_windows (int): Windows of a long text whose outputs were averaged; 1 where the
            model saw the text at once.
        against (str, optional): The label whose output is taken off the target's; None
            without contrast.
        method (str, optional): What the scores were made by.
        words (tuple of Word, optional): The words that the tokens spell, as in the
            text; None where the tokenizer does not know.
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
    text_pair: str | None = None
    n_truncated: int = 0
    n_windows: int = 1
    against: str | None = None
    method: str | None = None
    words: tuple[Word, ...] | None = None

    @property
    def explained(self) -> str:
        """What the scores explain, in words: a label, or one rather than another.

        Every result of texts has this name, and ``attributions``: itself, or the
        several that it holds, each with its ``index`` among the given texts.
        """
        if self.against is None:
            return self.target
        return f"{self.target} rather than {self.against}"

    @property
    def attributions(self) -> tuple[TextAttribution, ...]:
        """What has scores: the result itself."""
        return (self,)

    @property
    def note(self) -> str:
        """How a text longer than the model's limit was read; empty for others."""
        if self.n_truncated:
            n_tokens = len(self.tokens) + self.n_truncated
            return (
                f"truncated: the model did not see {self.n_truncated} of {n_tokens} "
                "tokens"
            )
        if self.n_windows > 1:
            return f"mean of {self.n_windows} overlapping windows of the text"
        return ""

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
            **self._beside_label(),
        }
        yield ScoredRows(self.scores, same, self.tokens)

    def _beside_label(self) -> dict[str, Any]:
        """What rows of a table need to tell what they explain, beside a label."""
        return {} if self.against is None else {"explained": self.explained}

    def _repr_html_(self) -> str:
        record = safe_record(self.tokens, self.scores, **self.labels)
        note = f"<p>{escaped(self.note)}</p>" if self.note else ""
        return str(visualize_text([record]).data) + note

    def __rich__(self) -> Text:
        return attribution_text(self)


@dataclass(frozen=True)
class TextClassifier(ModelOfTexts):
    """A sequence classifier with its tokenizer.

    Methods are given the mask token as baseline of all tokens but special ones, where
    the tokenizer has one.

    Attributes:
        model (PreTrainedModel): With a classification head, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        tokenizer_options (mapping): Of the tokenizer's call, ``add_special_tokens``,
            ``max_length`` and ``truncation``, as a pipeline has them.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> classifier = TextClassifier(*load_demo_model())
        >>> [result] = classifier.explain(["a gripping , funny film"])
        >>> result.predicted
        'positive'
        >>> result.tokens
        ('[CLS]', 'a', 'gripping', ',', 'funny', 'film', '[SEP]')

    A pipeline of transformers, and a pair of sentences::

        >>> import transformers
        >>> pipeline = transformers.pipeline(
        ...     "text-classification",
        ...     model=classifier.model,
        ...     tokenizer=classifier.tokenizer,
        ... )
        >>> classifier = TextClassifier.load(pipeline)
        >>> [result] = classifier.explain([("a gripping film", "dull")])
        >>> result.tokens
        ('[CLS]', 'a', 'gripping', 'film', '[SEP]', 'dull', '[SEP]')

    A text longer than the model's limit of 128 tokens, all of it::

        >>> long = "so funny " * 100
        >>> [result] = classifier.explain([long], truncation="window", stride=32)
        >>> len(result.tokens), result.n_truncated, result.n_windows
        (202, 0, 2)
    """

    _kind = Kind(
        "a sequence classifier",
        AutoModelForSequenceClassification,
        AutoTokenizer.from_pretrained,
    )

    @classmethod
    def _of_loaded(
        cls, name: Given, model: PreTrainedModel, companion: Any
    ) -> TextClassifier:
        if len(companion) <= len(companion.all_special_ids):
            raise ValueError(
                f"{name!r} has a tokenizer of special tokens only. Give one with its "
                "tokenizer files"
            )
        if is_pipeline(name):
            check_applied_function(name, problem_type(model))
        return super()._of_loaded(name, model, companion)

    def explain(
        self,
        texts: Sequence[TextOrPair],
        method: str = DEFAULT_METHOD,
        target: str | int | None = None,
        *,
        against: str | int | None = None,
        truncation: Truncation = "truncate",
        stride: int | None = None,
        **options: Any,
    ) -> list[TextAttribution]:
        """Predict and attribute a batch of texts.

        Under ``truncation="window"`` the prediction is read from the mean of the
        windows' outputs (logits), and the mean is what is attributed: each window is
        attributed on its own, and a token's score is the sum of its scores in the
        windows that show it, over the number of windows. So the scores sum to the mean
        of what they sum to in the windows, which for ``relevance-flow`` is the mean
        output. A token where windows overlap counts as often as the model saw it;
        special tokens, and the other sentence of a pair, stand in every window. For
        ``slalom`` it is the mean of the windows' log-odds.

        Args:
            texts (sequence of str or tuple): The texts. A tuple ``(first, second)`` is
                a pair of sentences, which ``tokenizer(first, second)`` encodes.
            method (str): A key of
                :data:`captum_attnflow.pipelines.methods.METHODS`.
            target (str or int, optional): Label or index to attribute; what the model
                predicts of each text by default.
            against (str or int, optional): Why rather than this label: scores are of
                the target's output (logit) less this one's.
            truncation (str): What becomes of a text longer than the model's limit:
                ``"truncate"`` cuts its end off, with a warning; ``"window"`` reads it
                in overlapping windows of that length, of a pair the longer sentence;
                ``"refuse"`` raises.
            stride (int, optional): Tokens in which neighbouring windows overlap, at
                least 0; by default a quarter of what a window holds beside special
                tokens.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[TextAttribution]: One per text. Without a target a multi-label model
            has one per text and label above a probability of 0.5, and regression one
            per text and value, see
            :func:`captum_attnflow.pipelines.predictions.read_predictions`.

        Raises:
            ValueError: If there is no text, a text is empty or no text, the method,
                an option or the target is unknown, or a text is too long and refused.
        """
        make_attribution = find_method(method, options, METHODS)
        check_texts_or_pairs(texts)
        encoded = self.encoder.encode(
            texts, truncation, Windowed(stride), with_places=self.tokenizer.is_fast
        )
        forward = logits_by_position(self.model, encoded.names)
        rows_of_texts = [encoded.rows_of(text) for text in range(len(texts))]
        logits = self._mean_logits(encoded, rows_of_texts)
        parts = [parts_of_text(text) for text in texts]
        firsts = [first for first, _ in parts]
        predictions = read_predictions(self.model, logits, target, firsts)
        other = None
        if against is not None:
            other = find_target(against, self.labels, "against")
            check_contrast(make_attribution(forward, **options))
            same = [each.row for each in predictions if each.target == other]
            if same:
                others = len({*same}) - 1
                more = f" and {counted(others, 'other text')}" if others else ""
                named = f" of {shorten(firsts[same[0]], 40)!r}{more}"
                # Tables count reasons, of one text each.
                raise ValueError(
                    f"against={against!r} is the label that is explained "
                    f"itself{named if len(texts) > 1 else ''}; give another label, or "
                    "a target, or leave such texts out"
                )
            forward = _less(forward, other)
        if make_attribution is SLALOM and (
            other is not None
            or problem_type(self.model) != "single_label_classification"
        ):
            # The logit of a label that excludes no other is its log-odds already, and
            # so is the difference of two logits.
            options = {"link": "identity", **options}
        scored = OutputAttribution(
            make_attribution, options, forward, self.model, self.tokenizer, encoded
        ).explain(
            [
                [Output(row, (each.target,)) for row in rows_of_texts[each.row]]
                for each in predictions
            ],
            # Where texts have several labels, no batch is larger than that of the
            # texts.
            len(texts),
        )
        return [
            TextAttribution(
                text=parts[each.row][0],
                tokens=encoded.tokens[each.row],
                scores=one.scores,
                predicted=self.labels[each.predicted],
                probability=each.probability,
                target=self.labels[each.target],
                flow_value=one.flow_value,
                slalom=one.slalom,
                value=each.value,
                output=one.output,
                index=each.row,
                text_pair=parts[each.row][1],
                n_truncated=encoded.n_truncated[each.row],
                n_windows=len(rows_of_texts[each.row]),
                against=None if other is None else self.labels[other],
                method=method,
                words=encoded.words[each.row],
            )
            for each, one in zip(predictions, scored, strict=True)
        ]

    @property
    def labels(self) -> list[str]:
        """The model's labels, by index."""
        return labels_of(self.model)

    def encode(self, texts: Sequence[TextOrPair]) -> dict[str, Tensor]:
        """Turn a batch of texts into the model's arguments.

        Args:
            texts (sequence of str or tuple): The texts, and pairs of sentences; one
                longer than the model's limit is truncated with a warning.

        Returns:
            dict[str, Tensor]: ``input_ids`` and ``attention_mask``, ``(B, T)``, with
            what else the tokenizer adds, on the model's device.

        Raises:
            ValueError: If there is no text, or a text is empty or no text.
        """
        check_texts_or_pairs(texts)
        encoded = self.encoder.encode(texts)
        return {"input_ids": encoded.ids, **encoded.others}

    def _mean_logits(
        self, encoded: EncodedTexts, rows_of_texts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Mean of the logits of each text's rows, ``(B, labels)``."""
        forward = logits_by_position(self.model, encoded.names)
        size = len(rows_of_texts)
        with torch.no_grad():
            logits = torch.cat(
                [
                    forward(*(part[start : start + size] for part in encoded.arguments))
                    for start in range(0, len(encoded.ids), size)
                ]
            )
        return torch.stack([logits[rows].mean(0) for rows in rows_of_texts])


def _less(forward: Callable[..., Tensor], label: int) -> Callable[..., Tensor]:
    """Take the output of one label off those of all."""

    def difference(*arguments: Tensor) -> Tensor:
        logits = forward(*arguments)
        return logits - logits[:, label, None]

    return difference
