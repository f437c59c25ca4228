"""Flows and weights in closed form, compiled by Numba.

A task is a block of the heads of one layer. See :class:`ClosedForm`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from captum_attnflow.flow.solvers._barrier.by_numba.compiling import compiled
from captum_attnflow.flow.solvers._barrier.by_numba.edge_kernels import sum_of
from captum_attnflow.flow.solvers._barrier.by_numba.weights import decode, encode


@compiled()
def _place(task, n_blocks, n_layers, n_tokens):
    """Network, layer and rows of a task."""
    network, layer, block = (
        task // (n_layers * n_blocks),
        task // n_blocks % n_layers,
        task % n_blocks,
    )
    start, stop = block * n_tokens // n_blocks, (block + 1) * n_tokens // n_blocks
    return network, layer, start, stop


@compiled()
def _lesser_share(capacity, fall_high, fall_low, unit, unlimited, per_mu):
    """The capacity; the lesser of flow and room, as a share; whether it is the flow."""
    capacity = min(capacity / unit, unlimited)
    quotient = capacity * (fall_high + fall_low) * per_mu
    root = math.sqrt(quotient * quotient + 4)
    return capacity, 2 / (abs(quotient) + 2 + root), quotient > 0


@compiled()
def weigh(
    part,
    n_parts,
    n_blocks,
    capacity,
    scale,
    unlimited,
    high,
    low,
    mu,
    weight,
    columns,
    rows,
):
    """Set the weights; sum weights and flows by column of each task and by head.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        n_blocks (int): Blocks of a layer.
        capacity (array): Shape ``(B, L, T, T)``.
        scale (array): Shape ``(B,)``, unit of flows.
        unlimited (float): Capacity of edges that never bind, in that unit.
        high (array): Shape ``(B, L + 1, T)``, greater part of the potential.
        low (array): Shape ``(B, L + 1, T)``, the rest of it.
        mu (array): Shape ``(B,)``.
        weight (array): Shape ``(B, L, T, T)``, written.
        columns (array): Shape ``(tasks, 2, T)``, written: flows and weights.
        rows (array): Shape ``(2, B, L, T)``, written, the same.
    """
    _, n_layers, n_tokens, _ = capacity.shape
    flows = np.empty(n_tokens, high.dtype)
    weights = np.empty(n_tokens, high.dtype)
    for task in range(part, len(columns), n_parts):
        network, layer, start, stop = _place(task, n_blocks, n_layers, n_tokens)
        tail_high, tail_low = high[network, layer], low[network, layer]
        unit, per_mu = scale[network], 1 / mu[network]
        flow_column, weight_column = columns[task, 0], columns[task, 1]
        flow_column[:], weight_column[:] = 0, 0
        for row in range(start, stop):
            head_high = high[network, layer + 1, row]
            head_low = low[network, layer + 1, row]
            edges, out = capacity[network, layer, row], weight[network, layer, row]
            for j in range(n_tokens):
                total, share, is_flow = _lesser_share(
                    *(edges[j], tail_high[j] - head_high, tail_low[j] - head_low),
                    *(unit, unlimited, per_mu),
                )
                other = 1 - share
                flows[j] = total * (share if is_flow else other)
                across = total * share * other
                out[j] = encode(
                    across * across * per_mu / (share * share + other * other), out
                )
            for j in range(n_tokens):
                weights[j] = decode(out[j])
                flow_column[j] += flows[j]
                weight_column[j] += weights[j]
            rows[0, network, layer, row] = sum_of(flows)
            rows[1, network, layer, row] = sum_of(weights)


@compiled()
def fill(part, n_parts, n_blocks, capacity, scale, unlimited, high, low, mu, flow):
    """Write the flows, ``(B, L, T, T)``, in units of the capacities."""
    n_networks, n_layers, n_tokens, _ = capacity.shape
    n_tasks = n_networks * n_layers * n_blocks
    for task in range(part, n_tasks, n_parts):
        network, layer, start, stop = _place(task, n_blocks, n_layers, n_tokens)
        tail_high, tail_low = high[network, layer], low[network, layer]
        unit, per_mu = scale[network], 1 / mu[network]
        for row in range(start, stop):
            head_high = high[network, layer + 1, row]
            head_low = low[network, layer + 1, row]
            edges, out = capacity[network, layer, row], flow[network, layer, row]
            for j in range(n_tokens):
                total, share, is_flow = _lesser_share(
                    *(edges[j], tail_high[j] - head_high, tail_low[j] - head_low),
                    *(unit, unlimited, per_mu),
                )
                filled = total * (share if is_flow else 1 - share)
                # Scaling back may round a saturated edge past its capacity.
                out[j] = min(filled * unit, edges[j])


@compiled(parallel=True)
def weigh_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        weigh(np.int64(part), n_parts, *arguments)


@compiled(parallel=True)
def fill_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        fill(np.int64(part), n_parts, *arguments)
