"""Vision families: what is captured equals what autograd says."""

from __future__ import annotations

import pytest
import torch
from models import VISION_MODELS, vision_model

from captum_attnflow.capture import capture_attention


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", VISION_MODELS)
def test_maps_and_gradients_equal_those_of_the_eager_model(name, implementation):
    pixels = torch.randn(2, 3, 32, 32).double()
    model = vision_model(name, implementation).requires_grad_(False)
    record = capture_attention(
        lambda pixels: model(pixels).last_hidden_state[:, 0], (pixels,), 3
    )
    output = vision_model(name, "eager")(pixels, output_attentions=True)
    gradients = torch.autograd.grad(
        output.last_hidden_state[:, 0, 3].sum(), output.attentions
    )
    assert len(record.weights) == len(output.attentions) == 3
    largest = max(gradient.abs().max() for gradient in gradients)
    for mine, theirs in zip(record.weights, output.attentions, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    for mine, theirs in zip(record.gradients, gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-6 * largest
