r"""Relevance Flow: one signed flow per token, with residual edges that never bind.

The relevance of an attention edge is the product of the attention and its gradient,
:math:`R = E_h(A \odot G)`: summed over keys it is gradient times activation of a head's
output. Three changes make flows over it faithful, where the published ones hardly are:

- **Free residual edges.** The residual stream carries a token past the attention;
  without it a token's identity is lost in the first layers.
- **One flow per token.** It is a value, hence unique without a barrier; a joint flow
  leaves the choice among equal optima to the regulariser.
- **A sign.** The flow over :math:`(R)_+` speaks for the target, that over
  :math:`(-R)_+` against it.

What the attention of one pass does not show is a token's relevance in its own
embedding, nor what a gradient at one point misses. Beside its paths through the
attention a token therefore has a **direct edge** to the read-out, whose capacity is its
Integrated Gradient by a midpoint rule of a few steps. Like the residual half of Abnar &
Zuidema's :math:`0.5 A + 0.5 I`, direct edges carry as much as the attention in all.

This method is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from captum._utils.typing import ModuleOrModuleList, TargetType
from torch import Tensor, nn

from captum_attnflow._options import check_choice
from captum_attnflow.attr._arguments import ForwardArguments
from captum_attnflow.attr._base import AttentionAttribution
from captum_attnflow.attr._layer import LayerAttentionAttribution, single_layer
from captum_attnflow.attr._shape import sum_over_tokens
from captum_attnflow.capacity import Information, build_network
from captum_attnflow.capture import (
    AttentionRecord,
    InputPath,
    UnsupportedAttentionError,
    capture_targets,
)
from captum_attnflow.capture.watched_layer import LayerCalls
from captum_attnflow.result import Explanation, FlowDiagnostics
from captum_attnflow.solve import solve_sources
from captum_attnflow.targets import repeat_target

Sign = Literal["both", "positive"]


class RelevanceFlow(AttentionAttribution):
    r"""Relevance Flow, in place of ``IntegratedGradients``.

    A token's score is the maximum flow from it alone over positive relevance, minus
    that over negative relevance, plus its direct edge:

    .. math::
        s_j = \operatorname{maxflow}_j((R)_+) - \operatorname{maxflow}_j((-R)_+)
            + \lambda\, IG_j,

    with :math:`\lambda` such that the absolute values of the two parts have equal sums.
    Scores have a sign. All points of the path run in one batch: one forward and one
    backward pass of ``path_steps + 1`` rows per example. ``baselines`` mean what they
    do for ``IntegratedGradients``; for token ids give the id of a mask token.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        path_steps (int): Steps of the path from the baseline to the first input, whose
            midpoints make a row each; the input itself is one more. With 0 there are
            no path and no direct edges, and the batch runs as it is.
        sign (str): ``"both"``, or ``"positive"``: only what speaks for the target.

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
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        path_steps: int = 2,
        sign: Sign = "both",
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_choice("sign", sign, get_args(Sign))
        if not isinstance(path_steps, int) or path_steps < 0:
            raise ValueError(
                f"path_steps={path_steps!r} must be a natural number; 0 takes no path"
            )
        self.path_steps = path_steps
        self.sign = sign

    @property
    def _rows_per_example(self) -> int:
        return self.path_steps + 1

    def _capture(
        self,
        arguments: ForwardArguments,
        targets: Sequence[TargetType],
        internal_batch_size: int | None = None,
        grad_kwargs: dict[str, Any] | None = None,
        layer_calls: LayerCalls | None = None,
    ) -> Iterator[AttentionRecord]:
        """Follow the path in chunks of points that keep to the limit of rows."""
        if self.path_steps == 0:
            yield from super()._capture(
                arguments, targets, internal_batch_size, grad_kwargs, layer_calls
            )
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
                record.input_relevance
                for record in self._capture_points(
                    arguments, targets, points, weight, grad_kwargs
                )
            ]
            for points, weight in chunks
        ]
        records = self._capture_points(arguments, targets, *last, grad_kwargs)
        for number, record in enumerate(records):
            parts = [*(chunk[number] for chunk in before), record.input_relevance]
            relevance = torch.stack([part for part in parts if part is not None])
            yield replace(
                record,
                input_relevance=sum_over_tokens(
                    relevance.sum(0).double(),
                    record.n_tokens,
                    partial(self._find_tokens, arguments),
                ),
            )

    def _capture_points(
        self,
        arguments: ForwardArguments,
        targets: Sequence[TargetType],
        points: Tensor,
        weights: Tensor,
        grad_kwargs: dict[str, Any] | None,
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
        ):
            if len(record.sequences) > 1:
                raise UnsupportedAttentionError(
                    "the path leads through one input, but the attention has an "
                    "encoder's tokens and a decoder's. Pass path_steps=0, which takes "
                    "no path"
                )
            yield record

    def _path_layer(self) -> nn.Module | None:
        """Return the layer through whose output the path leads, if one is known."""
        return None

    def _score(self, record: AttentionRecord) -> Explanation:
        explanation = _flows_over(record, "relevance")
        if self.sign == "both":
            against = _flows_over(record, "counter-relevance")
            explanation = replace(
                explanation,
                scores=explanation.scores - against.scores,
                against=against,
            )
        if record.input_relevance is not None:
            direct = record.input_relevance
            if self.sign == "positive":
                direct = direct.clamp_min(0)
            direct = _scaled_like(direct, explanation.scores)
            explanation = replace(
                explanation, scores=explanation.scores + direct, direct=direct
            )
        return replace(explanation, flow_value=explanation.scores.sum(1))


def _flows_over(record: AttentionRecord, information: Information) -> Explanation:
    network = build_network(record, information, "free")
    flows = solve_sources(network)
    return Explanation(
        scores=flows.value,
        flow_value=flows.value.sum(1),
        network=network,
        flow=None,
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

    The path leads through the layer's output, as that of ``LayerIntegratedGradients``;
    where the attention comes before the layer, through the embeddings of the first
    input.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        path_steps (int): See :class:`RelevanceFlow`.
        sign (str): See :class:`RelevanceFlow`.

    Raises:
        ValueError: If an option is out of its range.

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

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: ModuleOrModuleList,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        path_steps: int = 2,
        sign: Sign = "both",
    ) -> None:
        LayerAttentionAttribution.__init__(
            self, forward_func, layer, device_ids, multiply_by_inputs
        )
        RelevanceFlow.__init__(
            self, forward_func, multiply_by_inputs, path_steps=path_steps, sign=sign
        )

    def _path_layer(self) -> nn.Module:
        return single_layer(self.layer)
