r"""From a SLALOM function to one score per type.

``w = exp(s)`` is a type's weight, :math:`F` the function at the text, and
:math:`\alpha_j = w_j / \sum_k n_k w_k` the share of one occurrence of type ``j`` in the
mass of the text, the sink's included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_dense, check_type
from captum_attnflow.slalom.model import SlalomModel

Score = Literal["value", "importance", "linearized", "contribution", "removal"]
"""A key of :data:`SCORES`."""


def value(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`v_j`, the function at the type alone."""
    return model.value


def importance(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`s_j`, centred over the types of the text."""
    return model.importance


def linearized(model: SlalomModel, counts: Tensor) -> Tensor:
    """:math:`v_j e^{s_j}`, the paper's linearised score."""
    return model.value * model.importance.exp()


def contribution(model: SlalomModel, counts: Tensor) -> Tensor:
    r""":math:`\alpha_j v_j`; over all occurrences, and the sink, they sum to ``F``."""
    return _share_of_one(model, counts) * model.value


def removal(model: SlalomModel, counts: Tensor) -> Tensor:
    r""":math:`F(n) - F(n - e_j) = \alpha_j (v_j - F) / (1 - \alpha_j)`.

    The fall of ``F`` when one occurrence is left out; 0 for the only token of a text
    without a sink, where nothing would be left.
    """
    share = _share_of_one(model, counts)
    fall = share * (model.value - model(counts[:, None]))
    alone = 1 - share < torch.finfo(share.dtype).eps
    return torch.where(alone, 0.0, fall / torch.where(alone, 1.0, 1 - share))


SCORES: dict[str, Callable[[SlalomModel, Tensor], Tensor]] = {
    "value": value,
    "importance": importance,
    "linearized": linearized,
    "contribution": contribution,
    "removal": removal,
}
"""For each name, the function from a model and token counts to a score per type."""


def score_types(name: Score, model: SlalomModel, counts: Tensor) -> Tensor:
    """Score every type of each text.

    Args:
        name (str): A key of :data:`SCORES`.
        model (SlalomModel): The functions.
        counts (Tensor): Shape ``(B, V)``, how often each type occurs in the text.

    Returns:
        Tensor: Shape ``(B, V)``, float64, the score of one occurrence; 0 where there
        is no type.

    Examples::

        >>> model = SlalomModel(
        ...     value=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        ...     importance=torch.tensor([[0.0, 0.0]], dtype=torch.float64),
        ...     types=torch.tensor([[True, True]]),
        ... )
        >>> score_types("removal", model, torch.tensor([[1.0, 1.0]])).tolist()
        [[1.5, -1.5]]
    """
    check_choice("name", name, SCORES)
    check_type("model", model, SlalomModel, "a SlalomModel, as fit_slalom(...).model")
    check_dense("counts", counts, f"of shape {tuple(model.types.shape)}")
    if counts.shape != model.types.shape:
        raise ValueError(
            f"counts have shape {tuple(counts.shape)}; give one count per type of each "
            f"text, {tuple(model.types.shape)}"
        )
    return torch.where(model.types, SCORES[name](model, counts), 0.0)


def _share_of_one(model: SlalomModel, counts: Tensor) -> Tensor:
    share, _ = model.shares(counts[:, None])
    return share[:, 0] / counts.clamp_min(1)
