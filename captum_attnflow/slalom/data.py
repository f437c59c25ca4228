"""What the model answered to the queries of a batch of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_attnflow._options import check_type
from captum_attnflow._tensors import check_dense


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

        Raises:
            ValueError: If these are no such tensors.
        """
        for name, texts in (("counts", counts), ("outputs", outputs)):
            check_type(name, texts, (list, tuple), "a list of one tensor per text")
            if not texts:
                raise ValueError(f"{name} is empty; give one tensor per text")
            for text in texts:
                check_dense(name, text, "(Q, V) counts, (Q,) outputs, of each text")
        if weights is not None:
            check_type("weights", weights, (list, tuple), "a list as of the outputs")
            for text in weights:
                check_dense("weights", text, "(Q,) of each text")
        shapes = [[tuple(text.shape) for text in texts] for texts in (counts, outputs)]
        fit = [len(text) == 2 and text[1] > 0 for text in shapes[0]]
        if not all(fit) or [text[:1] for text in shapes[0]] != shapes[1]:
            raise ValueError(
                f"counts have shapes {shapes[0]} and outputs {shapes[1]}; give counts "
                "(Q, V) and outputs (Q,) per text, of at least one type"
            )
        if weights is not None and [tuple(w.shape) for w in weights] != shapes[1]:
            raise ValueError(
                f"weights have shapes {[tuple(w.shape) for w in weights]}, outputs "
                f"{shapes[1]}; give one weight per output"
            )
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
