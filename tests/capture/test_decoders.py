"""Decoder-only families: what is captured equals what autograd says."""

from __future__ import annotations

import pytest
import torch
from models import DECODERS, FUSED_DECODERS, decoder, token_ids

from captum_attnflow.capture import capture_attention

FORMS = [(family, "eager") for family in DECODERS]
FORMS += [(family, "sdpa") for family in FUSED_DECODERS]
every_form = pytest.mark.parametrize(("family", "implementation"), FORMS)
POSITION, TOKEN = 6, 7


def eager_attention(family, ids):
    """Attention and gradients by the library's own output and autograd."""
    output = decoder(family)(ids, output_attentions=True)
    selected = output.logits[:, POSITION, TOKEN].sum()
    return output.attentions, torch.autograd.grad(selected, output.attentions)


@every_form
def test_maps_and_gradients_equal_those_of_the_eager_model(family, implementation):
    ids = token_ids()
    model = decoder(family, implementation).requires_grad_(False)
    record = capture_attention(lambda ids: model(ids).logits, (ids,), (POSITION, TOKEN))
    weights, gradients = eager_attention(family, ids)
    largest = max(gradient.abs().max() for gradient in gradients)
    assert len(record.weights) == len(weights) == 3
    for mine, theirs in zip(record.weights, weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    for mine, theirs in zip(record.gradients, gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-6 * largest


@every_form
def test_the_read_out_is_the_position_whose_logits_are_selected(family, implementation):
    ids, model = token_ids(), decoder(family, implementation)
    chosen = capture_attention(
        lambda ids: model(ids).logits, (ids,), [(6, TOKEN), (3, TOKEN)]
    )
    assert chosen.read_out().nonzero().tolist() == [[0, 6], [1, 3]]
    last = capture_attention(lambda ids: model(ids).logits[:, -1], (ids,), TOKEN)
    assert last.read_out().nonzero().tolist() == [[0, 9], [1, 9]]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
def test_sliding_windows_are_in_the_maps(family):
    model = decoder(family)
    record = capture_attention(
        lambda ids: model(ids).logits, (token_ids(),), (9, TOKEN)
    )
    # A window of four: a query sees itself and the three before it.
    windowed = [not weights.tril(-4).any() for weights in record.weights]
    types = getattr(model.config, "layer_types", ["sliding_attention"] * 3)
    assert windowed == [kind == "sliding_attention" for kind in types]
    assert all(weights.tril(-3).any() for weights in record.weights)
