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
from IPython.display import HTML

from captum_attnflow import LayerGeneralizedAttentionFlow, LayerRelevanceFlow
from captum_attnflow.demo import load_demo_model
from captum_attnflow.show import token_matrix, visualize_text

model, tokenizer = load_demo_model()

sentences = ["a gripping , funny film", "the plot is thin and the jokes are stale"]
inputs = tokenizer(sentences, return_tensors="pt", padding=True)
ids, mask = inputs.input_ids, inputs.attention_mask
baselines = torch.where(ids > tokenizer.mask_token_id, tokenizer.mask_token_id, ids)


def forward(ids, mask):
    return model(ids, attention_mask=mask).logits


probabilities, predicted = forward(ids, mask).softmax(-1).max(-1)

# %% [markdown]
# The rest of the pipeline: attribute to the embeddings, sum over their dimensions, make
# Captum's records.


# %%
def explain(attribution):
    attributions, delta = attribution.attribute(
        ids,
        baselines,
        target=predicted,
        additional_forward_args=(mask,),
        return_convergence_delta=True,
    )
    scores = attributions.sum(-1).detach()
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
    return records


# %% [markdown]
# ## One line
#
# ```diff
# -attribution = LayerIntegratedGradients(forward, model.bert.embeddings)
# +attribution = LayerGeneralizedAttentionFlow(forward, model.bert.embeddings)
# ```
#
# 50 rows through the model become one.

# %%
attribution = LayerIntegratedGradients(forward, model.bert.embeddings)
gradient_records = explain(attribution)

# %%
attribution = LayerGeneralizedAttentionFlow(forward, model.bert.embeddings)
flow_records = explain(attribution)

# %% [markdown]
# ## Both pictures
#
# Captum's text picture of Integrated Gradients on the left, of the flow on the right.
# `visualize_text` is Captum's, which returns the picture in place of displaying it.

# %%
left, right = (
    visualize_text(records).data for records in (gradient_records, flow_records)
)
HTML(
    "<table><tr><th>LayerIntegratedGradients</th>"
    "<th>LayerGeneralizedAttentionFlow</th></tr>"
    f"<tr><td>{left}</td><td>{right}</td></tr></table>"
)

# %% [markdown]
# Code hosts take the colours out of HTML, so here are the same scores as figures. Two more
# rows are other choices of the same kind of line: residual edges that never bind with a
# flow for each token, and `RelevanceFlow`, whose scores have a sign.

# %%
methods = {
    "IG": gradient_records,
    "GAF": flow_records,
    "GAF, free": explain(
        LayerGeneralizedAttentionFlow(
            forward, model.bert.embeddings, residual="free", game="independent"
        )
    ),
    "RelevanceFlow": explain(LayerRelevanceFlow(forward, model.bert.embeddings)),
}


def compare(row):
    scores = [records[row].word_attributions for records in methods.values()]
    tokens = flow_records[row].raw_input_ids
    return token_matrix(torch.stack(scores), tokens, list(methods)).figure()


compare(0)

# %%
compare(1)

# %% [markdown]
# Flow scores are never negative, and special tokens take part in the flow: what `[CLS]`
# sends is flow that starts in its own embedding. With free residual edges and one flow
# per token, `[CLS]` is the read-out and no source, and the words stand out more.
# `RelevanceFlow` is the one to explain a text for its own sake; which is most faithful is
# measured in [faithfulness.ipynb](faithfulness.ipynb).
