"""What ``explain()`` returns: scores, network, flow and how well it was solved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import networkx as nx
import torch
from rich.text import Text
from torch import Tensor

from captum_attnflow._checks import check_type
from captum_attnflow._tree import alike
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture import Propagation, TokenSequence
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import (
    FlowDiagnostics,
    Game,
    GameSolver,
    Normalization,
    check_causal,
    follow_position,
    normalize,
    score_tokens,
)
from captum_attnflow.flow.solvers import FlowSolution
from captum_attnflow.long_form import (
    LongForm,
    ScoredRows,
    Tokens,
    refuse_tokens,
    rows_of_batch,
)
from captum_attnflow.scored_tokens import ShownByTokens
from captum_attnflow.storage import Storable
from captum_attnflow.texts.units import Unit, Units, sum_over_units

if TYPE_CHECKING:
    from captum_attnflow.show.token_matrix import LeftOut, Scale, TokenMatrix


@runtime_checkable
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
class Explanation(ShownByTokens, Storable, LongForm):
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
        attention_received (Tensor, optional): Shape ``(B, T)``, float64, mean attention
            that each token has, see :meth:`AttentionRecord.attention_received`; given
            where several targets are explained at once.
    """

    scores: Tensor
    network: LayeredNetwork
    joint_flow: JointFlow = field(compare=False)  # see __eq__
    diagnostics: FlowDiagnostics | ConservationDiagnostics | None = None
    against: Explanation | None = None
    direct: Tensor | None = None
    unnormalized_scores: Tensor | None = None
    output: Tensor | None = None
    sequences: tuple[TokenSequence, ...] = ()
    elements: Mapping[int, Tensor] = field(default_factory=dict)
    attention_received: Tensor | None = None

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
        check_type("rows", rows, slice, "a slice, such as slice(0, 1)")
        diagnostics, against = self.diagnostics, self.against
        raw, attention = self.unnormalized_scores, self.attention_received
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
            attention_received=None if attention is None else attention[rows],
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

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        return rows_of_batch(self.scores, first, tokens)

    def _as_stored(self) -> Explanation:
        # How to solve a flow is not written, so that it is solved first.
        flow, against = self.joint_flow, self.against
        if not isinstance(flow, (GivenFlow, FlowSolution)):
            flow = GivenFlow(flow.value, flow.flow, flow.cut)
        return replace(
            self,
            joint_flow=flow,
            against=None if against is None else against._as_stored(),
        )

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same class and holds the same."""
        equal = super().__eq__(other)
        if equal is not True or not isinstance(other, Explanation):
            return equal
        # A flow that is still to be solved is, only where all else is equal.
        return alike(self._as_stored().joint_flow, other._as_stored().joint_flow)

    __hash__ = Storable.__hash__

    def _shown(self) -> tuple[list[str], Tensor]:
        headings = [
            f"example {example}: flow value {value:.4g}"
            for example, value in enumerate(self.flow_value.tolist())
        ]
        return headings, self.scores


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Token scores of a batch whose flow was not formed.

    Attributes:
        scores (Tensor): See :class:`Explanation`, like the others.
        output (Tensor): Shape ``(B,)``.
        sequences (tuple[TokenSequence, ...]): Whose positions the scores count through.
        elements (dict): The token that each element of an input makes.
        attention_received (Tensor, optional): Mean attention of each token.
    """

    scores: Tensor
    output: Tensor
    sequences: tuple[TokenSequence, ...]
    elements: Mapping[int, Tensor]
    attention_received: Tensor | None = None

    @property
    def flow_value(self) -> Tensor:
        """What the scores sum to, shape ``(B,)``, float64: the output."""
        return self.output.double()

    @property
    def delta(self) -> Tensor:
        """Sum of the scores less the flow value, shape ``(B,)``."""
        return self.scores.sum(1) - self.flow_value


def warn_of_position(explanation: Explanation) -> None:
    """Warn of examples whose scores order the tokens by position alone.

    In a causal network the earlier a token stands, the more paths lead from it to the
    read-out, whatever it says.
    """
    ordered = follow_position(explanation.scores, explanation.network)
    if ordered:
        warn_caller(
            f"the scores of the examples {ordered} follow the position of the tokens "
            "and hardly anything else, as flows do in a decoder, where more paths "
            "lead on from earlier tokens. To explain a text take RelevanceFlow, or "
            'GeneralizedAttentionFlow with residual="free", game="independent" and '
            'gradient="attnlrp"'
        )


def warn_of_zeros(explanation: Explanation | TokenScores) -> None:
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
    if normalization is not None:
        check_causal(network)  # before flows are solved, which may take long
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


Part = Literal["system", "template", "prompt", "image", "generated"]
"""What a token of a generated text belongs to."""


@dataclass(frozen=True, eq=False)
class GenerationExplanation(Storable, LongForm):
    """Scores of generated tokens: what each was made from.

    A row explains one generated token, or the sum of the outputs of a span of them.

    Attributes:
        tokens (list of str): All ``N`` tokens that scores belong to, as the tokenizer
            spells them: the prompt, the start of an encoder-decoder's answer, and
            what was generated.
        scores (Tensor): Shape ``(R, N)``, float64: of each of the ``R`` rows, from
            every token before its last one. From that and later ones exactly 0.
        log_probabilities (Tensor): Shape ``(G,)``, of the generated tokens, natural
            logarithm.
        flow_value (Tensor): Shape ``(R,)``, see :attr:`Explanation.flow_value`.
        spans (tuple of (int, int)): The generated tokens of each row, counted from the
            first generated one, start inclusive and stop exclusive. By default one row
            per generated token.
        output (str): What of a generated token is explained: its ``"logit"``,
            ``"log-probability"`` or ``"probability"``.
        outputs (Tensor, optional): Shape ``(R,)``, the explained outputs.
        against (tuple of str): The token that each generated one is held against: the
            output is its own less the other's. Empty without contrast.
        against_pieces (tuple of str): Their texts; by default as they are spelled.
        pieces (tuple of str): The text of each token, such that joined they are the
            whole text; by default the tokens.
        parts (tuple of str): What each token belongs to: ``"prompt"``, ``"generated"``,
            ``"image"``, and of a chat ``"system"``, a message that is not the user's,
            and ``"template"``, what the template puts around messages.
        attention_received (Tensor, optional): Shape ``(N,)``, mean attention of a
            token, over layers, heads and the queries that see it. The first token is
            an attention sink where it has many times the others'.

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
        >>> explanation.answer()
        tensor([4., 2., 0.])
    """

    tokens: list[str]
    scores: Tensor
    log_probabilities: Tensor
    flow_value: Tensor
    spans: tuple[tuple[int, int], ...] = ()
    output: str = "log-probability"
    outputs: Tensor | None = None
    against: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    attention_received: Tensor | None = None
    against_pieces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n_generated = len(self.log_probabilities)
        defaults: dict[str, tuple[object, ...]] = {
            "spans": tuple((step, step + 1) for step in range(n_generated)),
            "pieces": tuple(self.tokens),
            "against_pieces": self.against,
            "parts": ("prompt",) * self.n_given + ("generated",) * n_generated,
        }
        for name, default in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def n_given(self) -> int:
        """Tokens before the first generated one."""
        return len(self.tokens) - len(self.log_probabilities)

    @property
    def generated_tokens(self) -> list[str]:
        """The ``G`` generated tokens."""
        return self.tokens[self.n_given :]

    @property
    def row_texts(self) -> list[str]:
        """What each of the ``R`` rows explains, as text."""
        generated = self.pieces[self.n_given :]
        return ["".join(generated[start:stop]) for start, stop in self.spans]

    @property
    def has_row_per_token(self) -> bool:
        """Whether there is one row for each generated token, in order."""
        steps = range(len(self.log_probabilities))
        return list(self.spans) == [(step, step + 1) for step in steps]

    @property
    def first_share(self) -> Tensor:
        """Share of the first token in the sum of a row's absolute scores.

        Returns:
            Tensor: Shape ``(R,)``, in [0, 1]; 0 where all scores are.
        """
        absolute = self.scores.abs()
        total = absolute.sum(1)
        return absolute[:, 0] / total.where(total > 0, 1)

    def possible(self) -> Tensor:
        """Tell which scores may differ from 0: those of earlier tokens.

        Returns:
            Tensor: Shape ``(R, N)``, bool.
        """
        positions = torch.arange(len(self.tokens), device=self.scores.device)
        last = [self.n_given + stop - 1 for _, stop in self.spans]
        return positions < torch.tensor(last, device=positions.device)[:, None]

    def answer(self) -> Tensor:
        """Sum the scores of all generated tokens: what the whole answer was made from.

        Of Relevance Flow it is the row that ``spans=[(0, G)]`` gives. A flow over the
        gradients of summed outputs differs from it.

        Returns:
            Tensor: Shape ``(N,)``.

        Raises:
            ValueError: If the rows are not one per generated token.
        """
        self._check_one_row_per_token("the sum over the answer")
        return self.scores.sum(0)

    def from_prompt(self) -> Tensor:
        r"""Let all relevance start in what was given, through each generated token.

        What a generated token hands on, it received in the step that produced it: its
        score :math:`s` is handed on to the tokens that it was made from, and so on
        until the prompt. Of the scores :math:`r` of that step the positive ones share
        it, as in the z+ rule of relevance propagation:

        .. math:: o_i = s_i + \sum_k s_k \frac{\max(o_k, 0)}{\sum \max(o_k, 0)}

        where :math:`o_k` is what the generated token :math:`k` owes to the prompt. The
        sum over a row stays the same, signs are kept, and nothing grows beyond what is
        handed on, however near to 0 the sum of the producing step is. Of flows, which
        are never negative, it is their share. Where the producing step has no positive
        score, absolute ones share it, and where it has none, the relevance is lost.

        Returns:
            Tensor: Shape ``(R, N - G)``.

        Raises:
            ValueError: If the rows are not one per generated token.
        """
        self._check_one_row_per_token("handing on")
        origins: list[Tensor] = []
        for row in self.scores:
            origin = row[: self.n_given].clone()
            for step, earlier in enumerate(origins):
                positive = earlier.clamp(min=0)
                received = positive if bool(positive.any()) else earlier.abs()
                if bool(received.any()):
                    share = received / received.sum()
                    origin += row[self.n_given + step] * share
            origins.append(origin)
        return torch.stack(origins)

    def _check_one_row_per_token(self, what: str) -> None:
        if not self.has_row_per_token:
            raise ValueError(
                f"{what} needs a row for each of {len(self.log_probabilities)} "
                f"generated tokens, and there are rows for the spans "
                f"{list(self.spans)}; explain without spans"
            )

    def sum_over(self, units: Unit | Sequence[tuple[int, int]]) -> Units:
        """Sum scores over words, sentences, lines or spans of the text.

        Args:
            units (str or sequence of (int, int)): As
                :func:`captum_attnflow.texts.sum_over_units` takes it. No unit reaches
                from the prompt into the answer or the template.

        Returns:
            Units: With scores of shape ``(R, U)``.

        Raises:
            ValueError: If the units are unknown.
        """
        return sum_over_units(self.scores, self.pieces, units, self.parts)

    def matrix(
        self,
        units: Unit | Sequence[tuple[int, int]] = "token",
        left_out: Collection[LeftOut] = (),
        scale: Scale = "row",
    ) -> TokenMatrix:
        """Draw the scores, a row for each generated token or span.

        Notebooks and rich show the explanation itself as this matrix.

        Args:
            units (str or sequence of (int, int)): As in :meth:`sum_over`.
            left_out (collection of str): What is not drawn, and does not count for
                colours and shares: the ``"first"`` token; in each row the
                ``"read-out"``, the token in front of the generated one; the
                ``"system"`` message, the ``"template"``. The picture says so.
            scale (str): ``"row"``: colours are relative to the largest score of a row;
                ``"matrix"``: of all rows, but for the sum over them, which is of
                another size.

        Returns:
            TokenMatrix: With a last row for the whole answer, where rows are the
            tokens of one. The tokens of an image are one column.

        Raises:
            ValueError: If an option is unknown.
        """
        # Pictures take half a second to import.
        from captum_attnflow.show.generated import matrix_of_generated

        return matrix_of_generated(self, units, left_out, scale)

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        refuse_tokens(self, tokens)
        rows = zip(
            self.spans, self.row_texts, self.scores, self.possible(), strict=True
        )
        for (start, stop), text, scores, possible in rows:
            before = possible.nonzero()[:, 0].tolist()
            yield ScoredRows(
                scores=scores[possible].tolist(),
                same={
                    "example": first,
                    "generated_start": self.n_given + start,
                    "generated_stop": self.n_given + stop,
                    "explained": text,
                    "log_probability": float(self.log_probabilities[start:stop].sum()),
                },
                tokens=[self.tokens[position] for position in before],
                texts=[self.pieces[position] for position in before],
                beside={"part": [self.parts[position] for position in before]},
            )

    def _repr_html_(self) -> str:
        return self.matrix()._repr_html_()

    def __rich__(self) -> Text:
        return self.matrix().__rich__()
