"""Outputs of a model of texts, attributed to the tokens by any of the methods.

An output may be the mean of several: of the windows of a long text, or of the words of
an entity. Attributions are linear in that: the scores of the mean are the mean of the
scores, token by token, and sum to the mean of what the single ones sum to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr import SLALOM, AttnLRP
from captum_attnflow.explanation import Explanation
from captum_attnflow.pipelines.encoding import EncodedTexts
from captum_attnflow.slalom import SlalomExplanation
from captum_attnflow.slalom.model import SlalomReading
from captum_attnflow.texts import find_special_tokens


@dataclass(frozen=True)
class Output:
    """One number that a model gives.

    Attributes:
        row (int): The row of the encoded texts.
        target (tuple of int): What is selected of the row's output, as Captum does;
            empty for a single number.
    """

    row: int
    target: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoredText:
    """One text with the scores of its tokens.

    Attributes:
        scores (tuple of float): One per token.
        flow_value (float, optional): The value of the flow behind the scores.
        output (float, optional): What the scores account for, where there is no flow.
        slalom (SlalomReading, optional): Value and importance of each token; None for
            a mean of several outputs, each of which has its own.
    """

    scores: tuple[float, ...]
    flow_value: float | None = None
    output: float | None = None
    slalom: SlalomReading | None = None


@dataclass(frozen=True, eq=False)
class OutputAttribution:
    """A method, on a forward function of encoded texts.

    Attributes:
        make (Callable): The method's class.
        options (mapping): Its options.
        forward (Callable): Takes ids and the other arguments, in their order.
        model (PreTrainedModel): Whose config knows special tokens.
        tokenizer (PreTrainedTokenizerBase): Which knows them, too.
        encoded (EncodedTexts): The texts.
        further (tuple of Tensor): Arguments behind those of the encoded texts, with one
            row for each of these.
    """

    make: Callable[..., Any]
    options: Mapping[str, Any]
    forward: Callable[..., Tensor]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoded: EncodedTexts
    further: tuple[Tensor, ...] = ()

    def explain(
        self, means: Sequence[Sequence[Output]], batch_size: int
    ) -> list[ScoredText]:
        """Attribute means of outputs.

        Args:
            means (sequence): Each the outputs of rows of one text.
            batch_size (int): Most rows in one call of the method.

        Returns:
            list[ScoredText]: One per mean, with a score for each token of its text.
        """
        outputs = [output for mean in means for output in mean]
        attribution = self.make(self.forward, **self.options)
        if isinstance(attribution, SLALOM):
            attribution.tokenizer = self.tokenizer
            if self.model.training:  # other methods see dropout as it happens
                warn_caller(
                    f"the {type(self.model).__name__} is in training mode, in which "
                    "dropout makes outputs random: call model.eval() first"
                )
        scored = iter(
            [
                result
                for start in range(0, len(outputs), batch_size)
                for result in self._explain(
                    attribution, outputs[start : start + batch_size]
                )
            ]
        )
        return [
            self._mean([(output, next(scored)) for output in mean]) for mean in means
        ]

    def _explain(
        self, attribution: Any, outputs: Sequence[Output]
    ) -> Iterator[ScoredText]:
        """Attribute outputs together; a row stands once for each of its own."""
        device = self.encoded.ids.device
        rows = torch.tensor([output.row for output in outputs], device=device)
        ids, mask = self.encoded.ids[rows], self.encoded.mask[rows]
        further = (*self.encoded.others.values(), *self.further)
        arguments: dict[str, Any] = {
            "target": _targets(outputs, device),
            "additional_forward_args": tuple(other[rows] for other in further),
        }
        if isinstance(attribution, AttnLRP):
            scores, delta = attribution.attribute(
                ids, **arguments, return_convergence_delta=True
            )
            accounted_for = (scores.sum(1) - delta).tolist()
            for row, shown in enumerate(mask):
                yield ScoredText(
                    tuple(scores[row][shown].tolist()), output=accounted_for[row]
                )
            return
        explanation: Explanation | SlalomExplanation = attribution.explain(
            ids, self._baseline(ids), **arguments
        )
        for row, shown in enumerate(mask):
            scores = explanation.scores[row]
            of_tokens = tuple(scores[shown.to(scores.device)].tolist())
            if isinstance(explanation, SlalomExplanation):
                reading = SlalomReading.of(explanation, row, shown.cpu())
                yield ScoredText(of_tokens, slalom=reading)
            else:
                value = float(explanation.flow_value[row])
                yield ScoredText(of_tokens, flow_value=value)

    def _baseline(self, ids: Tensor) -> Tensor | None:
        """Replace all but special tokens by the mask token, if there is one."""
        if self.tokenizer.mask_token_id is None:
            return None
        special = find_special_tokens(ids, self.model, self.tokenizer)
        return ids.where(special, self.tokenizer.mask_token_id)

    def _mean(self, scored: Sequence[tuple[Output, ScoredText]]) -> ScoredText:
        """Average over outputs; a token that a row does not show has no part in it."""
        n_tokens = len(self.encoded.tokens[self.encoded.texts[scored[0][0].row]])
        total = torch.zeros(n_tokens, dtype=torch.float64)
        for output, one in scored:
            total.index_add_(
                0,
                self.encoded.positions[output.row],
                torch.tensor(one.scores, dtype=torch.float64),
            )
        [(first, alone), *others] = scored
        if not others:
            reading = alone.slalom
            if reading is not None:
                reading = _among(reading, self.encoded.positions[first.row], n_tokens)
            return replace(alone, scores=tuple(total.tolist()), slalom=reading)
        return ScoredText(
            scores=tuple((total / len(scored)).tolist()),
            flow_value=_mean_of([one.flow_value for _, one in scored]),
            output=_mean_of(
                [
                    one.output if one.slalom is None else one.slalom.log_odds
                    for _, one in scored
                ]
            ),
        )


def _targets(outputs: Sequence[Output], device: torch.device) -> Any:
    n_indices = len(outputs[0].target)
    if n_indices == 0:
        return None
    if n_indices == 1:
        return torch.tensor([output.target[0] for output in outputs], device=device)
    return [output.target for output in outputs]


def _mean_of(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def _among(reading: SlalomReading, positions: Tensor, n_tokens: int) -> SlalomReading:
    """Place a reading of a window's tokens among all of the text."""
    at = {position: index for index, position in enumerate(positions.tolist())}

    def placed(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
        return tuple(
            numbers[at[place]] if place in at else None for place in range(n_tokens)
        )

    return replace(
        reading,
        values=placed(reading.values),
        importances=placed(reading.importances),
        value_standard_errors=placed(reading.value_standard_errors),
        importance_standard_errors=placed(reading.importance_standard_errors),
    )
