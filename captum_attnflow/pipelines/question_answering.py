"""Questions and contexts in, answers out, and what an answer's place rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
)

from captum_attnflow._checks import OneTextError, check_choice, check_integer
from captum_attnflow.attr import SLALOM
from captum_attnflow.pipelines.encoding import (
    EncodedTexts,
    ModelOfTexts,
    Truncation,
    Windowed,
)
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from captum_attnflow.pipelines.predictions import check_outputs
from captum_attnflow.pipelines.pretrained import (
    Kind,
    check_pairs,
    outputs_by_position,
)
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.pipelines.token_scores import Output, OutputAttribution
from captum_attnflow.texts.units import find_text

Part = Literal["both", "start", "end"]
_NAMES: dict[Part, str] = {
    "both": "start and end of the answer",
    "start": "start of the answer",
    "end": "end of the answer",
}


@dataclass(frozen=True, eq=False)
class AnswerAttribution(TextAttribution):
    """What an answer's place in a context rests on.

    ``text`` is the question and ``text_pair`` the context; ``predicted`` is the answer
    and ``probability`` the product of the probabilities of its start and its end, each
    by a softmax over the context's tokens in the window that holds the answer.

    Attributes:
        start (int): The answer's first character in the context.
        end (int): The character behind its last one.
    """

    start: int = field(kw_only=True)
    end: int = field(kw_only=True)

    @property
    def explained(self) -> str:
        """The answer that the scores explain, and which of its ends."""
        return f"{self.target}: {self.predicted}"

    def _beside_label(self) -> dict[str, Any]:
        return {"explained": self.explained}

    @property
    def note(self) -> str:
        """How a context longer than the model's limit was read."""
        if self.n_windows > 1:
            return (
                f"the best answer of {self.n_windows} overlapping windows; tokens "
                "that its window does not show have a score of 0"
            )
        return super().note


@dataclass(frozen=True)
class _Answer:
    """First and last token of an answer, in a row and in the pair."""

    row: int
    columns: tuple[int, int]
    positions: tuple[int, int]
    logit: float
    probability: float


@dataclass(frozen=True)
class QuestionAnswerer(ModelOfTexts):
    """A model that finds answers in a context, with its tokenizer.

    Attributes:
        model (PreTrainedModel): With a head that gives ``start_logits`` and
            ``end_logits``, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer, a fast one, which
            knows the characters of its tokens.
        tokenizer_options (mapping): Of the tokenizer's call, as a pipeline has them.

    Examples::

        >>> import torch, transformers
        >>> from captum_attnflow.demo import load_demo_model
        >>> _, tokenizer = load_demo_model()
        >>> _ = torch.manual_seed(0)
        >>> config = transformers.BertConfig(
        ...     vocab_size=len(tokenizer),
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ...     intermediate_size=64,
        ... )
        >>> model = transformers.AutoModelForQuestionAnswering.from_config(config)
        >>> answerer = QuestionAnswerer(model.eval(), tokenizer)
        >>> [result] = answerer.explain([("which film ?", "a gripping , funny film")])
        >>> result.predicted == result.text_pair[result.start : result.end]
        True
        >>> result.tokens[:6]
        ('[CLS]', 'which', 'film', '?', '[SEP]', 'a')
    """

    _kind = Kind(
        "a model of question answering",
        AutoModelForQuestionAnswering,
        AutoTokenizer.from_pretrained,
    )

    def explain(
        self,
        pairs: Sequence[tuple[str, str]],
        method: str = DEFAULT_METHOD,
        target: str | None = None,
        *,
        part: Part = "both",
        max_answer_tokens: int = 15,
        truncation: Truncation = "truncate",
        stride: int | None = None,
        **options: Any,
    ) -> list[AnswerAttribution]:
        """Answer questions, and attribute each answer's place to question and context.

        The answer is the span of the context's tokens with the highest sum of the logit
        of its start and of its end. Under ``truncation="window"`` it is that of all
        windows of the context, and its window is explained.

        Args:
            pairs (sequence of tuple): Questions, each with its context.
            method (str): A key of
                :data:`captum_attnflow.pipelines.methods.METHODS`. SLALOM deletes
                tokens, takes the logits as they are, and gives the answer's first and
                last token a score of 0.
            target (str, optional): Another answer to attribute, as it stands in the
                contexts; of several places the one whose logits are highest.
            part (str): What is attributed: ``"both"``, the sum of the logits of start
                and end, or the logit of the ``"start"`` or of the ``"end"``.
            max_answer_tokens (int): Most tokens of an answer that the model chooses.
            truncation (str): What becomes of a context that is too long with its
                question: ``"truncate"`` cuts its end off, with a warning; ``"window"``
                reads it in overlapping windows, each behind the whole question;
                ``"refuse"`` raises.
            stride (int, optional): Tokens in which neighbouring windows overlap, at
                least 0; by default a quarter of what a window holds of the context.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[AnswerAttribution]: One per pair.

        Raises:
            ValueError: If there is no pair, one is no pair of texts, the model saw no
                token of a context, or the method, an option or the target is unknown.
        """
        make_attribution = find_method(method, options, METHODS)
        check_choice("part", part, get_args(Part))
        check_integer("max_answer_tokens", max_answer_tokens, 1)
        check_pairs("question", "context", pairs)
        encoded = self.encoder.encode(
            pairs, truncation, Windowed(stride, "second"), with_places=True
        )
        start, end = self._start_and_end(encoded, len(pairs))
        for outputs in (start, end):
            check_outputs(outputs)
        answers = []
        for number, (_, context) in enumerate(pairs):
            spans = _admitted(encoded, number, context, target)
            best = [
                _best(encoded, number, row, start, end, span, max_answer_tokens)
                for row in encoded.rows_of(number)
                for span in spans
            ]
            found = [answer for answer in best if answer is not None]
            if not found:
                raise OneTextError(
                    f"the model saw no token of the context of pair {number + 1} of "
                    f"{len(pairs)}, {shorten(context, 40)!r}, that an answer could "
                    'have; shorten the question, or give truncation="window"',
                    "the model saw no token of the context that an answer could have",
                )
            answers.append(max(found, key=lambda answer: answer.logit))
        if make_attribution is SLALOM:
            # A sum of logits over positions has no probability of its own.
            options = {"link": "identity", **options}
        scored = OutputAttribution(
            make_attribution,
            options,
            self._forward(encoded.names, part),
            self.model,
            self.tokenizer,
            encoded,
        ).explain([[_output(answer, part)] for answer in answers], len(pairs))
        return [
            self._result(number, pairs[number], encoded, answer, one, part, method)
            for number, (answer, one) in enumerate(zip(answers, scored, strict=True))
        ]

    def _start_and_end(self, encoded: EncodedTexts, size: int) -> tuple[Tensor, Tensor]:
        """Logits of each row, ``(N, T)`` each."""
        starts, ends = [], []
        for first in range(0, len(encoded.ids), size):
            rows = [part[first : first + size] for part in encoded.arguments]
            named = dict(zip(("input_ids", *encoded.names), rows, strict=True))
            with torch.no_grad():
                output = self.model(**named)
            starts.append(output.start_logits)
            ends.append(output.end_logits)
        return torch.cat(starts).float().cpu(), torch.cat(ends).float().cpu()

    def _forward(self, names: Sequence[str], part: Part) -> Callable[..., Tensor]:
        """Logits that a target's positions select: ``(B, T, 1)``, or of both all sums.

        With an axis of tokens for the start and one for the end, ``(B, T, T, 1)``,
        positions follow their tokens where SLALOM deletes others.
        """

        def logits(**arguments: Tensor) -> Tensor:
            output = self.model(**arguments)
            start: Tensor = output.start_logits
            end: Tensor = output.end_logits
            if part == "both":
                return (start[:, :, None] + end[:, None])[..., None]
            return (start if part == "start" else end)[..., None]

        return outputs_by_position(logits, names)

    def _result(
        self,
        number: int,
        pair: tuple[str, str],
        encoded: EncodedTexts,
        answer: _Answer,
        scored: Any,
        part: Part,
        method: str,
    ) -> AnswerAttribution:
        question, context = pair
        spans = encoded.places[number].spans
        first, last = answer.positions
        start, end = spans[first][0], spans[last][1]
        return AnswerAttribution(
            text=question,
            tokens=encoded.tokens[number],
            scores=scored.scores,
            predicted=context[start:end],
            probability=answer.probability,
            target=_NAMES[part],
            flow_value=scored.flow_value,
            slalom=scored.slalom,
            output=scored.output,
            index=number,
            text_pair=context,
            n_truncated=encoded.n_truncated[number],
            n_windows=len(encoded.rows_of(number)),
            method=method,
            words=encoded.words[number],
            start=start,
            end=end,
        )


def _admitted(
    encoded: EncodedTexts, number: int, context: str, target: str | None
) -> list[tuple[int, int]] | list[None]:
    """The characters of the target, wherever it stands; None for any answer."""
    if target is None:
        return [None]
    is_text = isinstance(target, str) and target.strip()
    starts = find_text(target, context) if is_text else []
    if not starts:
        raise OneTextError(
            f"target={target!r} does not stand in context {number + 1} of "
            f"{len(encoded.tokens)}, {shorten(context, 40)!r}; give an answer as it "
            "stands there, or None for the model's own",
            f"target={target!r} does not stand in the context",
        )
    return [(start, start + len(target)) for start in starts]


def _best(
    encoded: EncodedTexts,
    number: int,
    row: int,
    start: Tensor,
    end: Tensor,
    wanted: tuple[int, int] | None,
    max_answer_tokens: int,
) -> _Answer | None:
    """The answer of the highest logits in a row, or the one wanted, if it is there."""
    places = encoded.places[number]
    pairs = zip(
        encoded.positions[row].tolist(),
        encoded.mask[row].nonzero()[:, 0].tolist(),
        strict=True,
    )
    shown = [pair for pair in pairs if places.sequences[pair[0]] == 1]
    if not shown:
        return None
    positions = [position for position, _ in shown]
    columns = torch.tensor([column for _, column in shown])
    starts, ends = start[row, columns], end[row, columns]
    sums = starts[:, None] + ends[None]
    if wanted is None:
        # Neither backwards nor too long.
        admitted = torch.ones_like(sums).triu().tril(max_answer_tokens - 1).bool()
        flat = int(sums.masked_fill(~admitted, -torch.inf).argmax())
        first, last = divmod(flat, len(shown))
    else:
        inside = [
            index
            for index, position in enumerate(positions)
            if places.spans[position][0] < wanted[1]
            and places.spans[position][1] > wanted[0]
        ]
        whole = inside and (
            places.spans[positions[inside[0]]][0] <= wanted[0]
            and places.spans[positions[inside[-1]]][1] >= wanted[1]
        )
        if not whole:
            return None
        first, last = inside[0], inside[-1]
    probability = starts.softmax(0)[first] * ends.softmax(0)[last]
    return _Answer(
        row=row,
        columns=(int(columns[first]), int(columns[last])),
        positions=(positions[first], positions[last]),
        logit=float(sums[first, last]),
        probability=float(probability),
    )


def _output(answer: _Answer, part: Part) -> Output:
    first, last = answer.columns
    targets = {
        "both": (first, last, 0),
        "start": (first, 0),
        "end": (last, 0),
    }
    return Output(answer.row, targets[part])
