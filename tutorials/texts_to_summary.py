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
# # From a table of texts to a summary
#
# You have a classifier and a file of texts, and want to know what the classifier looks
# at: not in one text, but in all of them. This page goes from a CSV file to a table of
# scores, and from there to the words that speak for and against every label.
#
# ## A table
#
# Yours comes from somewhere else. This one is made here: 240 short reviews with an id
# and the label that a person would give. As in real tables, some rows are broken.

# %%
import csv
import random
from pathlib import Path

from captum_attnflow import TextClassifier
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.summary import summarize
from captum_attnflow.tables import TableJob, explain_table

PARTS = ["plot", "cast", "ending", "music", "dialogue", "camera", "humour", "pace"]
PRAISE = ["gripping", "funny", "charming", "clever", "moving", "fresh", "brilliant"]
BLAME = ["dull", "stale", "thin", "clumsy", "lifeless", "tedious", "messy"]

draw = random.Random(0)


def review(number):
    """A review whose second half decides, sometimes by way of a `not`."""
    label = draw.choice(["positive", "negative"])
    words = PRAISE if label == "positive" else BLAME
    said = draw.choice(words)
    if draw.random() < 0.15:
        said = "not " + draw.choice(BLAME if label == "positive" else PRAISE)
    first, second = draw.sample(PARTS, 2)
    opening = f"i had heard much of the {first} , and "
    text = (opening if draw.random() < 0.5 else "") + f"the {second} is {said}"
    return {"id": f"r{number:03}", "text": text, "stars": label}


rows = [review(number) for number in range(240)]
rows[17]["text"] = ""
rows[101]["text"] = "  "
with open("reviews.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
print(Path("reviews.csv").read_text("utf-8")[:180])

# %% [markdown]
# ## Scores for every text
#
# In the shell this is
#
#     captum-attnflow explain --data reviews.csv --text-column text \\
#       --id-column id --columns stars --output scores --format jsonl
#
# and here it is from Python. `model` takes a folder or a hub id. The scores stand in
# part files: a run that is stopped continues where it was, and `part=(2, 4)` leaves three
# quarters of the work to other machines.

# %%
job = TableJob(
    data="reviews.csv",
    output=Path("scores"),
    id_column="id",
    columns=("stars",),
    model=str(DEMO_MODEL_PATH),
    method="relevance-flow",
    format="jsonl",
    rows_per_part=100,
)
outcome = explain_table(job)
print(f"{outcome.n_rows} rows, of which not explained: {dict(outcome.reasons)}")
print(*sorted(path.name for path in Path("scores").glob("[!.]*")), sep="\n")

# %% [markdown]
# The broken rows are still there, with a reason in place of scores, so that the table has
# as many rows as the file. Started again, nothing is computed twice:

# %%
again = explain_table(job)
print(f"part files kept: {again.n_kept} of 3")

# %% [markdown]
# ## What the classifier looks at
#
# `summarize` reads the folder as a stream. A word's share is the part of a text's scores
# that it has, with its sign, and its interval is one over texts.

# %%
summary = summarize("scores", label_column="stars", top=8)
summary.figures()["words"]

# %% [markdown]
# Does the method look at the words, or only at where they stand? Here the last word has
# most, and rightly: these reviews end with the word that decides. On texts of all kinds
# such a curve would be a warning.

# %%
summary.figures()["positions"]

# %% [markdown]
# ## Where the model is wrong, and sure of it
#
# `label_column` compares predictions with what people said. The model is a small one,
# and negation is what it gets wrong.

# %%
[folder] = summary.folders
print(f"{folder.wrong.n_wrong} of {folder.wrong.n_compared} are wrong\n")
for wrong in folder.wrong.texts[:3]:
    row = wrong.text.row
    print(f"{row.predicted} {row.probability:.3f}, said {wrong.true_label}: {row.text}")

# %% [markdown]
# To look into one of them, explain it alone: why the label that it got, and not the
# other.

# %%
classifier = TextClassifier.load(DEMO_MODEL_PATH)
[explanation] = classifier.explain([folder.wrong.texts[0].text.row.text])
explanation

# %% [markdown]
# ## A page to hand on
#
# One HTML file without scripts, a CSV of the words, and the pictures.

# %%
for path in summary.save("summary"):
    print(path)
