"""Attention Rollout (Abnar & Zuidema, ACL 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.capture import AttentionRecord
from captum_attnflow.explanation import Explanation, GivenFlow, normalize_scores
from captum_attnflow.flow import build_network, check_residual
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import Normalization, check_normalization


class AttentionRollout(AttentionAttribution):
    r"""Attention Rollout, in place of ``IntegratedGradients``.

    The product :math:`A'_L \cdots A'_1` of the layers' attention with residual edges,
    :math:`A' = 0.5 A + 0.5 I` (Abnar & Zuidema 2020), read at the positions where the
    selected output is read and averaged over them. Scores are in [0, 1] and sum to 1.
    Rollout is itself a flow through the network of :class:`AttentionFlow`;
    :meth:`explain` returns it as such.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        residual (float, optional): Share of the residual edge, in (0, 1), or None.
        normalization (str, optional): ``"receptive-field"`` for decoders, after which
            scores no longer sum to 1; see :mod:`captum_attnflow.flow.scores`.

    Raises:
        ValueError: If an option is unknown or out of its range.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> rollout = AttentionRollout(lambda ids: model(ids).logits)
        >>> round(rollout.attribute(ids, target=1).sum().item(), 4)
        1.0
    """

    reads_attention_alone = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        residual: float | None = 0.5,
        normalization: Normalization = None,
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_residual(residual)
        if isinstance(residual, str):
            raise ValueError(
                f"residual={residual!r} has no meaning in a product of matrices; give "
                "None or a fraction between 0 and 1"
            )
        check_normalization(normalization)
        self.residual = residual
        self.normalization = normalization

    def _score(self, record: AttentionRecord) -> Explanation:
        network = build_network(record, "AF", self.residual)
        flow = _rollout_flow(network)
        explanation = Explanation(
            scores=flow[:, 0].sum(1),
            network=network,
            joint_flow=GivenFlow(flow[:, -1].sum((1, 2)), flow),
        )
        return normalize_scores(explanation, self.normalization)


def _rollout_flow(network: LayeredNetwork) -> Tensor:
    """Carry one unit from the read-out positions down, split as each row says."""
    share = network.sink.to(network.capacity.dtype)
    share = share / share.sum(1, keepdim=True).clamp_min(1)
    # A token that is carried along keeps all of its share, or half of it where a
    # decoder's token attends to the encoder without a residual.
    carried = network.capacity.isinf()
    mixing = torch.where(carried, 1.0, network.capacity)
    total = mixing.sum(-1, keepdim=True)
    mixing = torch.where(carried.any(-1, keepdim=True), mixing / total, mixing)
    layers = []
    for layer in reversed(range(network.n_layers)):
        layers.append(mixing[:, layer] * share[..., None])
        share = layers[-1].sum(1)
    return torch.stack(layers[::-1], 1)


class LayerAttentionRollout(LayerAttentionAttribution, AttentionRollout):
    """Attention Rollout, in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        residual (float, optional): See :class:`AttentionRollout`.
        normalization (str, optional): See :class:`AttentionRollout`.

    Raises:
        ValueError: If an option is unknown or out of its range, or a layer is no
            module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> rollout = LayerAttentionRollout(
        ...     lambda ids: model(ids).logits, model.bert.embeddings
        ... )
        >>> rollout.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """
