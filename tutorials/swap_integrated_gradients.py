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
# # Swap Integrated Gradients for an attention flow
#
# Captum's BERT tutorial attributes a prediction to the embeddings with
# `LayerIntegratedGradients`. Here is that pipeline on the classifier inside the package,
# and the one line that changes.

# %%
import torch
from captum.attr import LayerIntegratedGradients
from captum.attr import visualization as viz

from captum_attnflow import LayerGeneralizedAttentionFlow
from captum_attnflow.demo import load_demo_model

model, tokenizer = load_demo_model()

sentences = ["a gripping , funny film", "the plot is thin and the jokes are stale"]
inputs = tokenizer(sentences, return_tensors="pt", padding=True)
ids, mask = inputs.input_ids, inputs.attention_mask
baselines = torch.where(ids > tokenizer.mask_token_id, tokenizer.pad_token_id, ids)


def forward(ids, mask):
    return model(ids, attention_mask=mask).logits


probabilities, predicted = forward(ids, mask).softmax(-1).max(-1)

# %% [markdown]
# The rest of the pipeline: attribute to the embeddings, sum over their dimensions, show.


# %%
def explain(attribution):
    attributions, delta = attribution.attribute(
        ids,
        baselines,
        target=predicted,
        additional_forward_args=(mask,),
        return_convergence_delta=True,
    )
    scores = attributions.sum(-1)
    scores = scores / scores.norm(dim=1, keepdim=True)
    records = []
    for row, kept in enumerate(mask.bool()):
        label = model.config.id2label[int(predicted[row])]
        records.append(
            viz.VisualizationDataRecord(
                scores[row][kept],
                float(probabilities[row].detach()),
                label,
                "-",
                label,
                float(scores[row].sum()),
                tokenizer.convert_ids_to_tokens(ids[row][kept]),
                float(delta[row]),
            )
        )
    return viz.visualize_text(records)


# %% [markdown]
# ## Integrated Gradients
# 50 forward and backward passes.

# %%
_ = explain(LayerIntegratedGradients(forward, model.bert.embeddings))

# %% [markdown]
# ## Generalized Attention Flow
# One forward and one backward pass. Only the class name has changed.

# %%
_ = explain(LayerGeneralizedAttentionFlow(forward, model.bert.embeddings))

# %% [markdown]
# Flow scores are never negative, and special tokens take part in the flow. With residual
# edges that never bind and one flow per token, the read-out position [CLS] is no source
# and the words stand out more. That is an option, not another pipeline.

# %%
_ = explain(
    LayerGeneralizedAttentionFlow(
        forward, model.bert.embeddings, residual="free", game="independent"
    )
)
