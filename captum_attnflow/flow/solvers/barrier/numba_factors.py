"""Factors of the layers of a Laplacian in float32, compiled by Numba."""

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
    sum_of,
)

# Nodes that are eliminated together, as one pass over as many rows is fast; all of a
# block before the others of their layer; and floats that a cache line holds.
_TOGETHER = 8
_BLOCK = 32
LINE = 16
# What the largest diagonal is scaled to: float32 reaches from 1e-38 to 1e38.
_LARGEST = 1e30
_LEAST = np.finfo(np.float32).tiny


class Factors(NamedTuple):
    """Nodes in the order of their elimination, see :func:`factor`.

    The row of a node holds what it conducts when it is eliminated: to later nodes of
    its layer, by position; from column ``N`` on to the ground; and from column ``N +
    LINE`` on to the nodes of the layer below. So all stand side by side. ``N`` is ``T``
    rounded up to a multiple of ``LINE``.
    """

    rows: NDArray[np.float32]  # (B, L + 1, N, 2 N + LINE)
    ends: NDArray[np.int64]  # (B, L + 1, N), columns that a row reaches
    pivots: NDArray[np.float32]  # (B, L + 1, N), inverse sums of the rows


@inlined
def _add_rows(shares, rows, begin, end, out):
    """Add shares of ``_TOGETHER`` rows, between two columns, in one pass over these."""
    first, second = rows[0, begin:end], rows[1, begin:end]
    third, fourth = rows[2, begin:end], rows[3, begin:end]
    fifth, sixth = rows[4, begin:end], rows[5, begin:end]
    seventh, eighth = rows[6, begin:end], rows[7, begin:end]
    a, b, c, d = shares[0], shares[1], shares[2], shares[3]
    e, f, g, h = shares[4], shares[5], shares[6], shares[7]
    for j in range(out.size):
        out[j] += (a * first[j] + b * second[j] + c * third[j] + d * fourth[j]) + (
            e * fifth[j] + f * sixth[j] + g * seventh[j] + h * eighth[j]
        )


@compiled(any_order=True)
def _set_rows(weight, widths, diagonal, ground, rows, ends):
    """Write what a network's nodes conduct, scaled to the largest."""
    n_nodes, n_tokens = diagonal.shape
    n_padded = rows.shape[1]
    to_tails = n_padded + LINE
    scale = _LARGEST / diagonal.max()
    rows[:] = 0
    for node in range(n_nodes):
        end = n_padded + 1
        for j in range(n_padded):
            if j < n_tokens:
                rows[node, j, n_padded] = scale * ground[node, j]
                if node:
                    edges = (node - 1) * n_tokens + j
                    width = widths[edges]
                    begin = edges * n_tokens
                    for k in range(width):
                        rows[node, j, to_tails + k] = scale * weight[begin + k]
                    end = max(end, to_tails + width)
            ends[node, j] = end


@compiled(any_order=True)
def _pass_on(part, n_parts, first, last, start, stop, factors):
    """Pass what nodes conduct that are eliminated on to later ones of their layer."""
    rows, ends, pivots = factors
    shares = np.empty(_TOGETHER, rows.dtype)
    for node in range(start + part, stop, n_parts):
        # What stands before the node's own column is never read.
        begin = (node + 1) // LINE * LINE
        for other in range(first, last, _TOGETHER):
            end = ends[other + _TOGETHER - 1]
            for k in range(_TOGETHER):
                shares[k] = rows[other + k, node] * pivots[other + k]
            eliminated = rows[other : other + _TOGETHER]
            _add_rows(shares, eliminated, begin, end, rows[node, begin:end])


@compiled(parallel=True)
def _pass_on_parallel(n_parts, first, last, start, stop, rows, ends, pivots):
    for part in prange(n_parts):
        factors = Factors(rows, ends, pivots)
        _pass_on(np.int64(part), n_parts, first, last, start, stop, factors)


@compiled(any_order=True)
def _pass_below(part, n_parts, factors, below):
    """Pass what the nodes of a layer conduct on to those of the layer below."""
    rows, ends, pivots = factors
    n_nodes = len(rows)
    to_tails = n_nodes + LINE
    shares = np.empty(_TOGETHER, rows.dtype)
    for first in range(0, n_nodes, _BLOCK):
        last = min(first + _BLOCK, n_nodes)
        for tail in range(part, ends[last - 1] - to_tails, n_parts):
            begin = tail // LINE * LINE
            ground = rows.dtype.type(0)
            for node in range(first, last, _TOGETHER):
                end = ends[node + _TOGETHER - 1] - to_tails
                if begin >= end:
                    continue
                for k in range(_TOGETHER):
                    shares[k] = rows[node + k, to_tails + tail] * pivots[node + k]
                    ground += shares[k] * rows[node + k, n_nodes]
                _add_rows(
                    shares,
                    rows[node : node + _TOGETHER],
                    to_tails + begin,
                    to_tails + end,
                    below[tail, begin:end],
                )
            below[tail, n_nodes] += ground


@compiled(parallel=True)
def _pass_below_parallel(n_parts, rows, ends, pivots, below):
    for part in prange(n_parts):
        _pass_below(np.int64(part), n_parts, Factors(rows, ends, pivots), below)


@compiled(any_order=True)
def _eliminate_layer(n_threads, factors):
    rows, ends, pivots = factors
    n_nodes = len(rows)
    for start in range(0, n_nodes, _BLOCK):
        stop = min(start + _BLOCK, n_nodes)
        for first in range(start, stop, _TOGETHER):
            last = first + _TOGETHER
            for node in range(first, last):
                row = rows[node, node + 1 : ends[node]]
                for other in range(first, node):
                    share = rows[other, node] * pivots[other]
                    add_scaled(rows[other, node + 1 : ends[node]], share, row)
                total = sum_of(row)
                # Of less, as where there is no edge, the inverse would be infinite.
                pivots[node] = 1 / total if total >= _LEAST else 0.0
            _pass_on(0, 1, first, last, last, stop, factors)
        if n_threads == 1:
            _pass_on(0, 1, start, stop, stop, n_nodes, factors)
        else:
            _pass_on_parallel(n_threads, start, stop, stop, n_nodes, rows, ends, pivots)


@compiled(any_order=True)
def factor(part, n_parts, n_threads, weight, widths, diagonal, ground, factors):
    """Factor Laplacians node by node, without a difference.

    A node that is eliminated leaves conductances between all that it was joined to, the
    products of its own over their sum, and the same to the ground. Nothing is taken
    away, so each conductance is right to a few last places even where they span many
    orders: sums of the others stand for what Cholesky's method gets by differences
    (Grassmann, Taksar & Heyman 1985). So float32 is enough for a preconditioner. Nodes
    are eliminated from the last layer to the first, and from the first position to the
    last: in causal networks a row then never reaches beyond its own position.

    Args:
        part (int): Which of the parts to do, each some of the networks.
        n_parts (int): Parts in all.
        n_threads (int): Threads to use for each network.
        weight (array): Shape ``(B, L * T * T)`` or longer, rows of the heads.
        widths (array): Shape ``(B, L * T)``, see :func:`row_widths`.
        diagonal (array): Shape ``(B, L + 1, T)``.
        ground (array): Shape ``(B, L + 1, T)``, conductance to the ground.
        factors (Factors): Written.
    """
    rows, ends, pivots = factors
    for network in range(part, len(rows), n_parts):
        _set_rows(
            *(weight[network], widths[network], diagonal[network], ground[network]),
            *(rows[network], ends[network]),
        )
        for node in range(rows.shape[1] - 1, -1, -1):
            layer = Factors(
                rows[network, node], ends[network, node], pivots[network, node]
            )
            _eliminate_layer(n_threads, layer)
            if node == 0:
                continue
            below = rows[network, node - 1]
            if n_threads == 1:
                _pass_below(0, 1, layer, below)
            else:
                _pass_below_parallel(
                    *(n_threads, layer.rows, layer.ends, layer.pivots, below)
                )


@compiled(parallel=True)
def factor_parallel(n_parts, n_threads, weight, widths, diagonal, ground, factors):
    rows, ends, pivots = factors
    for part in prange(n_parts):
        factor(
            *(np.int64(part), n_parts, n_threads, weight, widths, diagonal, ground),
            Factors(rows, ends, pivots),
        )


@compiled(any_order=True)
def solve_factors(residual, factors, out):
    """Solve by the factors for odd layers, with 0 on the even ones."""
    rows, ends, pivots = factors
    n_odd, n_tokens = residual.shape
    n_nodes, n_padded, _ = rows.shape
    stride = n_padded + LINE
    # As rows have it: the last layer first, and the ground between two layers, at 0.
    values = np.zeros((n_nodes + 1) * stride, residual.dtype)
    for index in range(n_odd):
        begin = (n_nodes - 2 - 2 * index) * stride
        values[begin : begin + n_tokens] = residual[index]
    for node in range(n_nodes - 1, -1, -1):
        begin = (n_nodes - 1 - node) * stride
        for j in range(n_tokens):
            value = values[begin + j] * pivots[node, j]
            values[begin + j] = value
            others = values[begin + j + 1 : begin + ends[node, j]]
            add_scaled(rows[node, j, j + 1 : ends[node, j]], value, others)
        values[begin + n_padded : begin + stride] = 0
    for node in range(n_nodes):
        begin = (n_nodes - 1 - node) * stride
        for j in range(n_tokens - 1, -1, -1):
            others = values[begin + j + 1 : begin + ends[node, j]]
            seen = dot(rows[node, j, j + 1 : ends[node, j]], others)
            values[begin + j] += pivots[node, j] * seen
    for index in range(n_odd):
        begin = (n_nodes - 2 - 2 * index) * stride
        out[index] = values[begin : begin + n_tokens]
