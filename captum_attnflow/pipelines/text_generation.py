"""Prompts in, attributions of generated text out: behind the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from captum.attr import TextTokenInput
from rich.text import Text
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from captum_attnflow.attr import GenerationAttribution
from captum_attnflow.explanation import GenerationExplanation
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens
from captum_attnflow.pipelines.methods import (
    DEFAULT_METHOD,
    GENERATION_METHODS,
    find_method,
)
from captum_attnflow.pipelines.pretrained import (
    check_encodable,
    check_parts,
    check_texts,
    load_pretrained,
)
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.scored_tokens import printable
from captum_attnflow.storage import Storable


@dataclass(frozen=True)
class GeneratedText(Storable, LongForm):
    """The attribution of one generated text.

    Attributes:
        prompt (str): What was given.
        generated (str): What was generated, or given as its continuation.
        explanation (GenerationExplanation): The scores of its tokens.
    """

    prompt: str
    generated: str
    explanation: GenerationExplanation

    def to_dict(self) -> dict[str, Any]:
        """Return texts, tokens, scores and log-probabilities, ready for JSON."""
        explanation = self.explanation
        return {
            "prompt": self.prompt,
            "generated": self.generated,
            "tokens": explanation.tokens,
            "generated_tokens": explanation.generated_tokens,
            "scores": explanation.scores.tolist(),
            "log_probabilities": explanation.log_probabilities.tolist(),
            "flow_value": explanation.flow_value.tolist(),
        }

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        for rows in self.explanation._scored_rows(first, tokens):
            texts = {"text": self.prompt, "generated": self.generated}
            yield replace(rows, same={**rows.same, **texts})

    def _repr_html_(self) -> str:
        return self.explanation._repr_html_()

    def __rich__(self) -> Text:
        heading = Text(f"{printable(self.prompt)} | {printable(self.generated)}\n")
        return heading + self.explanation.__rich__()


@dataclass(frozen=True)
class TextGenerator(KnownParts):
    """A language model, causal or of encoder and decoder, with its tokenizer.

    Attributes:
        model (PreTrainedModel): With a language modelling head, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        check_parts("TextGenerator", self.model, self.tokenizer, "tokenizer")

    @staticmethod
    def load(name: str) -> TextGenerator:
        """Load a language model from a local folder or by its hub id.

        Args:
            name (str): As :func:`load_pretrained` takes it, which says what is read.

        Raises:
            FileNotFoundError: As :func:`load_pretrained`.
            ValueError: As :func:`load_pretrained`.
        """
        model, tokenizer = load_pretrained(
            name,
            _AutoLanguageModel,
            AutoTokenizer.from_pretrained,
            "a language model",
            "tokenizer files",
        )
        return TextGenerator(model, tokenizer)

    def explain(
        self,
        prompts: Sequence[str],
        method: str = DEFAULT_METHOD,
        target: str | None = None,
        max_new_tokens: int = 25,
        **options: Any,
    ) -> list[GeneratedText]:
        """Continue prompts and attribute every generated token.

        Args:
            prompts (sequence of str): The prompts.
            method (str): One of
                :data:`captum_attnflow.pipelines.methods.GENERATION_METHODS`.
            target (str, optional): The text to attribute; by default the model
                generates it, by the most probable token at each step.
            max_new_tokens (int): Most tokens to generate.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[GeneratedText]: One per prompt.

        Raises:
            ValueError: If there is no prompt, one is empty or too long, or the method
                or an option is unknown.
        """
        check_texts("prompt", prompts)
        if target is not None:
            check_encodable("target", target)
        method_class = find_method(method, options, GENERATION_METHODS)
        attribution = GenerationAttribution(
            method_class(self.model, **options), self.tokenizer
        )
        return [
            self._explain(prompt, attribution, target, max_new_tokens)
            for prompt in prompts
        ]

    def _explain(
        self,
        prompt: str,
        attribution: GenerationAttribution,
        target: str | None,
        max_new_tokens: int,
    ) -> GeneratedText:
        given = TextTokenInput(prompt, self.tokenizer)
        n_generated = max_new_tokens
        if target is not None:
            ids = self.tokenizer.encode(target, add_special_tokens=False)
            n_generated = len(ids)
        self._check_length(given.to_model_input().shape[1], n_generated)
        generate = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "pad_token_id": self._pad_token_id,
        }
        explanation = attribution.explain(
            given, target, None if target is not None else generate
        )
        ids = self.tokenizer.convert_tokens_to_ids(explanation.generated_tokens)
        # Vocabularies of models are padded: there may be no token.
        known = [token for token in ids if token is not None]
        return GeneratedText(prompt, self.tokenizer.decode(known), explanation)

    @property
    def _pad_token_id(self) -> int | None:
        """Padding is never needed, but transformers warns where no token is for it."""
        padding: int | None = self.tokenizer.pad_token_id
        end: int | None = self.tokenizer.eos_token_id
        return padding if padding is not None else end

    def _check_length(self, n_prompt: int, n_generated: int) -> None:
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        sides = [n_prompt, n_generated]
        longest = max(sides) if config.is_encoder_decoder else sum(sides)
        if limit is not None and longest > limit:
            raise ValueError(
                f"a prompt of {n_prompt} tokens with {n_generated} to generate is "
                f"longer than the {limit} positions of the model; shorten it, or "
                "generate fewer tokens"
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
