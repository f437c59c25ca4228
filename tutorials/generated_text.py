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
# # Generated text: what each token was made from
#
# Nobody knows the right attribution of a large model's answer. So this page trains a
# decoder on a task for which everybody does: put five words in order. Every generated
# word is copied from one place in the prompt, and an attribution should name it.

# %%
import warnings

import torch
from captum.attr import (
    LayerIntegratedGradients,
    LLMGradientAttribution,
    TextTokenInput,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_attnflow import (
    AttentionRollout,
    GeneralizedAttentionFlow,
    GenerationAttribution,
    RelevanceFlow,
)
from captum_attnflow.show import token_matrix

KINDS = [
    ["ann", "bob", "cid", "dan", "eve", "fay"],
    ["saw", "sold", "found", "lost", "drew", "kept"],
    ["two", "three", "four", "five", "six", "seven"],
    ["red", "blue", "green", "black", "white", "grey"],
    ["boats", "kites", "drums", "lamps", "coins", "books"],
]
vocabulary = ["[PAD]", ":", *(word for kind in KINDS for word in kind)]
words = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, ":"))
words.pre_tokenizer = WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)


def draw(n, generator):
    """Token ids: five words, one of each kind, shuffled, a colon, and in order."""
    kind = torch.arange(len(KINDS))
    chosen = torch.randint(6, (n, len(kind)), generator=generator) + 2 + 6 * kind
    shuffled = torch.rand(chosen.shape, generator=generator).argsort(1)
    colon = torch.full((n, 1), vocabulary.index(":"))
    return torch.cat([chosen.gather(1, shuffled), colon, chosen], 1)


torch.set_num_threads(1)  # for tensors this small, more only wait
generator = torch.Generator().manual_seed(0)
print(tokenizer.decode(draw(1, generator)[0]))

# %% [markdown]
# A GPT-2 of two layers learns it in seconds. Labels are smoothed by a tenth, so that the
# model is never quite certain, as language models of real text are not. The last section
# shows what changes without.


# %%
def train(label_smoothing):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=16,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",  # it returns the attention, for a comparison below
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(250):
        texts = draw(64, generator)
        logits = model(texts).logits[:, 5:-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            texts[:, 6:].flatten(),
            label_smoothing=label_smoothing,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


model = train(label_smoothing=0.1)
texts = draw(500, generator)
right = model(texts).logits[:, 5:-1].argmax(-1) == texts[:, 6:]
assert right.float().mean() > 0.99
print(f"{100 * right.float().mean():.1f} % of the words in new texts are right")

# %% [markdown]
# ## Captum's pipeline
#
# `GenerationAttribution` stands in for Captum's `LLMGradientAttribution`: the same
# prompt, the same `LLMAttributionResult`, the same plot. It takes one forward pass for
# the whole answer and a backward pass for each token.

# %%
prompt = TextTokenInput("red five ann boats saw :", tokenizer, baselines=0)
flow = GenerationAttribution(GeneralizedAttentionFlow(model), tokenizer)
options = {"max_new_tokens": 5, "do_sample": False}

result = flow.attribute(prompt, gen_args=options)
figure, _ = result.plot_token_attr()

# %% [markdown]
# ## The whole matrix
#
# A generated token is made from those generated before it, too. Captum's result has no
# place for them; `explain()` returns them. Rows are the generated tokens, and what comes
# after a token is left blank.

# %%
explanation = flow.explain(prompt, gen_args=options)
explanation.matrix().figure()

# %% [markdown]
# Flow that starts in a generated token came into it from somewhere. `from_prompt()` hands
# it on, in proportion, until all of it starts in the prompt; the sum of a row stays.

# %%
from_prompt = explanation.from_prompt()
assert torch.allclose(from_prompt.sum(1), explanation.scores.sum(1))
token_matrix(from_prompt, explanation.tokens[:6], explanation.generated_tokens).figure()

# %% [markdown]
# ## How often is the source found?
#
# A hit: of the five words in the prompt the one with the highest score is the one that
# was copied. By chance that is one in five.


# %%
def attribution_methods(model):
    def ours(method):
        return GenerationAttribution(method, tokenizer)

    return {
        "AttentionRollout": ours(AttentionRollout(model)),
        "GeneralizedAttentionFlow": ours(GeneralizedAttentionFlow(model)),
        "  free residual edges, a flow per token": ours(
            GeneralizedAttentionFlow(model, residual="free", game="independent")
        ),
        "RelevanceFlow": ours(RelevanceFlow(model)),
        "LayerIntegratedGradients, 50 steps": LLMGradientAttribution(
            LayerIntegratedGradients(model, model.transformer.wte), tokenizer
        ),
    }


def scores_of(model, text):
    """Scores (generated words, words of the prompt) by method."""
    attention = model(text[None, :-1], output_attentions=True).attentions[-1]
    yield "attention of the last layer, mean of heads", attention[0].mean(0)[5:, :5]
    prompt = TextTokenInput(tokenizer.decode(text[:6]), tokenizer, baselines=0)
    for name, method in attribution_methods(model).items():
        result = method.attribute(prompt, target=tokenizer.decode(text[6:]))
        yield name, result.token_attr[:, :5]


def print_hits(model, n_prompts):
    hits = {}
    for text in draw(n_prompts, generator):
        source = (text[6:, None] == text[:5]).int().argmax(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scores that follow position, or are all 0
            for name, scores in scores_of(model, text):
                hits.setdefault(name, []).append(scores.argmax(1) == source)
    for name, found in hits.items():
        print(f"{name:44}{100 * torch.cat(found).float().mean():4.0f} %")


print_hits(model, n_prompts=20)

# %% [markdown]
# Copying is easy to attribute, and every method finds the source. That is what a check
# with a known answer is for: a method that fails here need not be tried on a large model.
#
# ## A model that is certain
#
# The same without smoothed labels. What is attributed is the logarithm of a word's
# probability; where that is nearly 1, its gradient is that of the remaining doubt: it says
# on what the doubt depends, and not from where the word was copied.

# %%
certain = train(label_smoothing=0.0)
logits = certain(texts).logits[:, 5:-1].log_softmax(-1)
missing = 1 - logits.gather(-1, texts[:, 6:, None]).exp().double()
print(f"median of 1 - probability: {missing.median():.0e}\n")
print_hits(certain, n_prompts=20)

# %% [markdown]
# Attention knows nothing of doubt and loses nothing, as long as attention is all there is
# to the task. Nor does Integrated Gradients: its path begins at a baseline where the word
# is still open. The flows whose capacities hold the plain gradient at the input lose.
# `RelevanceFlow` does not here: its rules share relevance out in proportion. Look at
# `explanation.log_probabilities` all the same before trusting the scores of a step.
