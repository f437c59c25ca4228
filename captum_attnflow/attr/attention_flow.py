"""Attention Flow (Abnar & Zuidema, ACL 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_attnflow._checks import check_choice
from captum_attnflow.attr.base import AttentionAttribution, LayerAttentionAttribution
from captum_attnflow.capture import AttentionRecord
from captum_attnflow.explanation import Explanation, explain_maximum_flows
from captum_attnflow.flow import Residual, build_network, check_residual
from captum_attnflow.flow.scores import (
    GAMES,
    Game,
    GameSolver,
    Normalization,
    check_normalization,
    check_solver,
)


class AttentionFlow(AttentionAttribution):
    r"""Attention Flow, in place of ``IntegratedGradients``.

    The capacities are attention weights, averaged over heads, with a residual edge:
    :math:`0.5 A + 0.5 I` (Abnar & Zuidema 2020). A token's score is the maximum flow
    from it alone to the positions where the output is read, which the gradient of the
    selected output tells; otherwise the scores do not depend on the target. The paper
    normalises each row of scores to sum 1, which this class leaves to you:
    ``scores / scores.sum(1, keepdim=True)``.

    Args:
        forward_func (Callable or Module): The forward function.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        residual (float, str, optional): ``0.5`` as in the paper, another fraction,
            ``None`` or ``"free"``; see :func:`captum_attnflow.flow.add_residual`.
        game (str): ``"independent"`` (one flow per token, as in the paper) or
            ``"joint"`` (one flow of all tokens, Ethayarajh & Jurafsky 2021); see
            :mod:`captum_attnflow.flow.scores`. The joint flow on row-normalised
            capacities has a trivial value, the number of read-out positions, and many
            optima.
        solver (str or FlowSolver): ``"auto"`` (see :mod:`captum_attnflow.flow.scores`),
            ``"barrier"``, ``"dinic"``, ``"scipy"``, ``"networkx"``, or an instance
            such as ``BarrierSolver(epsilon=1e-8)``.
        normalization (str, optional): ``"receptive-field"`` divides the scores of a
            decoder's tokens by how many positions may read them, against position
            bias; see :mod:`captum_attnflow.flow.scores`.

    Raises:
        ValueError: If an option is unknown.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> scores = AttentionFlow(lambda ids: model(ids).logits).attribute(
        ...     ids, target=1
        ... )
        >>> scores.shape == ids.shape
        True
    """

    reads_attention_alone = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        residual: Residual = 0.5,
        game: Game = "independent",
        solver: GameSolver = "auto",
        normalization: Normalization = None,
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        check_choice("game", game, GAMES)
        check_residual(residual)
        check_solver(solver)
        check_normalization(normalization)
        self.residual = residual
        self.game = game
        self.solver = solver
        self.normalization = normalization

    def _score(self, record: AttentionRecord) -> Explanation:
        network = build_network(record, "AF", self.residual)
        return explain_maximum_flows(
            network, self.game, self.solver, self.normalization
        )


class LayerAttentionFlow(LayerAttentionAttribution, AttentionFlow):
    """Attention Flow, in place of ``LayerIntegratedGradients``.

    Args:
        forward_func (Callable or Module): The forward function.
        layer (Module or list of Module): The layer whose output the attributions are
            shaped like.
        device_ids (list of int, optional): Kept for Captum's signature.
        multiply_by_inputs (bool): Kept for Captum's signature; no effect.
        residual (float, str, optional): See :class:`AttentionFlow`.
        game (str): See :class:`AttentionFlow`.
        solver (str or FlowSolver): See :class:`AttentionFlow`.
        normalization (str, optional): See :class:`AttentionFlow`.

    Raises:
        ValueError: If an option is unknown, or a layer is no module.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> model, tokenizer = load_demo_model()
        >>> ids = tokenizer("a gripping , funny film", return_tensors="pt").input_ids
        >>> flow = LayerAttentionFlow(
        ...     lambda ids: model(ids).logits, model.bert.embeddings
        ... )
        >>> flow.attribute(ids, target=1).shape == (*ids.shape, 128)
        True
    """
