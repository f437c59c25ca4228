"""What the explanation of generated text holds: every step from the tokens before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.text import Text
from torch import Tensor

if TYPE_CHECKING:
    from captum_attnflow.show import TokenMatrix


@dataclass(frozen=True, eq=False)
class GenerationExplanation:
    """Scores of generated tokens: what each was made from.

    Attributes:
        tokens (list of str): All ``N`` tokens that scores belong to: the prompt, the
            start of an encoder-decoder's answer, and what was generated.
        scores (Tensor): Shape ``(G, N)``, float64: of each of the ``G`` generated
            tokens, from every token before it. From itself and later ones exactly 0.
        log_probabilities (Tensor): Shape ``(G,)``, of the generated tokens, natural
            logarithm.
        flow_value (Tensor): Shape ``(G,)``, see :attr:`Explanation.flow_value`.

    Examples::

        >>> explanation = GenerationExplanation(
        ...     tokens=["a", "b", "c"],
        ...     scores=torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]]),
        ...     log_probabilities=torch.zeros(2),
        ...     flow_value=torch.tensor([3.0, 3.0]),
        ... )
        >>> explanation.generated_tokens
        ['b', 'c']
        >>> explanation.from_prompt()
        tensor([[3.],
                [3.]])
    """

    tokens: list[str]
    scores: Tensor
    log_probabilities: Tensor
    flow_value: Tensor

    @property
    def n_given(self) -> int:
        """Tokens before the first generated one."""
        return len(self.tokens) - len(self.scores)

    @property
    def generated_tokens(self) -> list[str]:
        """The ``G`` generated tokens."""
        return self.tokens[self.n_given :]

    def possible(self) -> Tensor:
        """Tell which scores may differ from 0: those of earlier tokens.

        Returns:
            Tensor: Shape ``(G, N)``, bool.
        """
        return torch.ones_like(self.scores, dtype=torch.bool).tril(self.n_given - 1)

    def from_prompt(self) -> Tensor:
        """Let all flow start in what was given.

        What a generated token sends on, it received in the step that produced it: its
        score is handed on to the tokens that it was made from, in proportion to their
        scores. The sum over a row stays the same, but where a generated token received
        nothing.

        Returns:
            Tensor: Shape ``(G, N - G)``.

        Raises:
            ValueError: If scores are negative; there are no proportions then.
        """
        if bool((self.scores < 0).any()):
            raise ValueError(
                "scores with a sign cannot be handed on in proportion; use a method "
                "whose scores are flows, such as GeneralizedAttentionFlow"
            )
        origins: list[Tensor] = []
        for row in self.scores:
            origin = row[: self.n_given].clone()
            for step, earlier in enumerate(origins):
                received = earlier.sum()
                if received > 0:
                    origin += row[self.n_given + step] * earlier / received
            origins.append(origin)
        return torch.stack(origins)

    def matrix(self) -> TokenMatrix:
        """Draw the scores, a row for each generated token.

        Notebooks and rich show the explanation itself as this matrix.
        """
        # Pictures take half a second to import.
        from captum_attnflow.show import token_matrix

        return token_matrix(
            self.scores, self.tokens, self.generated_tokens, self.n_given
        )

    def _repr_html_(self) -> str:
        return self.matrix()._repr_html_()

    def __rich__(self) -> Text:
        return self.matrix().__rich__()
