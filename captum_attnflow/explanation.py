"""What ``explain()`` returns: scores, network, flow and how well it was solved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import networkx as nx
import torch
from torch import Tensor

from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture import Propagation, TokenSequence
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import (
    FlowDiagnostics,
    Game,
    GameSolver,
    Normalization,
    normalize,
    score_tokens,
)
from captum_attnflow.scored_tokens import ShownByTokens

# Of fewer tokens chance alone orders some by position.
_FEWEST_POSITIONS = 6
_POSITION_ALONE = 0.98  # Spearman's rho


class JointFlow(Protocol):
    """The flow of all tokens of each example, known or solved when it is read.

    A :class:`captum_attnflow.flow.solvers.FlowSolution` is one.
    """

    @property
    def value(self) -> Tensor:
        """Value of the flow, shape ``(B,)``."""

    @property
    def flow(self) -> Tensor | None:
        """Flow per edge, shape ``(B, L, T, T)``; None where only the value is known."""

    @property
    def cut(self) -> Tensor | None:
        """Source's side of a minimum cut, shape ``(B, L + 1, T)``, bool, or None."""

    def select(self, rows: slice) -> JointFlow:
        """Return the flows of some examples."""


@dataclass(frozen=True, eq=False)
class GivenFlow:
    """A flow that no solver has to find, such as attention rollout.

    Attributes:
        value (Tensor): Shape ``(B,)``.
        flow (Tensor, optional): Shape ``(B, L, T, T)``.
        cut (Tensor, optional): Shape ``(B, L + 1, T)``, bool.
    """

    value: Tensor
    flow: Tensor | None = None
    cut: Tensor | None = None

    def select(self, rows: slice) -> GivenFlow:
        """Return the flows of some examples."""
        return GivenFlow(
            self.value[rows],
            None if self.flow is None else self.flow[rows],
            None if self.cut is None else self.cut[rows],
        )


@dataclass(frozen=True, eq=False)
class ConservationDiagnostics:
    """How well a conserved flow keeps what it says, and by which rules it came about.

    Attributes:
        imbalance (Tensor): Shape ``(B,)``, float64, largest difference at a node
            between what enters and what leaves, in units of the output.
        propagation (Propagation, optional): What rules met what operations; None for
            the plain gradient.
    """

    imbalance: Tensor
    propagation: Propagation | None

    def select(self, rows: slice) -> ConservationDiagnostics:
        """Return the diagnostics of some examples."""
        return replace(self, imbalance=self.imbalance[rows])


@dataclass(frozen=True, eq=False)
class Explanation(ShownByTokens):
    """Token scores of a batch, with everything they came from.

    Shows itself in a notebook and by rich; :meth:`show` takes the tokens.

    Attributes:
        scores (Tensor): Shape ``(B, T)``, float64; one score per position of the
            attention maps, 0 on masked padding. Never negative, except for
            Relevance Flow, whose scores sum to the output.
        network (LayeredNetwork): The joint network of each example. The edges of a
            conserved flow of relevance hold what they carry.
        joint_flow (JointFlow): The flow of all tokens at once, behind
            :attr:`flow_value`, :attr:`flow` and :attr:`cut`. In the independent game
            no score needs it, and it is solved when one of these is first read.
        diagnostics (FlowDiagnostics or ConservationDiagnostics, optional): How well
            the flows behind the scores were solved, or are conserved; None for
            attention rollout and the relevance of Chefer et al.
        against (Explanation, optional): The flows over negative relevance, which the
            scores of Relevance Flow by maximum flows are less; None otherwise.
        direct (Tensor, optional): Shape ``(B, T)``, float64, what the direct edges of
            Relevance Flow add to the scores; None for other methods.
        unnormalized_scores (Tensor, optional): Shape ``(B, T)``, float64, the scores
            before their normalisation; None where none was asked for.
        output (Tensor, optional): Shape ``(B,)``, what is explained; None for a network
            alone.
        sequences (tuple[TokenSequence, ...]): The sequences whose positions the scores
            count through: one, or an encoder's and then a decoder's.
        elements (dict): For an input, by its number, the token that each of its
            elements makes, such as the pixels of a patch: int64, of the input's shape,
            -1 for none. Inputs whose elements make several have no entry, nor has the
            only input of a sequence if it is the ids of all its tokens.
    """

    scores: Tensor
    network: LayeredNetwork
    joint_flow: JointFlow
    diagnostics: FlowDiagnostics | ConservationDiagnostics | None = None
    against: Explanation | None = None
    direct: Tensor | None = None
    unnormalized_scores: Tensor | None = None
    output: Tensor | None = None
    sequences: tuple[TokenSequence, ...] = ()
    elements: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def flow_value(self) -> Tensor:
        """Value of the joint flow, shape ``(B,)``, float64.

        It is 1 for attention rollout, whose flow is the product of matrices itself, and
        for the relevance of Chefer et al., which starts from 1 and is not conserved. Of
        Relevance Flow it is the output, or the sum of the scores where it solves
        maximum flows.
        """
        return self.joint_flow.value

    @property
    def flow(self) -> Tensor | None:
        """The joint flow per edge, shape ``(B, L, T, T)``, float64.

        It is laid out as ``network.capacity`` and signed for Relevance Flow. None for
        the maximum flows of Relevance Flow and the relevance of Chefer et al.
        """
        return self.joint_flow.flow

    @property
    def cut(self) -> Tensor | None:
        """The source's side of a minimum cut, shape ``(B, L + 1, T)``, bool.

        None where the joint flow is not a maximum flow.
        """
        return self.joint_flow.cut

    @property
    def delta(self) -> Tensor:
        """Efficiency residual ``scores.sum(1) - flow_value``, shape ``(B,)``.

        Zero up to rounding in the joint game and for Relevance Flow; in the
        independent game the amount by which separate flows exceed the joint one. A
        normalisation divides the scores and leaves the flow value: the delta then
        holds what it took away, too.
        """
        return self.scores.sum(1) - self.flow_value

    def select(self, rows: slice) -> Explanation:
        """Return the explanations of some examples of the batch.

        A joint flow that was not read stays unsolved, and what is returned solves it
        for its own examples only.
        """
        diagnostics, against = self.diagnostics, self.against
        raw = self.unnormalized_scores
        return replace(
            self,
            scores=self.scores[rows],
            network=self.network.select(rows),
            joint_flow=self.joint_flow.select(rows),
            diagnostics=None if diagnostics is None else diagnostics.select(rows),
            against=None if against is None else against.select(rows),
            direct=None if self.direct is None else self.direct[rows],
            unnormalized_scores=None if raw is None else raw[rows],
            elements={index: of[rows] for index, of in self.elements.items()},
            output=None if self.output is None else self.output[rows],
        )

    def to_networkx(
        self, example: int = 0, tokens: list[str] | None = None
    ) -> nx.DiGraph:
        """Build an example's network with its flow.

        The signed flow of Relevance Flow comes with its direct edges, such that what
        enters the sink sums to the output. See :meth:`LayeredNetwork.to_networkx`.
        """
        conserved = isinstance(self.diagnostics, ConservationDiagnostics)
        # A maximum flow that was solved on the network has no direct edges.
        direct = self.direct if conserved and self.cut is None else None
        return self.network.to_networkx(example, tokens, self.flow, direct)

    def _shown(self) -> tuple[list[str], Tensor]:
        headings = [
            f"example {example}: flow value {value:.4g}"
            for example, value in enumerate(self.flow_value.tolist())
        ]
        return headings, self.scores


def warn_of_position(explanation: Explanation) -> None:
    """Warn of examples whose scores order the tokens by position alone.

    In a causal network the earlier a token stands, the more paths lead from it to the
    read-out, whatever it says.
    """
    ordered = [
        example
        for example, (scores, capacity, sink) in enumerate(
            zip(
                explanation.scores,
                explanation.network.capacity,
                explanation.network.sink,
                strict=True,
            )
        )
        if _follows_position(scores, capacity, sink)
    ]
    if ordered:
        warn_caller(
            f"the scores of the examples {ordered} follow the position of the tokens "
            "and hardly anything else, as flows do in a decoder, where more paths "
            "lead on from earlier tokens. To explain a text take RelevanceFlow, or "
            'GeneralizedAttentionFlow with residual="free", game="independent" and '
            'gradient="attnlrp"'
        )


def _follows_position(scores: Tensor, capacity: Tensor, sink: Tensor) -> bool:
    """Whether a causal network's scores rank as positions do, by Spearman's rho."""
    is_signed = bool((scores < 0).any())  # relevance, no maximum flow
    if is_signed or bool(capacity.triu(1).any()) or not bool(sink.any()):
        return False
    read_out = int(sink.nonzero()[-1])
    candidates = scores[:read_out]
    candidates = candidates[candidates != 0]
    n = len(candidates)
    if n < _FEWEST_POSITIONS:
        return False
    ranks = candidates.argsort(stable=True).argsort().double()
    positions = torch.arange(n, device=ranks.device, dtype=torch.float64)
    differences = (ranks - positions).square().sum()
    rho = 1 - 6 * float(differences) / (n * (n * n - 1))
    return abs(rho) > _POSITION_ALONE


def warn_of_zeros(explanation: Explanation) -> None:
    """Warn of examples whose scores are all 0, and say why that may be."""
    zero = (explanation.scores == 0).all(1).nonzero()[:, 0].tolist()
    if zero:
        warn_caller(
            f"all token scores of the examples {zero} are 0: no path of positive "
            "capacity leads from a token to the position where the output is read. "
            "The output may not depend on the attention (its gradient is 0), only "
            "attention that lowers it may lead there (its relevance is clamped at 0), "
            'or, with residual="free", every position is read out'
        )


def explain_maximum_flows(
    network: LayeredNetwork,
    game: Game,
    solver: GameSolver,
    normalization: Normalization,
) -> Explanation:
    """Score tokens by maximum flows, see :mod:`captum_attnflow.flow.scores`."""
    scored = score_tokens(network, game, solver)
    explanation = Explanation(
        scored.scores, network, scored.joint_flow, scored.diagnostics
    )
    return normalize_scores(explanation, normalization)


def normalize_scores(
    explanation: Explanation, normalization: Normalization
) -> Explanation:
    """Normalise the scores and keep those before; flow and flow value stay."""
    scores = explanation.scores
    normalized = normalize(scores, explanation.network, normalization)
    if normalization is None:
        return explanation
    return replace(explanation, scores=normalized, unnormalized_scores=scores)
