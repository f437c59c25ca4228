r"""Links from a model's outputs to the log-odds that SLALOM explains.

Of class ``c`` against all others,

.. math::
    \log \frac{p_c}{1 - p_c} = y_c - \log \sum_{k \ne c} e^{y_k}

for logits :math:`y`: the difference of the two logits for two classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Link = Literal["logits", "probabilities", "identity"]

_SUM_TOLERANCE = 1e-3


def recognise_link(outputs: Tensor) -> Link:
    """Tell what kind of outputs a model gives.

    Args:
        outputs (Tensor): Shape ``(Q, C)``, all outputs for a text's queries.

    Returns:
        str: ``"probabilities"`` if all are in [0, 1] and, for several classes, sum to
        1 (within 1e-3); else ``"logits"`` for several classes and ``"identity"`` for
        one output.

    Examples::

        >>> recognise_link(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
        'probabilities'
        >>> recognise_link(torch.tensor([[1.2], [-0.3]]))
        'identity'
    """
    n_classes = outputs.shape[1]
    in_range = bool(((outputs >= 0) & (outputs <= 1)).all())
    sums = outputs.double().sum(1)
    if in_range and (n_classes == 1 or bool(((sums - 1).abs() < _SUM_TOLERANCE).all())):
        return "probabilities"
    return "logits" if n_classes > 1 else "identity"


def log_odds(outputs: Tensor, index: Tensor, link: Link) -> Tensor:
    """Turn a class's outputs into its log-odds.

    Args:
        outputs (Tensor): Shape ``(Q, C)``.
        index (Tensor): Shape ``(Q,)``, int64, the class of each row.
        link (str): ``"logits"``; ``"probabilities"``, which are kept an epsilon of
            their dtype away from 0 and 1; or ``"identity"``, which takes the class's
            output as it is.

    Returns:
        Tensor: Shape ``(Q,)``, float64.

    Raises:
        ValueError: If ``link`` is ``"probabilities"`` and an output is not in [0, 1].

    Examples::

        >>> logits = torch.tensor([[0.0, 1.5]])
        >>> index = torch.tensor([1])
        >>> float(log_odds(logits, index, "logits"))
        1.5
        >>> round(float(log_odds(logits.softmax(-1), index, "probabilities")), 5)
        1.5
    """
    chosen = outputs.double().gather(1, index[:, None])[:, 0]
    if link == "identity" or (link == "logits" and outputs.shape[1] == 1):
        return chosen
    if link == "probabilities":
        least, most = float(outputs.min()), float(outputs.max())
        if least < 0 or most > 1:
            raise ValueError(
                f'link="probabilities" was given, but outputs range from {least:.3g} '
                f'to {most:.3g}; give link="logits" or link="identity"'
            )
        return chosen.clamp(*_open_interval(outputs.dtype)).logit()
    others = outputs.double().scatter(1, index[:, None], -torch.inf)
    return chosen - others.logsumexp(1)


def _open_interval(dtype: torch.dtype) -> tuple[float, float]:
    epsilon = torch.finfo(dtype).eps if dtype.is_floating_point else 0.5
    return epsilon, 1 - epsilon
