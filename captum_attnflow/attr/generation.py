"""Attribution of generated text, all tokens from one forward pass."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from captum.attr import (
    LLMAttributionResult,
    LLMGradientAttribution,
    TextTokenInput,
)
from torch import Tensor

from captum_attnflow._captum import DEFAULT_GEN_ARGS, convert_ids_to_pretty_tokens
from captum_attnflow.attr.base import AttentionAttribution
from captum_attnflow.explanation import GenerationExplanation


class GenerationAttribution(LLMGradientAttribution):
    r"""Attribute generated tokens to the prompt and to what was generated before.

    Stands in for ``captum.attr.LLMGradientAttribution``, which makes a forward pass, or
    a path of them, for every generated token. A causal model shows all steps in one
    pass over the finished sequence: this class makes that one, and a backward pass per
    generated token from its log-probability. It also takes encoder-decoders.

    The scores are those of the method at each step, without baselines: relevance is
    read at the text itself. For a causal model they are what ``LLMGradientAttribution``
    gives with the same method.

    Args:
        attr_method (AttentionAttribution): A method made with the language model, such
            as ``GeneralizedAttentionFlow(model)``; the Layer forms serve, too.
        tokenizer (PreTrainedTokenizer): The model's tokenizer.

    Raises:
        AssertionError: As Captum raises it, for another kind of method.

    Examples::

        >>> import transformers
        >>> from captum_attnflow import GeneralizedAttentionFlow
        >>> from captum_attnflow.demo import load_demo_model
        >>> tokenizer = load_demo_model()[1]
        >>> config = transformers.GPT2Config(
        ...     vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2
        ... )
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> generation = GenerationAttribution(
        ...     GeneralizedAttentionFlow(model), tokenizer
        ... )
        >>> prompt = TextTokenInput("a gripping film", tokenizer)
        >>> generation.attribute(prompt, "so dull").token_attr.shape  # [CLS] and [SEP]
        torch.Size([2, 5])
        >>> generation.explain(prompt, "so dull").scores.shape
        torch.Size([2, 7])
    """

    SUPPORTED_METHODS = (AttentionAttribution,)

    def attribute(
        self,
        inp: TextTokenInput,
        target: str | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
    ) -> LLMAttributionResult:
        """Attribute to the tokens of the prompt.

        Args:
            inp (TextTokenInput): The prompt; its ``skip_tokens`` are left out.
            target (str or Tensor, optional): The generated text, or its token ids. If
                None, the model generates it.
            gen_args (dict, optional): Arguments of ``model.generate``; Captum's
                defaults if None.

        Returns:
            LLMAttributionResult: With ``token_attr`` of shape (generated tokens,
            tokens of the prompt) and their sum ``seq_attr``.

        Raises:
            UnsupportedAttentionError: If the attention is not found or not supported.
            ValueError: If nothing was generated.
        """
        generated = self._get_target_tokens(inp, target, gen_args)
        explanation = self.explain(inp, generated)
        n_prompt = inp.to_model_input().shape[1]
        scores = explanation.scores[:, :n_prompt].float()
        if inp.itp_mask is not None:
            scores = scores[:, inp.itp_mask[0].to(scores.device)]
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
        inp: TextTokenInput,
        target: str | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
    ) -> GenerationExplanation:
        """Attribute to the tokens of the prompt and to the generated ones.

        Takes the arguments of :meth:`attribute`.

        Returns:
            GenerationExplanation: The whole matrix of scores.
        """
        prompt = inp.to_model_input().to(self.device)
        generated = self._get_target_tokens(inp, target, gen_args).to(self.device)
        if len(generated) == 0:
            raise ValueError(
                "nothing was generated, so there is nothing to attribute; pass target, "
                "or gen_args with a greater max_new_tokens"
            )
        inputs = self._finished(prompt, generated)

        def forward(*inputs: Tensor) -> Tensor:
            steps = self._logits(*inputs)[:, -len(generated) :].log_softmax(-1)
            return steps.gather(-1, generated.expand(len(steps), -1)[..., None])[..., 0]

        method = copy(self.attr_method)
        method.forward_func = forward
        explanations = [
            (item.scores[0], item.flow_value[0], item.output[0])
            for item in method.explain_targets(inputs, range(len(generated)))
        ]
        scores, flow_value, log_probabilities = (
            torch.stack(parts) for parts in zip(*explanations, strict=True)
        )
        ids = [*torch.cat(inputs, 1)[0].tolist(), int(generated[-1])]
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return GenerationExplanation(
            # Vocabularies of models may be larger than those of their tokenizers.
            tokens=[token or f"<{i}>" for token, i in zip(tokens, ids, strict=True)],
            # The last token is no input to the model and makes no other.
            scores=torch.nn.functional.pad(scores, (0, 1)),
            log_probabilities=log_probabilities,
            flow_value=flow_value,
        )

    def _finished(self, prompt: Tensor, generated: Tensor) -> tuple[Tensor, ...]:
        """What the model reads to predict the last generated token."""
        before_last = generated[None, :-1]
        if not self._decoder_start:
            return (torch.cat([prompt, before_last], 1),)
        start = prompt.new_tensor([self._decoder_start])
        return prompt, torch.cat([start, before_last], 1)

    def _logits(self, *inputs: Tensor) -> Tensor:
        if self._decoder_start:
            encoder_ids, decoder_ids = inputs
            outputs = self.model(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
        else:
            outputs = self.model(*inputs)
        logits: Tensor = outputs.logits
        return logits

    def _get_target_tokens(
        self,
        inp: TextTokenInput,
        target: str | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
    ) -> Tensor:
        if target is None and self._decoder_start:
            # Captum would cut a prompt off that an encoder-decoder does not repeat.
            answer = self.model.generate(
                **self._format_model_input(inp.to_model_input()),
                **(gen_args or DEFAULT_GEN_ARGS),
            )
            tokens: Tensor = answer[0, 1:]
        else:
            tokens = super()._get_target_tokens(inp, target, gen_args)
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
