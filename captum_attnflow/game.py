r"""From flows to token scores: which cooperative game a score belongs to.

The players are the input tokens.

- ``"joint"``: all tokens send at once. A token's score is the flow that leaves it in
  one maximum flow of the whole network; the scores sum to the flow value. They are
  Shapley values of the game in which a coalition is worth the flow that its tokens
  carry *in that flow* (Ethayarajh & Jurafsky 2021), not of the game that solves the
  flow anew for each coalition.
- ``"independent"``: every token sends alone, one maximum flow per token (Abnar &
  Zuidema 2020). A score is the value of a flow, hence unique; the scores do not sum to
  the joint flow value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow.network import LayeredNetwork
from captum_attnflow.result import Explanation, FlowDiagnostics
from captum_attnflow.solve import FlowSolution, FlowSolver, solve_flow

Game = Literal["joint", "independent"]

_MAX_EDGES_AT_ONCE = 1 << 22


def play(network: LayeredNetwork, game: Game, solver: FlowSolver) -> Explanation:
    """Score the tokens of every network of a batch.

    Args:
        network (LayeredNetwork): The joint networks, all tokens as sources.
        game (str): ``"joint"`` or ``"independent"``.
        solver (FlowSolver): Solves the flows.

    Returns:
        Explanation: Scores with the joint network, its flow and its cut.
    """
    joint = solve_flow(network, solver)
    scores, diagnostics = GAMES[game](network, joint, solver)
    return Explanation(
        scores=scores,
        flow_value=joint.value,
        network=network,
        flow=joint.flow,
        cut=joint.cut,
        diagnostics=diagnostics,
    )


def _joint_scores(
    network: LayeredNetwork, joint: FlowSolution, solver: FlowSolver
) -> tuple[Tensor, FlowDiagnostics]:
    return joint.source_flow, FlowDiagnostics(
        joint.duality_gap, joint.imbalance, joint.iterations
    )


def _independent_scores(
    network: LayeredNetwork, joint: FlowSolution, solver: FlowSolver
) -> tuple[Tensor, FlowDiagnostics]:
    """Solve the flows of all tokens of all examples, as many at once as fit."""
    scores = torch.zeros_like(joint.value)[:, None].repeat(1, network.n_tokens)
    worst = FlowDiagnostics(
        *(
            torch.zeros_like(per_network)
            for per_network in (joint.duality_gap, joint.imbalance, joint.iterations)
        )
    )
    _, to_sink = network.reachable()
    example, token = to_sink[:, 0].nonzero(as_tuple=True)
    at_once = max(1, _MAX_EDGES_AT_ONCE // max(1, network.capacity[0].numel()))
    for rows, tokens in zip(example.split(at_once), token.split(at_once), strict=True):
        solution = solve_flow(_one_source_each(network, rows, tokens), solver)
        scores[rows, tokens] = solution.value
        for name, so_far in vars(worst).items():
            so_far.scatter_reduce_(0, rows, getattr(solution, name), "amax")
    return scores, worst


def _one_source_each(
    network: LayeredNetwork, rows: Tensor, tokens: Tensor
) -> LayeredNetwork:
    """One network per token, which is its only source.

    A token whose own residual path never binds would have an unbounded flow to its own
    read-out; it is scored by what it sends to the others.
    """
    capacity = network.capacity[rows]
    alone = torch.zeros_like(network.source[rows])
    alone[torch.arange(len(rows)), tokens] = True
    unbounded = capacity.diagonal(dim1=-2, dim2=-1).isinf().all(1)
    return LayeredNetwork(
        capacity=capacity, source=alone, sink=network.sink[rows] & ~(alone & unbounded)
    )


GAMES: dict[
    str,
    Callable[
        [LayeredNetwork, FlowSolution, FlowSolver], tuple[Tensor, FlowDiagnostics]
    ],
] = {"joint": _joint_scores, "independent": _independent_scores}
