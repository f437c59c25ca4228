r"""Token scores from flows: games, their normalisation, and conserved relevance.

Pure functions on networks and tensors.

**Games.** The players are the input tokens.

- ``"joint"``: all tokens send at once. A token's score is the flow that leaves it in
  one maximum flow of the whole network; the scores sum to the flow value. They are
  Shapley values of the game in which a coalition is worth the flow that its tokens
  carry *in that flow* (Ethayarajh & Jurafsky 2021), not of the game that solves the
  flow anew for each coalition.
- ``"independent"``: every token sends alone, one maximum flow per token (Abnar &
  Zuidema 2020). A score is the value of a flow, hence unique; the scores do not sum to
  the joint flow value. No score needs the joint flow, so it is solved when it is read.

**Normalisation.** In a decoder a token is read by itself and by all positions behind
it. The earlier it stands, the more paths lead from it to the read-out, whatever it
says. Abnar & Zuidema (ACL 2020) note that decoders need a normalisation for that;
Metzger et al. (2022) treat decoders. The body of the latter could not be read; the
definition is that of a public descendant of the authors' library, with the cases that
it leaves open decided here:

.. math::
    \bar s_x = \frac{s_x}{\lvert\{x, x + 1, \dots, r + 1\}\rvert}
             = \frac{s_x}{r + 2 - x},

the score of the token at position :math:`x`, divided by the number of positions from
:math:`x` up to and including the predicted token, whose logits are read at the position
:math:`r` before it. Where several positions are read out, :math:`r` is the last one:
what a token sends can pass all positions up to there. Padding before and behind a text
changes nothing.

**Conserved flow.** Attention is all that mixes positions. So once it is known which
relevance :math:`E_l[i, k]` layer :math:`l` hands from position :math:`i` down to
position :math:`k` (see :meth:`captum_attnflow.capture.AttentionLayer.messages`), the
relevance at every node follows from the top, without the residual stream:

.. math::
    r_l[k] = r_{l+1}[k] - \sum_j E_l[k, j] + \sum_i E_l[i, k],

from :math:`r_L`, the output at the positions where it is read, 0 elsewhere. What a
position does not hand on, :math:`r_{l+1}[k] - \sum_j E_l[k, j]`, flows on its residual
edge. This is a flow: signed, conserved at every node, its value the output, its sources
the tokens. So the scores :math:`r_0` **sum to the output**, biases counted where they
act, with no solver. This method is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow._checks import check_choice, check_finite, check_tensor
from captum_attnflow.flow.network import LayeredNetwork, check_network
from captum_attnflow.flow.solvers import (
    DeferredFlow,
    FlowSolution,
    FlowSolver,
    SolverName,
    SourceFlows,
    find_solver,
    solve_flow,
    solve_sources,
)

Game = Literal["joint", "independent"]
GameSolver = SolverName | Literal["auto"] | FlowSolver
Normalization = Literal["receptive-field"] | None

# Of fewer tokens chance alone orders some by position.
_FEWEST_POSITIONS = 6
# Spearman's |rho| of scores and positions, over prompts of 12 to 198 tokens of
# SmolLM2-135M and of 15 to 63 of untrained GPT-2s and Llamas. Follow content: AttnLRP
# and Relevance Flow at most .63, Layer Integrated Gradients .66, GAF with
# residual="free" and gradient="attnlrp" .62, Chefer et al. .53. Follow position: GAF
# and Attention Flow .98 to 1 in SmolLM2, medians of .91 to .99 in the untrained ones;
# Attention Rollout lies between, .74 to .97 in SmolLM2.
_POSITION_ALONE = 0.75
# Short prompts reach more by chance: content .86 at 7 tokens, where GAF's median is
# .96. Fisher's z of rho has a variance of 1.06 / (n - 3) (Fieller et al., 1957); beyond
# 3.29 deviations lies 1 of 1,000. From 15 tokens on this is below the .75.
_CHANCE, _VARIANCE = 3.29, 1.06


@dataclass(frozen=True, eq=False)
class FlowDiagnostics:
    """How well the flows behind the scores of an example were solved.

    The worst over the flows of the example, one flow or one per token.

    Attributes:
        duality_gap (Tensor): Shape ``(B,)``, flow value that may be missing to the
            maximum, in units of capacity.
        imbalance (Tensor): Shape ``(B,)``, largest violation of conservation at a
            node, in units of capacity.
        iterations (Tensor): Shape ``(B,)``, int64, Newton systems solved.
    """

    duality_gap: Tensor
    imbalance: Tensor
    iterations: Tensor

    @staticmethod
    def worst(flows: SourceFlows) -> FlowDiagnostics:
        """Summarise the flows of an example's tokens."""
        return FlowDiagnostics(
            flows.duality_gap.amax(1), flows.imbalance.amax(1), flows.iterations.amax(1)
        )

    def select(self, rows: slice) -> FlowDiagnostics:
        """Return the diagnostics of some examples."""
        return FlowDiagnostics(
            self.duality_gap[rows], self.imbalance[rows], self.iterations[rows]
        )


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the tokens of every network of a batch.

    Attributes:
        scores (Tensor): Shape ``(B, T)``, float64, in ``[0, inf)``.
        diagnostics (FlowDiagnostics): How well the flows behind them were solved.
        joint_flow (FlowSolution or DeferredFlow): The flow of all tokens at once.
    """

    scores: Tensor
    diagnostics: FlowDiagnostics
    joint_flow: FlowSolution | DeferredFlow


def check_solver(solver: GameSolver) -> None:
    """Refuse anything but ``"auto"``, a solver's name or a solver.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if not (isinstance(solver, str) and solver == "auto"):
        find_solver(solver)


def score_tokens(
    network: LayeredNetwork, game: Game, solver: GameSolver = "auto"
) -> TokenScores:
    """Score the tokens of every network of a batch.

    Args:
        network (LayeredNetwork): The joint networks, all tokens as sources.
        game (str): ``"joint"`` or ``"independent"``.
        solver (str or FlowSolver): What solves all flows; ``"auto"`` takes the barrier
            for a joint flow, which it makes unique, and Dinic's algorithm for one flow
            per token, which it solves fastest.

    Returns:
        TokenScores: The scores, and the joint flow.

    Raises:
        FlowError: As :func:`captum_attnflow.flow.solvers.solve_flow`.
        ValueError: If it is not a network, or the game or the solver is unknown.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[0.2, 0.3], [0.0, 0.4]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[True, False]]),
        ... )
        >>> scores = score_tokens(network, "independent").scores[0]
        >>> [round(score, 4) for score in scores.tolist()]
        [0.2, 0.3]
    """
    check_choice("game", game, GAMES)
    check_solver(solver)
    check_network(network)
    return GAMES[game](network, solver)


def _joint(network: LayeredNetwork, solver: GameSolver) -> TokenScores:
    flow = solve_flow(network, "barrier" if solver == "auto" else solver)
    diagnostics = FlowDiagnostics(flow.duality_gap, flow.imbalance, flow.iterations)
    return TokenScores(flow.source_flow, diagnostics, flow)


def _independent(network: LayeredNetwork, solver: GameSolver) -> TokenScores:
    flows = solve_sources(network, "dinic" if solver == "auto" else solver)
    joint_flow = DeferredFlow(network, "barrier" if solver == "auto" else solver)
    return TokenScores(flows.value, FlowDiagnostics.worst(flows), joint_flow)


GAMES: dict[str, Callable[[LayeredNetwork, GameSolver], TokenScores]] = {
    "joint": _joint,
    "independent": _independent,
}


def check_normalization(normalization: Normalization) -> None:
    """Refuse anything but ``None`` or the name of a normalisation.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if normalization is not None:
        check_choice("normalization", normalization, ("receptive-field",))


def normalize(
    scores: Tensor, network: LayeredNetwork, normalization: Normalization
) -> Tensor:
    """Normalise token scores.

    Args:
        scores (Tensor): Shape ``(B, T)``, floats.
        network (LayeredNetwork): The networks that they come from.
        normalization (str, optional): ``"receptive-field"``, or None for no change.

    Returns:
        Tensor: Shape ``(B, T)``.

    Raises:
        ValueError: If scores and network do not fit, the normalisation is unknown, or a
            flow passes from a position to one before it: the receptive fields of an
            encoder are all the same.

    Examples::

        >>> network = LayeredNetwork(
        ...     capacity=torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]),
        ...     source=torch.tensor([[True, True]]),
        ...     sink=torch.tensor([[False, True]]),
        ... )
        >>> scores = torch.tensor([[0.6, 0.4]])
        >>> normalize(scores, network, "receptive-field")  # divided by 3 and 2
        tensor([[0.2000, 0.2000]])
    """
    check_network(network)
    check_tensor("scores", scores, "floats", (network.n_networks, network.n_tokens))
    check_normalization(normalization)
    if normalization is None:
        return scores
    check_causal(network)
    return scores / _receptive_field(network).to(scores)


def check_causal(network: LayeredNetwork) -> None:
    """Refuse networks in which a flow passes from a position to one before it.

    Args:
        network (LayeredNetwork): The networks whose scores are to be normalised.

    Raises:
        ValueError: Naming the examples.
    """
    # Padded queries may look ahead, but lie on no path to the read-out.
    looks_ahead = network.trim().capacity.triu(1).flatten(1).any(1)
    if bool(looks_ahead.any()):
        raise ValueError(
            'normalization="receptive-field" is for causal attention, but the examples '
            f"{looks_ahead.nonzero()[:, 0].tolist()} attend to later positions. In an "
            "encoder every token is read by all positions alike and there is nothing "
            "to normalise: leave normalization=None"
        )


def _receptive_field(network: LayeredNetwork) -> Tensor:
    """Positions from each one up to the predicted token, shape ``(B, T)``, int64."""
    positions = torch.arange(network.n_tokens, device=network.sink.device)
    last_read = torch.where(network.sink, positions, -1).amax(1, keepdim=True)
    # Tokens behind have a score of 0.
    return (last_read + 2 - positions).clamp_min(1)


@dataclass(frozen=True, eq=False)
class ConservedFlow:
    """A signed flow on the layered network of a batch of examples.

    Attributes:
        flow (Tensor): Shape ``(B, L, T, T)``, float64, in units of the output;
            ``flow[b, l, i, j]`` leads from node ``j`` of token layer ``l`` (below, the
            key) to node ``i`` of layer ``l + 1`` (above, the query). Residual edges are
            on the diagonal, with what attention hands from a position to itself.
        scores (Tensor): Shape ``(B, T)``, float64, the flow that leaves each token.
        imbalance (Tensor): Shape ``(B,)``, float64, the largest difference at a node
            between what enters and what leaves, in units of the output.
    """

    flow: Tensor
    scores: Tensor
    imbalance: Tensor


def conserve(messages: Tensor, read_out: Tensor) -> ConservedFlow:
    """Let relevance flow from the read-out down to the tokens.

    Args:
        messages (Tensor): Shape ``(B, L, T, T)``, float64, relevance that each key (in
            columns) gets from each query (in rows), in units of the output.
        read_out (Tensor): Shape ``(B, T)``, float64, relevance at the top; its sum is
            the output.

    Returns:
        ConservedFlow: Its scores sum to that of ``read_out``.

    Raises:
        ValueError: If one is not a tensor of floats of that shape, or not finite.

    Examples::

        >>> messages = torch.tensor([[[[0.0, 0.0], [0.75, 0.5]]]], dtype=torch.float64)
        >>> read_out = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
        >>> conserved = conserve(messages, read_out)
        >>> conserved.scores
        tensor([[0.7500, 1.2500]], dtype=torch.float64)
        >>> conserved.flow[0, 0]  # the second token keeps 0.75 and hands itself 0.5
        tensor([[0.0000, 0.0000],
                [0.7500, 1.2500]], dtype=torch.float64)
    """
    check_tensor("messages", messages, "floats", ("B", "L", "T", "T"))
    ends = (len(messages), messages.shape[-1])
    check_tensor("read_out", read_out, "floats", ends)
    check_finite("messages", messages)
    check_finite("read_out", read_out)
    flow = messages.clone()
    relevance = read_out
    imbalance = read_out.new_zeros(len(read_out))
    for layer in reversed(range(messages.shape[1])):
        edges = flow[:, layer]
        edges.diagonal(dim1=-2, dim2=-1).add_(relevance - edges.sum(-1))
        handed_on = edges.sum(-1)
        imbalance = torch.maximum(imbalance, (relevance - handed_on).abs().amax(1))
        relevance = edges.sum(-2)
    return ConservedFlow(flow, relevance, imbalance)


def read_out_relevance(
    output: Tensor, read_out: Tensor, streams: Tensor | None
) -> Tensor:
    r"""Share an output out among the positions where it is read.

    One position has it all. Several, as under mean pooling, have the relevance of
    their residual streams behind the last attention, and equal parts of the rest of
    the output (biases of the head).

    Args:
        output (Tensor): Shape ``(B,)``.
        read_out (Tensor): Shape ``(B, T)``, bool; without any, all positions.
        streams (Tensor, optional): Shape ``(B, T)``, stream times gradient.

    Returns:
        Tensor: Shape ``(B, T)``, float64, whose rows sum to the output.

    Raises:
        ValueError: If one is not a tensor of that kind and shape.

    Examples::

        >>> read_out_relevance(
        ...     torch.tensor([3.0]),
        ...     torch.tensor([[True, False, True]]),
        ...     torch.tensor([[2.0, 0.0, 0.0]]),
        ... )
        tensor([[2.5000, 0.0000, 0.5000]], dtype=torch.float64)
    """
    check_tensor("read_out", read_out, "bools", ("B", "T"))
    check_tensor("output", output, "floats", (len(read_out),))
    if streams is not None:
        check_tensor("streams", streams, "floats", read_out.shape)
    read = (read_out | ~read_out.any(1, keepdim=True)).double()
    of_streams = torch.zeros_like(read) if streams is None else streams.double() * read
    left = output.double() - of_streams.sum(1)
    return of_streams + read * (left / read.sum(1))[:, None]


def follow_position(scores: Tensor, network: LayeredNetwork) -> list[int]:
    """Find the examples whose scores order the tokens by position alone.

    Args:
        scores (Tensor): Shape ``(B, T)``.
        network (LayeredNetwork): Of the examples; one that is not causal, or reads out
            nothing, is never found.

    Returns:
        list[int]: The examples.
    """
    rows = zip(scores, network.capacity, network.sink, strict=True)
    return [example for example, row in enumerate(rows) if _follows_position(*row)]


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
    of_chance = math.tanh(_CHANCE * math.sqrt(_VARIANCE / (n - 3)))
    return abs(rho) > max(_POSITION_ALONE, of_chance)
