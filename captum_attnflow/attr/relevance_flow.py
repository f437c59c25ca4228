r"""Relevance Flow: the output as a signed flow of relevance, conserved at every node.

Layer-wise relevance propagation changes the backward pass (see
:mod:`captum_attnflow.capture.rules`): with its rules one row is as faithful as fifty
of Integrated Gradients. What attention carries of this relevance, and what stays on the
residual stream, is a flow on the network of the published methods (see
:mod:`captum_attnflow.flow.scores`): its value is the output, its sources are the
tokens, so scores sum to the output, in one forward and one backward pass and with no
solver.

Half of every score is this flow, half a **direct edge** from the token to the read-out:
its embedding times the gradient by the same rules, AttnLRP's own score; with
``baselines`` its displacement from the baseline times that gradient at the midpoints of
the path, as Integrated Gradients has it with the plain gradient. The flow starts from
what direct edges leave of the output, so that the sum still is the output. The flow
finds what a text loses when tokens are deleted, direct edges along a path what it loses
when they are replaced by the baseline; the sum is better than either at both (see
``tutorials/faithfulness.ipynb``).

``flow="maximum"`` keeps this project's former method: the maximum flow from each token
alone over positive relevance :math:`E_h(A \odot G)`, less that over negative, residual
edges never bind.

This method is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_attnflow._captum import TargetType
from captum_attnflow._checks import check_choice, check_finite, counted
from captum_attnflow._warnings import warn_caller
from captum_attnflow.attr.arguments import (
    ForwardArguments,
    single_layer,
)
from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.capture import (
    RULES,
    AttentionRecord,
    InputPath,
    InputRelevance,
    Rules,
    UnsupportedAttentionError,
    capture_targets,
)
from captum_attnflow.capture.entries import LayerCalls, record_layer_tensors
from captum_attnflow.explanation import (
    ConservationDiagnostics,
    Explanation,
    GivenFlow,
    TokenScores,
)
from captum_attnflow.flow import (
    Information,
    build_network,
    message_sums,
    message_tensor,
    refuse_other_shapes,
)
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import (
    FlowDiagnostics,
    conserve,
    read_out_relevance,
)
from captum_attnflow.flow.solvers import solve_sources
from captum_attnflow.targets import repeat_target

RelevanceFlowKind = Literal["conserved", "maximum"]


class RelevanceFlow(AttentionAttribution):
    r"""Relevance Flow, in place of ``IntegratedGradients``.

    Scores have a sign and sum to the selected output: not to its difference from the
    baseline's, since biases are counted where they act, most of them at the position
    where the output is read. Pixels have no share of tokens that they do not make, such
    as [CLS]; scores of :meth:`explain` do.

    Half of a score is the flow :math:`r_0` of
    :func:`captum_attnflow.flow.scores.conserve` that leaves the token, half a
    direct edge from its embedding :math:`x` to the read-out, with the gradient
    :math:`g` by the same rules. Without ``baselines`` that is :math:`x \cdot g`,
    from one row. With ``baselines`` :math:`x'`, of the meaning that they
    have for ``IntegratedGradients`` (for token ids the id of a mask token), there are
    :math:`P` rows more, ``path_steps``:

    .. math::
        s_j = \tfrac{1}{2} r_0[j] + \tfrac{1}{2} (x - x')_j \cdot
            \frac{1}{P} \sum_{p=1}^P g_j\!\left(x' + \frac{p - 1/2}{P} (x - x')
            \right)

    At the read-out the flow starts lower by what direct edges take, such that all
    scores sum to the output. All points run in one batch. An encoder-decoder has no
    direct edges: scores are the flow.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        rules (str): How relevance propagates: ``"attnlrp"`` (Achtibat et al. 2024) or
            ``"cp-lrp"``, attention held constant (Ali et al. 2022); ``"gradient"``, the
            plain gradient, is a control, and has direct edges along a path only.
        path_steps (int): Midpoints of the path from the baseline to the first input,
            where there are baselines. With 0 there is no path.
        flow (str): ``"conserved"``, or ``"maximum"``: maximum flows of single tokens
            over :math:`(R)_+` less those over :math:`(-R)_+`, :math:`R = E_h(A \odot
            G)`, plus direct edges scaled to as much in all. Its scores sum to nothing
            in particular.

    Raises:
        ValueError: If an option is out of its range.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
        >>> flow = RelevanceFlow(lambda ids: model(ids).logits)
        >>> scores = flow.attribute(ids, tokenizer.mask_token_id, target=1)[0]
        >>> bool(scores[1] > 0 > scores[3])  # funny, dull
        True
        >>> bool((scores.sum() - model(ids).logits[0, 1]).abs() < 1e-5)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        rules: Rules = "attnlrp",
        path_steps: int = 1,
        flow: RelevanceFlowKind = "conserved",
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_choice("rules", rules, RULES)
        check_choice("flow", flow, get_args(RelevanceFlowKind))
        if not isinstance(path_steps, int) or path_steps < 0:
            raise ValueError(
                f"path_steps={path_steps!r} must be a natural number; 0 takes no path"
            )
        self.rules = rules
        self.path_steps = path_steps
        self.flow = flow

    @property
    def _rules(self) -> Rules:
        return self.rules

    def _rows_per_example(self, arguments: ForwardArguments) -> int:
        return self.path_steps + 1 if self._has_path(arguments) else 1

    def _has_path(self, arguments: ForwardArguments) -> bool:
        return arguments.has_baselines and self.path_steps > 0

    def _capture(
        self,
        arguments: ForwardArguments,
        targets: Sequence[TargetType],
        internal_batch_size: int | None = None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
        needs_maps: bool = True,
    ) -> Iterator[AttentionRecord]:
        """Follow the path in chunks of points that keep to the limit of rows."""
        if not self._has_path(arguments):
            with self._watched(layer_calls) as calls:
                records = super()._capture(
                    arguments,
                    targets,
                    internal_batch_size,
                    grad_kwargs,
                    calls,
                    needs_maps,
                )
                # The forward pass runs in here, and no hook stays behind a yield.
                first = next(records)
            for record in chain([first], records):
                yield self._with_tokens(arguments, record)
            return
        midpoints = (torch.arange(self.path_steps) + 0.5) / self.path_steps
        fractions = torch.cat([midpoints, torch.ones(1)])
        weights = (fractions < 1) / self.path_steps
        at_once = internal_batch_size or len(fractions)
        *chunks, last = zip(
            fractions.split(at_once), weights.split(at_once), strict=True
        )
        # Chunk after chunk, so that no two are held at once.
        before = [
            [
                record.input_relevance[0].relevance
                for record in self._capture_points(
                    arguments, targets, points, weight, grad_kwargs, layer_calls
                )
            ]
            for points, weight in chunks
        ]
        records = self._capture_points(
            arguments, targets, *last, grad_kwargs, layer_calls, needs_maps
        )
        for number, record in enumerate(records):
            (of_last,) = record.input_relevance
            parts = [*(chunk[number] for chunk in before), of_last.relevance]
            whole = replace(of_last, relevance=torch.stack(parts).sum(0))
            yield self._with_tokens(
                arguments, replace(record, input_relevance=(whole,))
            )

    def _with_tokens(
        self, arguments: ForwardArguments, record: AttentionRecord
    ) -> AttentionRecord:
        """Sum relevance of the inputs over the features of every token, ``(B, T)``.

        Of an encoder and a decoder one side may be no input; scores are not to depend
        on which are, so that neither has direct edges.
        """
        refuse_other_shapes(record)  # before tokens are sought that are not there
        if not record.input_relevance or len(record.sequences) > 1:
            return replace(record, input_relevance=())
        try:
            by_token = [
                _sum_over_tokens(part.relevance.double(), record.n_tokens, part.tokens)
                for part in record.input_relevance
                # Further inputs may hold no tokens of their own, such as token types.
                if part.index == 0 or part.index in record.elements
            ]
        except ValueError:
            if self._has_path(arguments):
                raise
            warn_caller(
                "the elements of the input could not be told apart by token, so that "
                "tokens have no direct edges; their scores are the flow alone"
            )
            return replace(record, input_relevance=())
        if not by_token:
            return replace(record, input_relevance=())
        total = torch.stack(by_token).sum(0)
        return replace(record, input_relevance=(InputRelevance(0, total),))

    def _capture_points(
        self,
        arguments: ForwardArguments,
        targets: Sequence[TargetType],
        points: Tensor,
        weights: Tensor,
        grad_kwargs: dict[str, Any] | None,
        layer_calls: LayerCalls | None,
        needs_maps: bool = True,
    ) -> Iterator[AttentionRecord]:
        path = InputPath(
            arguments.baselines[0],
            arguments.inputs[0],
            points,
            weights,
            self._path_layer(),
        )
        repeated = arguments.repeat(len(points))
        others = repeated.inputs[1:]
        entry = path.enter(self.forward_func, others, repeated.additional)
        for record in capture_targets(
            self.forward_func,
            (entry, *others),
            [repeat_target(target, len(points)) for target in targets],
            repeated.additional,
            grad_kwargs,
            path,
            layer_calls,
            rules=self.rules,
            needs_maps=needs_maps,
        ):
            if len(record.sequences) > 1:
                raise UnsupportedAttentionError(
                    "the path leads through one input, but the attention has an "
                    "encoder's tokens and a decoder's. Pass no baselines, or "
                    "path_steps=0, which takes no path"
                )
            yield record

    def _watched(
        self, layer_calls: LayerCalls | None
    ) -> AbstractContextManager[LayerCalls | None]:
        """Watch the layer whose output are the embeddings, unless the caller does."""
        layer = self._path_layer()
        if layer is None or layer_calls is not None:
            return nullcontext(layer_calls)
        return record_layer_tensors(layer, of_input=False)

    def _path_layer(self) -> nn.Module | None:
        """Return the layer through whose output the path leads, if one is known."""
        return None

    @property
    def _needs_maps(self) -> bool:
        return self.flow == "maximum"

    def _score(self, record: AttentionRecord) -> Explanation:
        if self.flow == "conserved":
            return conserved_explanation(record)
        return _maximum_flows(record)

    def _score_tokens(self, record: AttentionRecord) -> Explanation | TokenScores:
        if self.flow == "conserved":
            return conserved_scores(record)
        return super()._score_tokens(record)


def _sum_over_tokens(
    features: Tensor, n_tokens: int, elements: Tensor | None
) -> Tensor:
    """Sum what belongs to each token, the reverse of spreading a score.

    Args:
        features (Tensor): Shape ``(B, T)``, ``(B, T, D)`` or that of the first input.
        n_tokens (int): ``T``.
        elements (Tensor, optional): The token of each element, of the features' shape.

    Returns:
        Tensor: Shape ``(B, T)``; tokens without elements get 0.

    Raises:
        ValueError: If the features are not those of so many tokens.
    """
    if elements is not None and elements.shape == features.shape:
        owned = elements >= 0
        sums = features.new_zeros(len(features), n_tokens)
        return sums.scatter_add(
            1, elements.clamp_min(0).flatten(1), features.where(owned, 0).flatten(1)
        )
    if 2 <= features.dim() <= 3 and features.shape[1] == n_tokens:
        return features.reshape(*features.shape[:2], -1).sum(-1)
    raise ValueError(
        f"the path leads through a tensor of shape {tuple(features.shape)}, but the "
        f"attention maps have {counted(n_tokens, 'token')} for "
        f"{counted(len(features), 'example')}; the path cannot be told apart by token. "
        "Pass the tokens or their embeddings as the first input, or path_steps=0, "
        "which takes no path"
    )


def conserved_explanation(record: AttentionRecord) -> Explanation:
    """Let the output flow down to the tokens; half of it by direct edges, if any."""
    at_top, direct, read_out = _ends(record)
    messages = message_tensor(record)
    conserved = conserve(messages if direct is None else messages / 2, at_top)
    return Explanation(
        scores=conserved.scores if direct is None else conserved.scores + direct,
        network=LayeredNetwork(
            capacity=conserved.flow.abs(),
            source=torch.ones_like(read_out),
            # Where the output depends on no attention, it starts at all positions.
            sink=read_out | ~read_out.any(1, keepdim=True),
        ),
        joint_flow=GivenFlow(record.output.double(), conserved.flow),
        diagnostics=ConservationDiagnostics(conserved.imbalance, record.propagation),
        direct=direct,
    )


def conserved_scores(record: AttentionRecord) -> TokenScores:
    r"""Score tokens as :func:`conserved_explanation` does, without forming the flow.

    What a token does not hand on stays with it, layer by layer. So what leaves it at
    the bottom is what it has at the top, and what it gets from others less what it
    hands on, in all layers:

    .. math:: r_0[j] = r_L[j] + \sum_l \Big(\sum_i M_l[i, j] - \sum_k M_l[j, k]\Big).
    """
    at_top, direct, _ = _ends(record)
    net = message_sums(record)
    check_finite("messages", net)
    return TokenScores(
        scores=at_top + net if direct is None else at_top + net / 2 + direct,
        output=record.output,
        sequences=record.sequences,
        elements=record.elements,
    )


def _ends(record: AttentionRecord) -> tuple[Tensor, Tensor | None, Tensor]:
    """Share the output out: where the flow starts, and direct edges, if any.

    Also returns where the output is read, shape ``(B, T)``, bool.
    """
    direct = _direct(record)
    output, read_out = record.output.double(), record.read_out()
    streams = None
    if record.read_out_relevance is not None:
        streams = torch.zeros_like(read_out, dtype=torch.float64)
        queries = record.positions(record.routes[-1].queries)
        streams[:, queries] = record.read_out_relevance
    if direct is not None:
        direct = direct / 2
        output = output - direct.sum(1)
        streams = None if streams is None else streams / 2
    return read_out_relevance(output, read_out, streams), direct, read_out


def _direct(record: AttentionRecord) -> Tensor | None:
    """Return the relevance of tokens in their own embeddings, if it is known."""
    return record.input_relevance[0].relevance if record.input_relevance else None


def _maximum_flows(record: AttentionRecord) -> Explanation:
    """Flows over positive relevance less those over negative, plus direct edges."""
    explanation = _flows_over(record, "relevance")
    against = _flows_over(record, "counter-relevance")
    scores, direct = explanation.scores - against.scores, _direct(record)
    if direct is not None:
        direct = _scaled_like(direct, scores)
        scores = scores + direct
    return replace(
        explanation,
        scores=scores,
        joint_flow=GivenFlow(scores.sum(1)),
        against=against,
        direct=direct,
    )


def _flows_over(record: AttentionRecord, information: Information) -> Explanation:
    network = build_network(record, information, "free")
    flows = solve_sources(network)
    return Explanation(
        scores=flows.value,
        network=network,
        joint_flow=GivenFlow(flows.value.sum(1)),
        diagnostics=FlowDiagnostics.worst(flows),
    )


def _scaled_like(direct: Tensor, scores: Tensor) -> Tensor:
    """Scale each example to the sum of absolute scores, where there is any."""
    total, wanted = direct.abs().sum(1), scores.abs().sum(1)
    scalable = (total > 0) & (wanted > 0)
    scale = torch.where(scalable, wanted / total.where(scalable, 1), 1)
    return direct * scale[:, None]


class LayerRelevanceFlow(LayerAttentionAttribution, RelevanceFlow):
    """Relevance Flow, in place of ``LayerIntegratedGradients``.

    Direct edges start at the layer's output, and the path leads through it, as that of
    ``LayerIntegratedGradients``; where the attention comes before the layer, they start
    at the embeddings of the inputs.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        rules (str): See :class:`RelevanceFlow`.
        path_steps (int): See :class:`RelevanceFlow`.
        flow (str): See :class:`RelevanceFlow`.

    Raises:
        ValueError: If an option is out of its range, or a layer is no module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("funny but dull", return_tensors="pt").input_ids
        >>> flow = LayerRelevanceFlow(
        ...     lambda ids: model(ids).logits, model.bert.embeddings
        ... )
        >>> attributions = flow.attribute(ids, tokenizer.mask_token_id, target=1)
        >>> attributions.shape == (*ids.shape, 128)
        True
    """

    def _path_layer(self) -> nn.Module:
        return single_layer(self.layer)
