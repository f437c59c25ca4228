"""The passes over the edges of a Newton step, fused and compiled by Numba.

Each pass reads an edge's numbers once, and writes nothing by the edge but the new state
and its weight: what a pass needs of an earlier one it computes again, since memory is
slower than arithmetic. What they compute is told in :class:`NumbaPasses`. Weights are
kept as :mod:`weights` tells.

The edges of a network are rows of ``T``: the heads of the inner layers one after the
other, then the source's edges, then the sink's. Rows whose edges have their tails in
common are a *group*. A part of the work is every so many blocks of groups. It gathers
sums in lanes, one for each position of a row, and so compiles to vector instructions
though nothing may be reordered: a step and how far it may go are to be rounded alike.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from captum_attnflow.flow.solvers.barrier.numba_compiling import (
    compiled,
    decode,
    encode,
)


@compiled(any_order=True)
def sum_of(values):
    total = values.dtype.type(0)
    for j in range(values.size):
        total += values[j]
    return total


@compiled()
def _place(task, n_blocks, n_layers, n_tokens):
    """Network and group of a task, its first row, and its rows within the group."""
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


@compiled()
def _head(potential, group, row, n_layers):
    """Potential of a row's head; terminals' edges count as if into one at 0."""
    if group < n_layers:
        return potential[group + 1, row]
    return potential.dtype.type(0)


@compiled()
def _second_order_push(per_room, price, dx, second_order):
    ratio = dx * per_room
    return second_order * (ratio + ratio * ratio) * price


@compiled()
def _unrounded(per_x, per_y, z, s, w, dx):
    """The change of flow as if the weight had not been rounded.

    Prices that change by it keep to what the potential asks for. Else a flow that grows
    much would leave its price with little but the error of the weight.
    """
    one = np.float32(1)
    error = one - w * (z * per_x + s * per_y)
    # 1 / (1 - error), but for error ** 3. A weight of 0 has no other to tell.
    return dx * (one + error + error * error) if w > 0 else dx


@compiled()
def _full_step(
    per_x, per_y, z, s, w, rise_predicted, rise, rise_of_change, second_order, aim
):
    """The change of an edge's flow, and both prices that it leads to."""
    predicted = w * rise_predicted
    push_x = _second_order_push(per_x, z, predicted, second_order) + aim * per_x
    push_y = _second_order_push(per_y, s, predicted, second_order) + aim * per_y
    dx = w * (rise + push_x + push_y) + w * rise_of_change
    seen = _unrounded(per_x, per_y, z, s, w, dx)
    return dx, push_x - z * (seen * per_x), push_y - s * (seen * per_y)


@compiled()
def add_columns(columns, n_blocks, n_layers, sums):
    """Add what each task summed over heads to the sums of the nodes.

    Args:
        columns (array): Shape ``(tasks, T)``.
        n_blocks (int): Blocks of a group.
        n_layers (int): Layers of edges.
        sums (array): Shape ``(B, L + 1, 2, T)``, into each node and out of it.
    """
    n_tokens = columns.shape[1]
    for task in range(len(columns)):
        network, group, _, _, _ = _place(task, n_blocks, n_layers, n_tokens)
        node, side = group, 1
        if group == n_layers:
            node, side = 0, 0
        elif group > n_layers:
            node = n_layers
        for j in range(n_tokens):
            sums[network, node, side, j] += columns[task, j]


@compiled()
def predict(
    part,
    n_parts,
    n_blocks,
    n_layers,
    n_tokens,
    room,
    price,
    weight,
    second_order,
    predictor,
    potential,
    fixed_columns,
    fixed_sums,
    mu_columns,
    mu_sums,
    out,
):
    """Look at the predictor, and sum the change of flow that leaves the potential.

    That change is linear in the aim, which is not known yet: summed by column and by
    head, a fixed part and what is to be multiplied by the aim. Either is rounded for
    itself, and so is off from the change that is made by a last place of flow or room,
    whose own rounding unbalances as much.

    Args:
        part (int): Which of the parts to do.
        n_parts (int): Parts in all.
        n_blocks (int): Blocks of a group.
        n_layers (int): Layers of edges.
        n_tokens (int): Tokens.
        room (array): Shape ``(2, B, E)``.
        price (array): Shape ``(2, B, E)``.
        weight (array): Shape ``(B, E)``.
        second_order (array): Shape ``(B,)``, 1 with second-order terms and else 0.
        predictor (array): Shape ``(B, L + 1, T)``, potential after that step.
        potential (array): Shape ``(B, L + 1, T)``, as it is.
        fixed_columns (array): Shape ``(tasks, T)``, written.
        fixed_sums (array): Shape ``(B, L + 1, 2, T)``, added to.
        mu_columns (array): Shape ``(tasks, T)``, written.
        mu_sums (array): Shape ``(B, L + 1, 2, T)``, added to.
        out (array): Shape ``(tasks, 4)``, written: the predictor's least and most
            ratio, cost and gain.
    """
    one = room.dtype.type(1)
    of_nodes = np.empty((6, n_tokens), predictor.dtype)
    tail_predicted, tail, cost = of_nodes[0], of_nodes[1], of_nodes[2]
    gain, fixed, per_mu = of_nodes[3], of_nodes[4], of_nodes[5]
    lanes = np.empty((2, n_tokens), room.dtype)
    least, most = lanes[0], lanes[1]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, n_blocks, n_layers, n_tokens)
        _set_tail(predictor[network], group, n_layers, -1, tail_predicted)
        _set_tail(potential[network], group, n_layers, -1, tail)
        all_x, all_y = room[0, network], room[1, network]
        all_z, all_s = price[0, network], price[1, network]
        all_w = weight[network]
        second = room.dtype.type(second_order[network])
        fixed_column, mu_column = fixed_columns[task], mu_columns[task]
        fixed_column[:], mu_column[:] = 0, 0
        least[:], most[:], cost[:], gain[:] = 0, 0, 0, 0
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s = all_z[begin:end], all_s[begin:end]
            head_predicted = _head(predictor[network], group, row, n_layers)
            head = _head(potential[network], group, row, n_layers)
            for j in range(n_tokens):
                per_x, per_y, edge = one / x[j], one / y[j], decode(w[j])
                rise = room.dtype.type(head_predicted - tail_predicted[j])
                dx = edge * rise
                ratio_x, ratio_y = dx * per_x, dx * per_y
                least[j] = min(least[j], min(ratio_x, ratio_y))
                most[j] = max(most[j], max(ratio_x, ratio_y))
                cost[j] += dx * (z[j] + s[j])
                gain[j] += dx * rise
                push = _second_order_push(per_x, z[j], dx, second)
                push += _second_order_push(per_y, s[j], dx, second)
                fixed[j] = edge * (room.dtype.type(head - tail[j]) + push)
                per_mu[j] = edge * (per_x + per_y)
                fixed_column[j] += fixed[j]
                mu_column[j] += per_mu[j]
            if group < n_layers:
                fixed_sums[network, group + 1, 0, row] += sum_of(fixed)
                mu_sums[network, group + 1, 0, row] += sum_of(per_mu)
        out[task, 0], out[task, 1] = least.min(), most.max()
        out[task, 2], out[task, 3] = sum_of(cost), sum_of(gain)


@compiled()
def turn(
    part,
    n_parts,
    n_blocks,
    n_layers,
    n_tokens,
    room,
    price,
    weight,
    second_order,
    predictor,
    potential,
    aim,
    change,
    out,
):
    """Set the least ratio and the least share of a price that is left, by task."""
    one = room.dtype.type(1)
    lanes = np.empty((2, n_tokens), room.dtype)
    least, left = lanes[0], lanes[1]
    of_nodes = np.empty((3, n_tokens), potential.dtype)
    tail_predicted, tail, tail_change = of_nodes[0], of_nodes[1], of_nodes[2]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, n_blocks, n_layers, n_tokens)
        _set_tail(predictor[network], group, n_layers, -1, tail_predicted)
        _set_tail(potential[network], group, n_layers, -1, tail)
        _set_tail(change[network], group, n_layers, 0, tail_change)
        all_x, all_y = room[0, network], room[1, network]
        all_z, all_s = price[0, network], price[1, network]
        all_w = weight[network]
        second = room.dtype.type(second_order[network])
        mu = room.dtype.type(aim[network])
        least[:], left[:] = 0, 1
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s = all_z[begin:end], all_s[begin:end]
            head_predicted = _head(predictor[network], group, row, n_layers)
            head = _head(potential[network], group, row, n_layers)
            head_change = _head(change[network], group, row, n_layers)
            for j in range(n_tokens):
                per_x, per_y = one / x[j], one / y[j]
                dx, goal_z, goal_s = _full_step(
                    *(per_x, per_y, z[j], s[j], decode(w[j])),
                    room.dtype.type(head_predicted - tail_predicted[j]),
                    room.dtype.type(head - tail[j]),
                    room.dtype.type(head_change - tail_change[j]),
                    *(second, mu),
                )
                least[j] = min(least[j], min(dx * per_x, dx * per_y))
                left[j] = min(left[j], min(goal_z / z[j], goal_s / s[j]))
        out[task, 0], out[task, 1] = least.min(), left.min()


@compiled()
def settle(
    part,
    n_parts,
    n_blocks,
    n_layers,
    n_tokens,
    room,
    price,
    weight,
    second_order,
    predictor,
    potential,
    aim,
    change,
    primal,
    dual,
    moves,
    is_alive,
    weight_columns,
    weight_sums,
    flow_columns,
    flow_sums,
    out,
):
    """Step by shares of the way; set the weights, and sum what the next step needs."""
    one, none = room.dtype.type(1), room.dtype.type(0)
    of_nodes = np.empty((6, n_tokens), potential.dtype)
    tail_predicted, tail, tail_change = of_nodes[0], of_nodes[1], of_nodes[2]
    total, row_weight, row_flow = of_nodes[3], of_nodes[4], of_nodes[5]
    for task in range(part, len(out), n_parts):
        network, group, first, start, stop = _place(task, n_blocks, n_layers, n_tokens)
        _set_tail(predictor[network], group, n_layers, -1, tail_predicted)
        _set_tail(potential[network], group, n_layers, -1, tail)
        _set_tail(change[network], group, n_layers, 0, tail_change)
        all_x, all_y = room[0, network], room[1, network]
        all_z, all_s = price[0, network], price[1, network]
        all_w, all_edges = weight[network], is_alive[network]
        second = room.dtype.type(second_order[network])
        mu = room.dtype.type(aim[network])
        of_room = room.dtype.type(primal[network])
        of_price = room.dtype.type(dual[network])
        weight_column, flow_column = weight_columns[task], flow_columns[task]
        weight_column[:], flow_column[:] = 0, 0
        total[:] = 0
        for row in range(start, stop):
            begin = (first + row) * n_tokens
            end = begin + n_tokens
            x, y, w = all_x[begin:end], all_y[begin:end], all_w[begin:end]
            z, s, is_edge = all_z[begin:end], all_s[begin:end], all_edges[begin:end]
            if moves:
                head_predicted = _head(predictor[network], group, row, n_layers)
                head = _head(potential[network], group, row, n_layers)
                head_change = _head(change[network], group, row, n_layers)
                for j in range(n_tokens):
                    dx, goal_z, goal_s = _full_step(
                        *(one / x[j], one / y[j], z[j], s[j], decode(w[j])),
                        room.dtype.type(head_predicted - tail_predicted[j]),
                        room.dtype.type(head - tail[j]),
                        room.dtype.type(head_change - tail_change[j]),
                        *(second, mu),
                    )
                    x[j] += of_room * dx
                    y[j] += of_room * dx
                    z[j] += of_price * (goal_z - z[j])
                    s[j] += of_price * (goal_s - s[j])
            for j in range(n_tokens):
                total[j] += x[j] * z[j] + y[j] * s[j]
                alive = one if is_edge[j] else none
                w[j] = encode(alive / (z[j] / x[j] + s[j] / y[j]), w)
            for j in range(n_tokens):
                row_weight[j], row_flow[j] = decode(w[j]), x[j]
                weight_column[j] += decode(w[j])
                flow_column[j] += x[j]
            if group < n_layers:
                weight_sums[network, group + 1, 0, row] += sum_of(row_weight)
                flow_sums[network, group + 1, 0, row] += sum_of(row_flow)
        out[task] = sum_of(total)


@compiled(parallel=True)
def predict_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        predict(np.int64(part), n_parts, *arguments)


@compiled(parallel=True)
def turn_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        turn(np.int64(part), n_parts, *arguments)


@compiled(parallel=True)
def settle_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        settle(np.int64(part), n_parts, *arguments)


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


@compiled()
def _lesser_share(capacity, fall_high, fall_low, unit, unlimited, per_mu):
    """The capacity; the lesser of flow and room, as a share; whether it is the flow."""
    capacity = min(capacity / unit, unlimited)
    quotient = capacity * (fall_high + fall_low) * per_mu
    root = math.sqrt(quotient * quotient + 4)
    return capacity, 2 / (abs(quotient) + 2 + root), quotient > 0


@compiled()
def weigh_closed_form(
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
        network, layer, start, stop = _layer_place(task, n_blocks, n_layers, n_tokens)
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
def fill_closed_form(
    part, n_parts, n_blocks, capacity, scale, unlimited, high, low, mu, flow
):
    """Write the flows, ``(B, L, T, T)``, in units of the capacities."""
    n_networks, n_layers, n_tokens, _ = capacity.shape
    n_tasks = n_networks * n_layers * n_blocks
    for task in range(part, n_tasks, n_parts):
        network, layer, start, stop = _layer_place(task, n_blocks, n_layers, n_tokens)
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
def weigh_closed_form_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        weigh_closed_form(np.int64(part), n_parts, *arguments)


@compiled(parallel=True)
def fill_closed_form_parallel(n_parts, *arguments):
    for part in prange(n_parts):
        fill_closed_form(np.int64(part), n_parts, *arguments)
