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
# # A vision transformer: pixels in, pixels out
#
# The attention of a vision transformer runs over patches, and its flow is attributed to
# the pixels that the model was given. Here is a small one, trained on images in which the
# place that matters is known: a plus, a cross or a ring somewhere in noise.

# %%
import torch
from captum.attr import IntegratedGradients
from captum.attr import visualization as viz
from IPython.display import display
from matplotlib.figure import Figure
from transformers import ViTConfig, ViTForImageClassification

from captum_attnflow import AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow
from captum_attnflow.show import image_overlay

SIDE, OBJECT = 32, 9
LABELS = ["plus", "cross", "ring"]

row, column = torch.meshgrid(*[torch.arange(OBJECT) - OBJECT // 2] * 2, indexing="ij")
radius = (row**2 + column**2).sqrt()
SHAPES = torch.stack(
    [
        (row.abs() <= 1) | (column.abs() <= 1),
        ((row - column).abs() <= 1) | ((row + column).abs() <= 1),
        (radius > 2) & (radius <= 4.5),
    ]
)


def draw(n, generator):
    """Images (n, 1, 32, 32), their labels, and where the object's box is."""
    labels = torch.randint(len(SHAPES), (n,), generator=generator)
    corners = torch.randint(SIDE - OBJECT + 1, (n, 2), generator=generator)
    images = 0.5 * torch.randn(n, 1, SIDE, SIDE, generator=generator)
    boxes = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.bool)
    for image, box, label, (top, left) in zip(
        images, boxes, labels, corners.tolist(), strict=True
    ):
        place = (0, slice(top, top + OBJECT), slice(left, left + OBJECT))
        image[place] += 1.5 * SHAPES[label]
        box[place] = True
    return images, labels, boxes


# %% [markdown]
# Three layers, patches of 8 x 8 pixels: 16 patches and the class token.

# %%
torch.set_num_threads(1)  # for tensors this small, more only wait
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
config = ViTConfig(
    image_size=SIDE,
    patch_size=8,
    num_channels=1,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    num_labels=len(LABELS),
)
model = ViTForImageClassification(config)
n_steps = 700
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, n_steps)
for _ in range(n_steps):
    images, labels, _ = draw(64, generator)
    loss = torch.nn.functional.cross_entropy(model(images).logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
_ = model.eval()

images, labels, boxes = draw(64, generator)


def forward(pixels):
    return model(pixels).logits


with torch.no_grad():
    predicted = forward(images).argmax(1)
right = (predicted == labels).float().mean()
assert right > 0.9
print(f"{100 * right:.0f} % of 64 new images are right")

# %% [markdown]
# ## The swap
#
# Pixels in, pixel attributions out, as from `IntegratedGradients`. A patch's score is
# shared equally by its pixels.

# %%
methods = {
    "IntegratedGradients": IntegratedGradients(forward),
    "AttentionRollout": AttentionRollout(forward),
    "GeneralizedAttentionFlow": GeneralizedAttentionFlow(forward),
    "RelevanceFlow": RelevanceFlow(forward),
}
attributions = {
    name: method.attribute(images, torch.zeros_like(images), target=predicted)
    for name, method in methods.items()
}
assert all(scores.shape == images.shape for scores in attributions.values())

# %% [markdown]
# `image_overlay` is Captum's `visualize_image_attr`, given tensors as `attribute()`
# returns them. Blue speaks for the class.

# %%
image_overlay(
    attributions["GeneralizedAttentionFlow"],
    images,
    title=f"{LABELS[predicted[0]]}: GeneralizedAttentionFlow",
    fig_size=(3, 3),
)

# %% [markdown]
# Captum's function takes the axes to draw on, too: one image of each class, each method;
# blue is what speaks for the class.

# %%
figure = Figure(figsize=(8, 5))
grid = figure.subplots(len(LABELS), 1 + len(methods))
for axes, label in zip(grid, range(len(LABELS)), strict=True):
    example = int((labels == label).nonzero()[0])
    image = images[example].permute(1, 2, 0)
    image = (image - image.min()) / (image.max() - image.min())
    axes[0].imshow(image, cmap="gray")
    axes[0].set(xticks=[], yticks=[], ylabel=LABELS[label])
    for place, (name, scores) in zip(axes[1:], attributions.items(), strict=True):
        viz.visualize_image_attr(
            scores[example].detach().permute(1, 2, 0).numpy(),
            image.expand(-1, -1, 3).numpy(),
            "blended_heat_map",
            plt_fig_axis=(figure, place),
            use_pyplot=False,
        )
        place.set_title(name if label == 0 else "", fontsize=8)
figure.tight_layout()
display(figure)

# %% [markdown]
# ## Measured: how much falls on the object?
#
# The share of the positive attribution that lies inside the object's box, mean over the
# images and its standard error. A flow knows patches, not pixels, and a patch is hardly
# smaller than the box. So the second column asks for patches only: attributions are
# averaged over each patch, and the share in the patches that the box touches counts.
# Chance is their share of the area.

# %%
touched = torch.nn.functional.max_pool2d(boxes.float(), 8).bool()


def share(scores, place):
    positive = scores.detach().clamp_min(0).double()
    shares = (positive * place).sum((1, 2, 3)) / positive.sum((1, 2, 3)).clamp_min(
        1e-30
    )
    return f"{shares.mean():.2f} ± {shares.std() / len(shares) ** 0.5:.2f}"


print(f"{'':26}{'in the box':14}in its patches")
for name, scores in {"chance": torch.ones_like(images), **attributions}.items():
    patches = torch.nn.functional.avg_pool2d(scores, 8)
    print(f"{name:26}{share(scores, boxes):14}{share(patches, touched)}")

# %% [markdown]
# In pixels nothing that scores patches can compete with `IntegratedGradients`. On patches
# `RelevanceFlow` comes next, with one row through the model in place of fifty. The
# papers' forms find the object, too, and leave more than half of their flow elsewhere:
# without a sign, or without residual edges, what passes through a patch's attention
# counts for it whatever it says.
