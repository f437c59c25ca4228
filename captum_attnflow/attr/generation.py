"""Attribution of generated text, all tokens from one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from operator import index as as_index
from typing import Any, Literal, NamedTuple, get_args

import torch
from captum.attr import (
    LLMAttributionResult,
    LLMGradientAttribution,
    TextTemplateInput,
    TextTokenInput,
)
from torch import Tensor, nn

from captum_attnflow._captum import DEFAULT_GEN_ARGS, convert_ids_to_pretty_tokens
from captum_attnflow._checks import (
    check_choice,
    check_contrast,
    check_type,
    counted,
    described,
    type_of,
)
from captum_attnflow._memory import Growth, HeldMemory, free_memory
from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr.attn_lrp import AttnLRP
from captum_attnflow.attr.base import AttentionAttribution
from captum_attnflow.attr.relevance_flow import RelevanceFlow
from captum_attnflow.explanation import GenerationExplanation, Part
from captum_attnflow.texts.prompts import EmbeddedInput, TemplateTokens
from captum_attnflow.texts.units import token_pieces

Output = Literal["logit", "log-probability", "probability"]
"""What of a generated token is explained."""
# Tokens from which memory is measured before it is taken, on texts of so many.
_MEASURED_FROM = 512
_MEASURED_AT = (32, 128, 224)

RUNNER_UP = "runner-up"
"""Against the most probable of the other tokens, step by step."""


class GenerationAttribution(LLMGradientAttribution):
    r"""Attribute generated tokens to the prompt and to what was generated before.

    Stands in for ``captum.attr.LLMGradientAttribution``, which makes a forward pass, or
    a path of them, for every generated token. A causal model shows all steps in one
    pass over the finished sequence: this class makes that one, and a backward pass for
    every generated token or span. (:class:`RelevanceFlow` takes one for every token of
    a span.) It also takes encoder-decoders, and prompts of embeddings,
    :class:`captum_attnflow.texts.EmbeddedInput`.

    The scores are those of the method at each step, without baselines: relevance is
    read at the text itself. For a causal model they are what ``LLMGradientAttribution``
    gives with the same method.

    Args:
        attr_method (AttentionAttribution or AttnLRP): A method made with the language
            model itself, no function around it, such as ``RelevanceFlow(model)``; the
            Layer forms serve, too.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        output (str): What of a generated token is explained: its ``"logit"``,
            ``"log-probability"``, as ``LLMGradientAttribution`` has it, or
            ``"probability"``. The last two hardly change where the model is sure, and
            neither does a flow over their gradients; by relevance they find the same
            tokens as the logit does, but give the last token of the prompt less than
            it is worth (SmolLM2, 120 prompts, three tokens deleted: 11.1 nats by the
            logit, 7.1 and 10.3 by the others). The default explains what the class
            that this one stands in for does; to explain a text give ``"logit"``, as
            :class:`captum_attnflow.TextGenerator` and the command do.

    Raises:
        ValueError: If the method is of another kind or made with a function, the
            tokenizer is none, or ``output`` is unknown.

    Examples::

        >>> import transformers
        >>> from captum_attnflow import RelevanceFlow
        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> config = transformers.GPT2Config(
        ...     vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2
        ... )
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> generation = GenerationAttribution(RelevanceFlow(model), tokenizer)
        >>> prompt = TextTokenInput("a gripping film", tokenizer)
        >>> generation.attribute(prompt, "so dull").token_attr.shape  # [CLS] and [SEP]
        torch.Size([2, 5])
        >>> generation.explain(prompt, "so dull").scores.shape
        torch.Size([2, 7])

        >>> # Why this answer as a whole, rather than another.
        >>> contrast = generation.explain(
        ...     prompt, "so dull", against="so good", spans=[(0, 2)]
        ... )
        >>> contrast.scores.shape
        torch.Size([1, 7])
    """

    SUPPORTED_METHODS = (AttentionAttribution, AttnLRP)

    def __init__(
        self,
        attr_method: AttentionAttribution | AttnLRP,
        tokenizer: Any,
        output: Output = "log-probability",
    ) -> None:
        advice = "a method of this package, such as RelevanceFlow(model)"
        check_type("attr_method", attr_method, self.SUPPORTED_METHODS, advice)
        if not isinstance(attr_method.forward_func, nn.Module):
            raise ValueError(
                f"attr_method={type(attr_method).__name__} was made with "
                f"{type_of(attr_method.forward_func)}; give one made with the language "
                f"model itself, {type(attr_method).__name__}(model), which is asked "
                "for its answer and its device"
            )
        if not hasattr(tokenizer, "encode") or isinstance(tokenizer, str):
            raise ValueError(
                f"tokenizer={described(tokenizer)} is {type_of(tokenizer)}; give the "
                "model's tokenizer"
            )
        check_choice("output", output, get_args(Output))
        super().__init__(attr_method, tokenizer)
        self.output = output

    def attribute(
        self,
        inp: TextTokenInput | TextTemplateInput,
        target: str | Sequence[int] | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
        *,
        against: str | int | Sequence[int] | Tensor | None = None,
    ) -> LLMAttributionResult:
        """Attribute to the tokens of the prompt, or to the values of its template.

        Args:
            inp (TextTokenInput or TextTemplateInput): The prompt. The former's
                ``skip_tokens`` are left out. Each value of the latter has the sum of
                its tokens' scores; baselines are not read.
            target (str, list of int or Tensor, optional): The generated text, or its
                token ids. If None, the model generates it.
            gen_args (dict, optional): Arguments of ``model.generate``, where it
                generates; Captum's defaults if None.
            against (str, int, list of int or Tensor, optional): Why the generated
                tokens rather than these: what is explained is the output less that of
                the other token at the same step, behind the same generated tokens. A
                text of as many tokens, or their ids; one id, for every step; or
                ``"runner-up"``, the most probable of the other tokens.

        Returns:
            LLMAttributionResult: With ``token_attr`` of shape (generated tokens,
            tokens of the prompt, or values) and their sum ``seq_attr``.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If nothing was generated, ``target`` holds no ids of the
                model, or ``against`` has another length.
        """
        given = self._read_input(inp)
        generated = self._get_target_tokens(given, target, gen_args)
        explanation = self.explain(given, generated, against=against)
        n_prompt = given.to_model_input().shape[1]
        scores = explanation.scores[:, :n_prompt].float()
        if isinstance(given, TemplateTokens):
            scores = given.sum_over_slots(scores)
        elif given.itp_mask is not None:
            scores = scores[:, given.itp_mask[0].to(scores.device)]
        return LLMAttributionResult(
            seq_attr=scores.sum(0),
            token_attr=scores,
            input_tokens=inp.values,
            output_tokens=convert_ids_to_pretty_tokens(generated, self.tokenizer),
            output_probs=explanation.log_probabilities.exp(),
            inp=inp,
        )

    def explain(
        self,
        inp: TextTokenInput | TextTemplateInput,
        target: str | Sequence[int] | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
        *,
        against: str | int | Sequence[int] | Tensor | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> GenerationExplanation:
        """Attribute to the tokens of the prompt and to the generated ones.

        Args:
            inp (TextTokenInput or TextTemplateInput): As in :meth:`attribute`, like
                what follows. Of a template the text outside of its values has the part
                ``"template"``.
            target (str, list of int or Tensor, optional): The generated text.
            gen_args (dict, optional): Arguments of ``model.generate``.
            against (str, int, list of int or Tensor, optional): Why rather than these
                tokens. Where both are the same token, its scores are 0.
            spans (sequence of (int, int), optional): Spans of generated tokens, counted
                from 0, start inclusive and stop exclusive. Each is explained as a
                whole: most methods by one backward pass from the sum of its outputs,
                :class:`RelevanceFlow` by the sum of its tokens' scores, each from its
                own pass. A pass from the sum knows the scores of all positions but
                those where its outputs are read, and of these only the sum. What a
                token's direct edges leave of its output starts at its own read-out, and
                a pass from the sum shows what they take of all outputs together. By
                default every generated token is explained.

        Returns:
            GenerationExplanation: The whole matrix of scores, a row for each generated
            token or span.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If nothing was generated, ``target`` holds no ids of the
                model, they are longer than its window, ``against`` has another length,
                a span lies outside of the generated text, or memory has no room for the
                activations of so many tokens.
        """
        if against is not None:
            check_contrast(self.attr_method)
        inp = self._read_input(inp)
        prompt = inp.to_model_input().to(self.device)
        generated = self._get_target_tokens(inp, target, gen_args).to(self.device)
        n_generated = len(generated)
        config = getattr(self.model, "config", None)
        check_length(config, prompt.shape[1], n_generated)
        rows = _check_spans(spans, n_generated)
        others = self._read_against(against, generated)
        # Direct edges take another part of each output: a number per token, and one
        # backward pass from the sum of the outputs gives the sum of these numbers.
        by_token = isinstance(self.attr_method, RelevanceFlow)
        passes = _Passes.plan(rows, by_token, _same_steps(others, generated))
        if not passes.spans:
            raise ValueError(
                f"against={described(against)} has the same tokens at all steps that "
                "are explained, and their difference is 0; give another text, or "
                "other spans"
            )
        zero = [row for row, made_of in enumerate(passes.of_rows) if not made_of]
        if zero:
            warn_caller(
                f"all scores of {counted(len(zero), 'row')} "
                f"({', '.join(map(str, zero))}) are 0: what is explained there is the "
                "same token as what it is held against"
            )
        steps = _Steps(self.output, generated, others, passes.spans)
        finished = self._finished(prompt, generated)
        inputs, beside = finished, None
        if isinstance(inp, EmbeddedInput):
            beside = dict(inp.embed(finished[0]))
            inputs = (beside.pop("inputs_embeds"),)
        else:
            self._refuse_what_does_not_fit(finished)
        method = copy(self.attr_method)
        method.forward_func = lambda *inputs: steps.outputs(
            self._logits(n_generated, *inputs, beside=beside)
        )
        explanations = list(method.score_targets(inputs, range(len(steps.spans))))
        scores, flow_value, outputs = (
            torch.cat([getattr(each, name) for each in explanations])
            for name in ("scores", "flow_value", "output")
        )
        scores, flow_value, outputs = map(
            passes.sum_rows, (scores, flow_value, outputs)
        )
        ids = [*torch.cat(finished, 1)[0].tolist(), int(generated[-1])]
        against_ids = (
            steps.against.tolist() if isinstance(steps.against, Tensor) else []
        )
        attention = explanations[0].attention_received
        # The last token is no input to the model and makes no other.
        pad_last = partial(torch.nn.functional.pad, pad=(0, 1))
        return GenerationExplanation(
            tokens=self._tokens(ids),
            scores=pad_last(scores),
            log_probabilities=steps.log_probabilities,
            flow_value=flow_value,
            spans=tuple(rows),
            output=self.output,
            outputs=outputs,
            against=tuple(self._tokens(against_ids)),
            pieces=tuple(token_pieces(ids, self.tokenizer)),
            parts=self._parts(inp, len(ids), n_generated),
            attention_received=None if attention is None else pad_last(attention)[0],
            # Runners-up are no text: each is read alone.
            against_pieces=tuple(
                token_pieces([i], self.tokenizer)[0] for i in against_ids
            ),
        )

    def _read_input(self, inp: TextTokenInput | TextTemplateInput) -> TextTokenInput:
        kinds = (TextTokenInput, TextTemplateInput)
        advice = "a TextTokenInput(text, tokenizer) or a TextTemplateInput"
        check_type("inp", inp, kinds, advice)
        if isinstance(inp, TextTemplateInput):
            return TemplateTokens(inp, self.tokenizer)
        return inp

    def _tokens(self, ids: list[int]) -> list[str]:
        """Spell tokens; vocabularies of models may be larger than their tokenizers'."""
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return [token or f"<{i}>" for token, i in zip(tokens, ids, strict=True)]

    def _parts(
        self, inp: TextTokenInput, n_tokens: int, n_generated: int
    ) -> tuple[Part, ...]:
        parts: list[Part] = list(getattr(inp, "parts", ()))
        n_given = n_tokens - n_generated
        # Behind the prompt an encoder-decoder has the start of its answer.
        parts += ["prompt"] * (n_given - len(parts))
        parts += ["generated"] * n_generated
        return tuple(parts)

    def _read_against(
        self, against: str | int | Sequence[int] | Tensor | None, generated: Tensor
    ) -> Tensor | Literal["runner-up"] | None:
        """Return one token for every step."""
        if against is None:
            return None
        if isinstance(against, str) and against == RUNNER_UP:
            return "runner-up"
        is_one = isinstance(against, int) and not isinstance(against, bool)
        others = self._read_ids([against] * len(generated) if is_one else against)
        if others is None or len(others) != len(generated):
            found = "no token ids" if others is None else counted(len(others), "token")
            raise ValueError(
                f"against={described(against)} is {found}, and what is explained is "
                f"{counted(len(generated), 'token')}; give a text or ids of as many, "
                f"one id for all, or {RUNNER_UP!r}"
            )
        others = others.to(generated.device)
        if torch.equal(others, generated.long()):
            raise ValueError(
                f"against={described(against)} is what is explained, and their "
                f"difference is 0; give another text, or {RUNNER_UP!r}"
            )
        return others

    def _read_ids(self, given: object) -> Tensor | None:
        """Return the ids of a text, or those given, ``(N,)``; None if it is neither."""
        if isinstance(given, str):
            given = self.tokenizer.encode(given, add_special_tokens=False)
        if isinstance(given, (list, tuple)) and not given:
            return torch.empty(0, dtype=torch.long)
        try:
            ids = torch.as_tensor(given, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            return None
        is_ids = ids.dim() == 1 and ids.dtype in (torch.int32, torch.int64)
        return ids.long() if is_ids else None

    def _finished(self, prompt: Tensor, generated: Tensor) -> tuple[Tensor, ...]:
        """What the model reads to predict the last generated token."""
        before_last = generated[None, :-1]
        if not self._decoder_start:
            return (torch.cat([prompt, before_last], 1),)
        start = prompt.new_tensor([self._decoder_start])
        return prompt, torch.cat([start, before_last], 1)

    def _refuse_what_does_not_fit(self, finished: tuple[Tensor, ...]) -> None:
        """Refuse a text whose activations memory has no room for, before it is taken.

        What the method's forward pass keeps of short texts tells what it will of the
        whole one. A part grows with the tokens, and maps with their square; copies of
        weights, such as those of a lower precision, do not grow.

        Raises:
            ValueError: Saying how many tokens would fit.
        """
        n_tokens = sum(part.shape[1] for part in finished)
        if n_tokens < _MEASURED_FROM or free_memory(finished[0].device) is None:
            return
        short = [tuple(part[:, :n] for part in finished) for n in _MEASURED_AT]
        lengths = [sum(part.shape[1] for part in parts) for parts in short]
        # The first pass may make what stays, such as autocast's copies of weights.
        self._held(short[0])
        held = [self._held(parts) for parts in short]
        tightest: tuple[int, str] | None = None
        # A model may be split: each device holds its layers' part.
        for device in {device: None for found in held for device in found}:
            free = free_memory(device)
            growth = Growth.fit(lengths, [found.get(device, 0) for found in held])
            needed = growth.at(n_tokens)
            if free is None or needed <= free:
                continue
            fitting = growth.most_tokens(free)
            if tightest is None or fitting < tightest[0]:
                sizes = (
                    f"keeps {needed / 2**30:.1f} GiB on {device} for its backward "
                    f"pass, and {free / 2**30:.1f} GiB are free there"
                )
                tightest = fitting, sizes
        if tightest is not None:
            fitting, sizes = tightest
            raise ValueError(
                f"prompt and answer have {n_tokens} tokens, of which one forward pass "
                f"{sizes}: about {counted(fitting, 'token')} would fit. Shorten the "
                "prompt, load the model in bfloat16, or split it over devices"
            )

    def _held(self, inputs: tuple[Tensor, ...]) -> dict[torch.device, int]:
        """Bytes that a forward pass of the method keeps, by device."""
        found: list[dict[torch.device, int]] = []

        def measured(*inputs: Tensor) -> Tensor:
            with HeldMemory() as memory:
                logits = self._logits(1, *inputs)
                found.append(memory.held())
            del logits
            raise _Measured

        method = copy(self.attr_method)
        method.forward_func = measured
        with suppress(_Measured):
            next(iter(method.score_targets(inputs, [0])))
        return found[0]

    def _logits(
        self, n_last: int, *inputs: Tensor, beside: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Return the logits, of the last positions at least.

        Args:
            n_last (int): How many positions.
            inputs (Tensor): Ids; or embeddings, where anything is given beside them.
            beside (mapping, optional): What belongs to embeddings, by name.
        """
        # Those of a long prompt would take more memory than the model: (T, V).
        wanted = {"logits_to_keep": n_last, "use_cache": False}
        model: Any = self.model
        taken = signature(getattr(model, "forward", model)).parameters
        options = {name: value for name, value in wanted.items() if name in taken}
        if self._decoder_start:
            encoder_ids, decoder_ids = inputs
            outputs = self.model(
                input_ids=encoder_ids, decoder_input_ids=decoder_ids, **options
            )
        elif beside is not None:
            outputs = self.model(inputs_embeds=inputs[0], **beside, **options)
        else:
            outputs = self.model(*inputs, **options)
        logits: Tensor = outputs.logits
        return logits

    def _get_target_tokens(
        self,
        inp: TextTokenInput,
        target: str | Sequence[int] | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
    ) -> Tensor:
        if gen_args is not None:
            check_type("gen_args", gen_args, dict, "a dict for model.generate, or None")
            if target is not None:
                raise ValueError(
                    f"gen_args={described(gen_args)} was given with a target, and then "
                    "nothing is generated; give one of both"
                )
        if isinstance(inp, EmbeddedInput) and (target is None or self._decoder_start):
            kind = "an encoder-decoder" if self._decoder_start else "target=None"
            raise ValueError(
                f"a prompt of embeddings was given with {kind}; give the target, and "
                "a causal model, which reads prompt and answer as one sequence"
            )
        if target is not None:
            ids = self._read_ids(target)
            if ids is None or len(ids) == 0:
                found = "no token ids" if ids is None else "no token"
                raise ValueError(
                    f"target={described(target)} is {found}; give the generated text, "
                    "its ids as a list or of shape (G,), or None, and the model answers"
                )
            return ids
        if self._decoder_start:
            # Captum would cut a prompt off that an encoder-decoder does not repeat.
            answer = self.model.generate(
                **self._format_model_input(inp.to_model_input()),
                **(gen_args or DEFAULT_GEN_ARGS),
            )
            tokens: Tensor = answer[0, 1:]
        else:
            tokens = super()._get_target_tokens(inp, None, gen_args)
        if len(tokens) == 0:
            raise ValueError(
                "nothing was generated, so there is nothing to attribute; pass target, "
                "or gen_args with a greater max_new_tokens"
            )
        return tokens

    @property
    def _decoder_start(self) -> tuple[int, ...]:
        """The token that an encoder-decoder's answer starts with, if it is one."""
        config: Any = getattr(self.model, "config", None)
        if not getattr(config, "is_encoder_decoder", False):
            return ()
        generation: Any = getattr(self.model, "generation_config", config)
        start = generation.decoder_start_token_id
        if start is None:
            start = generation.bos_token_id  # as model.generate() does
        if start is None:
            raise ValueError(
                "the model's generation_config has decoder_start_token_id=None and "
                "bos_token_id=None, so it is not known what an answer starts with; set "
                "model.generation_config.decoder_start_token_id"
            )
        return (start,)


def check_length(config: Any, n_prompt: int, n_generated: int) -> None:
    """Refuse what is longer than a model's positions.

    Args:
        config (PreTrainedConfig, optional): Of the language model, if it has one.
        n_prompt (int): Tokens of the prompt.
        n_generated (int): Tokens behind it.

    Raises:
        ValueError: Saying how long what was given is.
    """
    if getattr(config, "is_encoder_decoder", False):
        # Of two models, each has its own window; the answer has a start in front.
        sides = [
            (getattr(config, "encoder", config), n_prompt),
            (getattr(config, "decoder", config), n_generated),
        ]
    else:
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        # The last token is no input.
        sides = [(config, n_prompt + n_generated - 1)]
    for side, length in sides:
        limit = getattr(side, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(
                f"a prompt of {n_prompt} tokens with {n_generated} to generate is "
                f"longer than the {limit} positions of the model; shorten it, or "
                "generate fewer tokens"
            )


class _Measured(BaseException):
    """Ends a forward pass that was measured; no error, which callers would explain."""


class _Passes(NamedTuple):
    """Which spans are explained by a pass each, and of which of them a row is the sum.

    Attributes:
        spans (list of (int, int)): Spans of generated tokens, one per pass.
        of_rows (list of list of int): For each row its passes, by their number.
    """

    spans: list[tuple[int, int]]
    of_rows: list[list[int]]

    @staticmethod
    def plan(
        rows: Sequence[tuple[int, int]], by_token: bool, same: Collection[int]
    ) -> _Passes:
        """Explain each row by one pass, or by one for each of its tokens.

        Args:
            rows (sequence of (int, int)): The span of each row.
            by_token (bool): Whether each token has a pass of its own.
            same (collection of int): Steps without a pass: the difference of an
                output from itself is 0, and so are its scores.
        """
        parts = [
            [(step, step + 1) for step in range(*row)] if by_token else [row]
            for row in rows
        ]
        wanted = [
            [span for span in spans if not all(i in same for i in range(*span))]
            for spans in parts
        ]
        spans = sorted({span for of_row in wanted for span in of_row})
        numbers = {span: number for number, span in enumerate(spans)}
        return _Passes(spans, [[numbers[span] for span in row] for row in wanted])

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum what passes gave, ``(passes, ...)``, to rows, ``(R, ...)``."""
        return torch.stack([values[passes].sum(0) for passes in self.of_rows])


@dataclass
class _Steps:
    """What is explained of each step, as a function of all steps' logits.

    Also keeps what is read off the same pass.

    Attributes:
        output (str): What of a token is explained.
        generated (Tensor): Shape ``(G,)``, the tokens.
        against (Tensor or str, optional): Shape ``(G,)``, other tokens, known after the
            pass if they are the runners-up.
        spans (sequence of (int, int)): Whose outputs are summed.
        log_probabilities (Tensor): Shape ``(G,)``, known after the pass.
    """

    output: Output
    generated: Tensor
    against: Tensor | Literal["runner-up"] | None
    spans: Sequence[tuple[int, int]]
    log_probabilities: Tensor = field(default_factory=lambda: torch.empty(0))

    def outputs(self, logits: Tensor) -> Tensor:
        """Return what is explained, shape ``(rows, spans)``.

        Args:
            logits (Tensor): Shape ``(rows, T, V)``, the last ones of the generated
                tokens.
        """
        steps = logits[:, -len(self.generated) :]
        # Half precision has no room for a sum over a vocabulary.
        steps = steps.to(torch.promote_types(steps.dtype, torch.float32))
        log_probabilities = steps.log_softmax(-1)
        _check_ids("target", self.generated, steps.shape[-1])
        self.log_probabilities = _of(log_probabilities, self.generated)[0].detach()
        values = {
            "logit": steps,
            "log-probability": log_probabilities,
            "probability": log_probabilities.exp(),
        }[self.output]
        explained = _of(values, self.generated)
        if isinstance(self.against, str):
            own = self.generated[:, None]
            others = steps[0].detach().scatter(-1, own, -torch.inf)
            self.against = others.argmax(-1)
        if self.against is not None:
            _check_ids("against", self.against, values.shape[-1])
            explained = explained - _of(values, self.against)
        return explained @ _span_sums(self.spans, len(self.generated), explained)


def _same_steps(others: Tensor | str | None, generated: Tensor) -> set[int]:
    """The steps at which other tokens are those that were generated."""
    if not isinstance(others, Tensor):
        return set()
    return {*(others == generated).nonzero()[:, 0].tolist()}


def _span_sums(
    spans: Sequence[tuple[int, int]], n_generated: int, like: Tensor
) -> Tensor:
    """What sums tokens to spans, shape ``(G, spans)``, of 1 and 0."""
    sums = like.new_zeros(n_generated, len(spans))
    for row, (start, stop) in enumerate(spans):
        sums[start:stop, row] = 1
    return sums


def _check_ids(name: str, tokens: Tensor, n_tokens: int) -> None:
    beyond = tokens[(tokens < 0) | (tokens >= n_tokens)]
    if len(beyond):
        raise ValueError(
            f"{name} holds the id {int(beyond[0])}, and the model has {n_tokens} "
            f"tokens; give ids from 0 to {n_tokens - 1}"
        )


def _of(values: Tensor, tokens: Tensor) -> Tensor:
    """Values ``(rows, G, V)`` of one token ``(G,)`` at each step, ``(rows, G)``."""
    chosen: Tensor = values.gather(-1, tokens.expand(len(values), -1)[..., None])
    return chosen[..., 0]


def _check_spans(
    spans: Sequence[tuple[int, int]] | None, n_generated: int
) -> list[tuple[int, int]]:
    if spans is None:
        return [(step, step + 1) for step in range(n_generated)]
    try:
        found = [(as_index(start), as_index(stop)) for start, stop in spans]
    except (TypeError, ValueError):
        found = []
    if not found or any(not 0 <= a < b <= n_generated for a, b in found):
        raise ValueError(
            f"spans={spans!r} of {n_generated} generated tokens; give at least one "
            f"pair (start, stop) of 0 <= start < stop <= {n_generated}, such as "
            f"(0, {n_generated}) for the whole answer"
        )
    return found
