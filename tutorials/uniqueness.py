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
from captum_attnflow.show import flow_diagram, token_matrix

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
# Each row is one algorithm of networkx on the same graph, each column what it lets a
# token send. All four are maximum flows.


# %%
def sent_by_tokens(graph, algorithm):
    value, flow = nx.maximum_flow(graph, "source", "sink", flow_func=algorithm)
    sent = flow["source"]
    return value, [sent.get(f"0/{i} {token}", 0) for i, token in enumerate(tokens)]


algorithms = [
    nx.algorithms.flow.edmonds_karp,
    nx.algorithms.flow.shortest_augmenting_path,
    nx.algorithms.flow.boykov_kolmogorov,
    nx.algorithms.flow.preflow_push,
]
names = [algorithm.__name__ for algorithm in algorithms]
values, rows = zip(
    *(sent_by_tokens(graph, algorithm) for algorithm in algorithms), strict=True
)
exact = torch.tensor(rows)
token_matrix(exact, tokens, names).figure()

# %%
for name, value, row in zip(names, values, exact, strict=True):
    print(f"{name:25} value {value:.6f}, highest token {tokens[int(row.argmax())]}")
ranks = exact.argsort(dim=1).argsort(dim=1).double()
correlation = torch.corrcoef(ranks)[0, -1]
print(f"rank correlation of {names[0]} and {names[-1]}: {correlation:.2f}")

# %% [markdown]
# The values are equal to the last digit shown. The token that matters most is another
# one, and the two rankings have hardly anything in common. Neither algorithm is wrong:
# the question has no single answer.
#
# ## The order of the edges decides
#
# One algorithm, the same network, its nodes and edges listed backwards: another answer.

# %%
backwards = nx.DiGraph()
backwards.add_nodes_from(list(graph.nodes)[::-1])
backwards.add_edges_from(list(graph.edges(data=True))[::-1])
_, again = sent_by_tokens(backwards, algorithms[-1])
token_matrix(
    torch.stack([exact[-1], torch.tensor(again)]),
    tokens,
    [names[-1], "listed backwards"],
).figure()

# %% [markdown]
# ## The barrier has one optimum
#
# Generalized Attention Flow adds a logarithmic barrier, which keeps every edge away from
# empty and full. The problem is then strictly convex: whoever solves it finds the same
# flow, whatever the order of the tokens. The value stays that of the exact solvers, up to
# a relative error that you choose (`epsilon`, here a millionth).

# %%
network = explanation.network
shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
permuted = type(network)(
    capacity=network.capacity[:, :, shuffled][..., shuffled],
    source=network.source[:, shuffled],
    sink=network.sink[:, shuffled],
)
barrier = BarrierSolver(epsilon=1e-6)
plain, mixed = (solve_flow(item, barrier) for item in (network, permuted))
back = mixed.source_flow[:, shuffled.argsort()]
difference = (plain.source_flow - back).abs().max() / plain.source_flow.max()
assert difference < 1e-9
print(f"value {plain.value.item():.6f}; the order of the tokens changes nothing")
token_matrix(
    torch.cat([plain.source_flow, back]), tokens, ["barrier", "tokens shuffled"]
).figure()

# %% [markdown]
# How close the barrier is to the maximum is certified by a minimum cut: its capacity is
# an upper bound for every flow. Among the maximum flows the barrier picks one that
# spreads: where the exact solvers leave tokens at zero that could send, it does not.

# %%
gap = plain.cut_capacity.item() / plain.value.item() - 1
assert gap < 1e-5
print(f"cut {plain.cut_capacity.item():.6f}, value {plain.value.item():.6f}")
flow_diagram(explanation, tokens, threshold=0.05, cut=True).figure()

# %% [markdown]
# In a notebook that runs, `flow_diagram(explanation, tokens)` alone shows the interactive
# page: hover a token to follow its flow.
#
# A flow *per token* needs no barrier: its score is a value, and values are unique.
# `AttentionFlow`, `game="independent"` and `RelevanceFlow` are of this kind.
