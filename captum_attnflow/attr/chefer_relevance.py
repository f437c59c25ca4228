"""Relevance propagation of Chefer et al. (ICCV 2021) through attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.capture import AttentionRecord
from captum_attnflow.explanation import Explanation, GivenFlow, normalize_scores
from captum_attnflow.flow import information_tensor
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import Normalization, check_normalization


class CheferRelevance(AttentionAttribution):
    r"""Relevance of Chefer, Gur & Wolf (ICCV 2021), in place of IntegratedGradients.

    Attention, weighed by its gradient, is added up layer by layer. With
    :math:`\bar A = E_h((\nabla A \odot A)_+)` (their Eq. 5) and :math:`R = I` below the
    first layer, self-attention makes (Eq. 6)

    .. math:: R \leftarrow R + \bar A R,

    and the scores are the row of :math:`R` at the position where the selected output is
    read, averaged over several: [CLS] of a sentence classifier, the last token of a
    language model. They are never negative. The row holds a 1 for the read-out position
    itself, as the paper's does.

    An encoder and a decoder have a matrix each and one between them, which
    self-attention of the decoder updates as above (Eq. 7), and cross-attention by

    .. math::
        R^{de} \leftarrow R^{de} + (\bar R^{dd})^T \bar A\, \bar R^{ee},

    where :math:`\bar R` is :math:`R - I` with rows that sum to 1, plus :math:`I` (Eq. 8
    to 10). Their rule for a sequence that is attended to in return (Eq. 11) has nothing
    to add here: no encoder attends to its decoder.

    Nothing is conserved on the way. The flow value is the 1 that a read-out position
    starts with, the delta all relevance that the layers added to it; a delta of 0 means
    that no attention speaks for the output, not that the scores are complete. One
    forward and one backward pass.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        normalization (str, optional): ``"receptive-field"`` for decoders; see
            :mod:`captum_attnflow.flow.scores`.

    Raises:
        ValueError: If an option is unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> chefer = CheferRelevance(lambda ids: model(ids).logits)
        >>> scores, delta = chefer.attribute(
        ...     ids, target=1, return_convergence_delta=True
        ... )
        >>> scores.shape == ids.shape
        True
        >>> bool((delta > 0).all())  # relevance was added on the way
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        normalization: Normalization = None,
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_normalization(normalization)
        self.normalization = normalization

    def _score(self, record: AttentionRecord) -> Explanation:
        layers = information_tensor(record, "AGF")  # (B, L, T, T)
        read_out = record.read_out()
        share = read_out.to(layers.dtype)
        share = share / share.sum(1, keepdim=True).clamp_min(1)
        relevance = _propagate(record, layers)
        layers.diagonal(dim1=-2, dim2=-1).add_(1)  # from here on with residual edges
        explanation = Explanation(
            scores=torch.einsum("bi,bij->bj", share, relevance),
            network=LayeredNetwork(layers, torch.ones_like(read_out), read_out),
            joint_flow=GivenFlow(share.sum(1)),
        )
        return normalize_scores(explanation, self.normalization)


def _propagate(record: AttentionRecord, layers: Tensor) -> Tensor:
    """Apply the rules layer by layer; shape ``(B, T, T)`` over the tokens of all."""
    identity = torch.eye(record.n_tokens, dtype=layers.dtype, device=layers.device)
    relevance = identity.repeat(len(layers), 1, 1)
    for layer, route in zip(layers.unbind(1), record.routes, strict=True):
        if route.queries == route.keys:
            # A layer has no rows but those of its queries, so that this is Eq. 6 for
            # the tokens of its sequence and Eq. 7 for those of the other one.
            relevance = relevance + layer @ relevance
            continue
        above, below = record.positions(route.queries), record.positions(route.keys)
        relevance[:, above, below] += (
            _normalised(relevance[:, above, above]).mT
            @ layer[:, above, below]
            @ _normalised(relevance[:, below, below])
        )
    return relevance


def _normalised(relevance: Tensor) -> Tensor:
    """Scale what was added to the identity to rows of sum 1 (Eq. 8 and 9)."""
    identity = torch.eye(
        relevance.shape[-1], dtype=relevance.dtype, device=relevance.device
    )
    added = relevance - identity
    total = added.sum(-1, keepdim=True)
    return added / (total + (total == 0)) + identity


class LayerCheferRelevance(LayerAttentionAttribution, CheferRelevance):
    """Relevance of Chefer et al. (2021), in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        normalization (str, optional): See :class:`CheferRelevance`.

    Raises:
        ValueError: If an option is unknown, or a layer is no module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> chefer = LayerCheferRelevance(
        ...     lambda ids: model(ids).logits, model.bert.embeddings
        ... )
        >>> chefer.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """
