"""What the model answered to the queries of a batch of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class QueryData:
    """Queries and answers of a batch, padded to the most queries and types of a text.

    Attributes:
        counts (Tensor): Shape ``(B, Q, V)``, float64, how often each type occurs.
        outputs (Tensor): Shape ``(B, Q)``, float64, what the model answered.
        weights (Tensor): Shape ``(B, Q)``, float64, weight of each squared error; 0
            where there is no query.
        types (Tensor): Shape ``(B, V)``, bool, ``False`` where there is no type.
    """

    counts: Tensor
    outputs: Tensor
    weights: Tensor
    types: Tensor

    @staticmethod
    def pad(
        counts: Sequence[Tensor],
        outputs: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
    ) -> QueryData:
        """Join the queries of texts.

        Args:
            counts (sequence of Tensor): Per text, shape ``(Q_b, V_b)``.
            outputs (sequence of Tensor): Per text, shape ``(Q_b,)``.
            weights (sequence of Tensor, optional): Per text, shape ``(Q_b,)``; all 1
                by default.
        """
        if weights is None:
            weights = [torch.ones(len(text), dtype=torch.float64) for text in counts]
        n_types = max(text.shape[1] for text in counts)
        return QueryData(
            counts=pad_sequence(
                [
                    torch.nn.functional.pad(text, (0, n_types - text.shape[1]))
                    for text in counts
                ],
                batch_first=True,
            ),
            outputs=pad_sequence([text.double() for text in outputs], batch_first=True),
            weights=pad_sequence(list(weights), batch_first=True),
            types=pad_sequence(
                [torch.ones(text.shape[1], dtype=torch.bool) for text in counts],
                batch_first=True,
            ),
        )
