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
# # SLALOM: what a token says, and how much it counts
#
# LIME and SHAP give every token one number, and a text the sum of its tokens' numbers.
# Attention does not add, it averages. SLALOM (Leemann et al., TMLR 2025) therefore gives
# two numbers: a *value*, the log-odds for which the token speaks, and an *importance*,
# the logarithm of its weight in the average.

# %%
import warnings

import torch
from IPython.display import display
from matplotlib.figure import Figure

from captum_attnflow import SLALOM
from captum_attnflow.demo import load_demo_model
from captum_attnflow.show import slalom_plane

model, tokenizer = load_demo_model()
text = "a funny film with a dull ending"
inputs = tokenizer(text, return_tensors="pt")
tokens = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
asked = []  # what SLALOM asks the model, kept to show it to another surrogate


def forward(ids, mask):
    logits = model(ids, attention_mask=mask).logits.detach()
    asked.append((ids * mask, logits[:, 1] - logits[:, 0]))
    return logits


slalom = SLALOM(forward, tokenizer=tokenizer)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    explanation = slalom.explain(
        inputs.input_ids, target=1, additional_forward_args=(inputs.attention_mask,)
    )
for warning in caught:
    print(warning.message)
slalom_plane(explanation, tokens)

# %% [markdown]
# *funny* and *dull* say opposite things, and both outweigh the rest. *a* alone is taken
# for positive, which hardly matters where anything else is said: it stands low. One
# number per token cannot tell the two apart.
#
# The title compares predictions for this very text, and they differ, as the warning says:
# the model reads *funny film with a dull ending* as praise, by the order of the words,
# which SLALOM does not know. With `return_convergence_delta=True` the difference is returned. The last
# section comes back to it.
#
# For pictures and metrics one number is needed: by default the contribution, value times
# share of the weight. Contributions sum to what SLALOM predicts of the text.

# %%
for token, value, importance, contribution in zip(
    tokens,
    explanation.values[0],
    explanation.importances[0],
    explanation.scores[0],
    strict=True,
):
    print(
        f"{token:8} value {value:+6.2f}  importance {importance:+6.2f}  contribution {contribution:+6.2f}"
    )
torch.testing.assert_close(explanation.scores.sum(1), explanation.predicted)

# %% [markdown]
# ## What an additive surrogate cannot say
#
# Say *dull* twice, three times, eight times. A sum moves by the same amount each time; an
# average approaches the value of *dull* and stays. To be fair to the sum, it is fitted by
# least squares to the same queries and answers as SLALOM. Two in five of these hold a token
# more than once: both surrogates have seen repetitions.

# %%
types = explanation.type_index[0]
n_types = int(types.max()) + 1
vocabulary = [int(inputs.input_ids[0, types == kind][0]) for kind in range(n_types)]


def counts_of(ids):
    """How often each distinct token of the text stands in each row, (rows, types)."""
    return torch.stack([(ids == token).sum(1) for token in vocabulary], 1).double()


def with_constant(counts):
    return torch.cat([torch.ones(len(counts), 1).double(), counts], 1)


queries = torch.cat([counts_of(ids) for ids, _ in asked])
answers = torch.cat([log_odds for _, log_odds in asked]).double()
weights = torch.linalg.lstsq(with_constant(queries), answers[:, None]).solution
repeating = (queries > 1).any(1).double().mean()
print(
    f"{len(queries)} queries, {100 * repeating:.0f} % of them with a token twice or more"
)


def predictions(texts):
    """The model's log-odds, SLALOM's and the sum's, (3, texts)."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**encoded).logits.double()
    counts = counts_of(encoded.input_ids)
    return torch.stack(
        [
            logits[:, 1] - logits[:, 0],
            explanation.fit.model(counts[None])[0],
            (with_constant(counts) @ weights)[:, 0],
        ]
    )


repetitions = list(range(9))
model_says, slalom_says, sum_says = predictions(
    ["funny film" + " dull" * n for n in repetitions]
)
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(repetitions, model_says, "k-", label="the model")
axes.plot(repetitions, slalom_says, "o--", color="#2a7f3f", label="SLALOM")
axes.plot(repetitions, sum_says, "s:", color="#c0392b", label="a sum, same queries")
axes.set(xlabel='"funny film" and how often "dull"', ylabel="log-odds of positive")
axes.legend(frameon=False)
display(figure)

# %% [markdown]
# The same on 300 random texts of these tokens, four to twelve long: longer than nearly all
# that either has been fitted to.

# %%
generator = torch.Generator().manual_seed(0)
texts = []
for _ in range(300):
    length = int(torch.randint(4, 13, (), generator=generator))
    drawn = torch.randint(n_types, (length,), generator=generator)
    texts.append(
        " ".join(tokenizer.convert_ids_to_tokens(vocabulary[kind]) for kind in drawn)
    )
model_says, slalom_says, sum_says = predictions(texts)


def r_squared(predicted):
    error = (predicted - model_says).square().mean()
    return 1 - error / model_says.var(correction=0)


print(
    f"share of the variance explained: SLALOM {r_squared(slalom_says):+.2f}, sum {r_squared(sum_says):+.2f}"
)
assert r_squared(slalom_says) > r_squared(sum_says)

# %% [markdown]
# ## When importances are not identified
#
# If two tokens have the same value, the average is that value whatever their weights, and
# no query can tell the weights. Short texts of tokens that disagree tell them best, which
# is what `strategy="eff"` asks. `strategy="fidel"` asks for texts with a few tokens
# deleted: it predicts those better, and often leaves importances open. The fit knows which
# share of their differences the answers determine, and says so.

# %%
fidel = SLALOM(forward, tokenizer=tokenizer, strategy="fidel", score="importance")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    deletions = fidel.explain(
        inputs.input_ids, target=1, additional_forward_args=(inputs.attention_mask,)
    )
for name, each in {"eff": explanation, "fidel": deletions}.items():
    error = each.importance_standard_errors[0, types >= 0].mean()
    print(
        f"{name:6} identified {each.fit.identified[0]:.2f}, mean standard error {error:.2f}"
    )
for warning in caught:
    print("\n" + str(warning.message))

# %% [markdown]
# Error bars are the hairlines of the plane. Where they are long, read contributions or
# removals and leave importances alone. In exchange the prediction for the text itself, in
# the title, is closer.

# %%
slalom_plane(deletions, tokens)
