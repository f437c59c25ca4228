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
# # Attention flows as baselines of your method
#
# You have an attribution method of your own and need something to compare it with. This
# page enters a Captum method into a study beside the flows: the same texts, the same
# removals, paired differences with intervals, costs counted. The result is a table for a
# paper.
#
# ## Your method
#
# Anything with Captum's `attribute()`. The stand-in here integrates gradients by a single
# step, half way between the baseline and the input.

# %%
import tempfile
from pathlib import Path

import torch
from captum.attr import Attribution
from IPython.display import Image, Markdown, display

from captum_attnflow import GeneralizedAttentionFlow
from captum_attnflow.demo import DEMO_MODEL_PATH, load_demo_model
from captum_attnflow.metrics import faithfulness
from captum_attnflow.study import METHODS, DataSource, Method, Study, run_study


class HalfWayGradient(Attribution):
    def attribute(self, inputs, baselines, target, additional_forward_args=()):
        middle = ((inputs + baselines) / 2).detach().requires_grad_()
        output = self.forward_func(middle, *additional_forward_args)
        chosen = output.gather(1, target[:, None]).sum()
        return torch.autograd.grad(chosen, middle)[0] * (inputs - baselines)


# %% [markdown]
# A study asks a method for one score per token. It hands over a batch: the model, token
# ids, the ids with `[MASK]` for every word, the model's other arguments and the predicted
# classes. A name, a sentence and the settings go into the study's manifest.


# %%
def half_way_scores(batch):
    words = batch.model.get_input_embeddings()

    def forward(embeddings, *arguments):
        others = dict(zip(batch.others, arguments, strict=True))
        return batch.model(inputs_embeds=embeddings, **others).logits

    attributions = HalfWayGradient(forward).attribute(
        words(batch.ids).detach(),
        words(batch.reference_ids).detach(),
        batch.predicted,
        batch.arguments,
    )
    return attributions.sum(-1)


METHODS["half-way-gradient"] = Method(
    half_way_scores, "gradient half way to the baseline, times the difference"
)

# %% [markdown]
# ## The study
#
# Your texts go into a CSV, TSV, JSONL or Parquet file. These two dozen sentences show how
# it works; a study that concludes anything has hundreds
# ([faithfulness.ipynb](faithfulness.ipynb) has 300). `against` names your method, so that
# differences are those of the baselines from it. A study that is interrupted continues
# where it stopped.

# %%
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
a lazy sequel with no reason to exist
every scene is a small delight
the ending ruins what was a clever idea
beautifully shot and wonderfully acted
i laughed once , and that was at the credits
a tender portrait of two brothers
loud , empty and far too pleased with itself
it is hard to imagine a finer cast
the dialogue is painful to hear
a quiet triumph
neither scary nor funny
smart , brave and utterly absorbing
"""

folder = Path(tempfile.mkdtemp())
(folder / "sentences.tsv").write_text(SENTENCES)
table = run_study(
    Study(
        models=(str(DEMO_MODEL_PATH),),
        data=DataSource(str(folder / "sentences.tsv")),
        methods=(
            "half-way-gradient",
            "relevance-flow",
            "generalized-attention-flow",
            "attention-flow",
            "layer-integrated-gradients",
            "random",
        ),
        output=folder / "results",
        against="half-way-gradient",
        metrics=("aopc", "log_odds"),
    )
)
display(Markdown((folder / "results" / "table.md").read_text()))

# %% [markdown]
# `table.tex` and `table.csv` hold the same, `results.jsonl` every text's values, and
# `manifest.json` versions, settings and hashes. The plot:

# %%
display(Image(folder / "results" / "plot.png", width=640))

# %% [markdown]
# Which differences stand? Those whose interval leaves out 0.

# %%
for row in table.rows:
    change = row.differences.get("aopc")
    if change is not None:
        verdict = (
            "differs" if change.low > 0 or change.high < 0 else "no difference shown"
        )
        print(
            f"{row.removal:8} {row.method:28} AOPC {change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] {verdict}"
        )

# %% [markdown]
# ## In an evaluation of your own
#
# The metrics stand alone, too, and take any attribution: one value per text, so that two
# methods can be compared pair by pair.

# %%
model, tokenizer = load_demo_model()
inputs = tokenizer(SENTENCES.splitlines()[1:], return_tensors="pt", padding=True)
ids, mask = inputs.input_ids, inputs.attention_mask


def forward(ids, mask):
    return model(ids, attention_mask=mask).logits


predicted = forward(ids, mask).argmax(1)
flow = GeneralizedAttentionFlow(forward).attribute(
    ids, target=predicted, additional_forward_args=(mask,)
)
special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
values = faithfulness(
    forward,
    ids,
    flow,
    tokenizer.mask_token_id,
    target=predicted,
    additional_forward_args=(mask,),
    keep=torch.isin(ids, special),
    padding=mask == 0,
)
for name, value in values.items():
    print(f"{name:20} {value.mean():+.3f} ± {value.std() / len(value) ** 0.5:.3f}")

# %% [markdown]
# ## What to report
#
# - The form of the flow. `GeneralizedAttentionFlow` and `AttentionFlow` are the papers'
#   forms by default; with `residual="free"` or another `game` they are not, and
#   `RelevanceFlow` is this package's own. `repr` of the settings is in the manifest.
# - The removal and the token that replaces. They change the order of methods.
# - The papers of the methods that you use, and the software by its version: see
#   [Cite](../README.md#cite) and [CITATION.cff](../CITATION.cff).
