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
# # Why the flow must be unique
#
# A maximum flow has one value, but many flows reach it. Attribution asks how much each
# token sends, so it asks for the flow and not for its value. This page lets four exact
# solvers answer for one sentence, and then the barrier.

# %%
import networkx as nx
import torch

from captum_attnflow import BarrierSolver, GeneralizedAttentionFlow, solve_flow
from captum_attnflow.demo import load_demo_model
from captum_attnflow.visualization import flow_diagram, token_matrix

model, tokenizer = load_demo_model()
text = "a gripping , funny film that never quite finds its feet"
ids = tokenizer(text, return_tensors="pt").input_ids
tokens = tokenizer.convert_ids_to_tokens(ids[0])

flow = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
explanation = flow.explain(ids, target=1)
graph = explanation.to_networkx(tokens=tokens)
print(graph)

# %% [markdown]
# ## Exact solvers agree on the value and disagree on the tokens
#
# Each row is one algorithm of networkx on the same graph. All four flows are exact, and
# each is a maximum flow. Which words they name depends on the order in which an algorithm
# meets the paths.

# %%
algorithms = [
    nx.algorithms.flow.edmonds_karp,
    nx.algorithms.flow.shortest_augmenting_path,
    nx.algorithms.flow.boykov_kolmogorov,
    nx.algorithms.flow.preflow_push,
]
values, rows = [], []
for algorithm in algorithms:
    value, sent = nx.maximum_flow(graph, "source", "sink", flow_func=algorithm)
    values.append(value)
    rows.append(
        [sent["source"].get(f"0/{i} {token}", 0) for i, token in enumerate(tokens)]
    )
exact = torch.tensor(rows)
print("values:", [f"{value:.6f}" for value in values])
token_matrix(exact, tokens, [algorithm.__name__ for algorithm in algorithms])

# %%
highest = [tokens[int(row.argmax())] for row in exact]
print("highest token of each:", highest)
print("rank correlation of the first and the last:")
ranks = exact.argsort(dim=1).argsort(dim=1).double()
print(torch.corrcoef(ranks)[0, -1].item())

# %% [markdown]
# ## The order of the edges decides
#
# One algorithm, the same network, its edges listed backwards: another answer.

# %%
backwards = nx.DiGraph()
backwards.add_nodes_from(list(graph.nodes)[::-1])
backwards.add_edges_from(list(graph.edges(data=True))[::-1])
_, sent = nx.maximum_flow(
    backwards, "source", "sink", flow_func=nx.algorithms.flow.preflow_push
)
again = [sent["source"].get(f"0/{i} {token}", 0) for i, token in enumerate(tokens)]
token_matrix(
    torch.stack([exact[-1], torch.tensor(again)]),
    tokens,
    ["preflow_push", "edges backwards"],
)

# %% [markdown]
# ## The barrier has one optimum
#
# Generalized Attention Flow adds a logarithmic barrier, which keeps every edge away from
# empty and full. The problem is then strictly convex: whoever solves it finds the same
# flow, whatever the order of the tokens. The value stays that of the exact solvers.

# %%
network = explanation.network
shuffled = torch.randperm(len(tokens))
permuted = type(network)(
    capacity=network.capacity[:, :, shuffled][..., shuffled],
    source=network.source[:, shuffled],
    sink=network.sink[:, shuffled],
)
barrier = BarrierSolver()
plain, mixed = (solve_flow(item, barrier) for item in (network, permuted))
back = mixed.source_flow[:, shuffled.argsort()]
print(f"value: {plain.value.item():.6f}")
print(f"largest difference: {(plain.source_flow - back).abs().max():.1e}")
token_matrix(
    torch.cat([plain.source_flow, back]), tokens, ["barrier", "tokens shuffled"]
)

# %% [markdown]
# How close the barrier is to the maximum is certified by a minimum cut: its capacity is
# an upper bound for every flow. Among the maximum flows the barrier picks the one that
# spreads: no token that can send is at exactly zero.

# %%
print(f"cut: {plain.cut_capacity.item():.6f}, gap: {plain.duality_gap.item():.1e}")
flow_diagram(explanation, tokens, threshold=0.03)

# %% [markdown]
# A flow *per token* needs no barrier: its score is a value, and values are unique.
# `AttentionFlow` and `game="independent"` are of this kind.
