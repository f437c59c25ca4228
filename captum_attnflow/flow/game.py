r"""From flows to token scores: which cooperative game a score belongs to.

The players are the input tokens.

- ``"joint"``: all tokens send at once. A token's score is the flow that leaves it in
  one maximum flow of the whole network; the scores sum to the flow value. They are
  Shapley values of the game in which a coalition is worth the flow that its tokens
  carry *in that flow* (Ethayarajh & Jurafsky 2021), not of the game that solves the
  flow anew for each coalition.
- ``"independent"``: every token sends alone, one maximum flow per token (Abnar &
  Zuidema 2020). A score is the value of a flow, hence unique; the scores do not sum to
  the joint flow value. No score needs the joint flow, so it is solved when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from captum_attnflow._options import check_choice
from captum_attnflow.explanation import Explanation, FlowDiagnostics
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers import (
    DeferredFlow,
    FlowSolver,
    SolverName,
    check_network,
    find_solver,
    solve_flow,
    solve_sources,
)

Game = Literal["joint", "independent"]
GameSolver = SolverName | Literal["auto"] | FlowSolver


def check_solver(solver: GameSolver) -> None:
    """Refuse anything but ``"auto"``, a solver's name or a solver.

    Raises:
        ValueError: Naming what was given and what is accepted.
    """
    if not (isinstance(solver, str) and solver == "auto"):
        find_solver(solver)


def play(
    network: LayeredNetwork, game: Game, solver: GameSolver = "auto"
) -> Explanation:
    """Score the tokens of every network of a batch.

    Args:
        network (LayeredNetwork): The joint networks, all tokens as sources.
        game (str): ``"joint"`` or ``"independent"``.
        solver (str or FlowSolver): ``"auto"``, or what solves all flows.

    Returns:
        Explanation: Scores with the joint network, its flow and its cut.

    Raises:
        FlowError: As :func:`captum_attnflow.flow.solvers.solve_flow`.
        ValueError: If it is no network, or the game or the solver is unknown.
    """
    check_choice("game", game, GAMES)
    check_solver(solver)
    check_network(network)
    return GAMES[game](network, solver)


def _joint(network: LayeredNetwork, solver: GameSolver) -> Explanation:
    flow = solve_flow(network, "barrier" if solver == "auto" else solver)
    diagnostics = FlowDiagnostics(flow.duality_gap, flow.imbalance, flow.iterations)
    return Explanation(flow.source_flow, network, flow, diagnostics)


def _independent(network: LayeredNetwork, solver: GameSolver) -> Explanation:
    flows = solve_sources(network, "scipy" if solver == "auto" else solver)
    joint = DeferredFlow(network, "barrier" if solver == "auto" else solver)
    return Explanation(flows.value, network, joint, FlowDiagnostics.worst(flows))


GAMES: dict[str, Callable[[LayeredNetwork, GameSolver], Explanation]] = {
    "joint": _joint,
    "independent": _independent,
}
