"""What networks, solvers, capacities and games say of an argument they cannot take.

Every argument is given every wrong value; only an error that names it and says what to
give passes.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from networks import everywhere

from captum_attnflow import (
    BarrierSolver,
    LayeredNetwork,
    NetworkXSolver,
    SciPySolver,
    solve_flow,
)
from captum_attnflow.flow import (
    add_residual,
    build_network,
    check_residual,
    information_tensor,
    message_tensor,
)
from captum_attnflow.flow.scores import (
    check_normalization,
    check_solver,
    conserve,
    normalize,
    read_out_relevance,
    score_tokens,
)
from captum_attnflow.flow.solvers import find_solver, solve_sources

CAPACITY = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
ENDS = torch.ones(1, 3, dtype=torch.bool)
NETWORK = everywhere(CAPACITY)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.rand(2, 3, 3)])


WRONG = {
    "nothing": None,
    "an integer": 3,
    "a negative integer": -1,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a bool": True,
    "a name": "max",
    "a list": [1.0],
    "a dict": {},
    "a type": BarrierSolver,
    "an object": object(),
    "an array": CAPACITY.numpy(),
    "integers": torch.ones(1, 2, 3, 3, dtype=torch.int64),
    "bools": torch.ones(1, 2, 3, 3, dtype=torch.bool),
    "complex numbers": CAPACITY.to(torch.complex64),
    "a sparse tensor": CAPACITY.to_sparse(),
    "a sparse row tensor": CAPACITY[0, 0].to_sparse_csr(),
    "a tensor without values": CAPACITY.to("meta"),
    "a nested tensor": nested(),
    "negative numbers": -CAPACITY,
    "infinite numbers": CAPACITY / 0,
    "numbers that are none": CAPACITY * torch.nan,
    "no dimension": torch.tensor(1.0),
    "one dimension": torch.ones(3),
    "three dimensions": CAPACITY[0],
    "five dimensions": CAPACITY[None],
    "other queries than keys": torch.rand(1, 2, 3, 4),
    "an empty batch": CAPACITY[:0],
    "no token": CAPACITY[..., :0, :0],
}
OPTIONAL = {"nothing"}
NUMBERS = {"nothing", "a fraction"}
COUNTS = {"an integer"}

# What takes the argument, and which of these values are not wrong for it.
ARGUMENTS = {
    "capacity of a network": (
        lambda given: LayeredNetwork(given, ENDS, ENDS),
        {"infinite numbers"},
    ),
    "source": (lambda given: LayeredNetwork(CAPACITY, given, ENDS), set()),
    "sink": (lambda given: LayeredNetwork(CAPACITY, ENDS, given), set()),
    "index": (lambda given: NETWORK.select(given), set()),
    "positions": (lambda given: NETWORK.take(given), set()),
    "live": (lambda given: NETWORK.restrict(given), set()),
    "cut": (lambda given: NETWORK.cut_capacity(given), set()),
    "flow": (
        lambda given: NETWORK.divergence(given, CAPACITY[:, 0, 0], CAPACITY[:, 0, 0]),
        {"negative numbers", "infinite numbers", "numbers that are none"},
    ),
    "source_flow": (
        lambda given: NETWORK.divergence(CAPACITY, given, CAPACITY[:, 0, 0]),
        set(),
    ),
    "sink_flow": (
        lambda given: NETWORK.divergence(CAPACITY, CAPACITY[:, 0, 0], given),
        set(),
    ),
    "example": (lambda given: NETWORK.to_networkx(given), set()),
    "tokens": (lambda given: NETWORK.to_networkx(tokens=given), OPTIONAL),
    "flow of a graph": (
        lambda given: NETWORK.to_networkx(flow=given),
        OPTIONAL | {"negative numbers"},
    ),
    "direct": (
        lambda given: NETWORK.to_networkx(flow=CAPACITY, direct=given),
        OPTIONAL,
    ),
    "network": (solve_flow, set()),
    "network of sources": (solve_sources, set()),
    "network of a game": (lambda given: score_tokens(given, "joint"), set()),
    "network of the barrier": (BarrierSolver().solve, set()),
    "network of SciPy": (SciPySolver().solve, set()),
    "network of networkx": (NetworkXSolver().solve, set()),
    "solver": (lambda given: solve_flow(NETWORK, given), set()),
    "solver of sources": (lambda given: solve_sources(NETWORK, given), set()),
    "solver of a game": (lambda given: score_tokens(NETWORK, "joint", given), set()),
    "solver that is checked": (check_solver, set()),
    "solver that is found": (find_solver, set()),
    "game": (lambda given: score_tokens(NETWORK, given), set()),
    "epsilon": (lambda given: BarrierSolver(epsilon=given), {"a fraction"}),
    "mu": (lambda given: BarrierSolver(mu=given), NUMBERS | COUNTS),
    "tolerance": (lambda given: BarrierSolver(tolerance=given), {"a fraction"}),
    "max_iterations": (lambda given: BarrierSolver(max_iterations=given), COUNTS),
    "max_edges": (lambda given: BarrierSolver(max_edges=given), COUNTS),
    "compiled": (
        lambda given: BarrierSolver(compiled=given),
        OPTIONAL | {"a bool"},
    ),
    "algorithm": (NetworkXSolver, set()),
    "messages": (
        lambda given: conserve(given, CAPACITY[:, 0, 0]),
        {"negative numbers"},
    ),
    "read_out": (lambda given: conserve(CAPACITY, given), set()),
    "output": (lambda given: read_out_relevance(given, ENDS, None), set()),
    "read_out of an output": (
        lambda given: read_out_relevance(torch.ones(1), given, None),
        set(),
    ),
    "streams": (
        lambda given: read_out_relevance(torch.ones(1), ENDS, given),
        OPTIONAL,
    ),
    "scores": (lambda given: normalize(given, NETWORK, None), set()),
    "network of scores": (
        lambda given: normalize(CAPACITY[:, 0, 0], given, None),
        set(),
    ),
    "normalization": (
        lambda given: normalize(CAPACITY[:, 0, 0], everywhere(CAPACITY.tril()), given),
        OPTIONAL,
    ),
    "normalization that is checked": (check_normalization, OPTIONAL),
    "residual": (lambda given: add_residual(CAPACITY, given), NUMBERS),
    "residual that is checked": (check_residual, NUMBERS),
    "capacity as it is": (lambda given: add_residual(given, None), {"an empty batch"}),
    "capacity in part": (lambda given: add_residual(given, 0.5), {"an empty batch"}),
    "capacity beside free edges": (
        lambda given: add_residual(given, "free"),
        {"an empty batch"},
    ),
    "record": (lambda given: information_tensor(given, "AGF"), set()),
    "record of messages": (message_tensor, set()),
    "record of a network": (lambda given: build_network(given, "AGF", None), set()),
    "information": (lambda given: information_tensor(None, given), set()),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_wrong_argument_is_named_with_what_to_give(argument):
    take, allowed = ARGUMENTS[argument]
    name = argument.split()[0]
    unclear = {}
    for kind, given in WRONG.items():
        if kind in allowed:
            take(given)
            continue
        try:
            take(given)
        except ValueError as error:
            message = str(error)
            # A shape of the other argument may be what disagrees.
            named = re.search(rf"\b({name}|capacity|read_out)\b", message)
            told = re.search(r"\b(give|needs?|must|lies?|leave)\b", message)
            if not (named and told and len(message) < 600):
                unclear[kind] = message
        except Exception as error:
            unclear[kind] = repr(error)
        else:
            unclear[kind] = "accepted"
    assert not unclear


@pytest.mark.parametrize("name", ["source", "sink"])
def test_a_terminal_on_another_device_is_refused(name):
    ends = {"source": ENDS, "sink": ENDS, name: ENDS.to("meta")}
    with pytest.raises(ValueError, match=f"{name} is a meta tensor; give"):
        LayeredNetwork(CAPACITY, **ends)
