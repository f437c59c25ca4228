"""Residual edges: the stream that carries a token past the attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import described
from captum_attnflow._tensors import check_tensor

Residual = float | Literal["free"] | None


def check_residual(residual: Residual) -> None:
    """Refuse anything but ``None``, ``"free"`` or a fraction.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    is_fraction = isinstance(residual, (int, float)) and 0 < residual < 1
    is_free = isinstance(residual, str) and residual == "free"
    if residual is not None and not is_free and not is_fraction:
        raise ValueError(
            f"residual={described(residual)} is unknown; give None (no residual "
            'edges; "none" in the shell), a '
            'fraction between 0 and 1 such as 0.5 (rows renormalised), or "free" '
            "(residual edges that never bind)"
        )


def add_residual(capacity: Tensor, residual: Residual) -> Tensor:
    r"""Add residual edges from each token to itself one layer above.

    Args:
        capacity (Tensor): Shape ``(B, L, T, T)``, in ``[0, inf)``.
        residual (float, str, optional): ``None`` adds nothing (Azarkhalili & Libbrecht
            2025). A fraction ``r`` normalises the rows to sum 1 and mixes
            :math:`(1 - r) C + r I`, then renormalises; on attention weights and 0.5
            this is Abnar & Zuidema's :math:`0.5 A + 0.5 I` (2020). ``"free"`` makes
            residual edges infinite.

    Returns:
        Tensor: Same shape, in ``[0, inf]``.

    Raises:
        ValueError: If ``residual`` is none of these, or capacities are not so.

    Examples::

        >>> attention = torch.tensor([[[[0.8, 0.2], [0.5, 0.5]]]])
        >>> add_residual(attention, 0.5)
        tensor([[[[0.9000, 0.1000],
                  [0.2500, 0.7500]]]])
    """
    check_residual(residual)
    check_tensor("capacity", capacity, "floats", ("B", "L", "T", "T"))
    if capacity.numel() and not bool(
        (capacity.amin() >= 0) & (capacity.amax() < torch.inf)
    ):
        raise ValueError(
            "capacity holds entries that are negative, NaN or infinite; give those in "
            "[0, inf), to which residual edges are added"
        )
    if residual is None:
        return capacity
    identity = torch.eye(
        capacity.shape[-1], dtype=capacity.dtype, device=capacity.device
    )
    if isinstance(residual, str):
        return torch.where(identity > 0, torch.inf, capacity)
    mixed = (1 - residual) * _normalise_rows(capacity) + residual * identity
    return _normalise_rows(mixed)


def _normalise_rows(capacity: Tensor) -> Tensor:
    total = capacity.sum(-1, keepdim=True)
    return capacity / (total + (total == 0))
