"""Generalized Attention Flow (Azarkhalili & Libbrecht, ACL 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_attnflow._checks import check_choice
from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.capture import RULES, AttentionRecord, Rules
from captum_attnflow.explanation import Explanation, explain_maximum_flows
from captum_attnflow.flow import Residual, build_network, check_residual
from captum_attnflow.flow.information import INFORMATION, Information
from captum_attnflow.flow.scores import (
    GAMES,
    Game,
    GameSolver,
    Normalization,
    check_normalization,
    check_solver,
)


class GeneralizedAttentionFlow(AttentionAttribution):
    r"""Generalized Attention Flow, in place of ``IntegratedGradients``.

    Attention, its gradient, or their product becomes the capacity of a layered flow
    network over the tokens; the logarithmic barrier of Azarkhalili & Libbrecht (ACL
    2025, Eq. 12) makes its maximum flow unique; a token's score is the flow that
    leaves it. Scores are never negative and, in the joint game, sum to the flow value.

    The defaults are the paper's form as publicly restated: AGF capacities, no residual
    edges, one joint flow. That form is offered for studies; without residual edges a
    token's identity is soon lost in the first layers' attention. ``residual="free"``
    with ``game="independent"`` keeps it.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        information (str): Capacities: ``"AGF"`` is :math:`E_h((A \odot G)_+)`,
            ``"GF"`` :math:`E_h((G)_+)`, ``"AF"`` :math:`E_h(A)`, or another key of
            :data:`captum_attnflow.flow.INFORMATION`.
        residual (float, str, optional): Residual edges: ``None``, a fraction, or
            ``"free"``; see :func:`captum_attnflow.flow.add_residual`.
        game (str): ``"joint"`` (scores sum to the flow value) or ``"independent"``
            (one flow per token); see :mod:`captum_attnflow.flow.scores`.
        solver (str or FlowSolver): ``"auto"`` (see :mod:`captum_attnflow.flow.scores`),
            ``"barrier"``, ``"dinic"``, ``"scipy"``, ``"networkx"``, or an instance
            such as ``BarrierSolver(epsilon=1e-8)``.
        normalization (str, optional): ``"receptive-field"`` divides the scores of a
            decoder's tokens by how many positions may read them, against position
            bias; see :mod:`captum_attnflow.flow.scores`.
        gradient (str): What ``G`` is: the plain ``"gradient"`` of the paper, or that
            of propagation rules, ``"attnlrp"`` or ``"cp-lrp"``; see
            :mod:`captum_attnflow.capture.rules`.

    Raises:
        ValueError: If an option is unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> gaf = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
        >>> attributions, delta = gaf.attribute(
        ...     ids, target=1, return_convergence_delta=True
        ... )
        >>> attributions.shape == ids.shape
        True
        >>> bool(delta.abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        information: Information = "AGF",
        residual: Residual = None,
        game: Game = "joint",
        solver: GameSolver = "auto",
        normalization: Normalization = None,
        gradient: Rules = "gradient",
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_choice("information", information, INFORMATION)
        check_choice("game", game, GAMES)
        check_residual(residual)
        check_solver(solver)
        check_normalization(normalization)
        check_choice("gradient", gradient, RULES)
        self.information = information
        self.reads_attention_alone = information == "AF"
        self.residual = residual
        self.game = game
        self.solver = solver
        self.normalization = normalization
        self.gradient = gradient

    @property
    def _rules(self) -> Rules:
        return self.gradient

    def _score(self, record: AttentionRecord) -> Explanation:
        network = build_network(record, self.information, self.residual)
        return explain_maximum_flows(
            network, self.game, self.solver, self.normalization
        )


class LayerGeneralizedAttentionFlow(
    LayerAttentionAttribution, GeneralizedAttentionFlow
):
    """Generalized Attention Flow, in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        information (str): See :class:`GeneralizedAttentionFlow`.
        residual (float, str, optional): See :class:`GeneralizedAttentionFlow`.
        game (str): See :class:`GeneralizedAttentionFlow`.
        solver (str or FlowSolver): See :class:`GeneralizedAttentionFlow`.
        normalization (str, optional): See :class:`GeneralizedAttentionFlow`.
        gradient (str): See :class:`GeneralizedAttentionFlow`.

    Raises:
        ValueError: If an option is unknown, or a layer is no module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> gaf = LayerGeneralizedAttentionFlow(
        ...     lambda ids: model(ids).logits, model.bert.embeddings
        ... )
        >>> gaf.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """
