"""Attention that a fused kernel computes is read from what goes in and comes back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import classifier, token_ids

from captum_attnflow.capture import (
    AttentionRecord,
    FusedLayer,
    UnsupportedAttentionError,
    capture_attention,
)
from captum_attnflow.capture import record as record_module
from captum_attnflow.capture.composed import JoinedLayer


def attend_openly(query, key, value, mask):
    """The definition of scaled dot-product attention, with its map as a leaf."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + mask).softmax(-1)
    weights = weights.detach().requires_grad_()
    return weights, weights @ value


@pytest.mark.parametrize(
    "mask_shape", [None, "causal", (5, 5), (2, 1, 5, 5), (2, 4, 5, 5)]
)
@pytest.mark.parametrize("n_key_heads", [1, 2, 4])
def test_maps_and_gradients_are_those_of_the_definition(mask_shape, n_key_heads):
    query = torch.randn(2, 4, 5, 8).double()
    key, value = (torch.randn(2, n_key_heads, 5, 8).double() for _ in range(2))
    reader = torch.randn(5, 8).double()
    added = torch.zeros(5, 5).double()
    options = {}
    if mask_shape == "causal":
        options = {"is_causal": True}
        added = added.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    elif mask_shape is not None:
        options = {"attn_mask": (torch.rand(mask_shape) > 0.3) | torch.eye(5).bool()}
        added = torch.where(options["attn_mask"], 0.0, -torch.inf).double()

    def forward(query):
        mixed = F.scaled_dot_product_attention(
            query, key, value, enable_gqa=True, **options
        )
        return (mixed * reader).tanh().sum((1, 2, 3))

    record = capture_attention(forward, (query,))
    (layer,) = record.layers
    assert isinstance(layer, FusedLayer)
    weights, mixed = attend_openly(query, key, value, added)
    (mixed * reader).tanh().sum().backward()
    torch.testing.assert_close(record.weights[0], weights.detach())
    torch.testing.assert_close(
        record.gradients[0] * (weights > 0), weights.grad * (weights > 0)
    )
    # Some heads, some rows.
    some = layer.select(slice(1, None)).maps(slice(1, 3))
    torch.testing.assert_close(some[0], weights.detach()[1:, 1:3])


def test_no_map_is_formed_while_the_model_runs(monkeypatch):
    formed = []
    of_kernel = record_module.weights_of_scores
    monkeypatch.setattr(
        record_module,
        "weights_of_scores",
        lambda *arguments: formed.append(1) or of_kernel(*arguments),
    )
    model = classifier("Bert", "sdpa")
    record = capture_attention(lambda ids: model(ids).logits, (token_ids(),), 1)
    assert not formed
    kept = [
        part
        for layer in record.layers
        for part in vars(layer).values()
        if isinstance(part, torch.Tensor)
    ]
    assert kept
    assert all(part.shape[-2:] != (10, 10) for part in kept)
    assert record.weights[0].shape == (2, 4, 10, 10)
    assert formed


def test_heads_are_taken_a_few_at_a_time(monkeypatch):
    model = classifier("Bert", "sdpa", torch.float64)
    record = capture_attention(lambda ids: model(ids).logits, (token_ids(),), 1)
    at_once = [len(list(layer.parts())) for layer in record.layers]
    monkeypatch.setattr(record_module, "_CACHED_ENTRIES", 2 * 10 * 10)
    one_by_one = list(record.layers[0].parts())
    assert (at_once[0], len(one_by_one)) == (1, 4)
    torch.testing.assert_close(
        torch.cat([part.weights for part in one_by_one], 1), record.weights[0]
    )


@pytest.mark.parametrize(("device", "n_groups"), [("cpu", 12), ("meta", 2)])
def test_only_a_processor_takes_as_few_heads_as_its_cache_holds(device, n_groups):
    maps = torch.empty(8, 12, 256, 256, device=device)
    layer = record_module.DenseLayer(maps, maps)
    assert len(list(layer.head_groups())) == n_groups
    joined = JoinedLayer((layer.select(slice(5)), layer.select(slice(5, None))))
    assert len(list(joined.head_groups())) == n_groups


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_parts_of_a_batch_are_joined_and_selected(kind):
    model, ids = classifier("Bert", kind, torch.float64), token_ids(5)
    mask = torch.ones(5, 10)
    mask[2, 6:] = 0

    def capture(rows):
        return capture_attention(
            lambda ids, mask: model(ids, attention_mask=mask).logits,
            (ids[rows],),
            1,
            (mask[rows],),
        )

    whole = capture(slice(None))
    joined = AttentionRecord.concatenate([capture(slice(2)), capture(slice(2, None))])
    for record in (joined, whole):
        for mine, theirs in zip(
            record.select(slice(1, 4)).weights + record.gradients,
            tuple(w[1:4] for w in whole.weights) + whole.gradients,
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kept_float", [0, 1, 2])
def test_what_autocast_casts_is_read_as_the_kernel_takes_it(kept_float):
    state = torch.randn(3, 2, 4, 5, 8).bfloat16()
    parts = [part.float() if i == kept_float else part for i, part in enumerate(state)]

    def forward(query, *others):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = F.scaled_dot_product_attention(query, *others)
        return mixed.float().square().sum((1, 2, 3))

    record = capture_attention(forward, (parts[0],), None, tuple(parts[1:]))
    weights, mixed = attend_openly(*state.double(), 0)
    mixed.square().sum().backward()
    for mine, expected in [
        (record.weights[0], weights.detach()),
        (record.gradients[0], weights.grad),
    ]:
        torch.testing.assert_close(mine.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [3, 200])  # scores beyond the largest half: 65504
def test_half_precision_is_that_of_the_parts_and_not_of_the_scores(dtype, size):
    query, key = (size * torch.randn(2, 2, 4, 5, 64).abs()).to(dtype)
    value = torch.randn(2, 4, 5, 64).to(dtype)

    def forward(query):
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.float().sum((1, 2, 3))

    record = capture_attention(forward, (query,))
    weights, mixed = attend_openly(query.double(), key.double(), value.double(), 0)
    mixed.sum().backward()
    torch.testing.assert_close(
        record.weights[0].double(), weights.detach(), rtol=0, atol=1e-5 * size
    )
    torch.testing.assert_close(
        record.gradients[0].double(), weights.grad, rtol=1e-5, atol=1e-5
    )


def test_a_mask_that_is_overwritten_after_its_use_is_refused():
    """The maps are formed of it afterwards."""
    query, mask = torch.randn(2, 4, 5, 8), torch.zeros(5, 5)

    def forward(query):
        for layer in range(2):
            mask.zero_()[:, layer] = -10
            query = F.scaled_dot_product_attention(query, query, query, mask)
        return query.square().sum((1, 2, 3))

    with pytest.raises(UnsupportedAttentionError, match=r"mask.*in place.*copy"):
        capture_attention(forward, (query,))


def test_dropout_needs_the_map_and_gets_it():
    query = torch.randn(2, 4, 5, 8).double()

    def forward(query):
        return F.scaled_dot_product_attention(query, query, query, dropout_p=0.5).sum(
            (1, 2, 3)
        )

    record = capture_attention(forward, (query,))
    assert not isinstance(record.layers[0], FusedLayer)
    assert (record.weights[0] == 0).any()  # dropped
