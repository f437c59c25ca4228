"""The barrier problem of GAF's Eq. 12, posed to a generic convex solver."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from captum_attnflow.flow.network import LayeredNetwork


def solve_with_cvxpy(network: LayeredNetwork, mu: float) -> np.ndarray:
    """Flow that leaves each token of the first (trimmed) network of a batch."""
    capacity = network.capacity[0].numpy()
    n_layers, n_tokens = network.n_layers, network.n_tokens
    inflow: dict[tuple[int, int], list] = {}
    outflow: dict[tuple[int, int], list] = {}
    barrier = []

    def add_edge(tail, head, bound):
        flow = cp.Variable()
        outflow.setdefault(tail, []).append(flow)
        inflow.setdefault(head, []).append(flow)
        barrier.append(cp.log(flow))
        if np.isfinite(bound):
            barrier.append(cp.log(bound - flow))
        return flow

    for layer, head, tail in np.argwhere(capacity > 0):
        add_edge((layer, tail), (layer + 1, head), capacity[layer, head, tail])
    sent = [
        add_edge("source", (0, j), np.inf) if network.source[0, j] else 0.0
        for j in range(n_tokens)
    ]
    received = [
        add_edge((n_layers, i), "sink", np.inf)
        for i in range(n_tokens)
        if network.sink[0, i]
    ]
    conserved = [
        cp.sum(inflow[node]) == cp.sum(outflow[node])
        for node in inflow
        if node in outflow
    ]
    # In units of mu, so that the solver's tolerances mean something.
    objective = cp.sum(received) / mu + cp.sum(barrier)
    problem = cp.Problem(cp.Maximize(objective), conserved)
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_ktratio")
    problem.solve(solver=cp.CLARABEL, **dict.fromkeys(tolerances, 1e-13))
    return np.array([float(getattr(flow, "value", flow)) for flow in sent])
