"""Prompts in, attributions of generated text out: behind the command line."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from textwrap import shorten
from typing import Any, cast

import torch
from captum.attr import TextTokenInput
from rich.text import Text
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow._checks import check_type
from captum_attnflow.attr import GenerationAttribution
from captum_attnflow.attr.generation import Output, check_length
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens
from captum_attnflow.pipelines.methods import (
    DEFAULT_METHOD,
    GENERATION_METHODS,
    find_method,
)
from captum_attnflow.pipelines.pretrained import (
    NOT_GIVEN,
    Kind,
    check_encodable,
    check_ids,
    check_parts,
    check_texts,
)
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.scored_tokens import printable
from captum_attnflow.show.generated import names_left_out
from captum_attnflow.show.token_matrix import LeftOut, Scale, TokenMatrix
from captum_attnflow.storage import Storable
from captum_attnflow.texts import ChatInput, token_pieces
from captum_attnflow.texts.prompts import Message
from captum_attnflow.texts.units import Unit, find_text

Prompt = str | Sequence[Message]
"""A text, or the messages of a chat."""
Span = str | tuple[int, int]
"""Generated tokens: a text among them, or their numbers, stop exclusive."""


@dataclass(frozen=True, eq=False)
class GeneratedText(Storable, LongForm):
    """The attribution of one generated text.

    Notebooks show it as a matrix; :func:`captum_attnflow.show.save_html` writes a page
    on which one chooses a generated token and sees the text before coloured for it.

    Attributes:
        prompt (str): What was given; of a chat what its template makes of it.
        generated (str): What was generated, or given as its continuation.
        explanation (GenerationExplanation): The scores of its tokens.
        method (str): What the scores were made by, a key of
            :data:`captum_attnflow.pipelines.methods.METHODS`.
        units (str or tuple of (int, int)): What scores are shown of, see
            :func:`captum_attnflow.texts.sum_over_units`.
        left_out (tuple of str): What is not shown, see
            :meth:`GenerationExplanation.matrix`.
        scale (str): What colours are relative to.
    """

    prompt: str
    generated: str
    explanation: GenerationExplanation
    method: str
    units: Unit | tuple[tuple[int, int], ...] = "token"
    left_out: tuple[LeftOut, ...] = ()
    scale: Scale = "row"

    def matrix(self) -> TokenMatrix:
        """Draw the scores as a matrix, as notebooks and rich show them."""
        return self.explanation.matrix(self.units, self.left_out, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Return texts, tokens, scores and log-probabilities, ready for JSON."""
        explanation = self.explanation
        outputs = explanation.outputs
        summed = explanation.sum_over(self.units)
        of_units = {
            "units": summed.texts,
            "unit_scores": summed.scores.tolist(),
        }
        return {
            "prompt": self.prompt,
            "generated": self.generated,
            "method": self.method,
            "output": explanation.output,
            "against": list(explanation.against),
            "tokens": explanation.tokens,
            "pieces": list(explanation.pieces),
            "parts": list(explanation.parts),
            "generated_tokens": explanation.generated_tokens,
            "spans": [list(span) for span in explanation.spans],
            "scores": explanation.scores.tolist(),
            "outputs": None if outputs is None else outputs.tolist(),
            "log_probabilities": explanation.log_probabilities.tolist(),
            "flow_value": explanation.flow_value.tolist(),
            **({} if self.units == "token" else of_units),
        }

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        for rows in self.explanation._scored_rows(first, tokens):
            texts = {"text": self.prompt, "generated": self.generated}
            yield replace(rows, same={**rows.same, **texts})

    def _repr_html_(self) -> str:
        return self.matrix()._repr_html_()

    def __rich__(self) -> Text:
        return Text.assemble(
            f"{printable(self.prompt)} | {printable(self.generated)}\n",
            f"{self.method}, ",
            self.matrix().__rich__(),
        )


class _AutoLanguageModel:
    """Loads whichever of the two kinds of language models a folder holds."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        taken = ("local_files_only", "trust_remote_code")
        config = AutoConfig.from_pretrained(name, **{k: options[k] for k in taken})
        is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
        kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
        return kind.from_pretrained(name, **options)


@dataclass(frozen=True)
class TextGenerator(KnownParts):
    """A language model, causal or of encoder and decoder, with its tokenizer.

    Attributes:
        model (PreTrainedModel): With a language modelling head, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase = NOT_GIVEN
    _kind = Kind("a language model", _AutoLanguageModel, AutoTokenizer.from_pretrained)

    def __post_init__(self) -> None:
        check_parts("TextGenerator", self.model, self.tokenizer, "tokenizer")

    def explain(
        self,
        prompts: Sequence[Prompt],
        method: str = DEFAULT_METHOD,
        target: str | None = None,
        max_new_tokens: int = 25,
        *,
        output: Output = "logit",
        against: str | int | None = None,
        spans: Sequence[Span] | None = None,
        chat: bool = False,
        system: str | None = None,
        units: Unit | Sequence[tuple[int, int]] = "token",
        left_out: LeftOut | Collection[LeftOut] = (),
        scale: Scale = "row",
        **options: Any,
    ) -> list[GeneratedText]:
        """Continue prompts and attribute every generated token.

        Args:
            prompts (sequence of str): The prompts; or chats, each a list of messages.
            method (str): One of
                :data:`captum_attnflow.pipelines.methods.GENERATION_METHODS`.
            target (str, optional): The text to attribute; by default the model
                generates it, by the most probable token at each step.
            max_new_tokens (int): Most tokens to generate.
            output (str): What of a generated token is explained, see
                :class:`~captum_attnflow.GenerationAttribution`. Its ``"logit"`` by
                default: on SmolLM2 and 120 prompts it found as much evidence as
                log-probability and probability, and lost more nats by deletion.
            against (str or int, optional): Why rather than this: a text of as many
                tokens, the id of one, or ``"runner-up"``.
            spans (sequence, optional): Explain these spans of the generated text, each
                as a whole: texts that occur in it, or pairs of token numbers.
            chat (bool): Put every prompt as the user's message into the chat template
                of the tokenizer.
            system (str, optional): A system message in front, of a chat.
            units (str or sequence of (int, int)): Show sums of scores over each
                ``"word"``, ``"sentence"``, ``"line"`` or span of characters.
            left_out (sequence of str): What is not shown, such as the ``"first"``
                token, see :meth:`GenerationExplanation.matrix`.
            scale (str): Colours are relative to the largest score of a ``"row"``, or of
                the ``"matrix"``.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[GeneratedText]: One per prompt.

        Raises:
            ValueError: If there is no prompt, one is empty or too long, there is no
                chat template, a span does not occur, ``against`` has another length,
                or the method or an option is unknown.
        """
        is_chat, hidden = chat or system is not None, names_left_out(left_out)
        inputs = self._read(prompts, is_chat, system)
        if target is not None:
            check_encodable("target", target)
        check_max_new_tokens(max_new_tokens)
        method_class = find_method(method, options, GENERATION_METHODS)
        attribution = GenerationAttribution(
            method_class(self.model, **options), self.tokenizer, output
        )
        results = []
        for given in inputs:
            check_ids(self.model, given.to_model_input())
            generated = self._continue(given, target, max_new_tokens)
            explanation = attribution.explain(
                given,
                generated,
                against=against,
                spans=None
                if spans is None
                else find_spans(spans, generated, self.tokenizer),
            )
            prompt = getattr(given, "text", None) or decoded(
                given.inp_tensor[0], self.tokenizer
            )
            results.append(
                GeneratedText(
                    prompt,
                    decoded(generated, self.tokenizer),
                    explanation,
                    method,
                    units if isinstance(units, str) else as_tuple("units", units),
                    hidden,
                    scale,
                )
            )
            results[-1].matrix()  # refuses what cannot be shown, before more is run
        return results

    def _read(
        self, prompts: Sequence[Prompt], is_chat: bool, system: str | None
    ) -> list[TextTokenInput]:
        """Encode every prompt, as a text or in the chat template."""
        is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        if not is_list or all(isinstance(prompt, str) for prompt in prompts):
            check_texts("prompt", prompts)
        else:
            is_chat = True
        inputs: list[TextTokenInput] = []
        for prompt in prompts:
            kinds = (str, list, tuple)
            check_type("a prompt", prompt, kinds, "a text, or a list of messages")
            if is_chat:
                inputs.append(ChatInput(prompt, self.tokenizer, system))
            else:
                given = TextTokenInput(prompt, self.tokenizer)
                given.text = prompt
                inputs.append(given)
        return inputs

    def _continue(
        self, given: TextTokenInput, target: str | None, max_new_tokens: int
    ) -> Tensor:
        """Return the ids of the target, or of what the model generates."""
        if target is not None:
            ids = self.tokenizer.encode(target, add_special_tokens=False)
            if not ids:
                raise ValueError(
                    f"target={target!r} has no tokens; give the text that follows the "
                    "prompt, or leave it out and the model generates one"
                )
            check_ids(self.model, torch.tensor(ids))
            return torch.tensor(ids, device=self.model.device)
        prompt = given.to_model_input().to(self.model.device)
        n_prompt = prompt.shape[1]
        check_length(self.model.config, n_prompt, max_new_tokens)
        answer = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding_token(self.tokenizer),
        )
        # An encoder-decoder's answer has a start of its own and no prompt.
        start = 1 if self.model.config.is_encoder_decoder else n_prompt
        generated: Tensor = answer[0, start:]
        return generated


def decoded(ids: Tensor, tokenizer: Any) -> str:
    """Return the text of token ids ``(T,)``."""
    # Vocabularies of models are padded: there may be no token.
    known = [i for i in ids.tolist() if tokenizer.convert_ids_to_tokens(i)]
    text: str = tokenizer.decode(known)
    return text


def find_spans(
    spans: Sequence[Span], generated: Tensor, tokenizer: Any
) -> list[tuple[int, int]]:
    """Turn texts among the generated one into spans of its tokens.

    Args:
        spans (sequence of str or (int, int)): The spans; numbers stay as they are.
        generated (Tensor): Shape ``(G,)``, the generated tokens.
        tokenizer (PreTrainedTokenizer): Decodes them.

    Raises:
        ValueError: If a text does not occur, or more than once.
    """
    given = as_tuple("spans", [spans] if isinstance(spans, str) else spans)
    pieces = token_pieces(generated.tolist(), tokenizer)
    whole = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    found = []
    for span in given:
        if not isinstance(span, str):
            found.append(span)
            continue
        if not span or span not in whole:
            raise ValueError(
                f"the span {span!r} does not occur in what was generated, "
                f"{shorten(whole, 80)!r}; give a part of this, or the numbers of "
                "its first token and of that behind its last, from 0 to "
                f"{len(pieces)}: (0, 2), in the shell 0:2"
            )
        # A text may stand twice within the same tokens.
        places = list(
            dict.fromkeys(
                (bisect_right(ends, start), bisect_left(ends, start + len(span)) + 1)
                for start in find_text(span, whole)
            )
        )
        if len(places) > 1:
            raise ValueError(
                f"the span {span!r} occurs {len(places)} times in what was generated, "
                f"{shorten(whole, 80)!r}; give more of the text around it, or the "
                f"numbers of its tokens, {' or '.join(map(str, places[:3]))}, in the "
                f"shell {places[0][0]}:{places[0][1]}"
            )
        found += places
    return found


def as_tuple(name: str, given: object) -> tuple[Any, ...]:
    """Return a list as a tuple.

    Raises:
        ValueError: If it is none.
    """
    check_type(name, given, Sequence, "a list, or leave it out")
    return tuple(cast("Sequence[Any]", given))


def padding_token(tokenizer: Any) -> int | None:
    """Padding is never needed, but transformers warns where no token is for it."""
    padding: int | None = tokenizer.pad_token_id
    end: int | None = tokenizer.eos_token_id
    return padding if padding is not None else end


def check_max_new_tokens(max_new_tokens: object) -> None:
    """Refuse anything but a number of tokens.

    Raises:
        ValueError: Saying what was given.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens!r}; give a number of tokens from 1"
        )
