# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add your own: information, rule, solver, metric, study method
#
# Every kind of part is a function or a frozen dataclass and one line in one table. The
# tests run over the tables, so that an entry is tested by being there. This page adds one
# of each from outside; in the package the same lines stand beside the others.

# %%
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from captum_attnflow import AttnLRP, GeneralizedAttentionFlow, solve_flow
from captum_attnflow.capture.rules.table import RULE_OF, identity
from captum_attnflow.demo import load_demo_model
from captum_attnflow.flow import INFORMATION
from captum_attnflow.flow.solvers import SOLVERS, FlowSolution, FlowSolver
from captum_attnflow.flow.solvers.base import certified
from captum_attnflow.metrics import METRICS, Metric, faithfulness
from captum_attnflow.metrics.erasure import mean, probability_fall

model, tokenizer = load_demo_model()
encoded = tokenizer("not as dull as it looks", return_tensors="pt")
ids = encoded.input_ids
tokens = tokenizer.convert_ids_to_tokens(ids[0])


def forward(ids):
    return model(ids).logits


# %% [markdown]
# ## An information tensor
#
# What an attention edge can carry: a function of the maps of some heads, of which capacities
# are the mean, in `captum_attnflow/flow/information.py`. `AttentionMaps` holds `weights` and
# `gradients`, `(B, heads, Tq, Tk)`, and `values`, `(B, heads, Tk, D)`. Kobayashi et al.
# (EMNLP 2020) weight attention by the norm of what it mixes; here without the output map.


# %%
def norm_of_weighted_values(maps):
    return maps.weights * maps.values.double().norm(dim=-1)[:, :, None]


INFORMATION["weighted values"] = norm_of_weighted_values
flow = GeneralizedAttentionFlow(
    forward, information="weighted values", residual="free", game="independent"
)
flow.explain(ids, target=1).show([tokens])

# %% [markdown]
# ## A propagation rule
#
# How an operation is differentiated under AttnLRP and Relevance Flow: a function of the
# rules and the call, and a line in `RULE_OF`, both in
# `captum_attnflow/capture/rules/table.py`. An operation without a rule keeps its
# gradient, and a warning names it. `asinh` as an activation is one; it acts element by
# element, which has a rule already.


# %%
class Asinh(nn.Module):
    def forward(self, x):
        return x.asinh()


torch.manual_seed(0)
network = nn.Sequential(
    nn.Linear(4, 8, bias=False), Asinh(), nn.Linear(8, 1, bias=False)
)
x = torch.randn(1, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    before = AttnLRP(network).attribute(x, target=0).sum().item()
print([str(warning.message)[:60] for warning in caught])

RULE_OF["asinh"] = identity
after = AttnLRP(network).attribute(x, target=0).sum().item()
print(f"sum of scores {before:.4f}, then {after:.4f}; output {network(x).item():.4f}")

# %% [markdown]
# ## A solver
#
# A frozen dataclass with `solve()`, which takes trimmed networks, each with a path, and
# returns flows with their certificate: `certified()` adds what follows from flow and
# potentials, and tests compare the value with the cut. This one is a linear program. Edge
# `capacity[l, i, j]` leads from token `j` of layer `l` to token `i` of layer `l + 1`.


# %%
@dataclass(frozen=True)
class LinearProgram(FlowSolver):
    """Maximum flow by SciPy's HiGHS, one network after the other."""

    def solve(self, network):
        return FlowSolution.concatenate(
            [
                self._one(network.select(slice(row, row + 1)))
                for row in range(network.n_networks)
            ]
        )

    def _one(self, network):
        n_layers, n_tokens = network.n_layers, network.n_tokens
        n_edges, n_nodes = n_layers * n_tokens**2, (n_layers + 1) * n_tokens
        # Unknown are flows of edges, from the source, and into the sink.
        balance = np.zeros((n_nodes, n_edges + 2 * n_tokens))
        for edge, (layer, i, j) in enumerate(np.ndindex(n_layers, n_tokens, n_tokens)):
            balance[layer * n_tokens + j, edge] = -1
            balance[(layer + 1) * n_tokens + i, edge] = 1
        for token in range(n_tokens):
            balance[token, n_edges + token] = 1
            balance[n_nodes - n_tokens + token, n_edges + n_tokens + token] = -1
        ends = torch.cat([network.source, network.sink], 1)[0]
        most = torch.cat([network.capacity[0].flatten(), ends * torch.inf])
        most = most.nan_to_num(0.0, torch.inf)  # 0 * inf: no terminal there
        found = linprog(
            np.r_[np.zeros(n_edges + n_tokens), -np.ones(n_tokens)],
            A_eq=balance,
            b_eq=np.zeros(n_nodes),
            bounds=[(0, limit) for limit in most.tolist()],
        )
        flow = torch.from_numpy(found.x)
        # What is taken out at a node is lost to the sink on its side of a minimum cut
        # alone: multipliers are 1 there. Potentials are -1 on the source's side.
        multipliers = torch.from_numpy(found.eqlin.marginals)
        potential = multipliers.view(1, -1, n_tokens) - 1
        solution = certified(
            network,
            flow=flow[:n_edges].view(network.capacity.shape),
            source_flow=flow[None, n_edges : n_edges + n_tokens],
            sink_flow=flow[None, n_edges + n_tokens :],
            potential=potential,
            mu=torch.zeros(1, dtype=torch.float64),
            duality_gap=torch.zeros(1, dtype=torch.float64),
            iterations=torch.tensor([found.nit]),
        )
        return replace(solution, duality_gap=solution.cut_capacity - solution.value)


SOLVERS["linear-program"] = LinearProgram()
network = GeneralizedAttentionFlow(forward).explain(ids, target=1).network
mine, unique = solve_flow(network, "linear-program"), solve_flow(network)
print(
    f"value {mine.value.item():.6f}, cut {mine.cut_capacity.item():.6f}, "
    f"by the barrier {unique.value.item():.6f}"
)

# %% [markdown]
# ## A metric
#
# Of deletion or insertion: which tokens go, what is measured, how levels are summarised and
# which values are better, a line of `METRICS` in `captum_attnflow/metrics/erasure.py`.

# %%
METRICS["fall at half"] = Metric("highest", probability_fall, mean, (0.5,), "higher")
special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
predicted = forward(ids).argmax(1)
lrp = AttnLRP(forward).attribute(ids, target=predicted)
for name, given in {"AttnLRP": lrp, "position": ids.cumsum(1).float()}.items():
    values = faithfulness(
        forward,
        ids,
        given,
        tokenizer.mask_token_id,
        predicted,
        metrics=["fall at half"],
        keep=special,
    )
    print(f"{name}: {values['fall at half'].item():.3f}")

# %% [markdown]
# ## A study method
#
# A line of `METHODS`, whose function takes a batch of texts and returns a score for each
# token: see [baseline_in_a_study.ipynb](baseline_in_a_study.ipynb).
#
# ## Contributing
#
# `pip install -c constraints.txt -e ".[test]"`, then `pytest -n 2`, `ruff check .`,
# `ruff format --check .` and `mypy`; `.ci/run` does all of it in a fresh environment. A
# part comes with its source (paper, equation), its cost, and a test against a computation
# that shares no code with it, in `tests/reference/`. Which room may import which is held by
# `tests/test_structure.py`; `python tests/entered_files.py` prints what a call walks
# through. A fault gets its test before its mend. Figures come from `tests/benchmarks`, both
# sides in one run.
