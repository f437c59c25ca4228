"""The passes over the edges of a Newton step, fused and compiled by Numba.

Each pass reads an edge's numbers once, and writes nothing by the edge except the new
iterate and its weight. What a pass needs of an earlier one it computes again, since
memory is slower than arithmetic. :class:`NumbaPasses` has the equations.

The edges of a network are rows of ``T``: the heads of the inner layers one after the
other, then the source's edges, then the sink's. Rows whose edges have their tails in
common are a *group*, and a group is cut into blocks of rows. A task is one block; the
part ``k`` of ``n`` takes every ``n``-th task from the ``k``-th on. A task sums in
lanes, one for each position of a row, and so compiles to vector instructions without
any reordering: a step and its ratio test have to be rounded alike.

A row is read up to its last edge: over its *width*. In causal networks, whose rows end
at the diagonal, that is half of all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from captum_attnflow.flow.solvers.barrier.numba_compiled import (
    compiled,
    inlined,
    sum_of,
)


class Layout(NamedTuple):
    """How the edges of each network are cut into tasks."""

    n_blocks: int  # of a group
    n_layers: int  # of edges
    n_tokens: int


class Edges(NamedTuple):
    """An iterate's edges."""

    slack: NDArray[np.floating]  # (2, B, E)
    multiplier: NDArray[np.floating]  # (2, B, E)
    weight: NDArray[np.floating]  # (B, E), 0 beyond widths
    alive: NDArray[np.bool_]  # (B, E)
    widths: NDArray[np.int64]  # (B, E / T, 2), see row_widths


class Predictor(NamedTuple):
    """What is known of a step before its barrier parameter is chosen."""

    second_order: NDArray[np.float64]  # (B,), 1 with second-order terms and else 0
    potential: NDArray[np.float64]  # (B, L + 1, T), after the predictor's step
    before: NDArray[np.float64]  # (B, L + 1, T), potential of the iterate


class Sums(NamedTuple):
    """Sums of a quantity of the edges."""

    columns: NDArray[np.float64]  # (tasks, T), over the rows of each task
    nodes: NDArray[np.float64]  # (B, L + 1, 2, T), into each node and out of it


@compiled()
def row_widths(edges, n_tokens, widths):
    """Write how far each row reaches: up to its last edge.

    Args:
        edges (array): Shape ``(B, R * T)`` or longer, 0 where there is no edge.
        n_tokens (int): The length ``T`` of a row.
        widths (array): Shape ``(B, R)``, written.
    """
    for network in range(widths.shape[0]):
        for row in range(widths.shape[1]):
            width = n_tokens
            while width > 0 and not edges[network, row * n_tokens + width - 1]:
                width -= 1
            widths[network, row] = width


@compiled()
def _place(task, layout):
    """Network and group of a task, its first row, and its rows within the group."""
    n_blocks, n_layers, n_tokens = layout
    n_groups = n_layers + 2
    network, group = task // (n_groups * n_blocks), task // n_blocks % n_groups
    n_rows = n_tokens if group < n_layers else 1
    first = group * n_tokens if group <= n_layers else n_layers * n_tokens + 1
    block = task % n_blocks
    start, stop = block * n_rows // n_blocks, (block + 1) * n_rows // n_blocks
    return network, group, first, start, stop


@compiled()
def _set_tail(potential, group, n_layers, at_source, out):
    """Write the potentials of a group's tails, for heads as :func:`_head` has them."""
    for j in range(out.size):
        if group < n_layers:
            out[j] = potential[group, j]
        elif group == n_layers:
            out[j] = at_source - potential[0, j]
        else:
            out[j] = potential[n_layers, j]


@inlined
def _head(potential, group, row, n_layers):
    """Potential of a row's head; terminals' edges count as if into a node at 0."""
    if group < n_layers:
        return potential[group + 1, row]
    return potential.dtype.type(0)


@inlined
def _second_order_term(per_slack, multiplier, dx, second_order):
    ratio = dx * per_slack
    return second_order * (ratio + ratio * ratio) * multiplier


@compiled()
def _full_step(
    per_x, per_y, z, s, w, rise_predicted, rise, rise_of_change, second_order, step_mu
):
    """The change of an edge's flow, and both multipliers that it leads to."""
    predicted = w * rise_predicted
    correction_x = (
        _second_order_term(per_x, z, predicted, second_order) + step_mu * per_x
    )
    correction_y = (
        _second_order_term(per_y, s, predicted, second_order) + step_mu * per_y
    )
    dx = w * (rise + correction_x + correction_y) + w * rise_of_change
    return dx, correction_x - z * (dx * per_x), correction_y - s * (dx * per_y)


@compiled()
def add_columns(layout, sums):
    """Add what each task summed over its rows to the sums of the nodes.

    Args:
        layout (Layout): How edges are cut into tasks.
        sums (Sums): Its nodes are added to.
    """
    n_layers = layout.n_layers
    for task in range(len(sums.columns)):
        network, group, _, _, _ = _place(task, layout)
        node, side = group, 1
        if group == n_layers:
            node, side = 0, 0
        elif group > n_layers:
            node = n_layers
        for j in range(layout.n_tokens):
            sums.nodes[network, node, side, j] += sums.columns[task, j]


@compiled()
def predict(part, n_parts, layout, edges, predictor, fixed_sums, mu_sums, out):
    """Look at the predictor, and sum the change of flow at the potential as it is.

    That change is linear in the step's barrier parameter, which is not known yet. It is
    summed in two: a fixed part, and a part to be multiplied by the parameter. Each is
    rounded by itself. Their sum so differs from the change that is made by a last place
    of flow or slack, whose own rounding unbalances as much.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        layout (Layout): How edges are cut into tasks.
        edges (Edges): The iterate's edges.
        predictor (Predictor): The affine-scaling step.
        fixed_sums (Sums): Columns are written, nodes added to.
        mu_sums (Sums): The same.
        out (array): Shape ``(tasks, 4)``, written: the predictor's least and most
            ratio, cost and gain.
    """
    _, n_layers, n_tokens = layout
    slack = edges.slack
    one = slack.dtype.type(1)
    of_nodes = np.empty((6, n_tokens), predictor.potential.dtype)
    tail_predicted, tail, cost = of_nodes[0], of_nodes[1], of_nodes[2]
    gain, fixed, per_mu = of_nodes[3], of_nodes[4], of_nodes[5]
    lanes = np.empty((2, n_tokens), slack.dtype)
    least, most = lanes[0], lanes[1]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, layout)
        predicted, before = predictor.potential[network], predictor.before[network]
        _set_tail(predicted, group, n_layers, -1, tail_predicted)
        _set_tail(before, group, n_layers, -1, tail)
        all_x, all_y = slack[0, network], slack[1, network]
        all_z, all_s = edges.multiplier[0, network], edges.multiplier[1, network]
        all_w, widths = edges.weight[network], edges.widths[network]
        second = slack.dtype.type(predictor.second_order[network])
        fixed_column, mu_column = fixed_sums.columns[task], mu_sums.columns[task]
        fixed_column[:], mu_column[:] = 0, 0
        least[:], most[:], cost[:], gain[:] = 0, 0, 0, 0
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            width = widths[first + row]
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s = all_z[begin:end], all_s[begin:end]
            head_predicted = _head(predicted, group, row, n_layers)
            head = _head(before, group, row, n_layers)
            for j in range(width):
                per_x, per_y, edge = one / x[j], one / y[j], w[j]
                rise = slack.dtype.type(head_predicted - tail_predicted[j])
                dx = edge * rise
                ratio_x, ratio_y = dx * per_x, dx * per_y
                least[j] = min(least[j], min(ratio_x, ratio_y))
                most[j] = max(most[j], max(ratio_x, ratio_y))
                cost[j] += dx * (z[j] + s[j])
                gain[j] += dx * rise
                correction = _second_order_term(per_x, z[j], dx, second)
                correction += _second_order_term(per_y, s[j], dx, second)
                fixed[j] = edge * (slack.dtype.type(head - tail[j]) + correction)
                per_mu[j] = edge * (per_x + per_y)
                fixed_column[j] += fixed[j]
                mu_column[j] += per_mu[j]
            if group < n_layers:
                fixed_sums.nodes[network, group + 1, 0, row] += sum_of(fixed[:width])
                mu_sums.nodes[network, group + 1, 0, row] += sum_of(per_mu[:width])
        out[task, 0], out[task, 1] = least.min(), most.max()
        out[task, 2], out[task, 3] = sum_of(cost), sum_of(gain)


@compiled()
def ratio_test(part, n_parts, layout, edges, predictor, step_mu, change, out):
    """Set the least ratio and the least share of a multiplier that is left, by task.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        layout (Layout): How edges are cut into tasks.
        edges (Edges): The iterate's edges.
        predictor (Predictor): The affine-scaling step.
        step_mu (array): Shape ``(B,)``, barrier parameter of the step.
        change (array): Shape ``(B, L + 1, T)``, of the potential.
        out (array): Shape ``(tasks, 2)``, written.
    """
    _, n_layers, n_tokens = layout
    slack = edges.slack
    one = slack.dtype.type(1)
    lanes = np.empty((2, n_tokens), slack.dtype)
    least, left = lanes[0], lanes[1]
    of_nodes = np.empty((3, n_tokens), change.dtype)
    tail_predicted, tail, tail_change = of_nodes[0], of_nodes[1], of_nodes[2]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, layout)
        predicted, before = predictor.potential[network], predictor.before[network]
        _set_tail(predicted, group, n_layers, -1, tail_predicted)
        _set_tail(before, group, n_layers, -1, tail)
        _set_tail(change[network], group, n_layers, 0, tail_change)
        all_x, all_y = slack[0, network], slack[1, network]
        all_z, all_s = edges.multiplier[0, network], edges.multiplier[1, network]
        all_w, widths = edges.weight[network], edges.widths[network]
        second = slack.dtype.type(predictor.second_order[network])
        mu = slack.dtype.type(step_mu[network])
        least[:], left[:] = 0, 1
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            width = widths[first + row]
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s = all_z[begin:end], all_s[begin:end]
            head_predicted = _head(predicted, group, row, n_layers)
            head = _head(before, group, row, n_layers)
            head_change = _head(change[network], group, row, n_layers)
            for j in range(width):
                per_x, per_y = one / x[j], one / y[j]
                dx, new_z, new_s = _full_step(
                    *(per_x, per_y, z[j], s[j], w[j]),
                    slack.dtype.type(head_predicted - tail_predicted[j]),
                    slack.dtype.type(head - tail[j]),
                    slack.dtype.type(head_change - tail_change[j]),
                    *(second, mu),
                )
                least[j] = min(least[j], min(dx * per_x, dx * per_y))
                left[j] = min(left[j], min(new_z / z[j], new_s / s[j]))
        out[task, 0], out[task, 1] = least.min(), left.min()


@compiled()
def advance(
    part,
    n_parts,
    layout,
    edges,
    predictor,
    step_mu,
    change,
    primal,
    dual,
    takes_step,
    weight_sums,
    flow_sums,
    out,
):
    """Advance the iterate; set its weights, and sum what the next step needs.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        layout (Layout): How edges are cut into tasks.
        edges (Edges): The iterate's edges, overwritten.
        predictor (Predictor): The affine-scaling step.
        step_mu (array): Shape ``(B,)``, barrier parameter of the step.
        change (array): Shape ``(B, L + 1, T)``, of the potential.
        primal (array): Shape ``(B,)``, step length of flows.
        dual (array): Shape ``(B,)``, step length of multipliers.
        takes_step (bool): Whether to step, or only to set weights and sums.
        weight_sums (Sums): Columns are written, nodes added to.
        flow_sums (Sums): The same.
        out (array): Shape ``(tasks,)``, written: sums of complementarity products.
    """
    _, n_layers, n_tokens = layout
    slack = edges.slack
    one, none = slack.dtype.type(1), slack.dtype.type(0)
    of_nodes = np.empty((6, n_tokens), change.dtype)
    tail_predicted, tail, tail_change = of_nodes[0], of_nodes[1], of_nodes[2]
    total, row_weight, row_flow = of_nodes[3], of_nodes[4], of_nodes[5]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, layout)
        predicted, before = predictor.potential[network], predictor.before[network]
        _set_tail(predicted, group, n_layers, -1, tail_predicted)
        _set_tail(before, group, n_layers, -1, tail)
        _set_tail(change[network], group, n_layers, 0, tail_change)
        all_x, all_y = slack[0, network], slack[1, network]
        all_z, all_s = edges.multiplier[0, network], edges.multiplier[1, network]
        all_w, all_alive = edges.weight[network], edges.alive[network]
        widths = edges.widths[network]
        second = slack.dtype.type(predictor.second_order[network])
        mu = slack.dtype.type(step_mu[network])
        primal_length = slack.dtype.type(primal[network])
        dual_length = slack.dtype.type(dual[network])
        weight_column = weight_sums.columns[task]
        flow_column = flow_sums.columns[task]
        weight_column[:], flow_column[:] = 0, 0
        total[:] = 0
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            width = widths[first + row]
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s, is_edge = all_z[begin:end], all_s[begin:end], all_alive[begin:end]
            if takes_step:
                head_predicted = _head(predicted, group, row, n_layers)
                head = _head(before, group, row, n_layers)
                head_change = _head(change[network], group, row, n_layers)
                for j in range(width):
                    dx, new_z, new_s = _full_step(
                        *(one / x[j], one / y[j], z[j], s[j], w[j]),
                        slack.dtype.type(head_predicted - tail_predicted[j]),
                        slack.dtype.type(head - tail[j]),
                        slack.dtype.type(head_change - tail_change[j]),
                        *(second, mu),
                    )
                    x[j] += primal_length * dx
                    y[j] += primal_length * dx
                    z[j] += dual_length * (new_z - z[j])
                    s[j] += dual_length * (new_s - s[j])
            for j in range(width):
                alive = one if is_edge[j] else none
                total[j] += alive * (x[j] * z[j] + y[j] * s[j])
                w[j] = alive / (z[j] / x[j] + s[j] / y[j])
            for j in range(width):
                row_weight[j], row_flow[j] = w[j], x[j]
                weight_column[j] += w[j]
                flow_column[j] += x[j]
            if group < n_layers:
                weight_sums.nodes[network, group + 1, 0, row] += sum_of(
                    row_weight[:width]
                )
                flow_sums.nodes[network, group + 1, 0, row] += sum_of(row_flow[:width])
        out[task] = sum_of(total)


# A loop in threads takes arrays and numbers alone, so that functions of many threads
# take the tuples apart outside of it, and put them together within.


@compiled(parallel=True)
def predict_parallel(n_parts, layout, edges, predictor, fixed_sums, mu_sums, out):
    """Run all parts of :func:`predict`, in threads."""
    n_blocks, n_layers, n_tokens = layout
    slack, multiplier, weight, alive, widths = edges
    second_order, potential, before = predictor
    fixed_columns, fixed_nodes = fixed_sums
    mu_columns, mu_nodes = mu_sums
    for part in prange(n_parts):
        predict(
            np.int64(part),
            n_parts,
            Layout(n_blocks, n_layers, n_tokens),
            Edges(slack, multiplier, weight, alive, widths),
            Predictor(second_order, potential, before),
            Sums(fixed_columns, fixed_nodes),
            Sums(mu_columns, mu_nodes),
            out,
        )


@compiled(parallel=True)
def ratio_test_parallel(n_parts, layout, edges, predictor, step_mu, change, out):
    """Run all parts of :func:`ratio_test`, in threads."""
    n_blocks, n_layers, n_tokens = layout
    slack, multiplier, weight, alive, widths = edges
    second_order, potential, before = predictor
    for part in prange(n_parts):
        ratio_test(
            np.int64(part),
            n_parts,
            Layout(n_blocks, n_layers, n_tokens),
            Edges(slack, multiplier, weight, alive, widths),
            Predictor(second_order, potential, before),
            step_mu,
            change,
            out,
        )


@compiled(parallel=True)
def advance_parallel(
    n_parts,
    layout,
    edges,
    predictor,
    step_mu,
    change,
    primal,
    dual,
    takes_step,
    weight_sums,
    flow_sums,
    out,
):
    """Run all parts of :func:`advance`, in threads."""
    n_blocks, n_layers, n_tokens = layout
    slack, multiplier, weight, alive, widths = edges
    second_order, potential, before = predictor
    weight_columns, weight_nodes = weight_sums
    flow_columns, flow_nodes = flow_sums
    for part in prange(n_parts):
        advance(
            np.int64(part),
            n_parts,
            Layout(n_blocks, n_layers, n_tokens),
            Edges(slack, multiplier, weight, alive, widths),
            Predictor(second_order, potential, before),
            step_mu,
            change,
            primal,
            dual,
            takes_step,
            Sums(weight_columns, weight_nodes),
            Sums(flow_columns, flow_nodes),
            out,
        )


@compiled()
def _layer_place(task, n_blocks, n_layers, n_tokens):
    """Network, layer and rows of a task."""
    network, layer, block = (
        task // (n_layers * n_blocks),
        task // n_blocks % n_layers,
        task % n_blocks,
    )
    start, stop = block * n_tokens // n_blocks, (block + 1) * n_tokens // n_blocks
    return network, layer, start, stop


class Capacities(NamedTuple):
    """The inner edges of networks whose flows follow from potentials."""

    capacity: NDArray[np.float64]  # (B, L, T, T)
    widths: NDArray[np.int64]  # (B, L, T, 2), see row_widths
    scale: NDArray[np.float64]  # (B,), unit of flows
    unlimited: float  # capacity of edges that never bind, in that unit


class Potentials(NamedTuple):
    """Potentials, see :class:`Potential`, and the barrier parameter."""

    high: NDArray[np.float64]  # (B, L + 1, T)
    low: NDArray[np.float64]  # (B, L + 1, T)
    mu: NDArray[np.float64]  # (B,)


@compiled()
def _lesser_share(capacity, fall_high, fall_low, unit, unlimited, per_mu):
    """The capacity; the lesser of flow and slack, as its share; which one it is."""
    capacity = min(capacity / unit, unlimited)
    quotient = capacity * (fall_high + fall_low) * per_mu
    root = math.sqrt(quotient * quotient + 4)
    return capacity, 2 / (abs(quotient) + 2 + root), quotient > 0


@compiled()
def closed_form_weights(part, n_parts, n_blocks, edges, nodes, weight, columns, rows):
    """Set the weights; sum weights and flows by column of each task and by head.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        n_blocks (int): Blocks of a layer.
        edges (Capacities): The edges.
        nodes (Potentials): The nodes.
        weight (array): Shape ``(B, L, T, T)``, written up to the widths.
        columns (array): Shape ``(tasks, 2, T)``, written: flows and weights.
        rows (array): Shape ``(2, B, L, T)``, written, the same.
    """
    _, n_layers, n_tokens, _ = weight.shape
    flows = np.empty(n_tokens, columns.dtype)
    weights = np.empty(n_tokens, columns.dtype)
    for task in range(part, len(columns), n_parts):
        network, layer, start, stop = _layer_place(task, n_blocks, n_layers, n_tokens)
        tail_high, tail_low = nodes.high[network, layer], nodes.low[network, layer]
        unit, per_mu = edges.scale[network], 1 / nodes.mu[network]
        flow_column, weight_column = columns[task, 0], columns[task, 1]
        flow_column[:], weight_column[:] = 0, 0
        for row in range(start, stop):
            head_high = nodes.high[network, layer + 1, row]
            head_low = nodes.low[network, layer + 1, row]
            capacity = edges.capacity[network, layer, row]
            out = weight[network, layer, row]
            width = edges.widths[network, layer, row]
            for j in range(width):
                total, share, is_flow = _lesser_share(
                    *(capacity[j], tail_high[j] - head_high, tail_low[j] - head_low),
                    *(unit, edges.unlimited, per_mu),
                )
                other = 1 - share
                flows[j] = total * (share if is_flow else other)
                across = total * share * other
                out[j] = across * across * per_mu / (share * share + other * other)
            for j in range(width):
                weights[j] = out[j]
                flow_column[j] += flows[j]
                weight_column[j] += weights[j]
            rows[0, network, layer, row] = sum_of(flows[:width])
            rows[1, network, layer, row] = sum_of(weights[:width])


@compiled()
def closed_form_flows(part, n_parts, n_blocks, edges, nodes, flow):
    """Write the flows, ``(B, L, T, T)``, in units of the capacities."""
    n_networks, n_layers, n_tokens, _ = flow.shape
    n_tasks = n_networks * n_layers * n_blocks
    for task in range(part, n_tasks, n_parts):
        network, layer, start, stop = _layer_place(task, n_blocks, n_layers, n_tokens)
        tail_high, tail_low = nodes.high[network, layer], nodes.low[network, layer]
        unit, per_mu = edges.scale[network], 1 / nodes.mu[network]
        for row in range(start, stop):
            head_high = nodes.high[network, layer + 1, row]
            head_low = nodes.low[network, layer + 1, row]
            capacity = edges.capacity[network, layer, row]
            out = flow[network, layer, row]
            width = edges.widths[network, layer, row]
            out[width:] = 0
            for j in range(width):
                total, share, is_flow = _lesser_share(
                    *(capacity[j], tail_high[j] - head_high, tail_low[j] - head_low),
                    *(unit, edges.unlimited, per_mu),
                )
                filled = total * (share if is_flow else 1 - share)
                # Scaling back may round a saturated edge past its capacity.
                out[j] = min(filled * unit, capacity[j])


@compiled(parallel=True)
def closed_form_weights_parallel(
    n_parts, n_blocks, edges, nodes, weight, columns, rows
):
    """Run all parts of :func:`closed_form_weights`, in threads."""
    capacity, widths, scale, unlimited = edges
    high, low, mu = nodes
    for part in prange(n_parts):
        closed_form_weights(
            np.int64(part),
            n_parts,
            n_blocks,
            Capacities(capacity, widths, scale, unlimited),
            Potentials(high, low, mu),
            weight,
            columns,
            rows,
        )


@compiled(parallel=True)
def closed_form_flows_parallel(n_parts, n_blocks, edges, nodes, flow):
    """Run all parts of :func:`closed_form_flows`, in threads."""
    capacity, widths, scale, unlimited = edges
    high, low, mu = nodes
    for part in prange(n_parts):
        closed_form_flows(
            np.int64(part),
            n_parts,
            n_blocks,
            Capacities(capacity, widths, scale, unlimited),
            Potentials(high, low, mu),
            flow,
        )
