r"""The SLALOM function, a weighted mean of the values of a text's tokens; its scores.

Softmax-Linked Additive Log-Odds Model, Leemann, Fastowski, Pfeiffer & Kasneci (TMLR
2025, arXiv 2405.13536). Every type, that is every distinct token of a text, has a value
:math:`v_j` and an importance :math:`s_j`. For a sequence that holds type ``j``
:math:`n_j` times the function predicts the log-odds

.. math::
    F(n) = \frac{\sum_j n_j e^{s_j} v_j}{\sum_j n_j e^{s_j}}.

Adding a constant to every ``s`` changes nothing; importances are centred.

A score per type is made of the function: with :math:`w = e^s` a type's weight and
:math:`F` the function at the text, :math:`\alpha_j = w_j / \sum_k n_k w_k` is the share
of one occurrence of type ``j`` in the mass of the text, the sink's included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_dense, check_type


@dataclass(frozen=True, eq=False)
class SlalomModel:
    r"""SLALOM functions of a batch of texts, padded to the same number of types.

    A sink, if there is one, is a token of every sequence, also of the empty one. With
    its weight :math:`w_0 = e^{s_0}` and value :math:`v_0`,

    .. math::
        F(n) = \frac{w_0 v_0 + \sum_j n_j e^{s_j} v_j}{w_0 + \sum_j n_j e^{s_j}}.

    It represents special tokens and whatever else the model adds to a text. For
    :math:`w_0 \to \infty` the function becomes additive.

    Attributes:
        value (Tensor): Shape ``(B, V)``, float64, in units of the output: the
            function at the type alone. 0 where there is no type.
        importance (Tensor): Shape ``(B, V)``, float64, natural logarithm of the weight,
            centred over the types of each text. 0 where there is no type.
        types (Tensor): Shape ``(B, V)``, bool, ``False`` where there is no type.
        sink_value (Tensor, optional): Shape ``(B,)``, float64, value of the sink.
        sink_importance (Tensor, optional): Shape ``(B,)``, float64, importance of the
            sink, on the scale of the centred ones.

    Examples::

        >>> model = SlalomModel(
        ...     value=torch.tensor([[2.0, -1.0]], dtype=torch.float64),
        ...     importance=torch.tensor([[0.0, 0.0]], dtype=torch.float64),
        ...     types=torch.tensor([[True, True]]),
        ... )
        >>> model(torch.tensor([[[1, 0], [1, 1], [1, 2]]])).tolist()
        [[2.0, 0.5, 0.0]]
    """

    value: Tensor
    importance: Tensor
    types: Tensor
    sink_value: Tensor | None = None
    sink_importance: Tensor | None = None

    def __call__(self, counts: Tensor) -> Tensor:
        """Predict the output for sequences.

        Args:
            counts (Tensor): Shape ``(B, Q, V)``, how often each type occurs.

        Returns:
            Tensor: Shape ``(B, Q)``, float64; NaN for an empty sequence if there is
            no sink.
        """
        share, sink_share = self.shares(counts)
        predicted = (share * self.value[:, None]).sum(-1)
        if self.sink_value is not None:
            predicted = predicted + sink_share * self.sink_value[:, None]
        return predicted

    def shares(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the share :math:`n_j \alpha_j` of each type in the sequence's mass.

        Args:
            counts (Tensor): Shape ``(B, Q, V)``.

        Returns:
            tuple[Tensor, Tensor]: Shape ``(B, Q, V)``, and of the sink ``(B, Q)``.
        """
        n_texts, n_types = self.types.shape
        accepted = f"({n_texts}, Q, {n_types}), how often each type occurs"
        check_dense("counts", counts, accepted)
        if counts.dim() != 3 or counts.shape[::2] != self.types.shape:
            raise ValueError(
                f"counts have shape {tuple(counts.shape)}; give {accepted}"
            )
        # The largest weight is made 1, so that no exponential overflows.
        present = self.importance.masked_fill(~self.types, -torch.inf)
        largest = present.amax(1)
        if self.sink_importance is not None:
            largest = torch.maximum(largest, self.sink_importance)
        mass = counts * (present - largest[:, None]).exp()[:, None]
        sink = torch.zeros_like(mass[..., 0])
        if self.sink_importance is not None:
            sink = sink + (self.sink_importance - largest).exp()[:, None]
        total = mass.sum(-1) + sink
        return mass / total[..., None], sink / total


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
