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
# # Which attention flow is faithful?
#
# An attribution is faithful if taking away the tokens that it ranks highest makes the
# prediction fall. This page measures it for the flows of the papers, for `RelevanceFlow`
# and for the usual baselines, with `captum_attnflow.study`: the same as
# `captum-attnflow study` in the shell.
#
# As it stands here the notebook runs on a dozen sentences, which is enough to see it work
# and too few to conclude anything. The output below comes from 300 sentences drawn from
# the SST-2 test split, on the classifier inside the package and on a fine-tuned 6-layer
# MiniLM, set by the three variables.

# %%
import html
import os
import tempfile
from pathlib import Path

from IPython.display import HTML, display

from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.study import METHODS, DataSource, Study, run_study

SENTENCES = """text
a gripping , funny film
the plot is thin and the jokes are stale
it never quite finds its feet
one of the best things i have seen all year
not a bad way to spend an evening
the actors deserve a far better script
charming , warm and full of life
i could not wait for it to end
a dull story told with great skill
there is nothing here that you have not seen before
too long by half , yet strangely moving
they should be proud of this one
"""

output = Path(os.environ.get("STUDY_OUTPUT", tempfile.mkdtemp()))
given = os.environ.get("STUDY_DATA")
if given is None:
    given = str(output / "sentences.tsv")
    Path(given).write_text(SENTENCES)
models = os.environ.get("STUDY_MODELS", str(DEMO_MODEL_PATH)).split(os.pathsep)

# %% [markdown]
# The methods, with their settings. Integrated Gradients at the embeddings with a `[MASK]`
# baseline is what the others are compared with.

# %%
names = (
    "relevance-flow",
    "relevance-flow-0",
    "relevance-flow-8",
    "layer-integrated-gradients",
    "chefer-relevance",
    "generalized-attention-flow",
    "generalized-attention-flow-free",
    "attention-flow",
    "attention-rollout",
    "random",
)
for name in names:
    print(f"{name}: {METHODS[name].description} {dict(METHODS[name].settings)}")

# %%
study = Study(
    models=tuple(models),
    data=DataSource(given, limit=300),
    methods=names,
    output=output,
    against="layer-integrated-gradients",
    metrics=("aopc", "log_odds"),
)
table = run_study(study)

# %% [markdown]
# AOPC is the mean fall of the predicted class's probability over 10, 20, ... 50 % of the
# tokens taken away (higher is better), LOdds the mean log ratio of the probabilities
# (lower is better); ± is the standard error. Behind it stands the difference from Layer
# Integrated Gradients on the same sentences, with its 95 % bootstrap interval.


# %%
def cell(row, metric):
    value, change = row.values[metric], row.differences.get(metric)
    text = f"{value.mean:.3f} ± {value.standard_error:.3f}"
    if change is not None:
        text += f" <small>{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]</small>"
    return text


head = ["model", "removal", "method", "AOPC", "LOdds", "rows fwd / bwd", "ms per text"]
body = [
    [
        html.escape(row.model),
        row.removal,
        row.method,
        cell(row, "aopc"),
        cell(row, "log_odds"),
        f"{row.forward_rows:.0f} / {row.backward_rows:.0f}",
        f"{1000 * row.seconds:.0f}",
    ]
    for row in table.rows
]
lines = ["".join(f"<td>{item}</td>" for item in line) for line in [head, *body]]
display(HTML("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"))

# %% [markdown]
# ## What it says
#
# - **The published forms.** `attention-flow` (Abnar & Zuidema's capacities) does not know
#   the class; on the 6-layer model it is no better than chance. There
#   `generalized-attention-flow` in the paper's form is little better: without residual
#   edges a token's identity is lost in the first layers' attention, and one joint flow
#   leaves the split between tokens to the barrier. On the 3-layer model less is lost, and
#   the same method is as faithful as Integrated Gradients.
# - **Free residual edges and one flow per token** (`generalized-attention-flow-free`) make
#   most of the difference on the deeper model: the residual stream carries a token past
#   the attention, and a single token's flow is a value that nothing is left to decide.
# - **Sign**: `relevance-flow-0` takes the head mean before the positive part, so that heads
#   that contradict each other cancel, and subtracts what speaks against the class. It
#   needs one row, as the others do.
# - **Direct edges**: `relevance-flow` adds to every token an edge of its own, its
#   integrated gradient over two steps, and `relevance-flow-8` over eight. Attention
#   sees what tokens do through other tokens, at one point; the path sees a token's own
#   embedding, and errs elsewhere. Together they are better than either.
#
# What the figures do not say: removing tokens makes texts that the models have not seen in
# training, by `[MASK]` and by deletion in different ways, which is why both are here;
# and two sentiment classifiers are not all models. Options were chosen on training and
# development sentences only.
