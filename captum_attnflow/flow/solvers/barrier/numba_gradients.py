"""Conjugate gradients on the Laplacians of a batch, compiled by Numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from captum_attnflow.flow.solvers.barrier.numba_compiled import (
    add_scaled,
    compiled,
    dot,
    inlined,
)
from captum_attnflow.flow.solvers.barrier.numba_factors import Factors, solve_factors


class System(NamedTuple):
    """A batch of Laplacians, and what solves them approximately."""

    weight: NDArray[np.floating]  # (B, L * T * T) or longer, rows of the heads
    widths: NDArray[np.int64]  # (B, L * T), see row_widths
    diagonal: NDArray[np.float64]  # (B, L + 1, T)
    inverse: NDArray[np.float64]  # (B, L + 1, T), of the diagonal
    basis: NDArray[np.float64]  # (B, L + 1, 2, T), see set_preconditioner
    chain: NDArray[np.float64]  # (B, L, 4), the same
    factors: Factors  # empty where they do not precondition


@inlined
def _row(system, network, layer, head):
    """The weights into a head, up to the last that is not 0."""
    n_tokens = system.inverse.shape[2]
    row = layer * n_tokens + head
    begin = row * n_tokens
    return system.weight[network, begin : begin + system.widths[network, row]]


@compiled(any_order=True)
def _even_layers(part, n_parts, running, system, odd, seen, to_odd, gathers):
    """Eliminate even layers: set their values, and what odd layers see of these.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        running (array): Shape ``(B,)``, bool, networks to treat.
        system (System): The Laplacians.
        odd (array): Shape ``(B, (L + 1) // 2, T)``, values of odd layers.
        seen (array): Shape ``(B, L // 2 + 1, T)``, right side, and then the values.
        to_odd (array): Shape ``(B, L // 2 + 1, 2, T)``, written: the share of the layer
            below and of that above.
        gathers (bool): Whether odd values add to the right side.
    """
    n_layers = system.inverse.shape[1] - 1
    n_networks, n_even, n_tokens = seen.shape
    gathered = np.empty(n_tokens, seen.dtype)
    for task in range(part, n_networks * n_even, n_parts):
        network, index = task // n_even, task % n_even
        if not running[network]:
            continue
        layer = 2 * index
        even, scale = seen[network, index], system.inverse[network, layer]
        # Apart from the right side, which may be so large that small terms are lost.
        gathered[:] = 0
        if gathers and layer < n_layers:
            above = odd[network, index]
            for i in range(n_tokens):
                edges = _row(system, network, layer, i)
                add_scaled(edges, above[i], gathered[: edges.size])
        if layer == 0:
            for i in range(n_tokens):
                even[i] = (even[i] + gathered[i]) * scale[i]
        else:
            below = odd[network, index - 1]
            share = to_odd[network, index, 0]
            share[:] = 0
            for i in range(n_tokens):
                edges = _row(system, network, layer - 1, i)
                if gathers:
                    gathered[i] += dot(edges, below[: edges.size])
                even[i] = (even[i] + gathered[i]) * scale[i]
                add_scaled(edges, even[i], share[: edges.size])
        if layer < n_layers:
            share = to_odd[network, index, 1]
            for i in range(n_tokens):
                edges = _row(system, network, layer, i)
                share[i] = dot(edges, even[: edges.size])


@compiled(parallel=True)
def _even_layers_parallel(n_parts, running, system, odd, seen, to_odd, gathers):
    # A loop in threads takes arrays and numbers alone.
    weight, widths, diagonal, inverse, basis, chain, factors = system
    rows, ends, pivots = factors
    for part in prange(n_parts):
        _even_layers(
            np.int64(part),
            n_parts,
            running,
            System(
                *(weight, widths, diagonal, inverse, basis, chain),
                Factors(rows, ends, pivots),
            ),
            odd,
            seen,
            to_odd,
            gathers,
        )


@compiled(any_order=True)
def _eliminate(n_parts, running, system, odd, seen, to_odd, gathers):
    if n_parts == 1:
        _even_layers(0, 1, running, system, odd, seen, to_odd, gathers)
    else:
        _even_layers_parallel(n_parts, running, system, odd, seen, to_odd, gathers)


@compiled(any_order=True)
def _copy_even(nodes, out):
    for network in range(out.shape[0]):
        for index in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[network, index, j] = nodes[network, 2 * index, j]


@inlined
def _odd_share(to_odd, network, index, position):
    """What an odd node sees of the even layers."""
    share = to_odd[network, index, 1, position]
    if index + 1 < to_odd.shape[1]:
        share += to_odd[network, index + 1, 0, position]
    return share


@compiled(any_order=True)
def set_preconditioner(sums, inverse, basis, chain):
    """Prepare the exact solver of the Laplacian with blocks of rank one.

    See :class:`RankOnePreconditioner`. The two numbers that the layers at both ends of
    a block of edges see of each other are one unknown of two in a chain over the
    blocks, which is eliminated from the first to the last.

    Args:
        sums (array): Shape ``(B, L + 1, 2, T)``, see :func:`node_sums`.
        inverse (array): Shape ``(B, L + 1, T)``, of the diagonal.
        basis (array): Shape ``(B, L + 1, 2, T)``, written: vectors over the diagonal.
        chain (array): Shape ``(B, L, 4)``, written: the inverse of each block once
            those before are eliminated, symmetric, and its coupling to the one before.
    """
    n_networks, n_nodes, _, n_tokens = sums.shape
    n_layers = n_nodes - 1
    one = sums.dtype.type(1)
    tiny = np.finfo(sums.dtype).tiny
    roots = np.zeros(n_layers + 2, sums.dtype)
    for network in range(n_networks):
        for layer in range(n_layers):
            total = sums.dtype.type(0)
            for j in range(n_tokens):
                total += sums[network, layer + 1, 0, j]
            roots[layer + 1] = one / np.sqrt(max(total, tiny))
        for node in range(n_nodes):
            for side in range(2):
                root = roots[node + side]
                for j in range(n_tokens):
                    scaled = sums[network, node, side, j] * root
                    basis[network, node, side, j] = scaled * inverse[network, node, j]
        before = sums.dtype.type(0)
        for layer in range(n_layers):
            low = roots[layer + 1] * dot(
                sums[network, layer, 1], basis[network, layer, 1]
            )
            high = roots[layer + 1] * dot(
                sums[network, layer + 1, 0], basis[network, layer + 1, 0]
            )
            coupling = sums.dtype.type(0)
            if layer:
                coupling = -roots[layer + 1] * dot(
                    sums[network, layer, 1], basis[network, layer, 0]
                )
                low += coupling * coupling * before
            # The inverse of [[-low, 1], [1, -high]].
            scale = one / (low * high - one)
            before = -low * scale
            chain[network, layer, 0] = -high * scale
            chain[network, layer, 1] = -scale
            chain[network, layer, 2] = before
            chain[network, layer, 3] = coupling


@compiled(any_order=True)
def _precondition(network, residual, inverse, basis, chain, out):
    n_layers = chain.shape[1]
    n_odd, n_tokens = residual.shape[1:]
    low = np.zeros(n_layers, chain.dtype)
    high = np.zeros(n_layers, chain.dtype)
    for index in range(n_odd):
        node = 2 * index + 1
        high[node - 1] = dot(basis[network, node, 0], residual[network, index])
        if node < n_layers:
            low[node] = dot(basis[network, node, 1], residual[network, index])
    for layer in range(n_layers):
        if layer:
            low[layer] -= chain[network, layer, 3] * high[layer - 1]
        first, second = low[layer], high[layer]
        across = chain[network, layer, 1]
        low[layer] = chain[network, layer, 0] * first + across * second
        high[layer] = across * first + chain[network, layer, 2] * second
    for layer in range(n_layers - 2, -1, -1):
        back = chain[network, layer + 1, 3] * low[layer + 1]
        low[layer] -= chain[network, layer, 1] * back
        high[layer] -= chain[network, layer, 2] * back
    for index in range(n_odd):
        node = 2 * index + 1
        for j in range(n_tokens):
            value = inverse[network, node, j] * residual[network, index, j]
            value += basis[network, node, 0, j] * high[node - 1]
            if node < n_layers:
                value += basis[network, node, 1, j] * low[node]
            out[network, index, j] = value


@compiled(any_order=True)
def conjugate_gradients(n_parts, system, right_side, tolerance, max_iterations, out):
    """Solve until every residual is small at every node; return whether they are.

    Args:
        n_parts (int): Threads to use.
        system (System): The Laplacians.
        right_side (array): Shape ``(B, L + 1, T)``.
        tolerance (array): Shape ``(B,)``, largest residual at a node.
        max_iterations (int): Iterations before giving up.
        out (array): Shape ``(B, L + 1, T)``, written.
    """
    diagonal, inverse = system.diagonal, system.inverse
    basis, chain, factors = system.basis, system.chain, system.factors
    n_networks, n_nodes, n_tokens = right_side.shape
    n_odd, n_even = n_nodes // 2, (n_nodes + 1) // 2
    dtype = right_side.dtype
    least = np.finfo(dtype).tiny
    running = np.ones(n_networks, np.bool_)
    is_factored = factors.rows.shape[2] > 0
    even = np.empty((n_networks, n_even, n_tokens), dtype)
    even_solution = np.zeros_like(even)
    to_odd = np.zeros((n_networks, n_even, 2, n_tokens), dtype)
    solution = np.zeros((n_networks, n_odd, n_tokens), dtype)
    direction = np.zeros_like(solution)
    residual = np.empty_like(solution)
    step = np.empty_like(solution)
    energy = np.ones(n_networks, dtype)
    _copy_even(right_side, even)
    # Not the literal False, which Numba would compile for as a type of its own.
    gathers = n_parts < 1
    _eliminate(n_parts, running, system, solution, even, to_odd, gathers)
    for network in range(n_networks):
        for index in range(n_odd):
            for j in range(n_tokens):
                residual[network, index, j] = right_side[
                    network, 2 * index + 1, j
                ] + _odd_share(to_odd, network, index, j)
    for _ in range(max_iterations):
        for network in range(n_networks):
            if not running[network]:
                continue
            if is_factored:
                solve_factors(
                    residual[network],
                    Factors(
                        factors.rows[network],
                        factors.ends[network],
                        factors.pivots[network],
                    ),
                    step[network],
                )
            else:
                _precondition(network, residual, inverse, basis, chain, step)
            before = energy[network]
            energy[network] = dot(step[network].ravel(), residual[network].ravel())
            momentum = energy[network] / max(before, least)
            for index in range(n_odd):
                for j in range(n_tokens):
                    direction[network, index, j] = (
                        step[network, index, j]
                        + momentum * direction[network, index, j]
                    )
        even[:] = 0
        _eliminate(n_parts, running, system, direction, even, to_odd, not gathers)
        for network in range(n_networks):
            if not running[network]:
                continue
            for index in range(n_odd):
                for j in range(n_tokens):
                    # The image of the direction.
                    step[network, index, j] = diagonal[
                        network, 2 * index + 1, j
                    ] * direction[network, index, j] - _odd_share(
                        to_odd, network, index, j
                    )
            curvature = dot(direction[network].ravel(), step[network].ravel())
            length = energy[network] / max(curvature, least)
            small = True
            for index in range(n_odd):
                for j in range(n_tokens):
                    solution[network, index, j] += length * direction[network, index, j]
                    residual[network, index, j] -= length * step[network, index, j]
                    # Not so if it is not a number.
                    small &= abs(residual[network, index, j]) <= tolerance[network]
            # Even nodes follow from the odd ones, as these from the directions.
            add_scaled(even[network].ravel(), length, even_solution[network].ravel())
            running[network] = not small
        if not running.any():
            break
    all_small = not running.any()
    for network in range(n_networks):
        for node in range(n_nodes):
            for j in range(n_tokens):
                if node % 2:
                    value = solution[network, node // 2, j]
                else:
                    value = right_side[network, node, j] * inverse[network, node, j]
                    value += even_solution[network, node // 2, j]
                out[network, node, j] = value
    return all_small
