"""What the decoder of a vision-language model reads: text and image, merged by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captum_attnflow.explanation import GenerationExplanation

# What a decoder takes and is passed on, beside embeddings; and what changes nothing.
_PASSED_ON = ("attention_mask", "position_ids")
_WITHOUT_EFFECT = (
    *("use_cache", "return_dict", "cache_position", "past_key_values"),
    *("output_attentions", "output_hidden_states"),
)


class MergedInput:
    """What the decoder reads: the model's own merging of text and image.

    How features of the image are placed, and what positions and masks belong to them,
    each model does its own way (Qwen-VL has positions of three dimensions, in Gemma 3
    the tokens of an image see each other). So the model itself runs, without gradients,
    and what its decoder is called with is read.

    Args:
        model (PreTrainedModel): A vision-language model.
        processed (mapping): What its processor made of an image and a prompt.
        n_generated (int): How many tokens of the sequence's end are generated.
    """

    def __init__(
        self, model: PreTrainedModel, processed: Mapping[str, Tensor], n_generated: int
    ) -> None:
        self._model = model
        self._processed = processed
        self._n_generated = n_generated
        self._logits = torch.empty(0)

    def embed(self, ids: Tensor) -> dict[str, Any]:
        """Return what the decoder reads, as its model takes it by name.

        Args:
            ids (Tensor): Shape ``(1, T)``, the prompt and the answer behind it.

        Returns:
            dict[str, Any]: ``"inputs_embeds"``, shape ``(1, T, D)``, and what belongs
            to them, such as ``"position_ids"``.

        Raises:
            ValueError: If the decoder reads anything else of the image.
        """
        model: Any = self._model
        calls: list[dict[str, Any]] = []

        def read(decoder: object, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            names = [*signature(model.get_decoder().forward).parameters]
            calls.append({**dict(zip(names, args, strict=False)), **named})

        taken = signature(model.forward).parameters
        options = {"logits_to_keep": self._n_generated, "use_cache": False}
        handle = model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
        try:
            with torch.no_grad():
                self._logits = model(
                    **self._with_answer(ids),
                    **{name: value for name, value in options.items() if name in taken},
                ).logits
        finally:
            handle.remove()
        self._check_calls(calls, ids)
        [call] = calls
        beside = {name: call.get(name) for name in _PASSED_ON}
        return {
            "inputs_embeds": call["inputs_embeds"].detach(),
            **{name: value for name, value in beside.items() if value is not None},
        }

    def check_agreement(
        self, explanation: GenerationExplanation, generated: Tensor
    ) -> None:
        """Refuse scores of a pass that is not the model's own.

        Args:
            explanation (GenerationExplanation): Of the pass over embeddings.
            generated (Tensor): Shape ``(G,)``.

        Raises:
            ValueError: If its log-probabilities are others.
        """
        own = self._logits[0, -len(generated) :].double().log_softmax(-1)
        own = own.gather(1, generated.to(own.device)[:, None])[:, 0]
        found = explanation.log_probabilities.to(own)
        # The same operations, but for the kernels of attention: by precision of logits.
        tolerance = torch.finfo(self._logits.dtype).eps ** 0.5 * (1 + own.abs())
        if bool(((own - found).abs() > tolerance).any()):
            raise ValueError(
                f"{type(self._model).__name__} gives other outputs when its decoder is "
                f"passed the embeddings that it made itself (log-probabilities "
                f"{found.tolist()}, not {own.tolist()}): it does more with the image "
                "than placing its tokens; this model is not supported. Take LLaVA, "
                "Qwen2-VL, Qwen2.5-VL or Gemma 3"
            )

    def _with_answer(self, ids: Tensor) -> dict[str, Tensor]:
        """Extend what stands beside the prompt's ids, token by token, to the answer."""
        prompt = self._processed["input_ids"]
        n_more = ids.shape[1] - prompt.shape[1]
        given = {**self._processed, "input_ids": ids}
        for name, value in self._processed.items():
            is_of_tokens = name.endswith(("_ids", "_mask")) and name != "input_ids"
            if is_of_tokens and value.shape == prompt.shape:
                # Behind the prompt nothing is masked, and nothing is an image's.
                more = value.new_full((1, n_more), int(name == "attention_mask"))
                given[name] = torch.cat([value, more], 1)
        return given

    def _check_calls(self, calls: Sequence[Mapping[str, Any]], ids: Tensor) -> None:
        """Refuse decoders that are not called once, with embeddings of all tokens."""
        name = type(self._model).__name__
        advice = "this model is not supported. Take LLaVA, Qwen2-VL or Gemma 3"
        embeddings = calls[0].get("inputs_embeds") if len(calls) == 1 else None
        if embeddings is None or embeddings.shape[:2] != ids.shape:
            raise ValueError(
                f"the decoder of {name} does not read one sequence of embeddings, of "
                f"{ids.shape[1]} tokens, in which the image's stand; {advice}"
            )
        known = {"inputs_embeds", *_PASSED_ON, *_WITHOUT_EFFECT}
        further = sorted(
            argument
            for argument, value in calls[0].items()
            if argument not in known and value is not None
        )
        if further:
            raise ValueError(
                f"the decoder of {name} takes {', '.join(further)} beside embeddings: "
                "what it knows of the image does not come through its tokens alone, "
                f"and scores of these would miss the rest; {advice}"
            )
