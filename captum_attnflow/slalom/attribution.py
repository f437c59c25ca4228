"""SLALOM (Leemann et al., TMLR 2025) as a Captum attribution method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from captum.attr import LLMAttribution
from torch import Tensor

from captum_attnflow._captum import (
    BaselineType,
    PerturbationAttribution,
    TargetType,
    format_output,
    is_tuple,
    log_usage,
)
from captum_attnflow._checks import (
    check_callable,
    check_choice,
    check_flags,
)
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    TensorOrTensors,
    check_attributions,
    shape_like_inputs,
    sum_over_features,
)
from captum_attnflow.capture.entries import TensorLike
from captum_attnflow.slalom import Link, Score, SlalomExplanation, Strategy
from captum_attnflow.slalom.inputs import (
    are_texts,
    check_tokens,
    tokens_of,
    words_of,
)
from captum_attnflow.slalom.pipeline import (
    SlalomOptions,
    explain_texts,
    texts_log_odds,
    warn_of_caveats,
    warn_of_explanation,
)
from captum_attnflow.texts import Absence, PerturbableTexts, check_tokenizer


class SLALOM(PerturbationAttribution):
    r"""SLALOM, in place of ``IntegratedGradients``.

    Explains the log-odds of a class by a function that gives every distinct token a
    value and an importance, and a text the mean of its tokens' values, weighted by the
    exponentials of their importances: what attention can represent, unlike an additive
    model (Leemann et al. 2025). See :mod:`captum_attnflow.slalom.model`.

    The forward function is only called, without gradients, on parts of what is given as
    inputs: on shorter token ids ``(B, T)``, shorter embeddings ``(B, T, D)`` or shorter
    texts. It must take what is given: a function of ids takes no embeddings. Columns
    are deleted in the input and in every additional argument that shares the token
    axis, and position ids are counted anew; see
    :meth:`captum_attnflow.texts.token_axis.TokenAxis.take`. An argument of the same
    length that has tokens of its own, such as a decoder's, stays whole. It is
    recognised by "decoder" in its parameter's name, or as the model takes it with a
    shorter input. Inputs ``(B, T)`` of floats, such as the indicators of
    ``captum.attr.LLMAttribution``, hold the baseline where a feature is absent.

    Special tokens stay in every query and get 0. They are those that ``keep`` marks in
    :meth:`attribute`; without it the beginning, end, class and separator tokens of the
    ``tokenizer``, or of the ``config`` of a ``forward_func`` that is or holds a model.
    Without any of these, all tokens are explained. Padding, which the attention mask
    among the additional arguments marks (:func:`captum_attnflow.texts.find_padding`),
    is in no query and gets 0. Tokens that equal given baselines stay in every query and
    get 0. If a target is a tuple that names a position, as in token classification, the
    token there stays in every query and gets 0, and its index follows it: scores are
    those of the other tokens. Under ``absence="baseline"`` it may be absent like any
    other. Later tokens that a causal model does not read get 0.

    Args:
        forward_func (Callable or Module): The forward function, as Captum takes it. A
            black box may take a list of str and return one score, or one row of
            scores, per text.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        strategy (str): Which queries: ``"eff"``, each distinct token alone, triples
            that pair all tokens equally often, a few halves of the text and the text,
            from which values and importances can be read;
            ``"fidel"``, the text, each position deleted, each distinct token alone and
            random deletions, all weighted by one over the square of the number of
            deletions; near the text, predictions are closer.
        score (str, optional): Kind of token scores. ``"contribution"`` is the token's
            share of the mass times its value: contributions sum to the function at the
            text, as Integrated Gradients do, and rank as the paper's ``"linearized"``
            scores :math:`v e^s`, which depend on an arbitrary constant added to ``s``.
            ``"removal"`` is the decrease when the token is left out; ``"value"`` and
            ``"importance"`` are the parameters. See
            :mod:`captum_attnflow.slalom.model`. The default is ``"contribution"``
            for two classes and for one output, where log-odds of 0 are undecided. For
            more classes a uniform prediction has negative log-odds, -11 for one word in
            49,000: all contributions of a language model are negative, and those of the
            evidence the lowest. There, and in Captum's wrapper of language models, the
            default is ``"removal"``, which is positive for evidence for the class.
        n_samples (int, optional): Most queries per text, the text itself included;
            500, or 4 per distinct token if that is more. No query is repeated.
        sink (bool, optional): Fit an always-present token, which represents special
            tokens and what else the model adds; by default for ``"fidel"`` only. The
            paper has no sink.
        link (str): How outputs become log-odds: ``"logits"``, ``"probabilities"``,
            ``"identity"`` (taken as they are), or ``"auto"``, which recognises one link
            from all outputs of the call and reports it in the explanation. Outputs
            that are all in (0, 1) are read as probabilities, which of several classes
            may also be 0 or 1 if they sum to 1; others as logits of classes of which
            one applies, single ones as they are. A warning says which where all are in
            [0, 1] and do not sum to 1. The logits of labels that do not exclude each
            other are log-odds already. Nothing in them says so: ``"auto"`` knows it
            where ``forward_func`` is a module that is or holds a model whose
            ``config.problem_type`` is ``"multi_label_classification"``. For any other
            function of such logits give ``"identity"``. Where it is
            ``"single_label_classification"``, outputs that do not sum to 1 are logits.
        seed (int or Generator): Of the queries: equal seeds give equal scores. A
            generator gives other queries in each call.
        tokenizer (optional): A tokenizer of transformers that knows special tokens.
        absence (str): ``"deleted"``, queries are shorter inputs; or ``"baseline"``, an
            absent token's position holds the baseline, for models of one width and
            targets that name positions. Six more queries then find the tokens at the
            end on which no output depends.

    Raises:
        ValueError: If an option is unknown, or the tokenizer has no special tokens.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> slalom = SLALOM(lambda ids: model(ids).logits, tokenizer=tokenizer)
        >>> attributions, delta = slalom.attribute(
        ...     ids, target=1, return_convergence_delta=True
        ... )
        >>> attributions.shape == ids.shape
        True
        >>> attributions.argmax().item()  # funny
        4

    A forward function of texts::

        >>> def mean_length(texts):
        ...     words = [text.split() for text in texts]
        ...     return [len("".join(each)) / len(each) for each in words]
        >>> slalom = SLALOM(mean_length, score="value")
        >>> slalom.attribute(["so good"]).round(decimals=4).tolist()
        [[2.0, 4.0]]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        strategy: Strategy = "eff",
        score: Score | None = None,
        n_samples: int | None = None,
        sink: bool | None = None,
        link: Link | Literal["auto"] = "auto",
        seed: int | torch.Generator = 0,
        tokenizer: object | None = None,
        absence: Absence = "deleted",
    ) -> None:
        super().__init__(forward_func)
        check_callable("forward_func", forward_func)
        check_choice("absence", absence, get_args(Absence))
        self.absence = absence
        self._multiply_by_inputs = multiply_by_inputs
        self.options = SlalomOptions(strategy, score, n_samples, sink, link, seed)
        self.tokenizer = tokenizer

    @property
    def tokenizer(self) -> object | None:
        """The tokenizer that knows special tokens."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: object | None) -> None:
        check_tokenizer(tokenizer)
        self._tokenizer = tokenizer

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTensors | Sequence[str],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        keep: Tensor | None = None,
        show_progress: bool = False,
    ) -> Any:
        r"""Attribute the log-odds of the target to the tokens of the input.

        Takes the arguments of ``IntegratedGradients.attribute`` in their order.

        Args:
            inputs (Tensor, tuple[Tensor, ...] or list of str): One tensor of token ids
                ``(B, T)``, embeddings ``(B, T, D)`` or features ``(B, T)`` of floats;
                or texts, which are split into words at white space. ``forward_func``
                must take what is given.
            baselines (scalar, Tensor, tuple, optional): Replace absent features of
                floats, and absent tokens under ``absence="baseline"``; 0 by default.
                Deleted tokens need none. Tokens that equal a given baseline get 0.
            target (int, tuple, Tensor or list, optional): Class to attribute, as
                Captum selects it; None for one output per text.
            additional_forward_args (Any, optional): Passed on behind ``inputs``;
                columns are deleted where they share the token axis.
            n_steps (int): Validated, then ignored: no path is integrated.
            method (str): Validated, then ignored.
            internal_batch_size (int, optional): Most rows in one forward pass; 128 by
                default.
            return_convergence_delta (bool): Also return F(text) - f(text), the
                SLALOM function at the text minus the model's log-odds.
            keep (Tensor, optional): Shape ``(B, T)``, bool, ``True`` at tokens that
                stay in every query.
            show_progress (bool): Show Captum's progress bar.

        Returns:
            **attributions** or 2-element tuple of **attributions**, **delta**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Shaped like
              ``inputs``, a tuple if ``inputs`` is one; float64 for float64 inputs,
              float32 otherwise. Every feature of a token holds an equal share, so that
              ``.sum(-1)`` over embeddings is the token's score. For texts, shape
              ``(B, T)`` with the words of the longest.
            - **delta** (*Tensor*): Shape ``(B,)``, if asked for.

        Raises:
            ValueError: If inputs, outputs, target or the number of samples do not fit.
        """
        check_flags(
            return_convergence_delta=return_convergence_delta,
            show_progress=show_progress,
        )
        given = (inputs, baselines, target, additional_forward_args, n_steps, method)
        texts, template = self._read(*given, keep, internal_batch_size)
        explanation = self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=False
        )
        if texts.max_rows == 1 or are_texts(inputs):
            # Each target token of a language model has a row; texts have no shape.
            template = replace(template, shape=tuple(explanation.scores.shape))
        attributions = shape_like_inputs(explanation.scores, [template])
        formatted = format_output(is_tuple(inputs), attributions)
        if return_convergence_delta:
            return formatted, explanation.delta.to(attributions[0])
        return formatted

    def explain(
        self,
        inputs: TensorOrTensors | Sequence[str],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        internal_batch_size: int | None = None,
        keep: Tensor | None = None,
        show_progress: bool = False,
    ) -> SlalomExplanation:
        """Return values, importances, their standard errors and how well they predict.

        Up to 128 more queries per text test the fit.

        Args:
            inputs (Tensor, tuple[Tensor, ...] or list of str): As in :meth:`attribute`.
            baselines (scalar, Tensor, tuple, optional): As in :meth:`attribute`.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.
            internal_batch_size (int, optional): As in :meth:`attribute`.
            keep (Tensor, optional): As in :meth:`attribute`.
            show_progress (bool): As in :meth:`attribute`.

        Returns:
            SlalomExplanation: With the delta.

        Raises:
            ValueError: If inputs, outputs, target or the number of samples do not fit.
        """
        check_flags(show_progress=show_progress)
        texts, _ = self._read(
            inputs,
            baselines,
            target,
            additional_forward_args,
            keep=keep,
            internal_batch_size=internal_batch_size,
        )
        return self._explain(
            texts, target, internal_batch_size, show_progress, hold_out=True
        )

    def has_convergence_delta(self) -> bool:
        """Return True: F(text) - f(text)."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """The flag given to the constructor."""
        return self._multiply_by_inputs

    @log_usage()
    def compute_convergence_delta(
        self,
        attributions: TensorOrTensors,
        start_point: BaselineType,
        end_point: TensorOrTensors,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Sum of given attributions minus the model's log-odds at ``end_point``.

        For contributions without a sink this is F(text) - f(text). The model runs once
        on each text; with one output per text, ``link="auto"`` sees only these.

        Args:
            attributions (Tensor or tuple[Tensor, ...]): Attributions of ``end_point``.
            start_point (scalar, Tensor or tuple, optional): Validated, then ignored.
            end_point (Tensor or tuple[Tensor, ...]): The inputs.
            target (int, tuple, Tensor or list, optional): As in :meth:`attribute`.
            additional_forward_args (Any, optional): As in :meth:`attribute`.

        Returns:
            Tensor: Shape ``(B,)``.
        """
        texts, _ = self._read(end_point, start_point, target, additional_forward_args)
        linked = texts_log_odds(self.forward_func, texts, target, self.options)
        warn_of_caveats(linked.caveats)
        output = torch.cat(linked.columns)
        total = sum_over_features(check_attributions(attributions, len(output)))
        return total - output.to(total)

    def _read(
        self,
        inputs: TensorOrTensors | Sequence[str],
        baselines: BaselineType,
        target: TargetType,
        additional_forward_args: object,
        n_steps: int = 50,
        method: str = "gausslegendre",
        keep: Tensor | None = None,
        internal_batch_size: int | None = None,
    ) -> tuple[PerturbableTexts, TensorLike]:
        """Read the arguments of attribute(); also describe the input."""
        if are_texts(inputs):
            texts = words_of(inputs, additional_forward_args, keep)
            return texts, TensorLike((), torch.float32, torch.device("cpu"))
        check_tokens(inputs, target)
        arguments = ForwardArguments.read(
            inputs, baselines, target, additional_forward_args, n_steps, method
        )
        tokens = tokens_of(
            self.forward_func,
            self.tokenizer,
            arguments,
            keep,
            self.absence,
            internal_batch_size,
        )
        return tokens, TensorLike.of(arguments.inputs[0])

    def _explain(
        self,
        texts: PerturbableTexts,
        target: TargetType,
        internal_batch_size: int | None,
        show_progress: bool,
        hold_out: bool,
    ) -> SlalomExplanation:
        """Fit the texts, and warn where the explanation is not to be trusted."""
        explanation = explain_texts(
            self.forward_func,
            texts,
            target,
            self.options,
            internal_batch_size,
            show_progress,
            hold_out,
        )
        warn_of_explanation(explanation, self.options, in_full=hold_out)
        return explanation


# Captum accepts only the methods of these lists in its wrapper of language models.
LLMAttribution.SUPPORTED_METHODS += (SLALOM,)
LLMAttribution.SUPPORTED_PER_TOKEN_ATTR_METHODS += (SLALOM,)
