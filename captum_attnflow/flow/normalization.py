r"""Normalisations of token scores, after the game.

In a decoder a token is read by itself and by all positions behind it. The earlier it
stands, the more paths lead from it to the read-out, whatever it says. Abnar & Zuidema
(ACL 2020) note that decoders need a normalisation for that; Metzger et al. (2022) treat
decoders. The body of the latter could not be read; the definition is that of a public
descendant of the authors' library, with the cases that it leaves open decided here:

.. math::
    \bar s_x = \frac{s_x}{\lvert\{x, x + 1, \dots, r + 1\}\rvert}
             = \frac{s_x}{r + 2 - x},

the score of the token at position :math:`x`, divided by the number of positions from
:math:`x` up to and including the predicted token, whose logits are read at the position
:math:`r` before it. Where several positions are read out, :math:`r` is the last one:
what a token sends can pass all positions up to there. Padding before and behind a text
changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._options import check_choice, described
from captum_attnflow.explanation import Explanation
from captum_attnflow.flow.network import LayeredNetwork

Normalization = Literal["receptive-field"] | None


def check_normalization(normalization: Normalization) -> None:
    """Refuse anything but ``None`` or the name of a normalisation.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if normalization is not None:
        check_choice("normalization", normalization, ("receptive-field",))


def normalize(explanation: Explanation, normalization: Normalization) -> Explanation:
    """Normalise token scores; flow and flow value stay as they are.

    Args:
        explanation (Explanation): Scores with the network that they come from.
        normalization (str, optional): ``"receptive-field"``, or None for no change.

    Returns:
        Explanation: With normalised scores, and those before in
        :attr:`Explanation.unnormalized_scores`.

    Raises:
        ValueError: If it is no explanation, the normalisation is unknown, or a flow
            passes from a position to one before it: the receptive
            fields of an encoder are all the same.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[False, True]]),
        ... )
        >>> scores = torch.tensor([[0.6, 0.4]])
        >>> raw = Explanation(scores, network, GivenFlow(scores.sum(1)))
        >>> normalize(raw, "receptive-field").scores  # divided by 3 and 2
        tensor([[0.2000, 0.2000]])
    """
    if not isinstance(explanation, Explanation):
        raise ValueError(
            f"explanation={described(explanation)}; give an Explanation, as explain() "
            "of an attention flow returns it"
        )
    check_normalization(normalization)
    if normalization is None:
        return explanation
    field = _receptive_field(explanation.network).to(explanation.scores)
    return replace(
        explanation,
        scores=explanation.scores / field,
        unnormalized_scores=explanation.scores,
    )


def _receptive_field(network: LayeredNetwork) -> Tensor:
    """Positions from each one up to the predicted token, shape ``(B, T)``, int64."""
    # Padded queries may look ahead, but lie on no path to the read-out.
    looks_ahead = network.trim().capacity.triu(1).flatten(1).any(1)
    if bool(looks_ahead.any()):
        raise ValueError(
            'normalization="receptive-field" is for causal attention, but the examples '
            f"{looks_ahead.nonzero()[:, 0].tolist()} attend to later positions. In an "
            "encoder every token is read by all positions alike and there is nothing "
            "to normalise: leave normalization=None"
        )
    positions = torch.arange(network.n_tokens, device=network.sink.device)
    last_read = torch.where(network.sink, positions, -1).amax(1, keepdim=True)
    # Tokens behind have a score of 0.
    return (last_read + 2 - positions).clamp_min(1)
