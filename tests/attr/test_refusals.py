"""Models that no flow can be drawn through: the error names the reason."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from models import (
    TorchEncoder,
    bert,
    decoder,
    longformer,
    pooled_by_attention,
    swin,
    token_ids,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import captum_attnflow
from captum_attnflow import (
    SLALOM,
    AttentionFlow,
    AttentionRollout,
    AttnLRP,
    CheferRelevance,
    GeneralizedAttentionFlow,
    RelevanceFlow,
    UnsupportedAttentionError,
)

METHODS = [AttentionFlow, AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow]
every_method = pytest.mark.parametrize("method", METHODS)


def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, CheferRelevance, SLALOM])
def test_ids_without_a_batch_are_told_how_to_get_one(method):
    with pytest.raises(ValueError, match=r"\(10,\).*\(B, T\).*inputs\[None\]"):
        method(bert(torch.float32)).attribute(token_ids()[0], target=1)


@every_method
def test_longformer_has_maps_of_its_global_tokens_only(method):
    model = longformer()
    with pytest.raises(UnsupportedAttentionError, match=r"windowed.*Longformer"):
        method(lambda ids: model(ids).logits).attribute(token_ids(), target=1)


@every_method
def test_swin_attends_in_windows(method):
    model = swin()
    with pytest.raises(UnsupportedAttentionError, match=r"windowed attention \(Swin\)"):
        method(lambda pixels: model(pixels).logits).attribute(images(), target=1)


@every_method
def test_siglip_ends_in_attention_pooling(method):
    model = pooled_by_attention()
    with pytest.raises(UnsupportedAttentionError, match=r"attention pooling \(SigLIP"):
        method(lambda pixels: model(pixels).pooler_output).attribute(images(), target=1)


@every_method
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("n_new", [1, 4])
def test_a_key_value_cache_holds_tokens_out_of_reach(method, implementation, n_new):
    model, ids = decoder("gpt2", implementation), token_ids(2, 10)
    with torch.no_grad():
        past = model(ids[:, :6], use_cache=True).past_key_values

    def forward(ids, past):
        # A pass adds to the cache that it is given.
        return model(ids, past_key_values=copy.deepcopy(past)).logits[:, -1]

    with pytest.raises(UnsupportedAttentionError, match=r"no past_key_values"):
        method(forward).attribute(
            ids[:, 6 : 6 + n_new], target=7, additional_forward_args=(past,)
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("inside", [False, True])
@every_method
def test_torchscript_hides_its_operations(method, inside):
    traced = torch.jit.trace(TorchEncoder(), token_ids(2, 10), check_trace=False)
    model = nn.Sequential(traced) if inside else traced
    with pytest.raises(UnsupportedAttentionError, match=r"TorchScript.*the Python"):
        method(model).attribute(token_ids(2, 10), target=1)


@every_method
def test_a_convolutional_network_has_no_attention(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    pixels = images()
    model(pixels)
    with pytest.raises(
        UnsupportedAttentionError, match=r"no attention map.*without attention.*SLALOM"
    ):
        method(model).attribute(pixels, target=1)


TWO_PASSES = {
    "siamese": lambda model, one, other: (
        model.bert(one).pooler_output * model.bert(other).pooler_output
    ),
    "cross-encoder twice": lambda model, one, other: (
        model(one).logits - model(other).logits
    ),
    "both in one batch": lambda model, one, other: (
        model(torch.cat([one, other])).logits.unflatten(0, (2, -1)).amax(0)
    ),
    "one of which is not used": lambda model, one, other: (
        model(one).logits + 0 * model(other).logits
    ),
}


@every_method
@pytest.mark.parametrize("passes", TWO_PASSES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_two_passes_leave_open_whose_tokens_are_meant(method, passes, implementation):
    model = bert(implementation=implementation)
    ids = token_ids(3, 8)
    options = {"path_steps": 0} if method is RelevanceFlow else {}
    attribution = method(
        lambda one, other: TWO_PASSES[passes](model, one, other), **options
    )
    with pytest.raises(UnsupportedAttentionError, match="one pass at a time"):
        attribution.attribute(ids, target=1, additional_forward_args=(ids.flip(1),))


@every_method
def test_a_frozen_backbone_under_no_grad_has_no_gradient(method):
    frozen, model = TorchEncoder(), TorchEncoder()

    def forward(ids):
        with torch.no_grad():
            hidden = frozen.encoder(frozen.embedding(ids))
        return model.head(model.encoder(hidden).mean(1))

    with pytest.raises(
        UnsupportedAttentionError, match=r"under torch\.no_grad.*frozen"
    ):
        method(forward).attribute(token_ids(), target=1)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@every_method
def test_integer_kernels_have_no_gradient(method):
    model = TorchEncoder().float()
    quantised = torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, dtype=torch.qint8
    )
    with pytest.raises(ValueError, match=r"integer-quantised kernels.*float32"):
        method(quantised).attribute(token_ids(), target=1)


def test_nan_at_a_baseline_is_not_blamed_on_the_input():
    model, ids = TorchEncoder(), token_ids()
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    ids[ids == 3] = 4
    with pytest.raises(ValueError, match=r"not at the input itself.*baselines"):
        RelevanceFlow(model).attribute(ids, 3, target=1)
    assert RelevanceFlow(model).attribute(ids, target=1).isfinite().all()


def test_tables_that_are_loaded_for_every_pass_are_known_again():
    """As accelerate's offloading does it, whose parameters are elsewhere meanwhile."""
    model, ids = TorchEncoder(), token_ids()
    expected = RelevanceFlow(model).attribute(ids, 3, target=1)
    kept = model.embedding.weight.detach().clone()

    def load(module, args):
        module.weight = nn.Parameter(kept.clone(), requires_grad=False)

    def unload(module, args, output):
        module.weight = nn.Parameter(torch.empty_like(kept, device="meta"))

    model.embedding.register_forward_pre_hook(load)
    model.embedding.register_forward_hook(unload)
    found = RelevanceFlow(model).attribute(ids, 3, target=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", [*METHODS, CheferRelevance, AttnLRP])
def test_ids_with_the_tokens_first_are_refused(method):
    """Also of as many examples as tokens, where sizes do not show it."""
    model, ids = TorchEncoder(), token_ids(6, 6)
    with pytest.raises(ValueError, match=r"tokens in dimension 0.*transpose"):
        method(lambda ids: model(ids.mT)).attribute(ids.mT.contiguous(), target=1)


@pytest.mark.parametrize("given", [np.int64(3), np.uint8(3), np.float32(3)])
@pytest.mark.parametrize("method", [RelevanceFlow, SLALOM])
def test_numbers_of_numpy_are_baselines(method, given):
    attribution, ids = method(TorchEncoder()), token_ids()
    found = attribution.attribute(ids, given, target=1)
    expected = attribution.attribute(ids, 3, target=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, SLALOM])
def test_fractions_are_no_baselines_of_ids(method):
    """Captum would cut them off."""
    with pytest.raises(ValueError, match=r"baselines=0\.5.*token ids"):
        method(TorchEncoder()).attribute(token_ids(), 0.5, target=1)
    method(TorchEncoder()).attribute(token_ids(), 3.0, target=1)
    with pytest.raises(ValueError, match=r"baselines are torch\.float32.*token ids"):
        method(TorchEncoder()).attribute(token_ids(), 0.0 * token_ids(), target=1)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP])
def test_inference_mode_of_the_caller_is_named(method):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        method(TorchEncoder()).attribute(token_ids(), target=1)


@pytest.mark.parametrize("method", [*METHODS, CheferRelevance, AttnLRP])
@pytest.mark.parametrize("size", [(3, 6), (9, 6), (6, 3), (4, 1), (1, 4)])
def test_ids_with_the_tokens_first_are_named_by_their_sizes(method, size):
    model, ids = TorchEncoder(), token_ids(*size)
    with pytest.raises(ValueError, match=r"tokens first.*transposed"):
        method(lambda ids: model(ids.mT)).attribute(ids.mT.contiguous(), target=1)


@pytest.mark.parametrize("method", [*METHODS, CheferRelevance, AttnLRP])
def test_worker_threads_are_named(method):
    model = TorchEncoder()

    def forward(ids):
        found = []
        worker = threading.Thread(target=lambda: found.append(model(ids)))
        worker.start()
        worker.join()
        return found[0]

    with pytest.raises(ValueError, match="worker threads"):
        method(forward).attribute(token_ids(), target=1)


@pytest.mark.parametrize("method", [*METHODS, CheferRelevance])
@pytest.mark.parametrize("over", ["heads", "examples"])
def test_attention_in_a_loop_is_named(method, over):
    embedding, head = nn.Embedding(60, 8), nn.Linear(8, 2)

    def attend(x):
        return (x @ x.mT).softmax(-1) @ x

    def forward(ids):
        x = embedding(ids)
        for _ in range(2):
            if over == "heads":
                x = x + torch.cat([attend(part) for part in x.chunk(2, -1)], -1)
            else:
                x = x + torch.stack([attend(part[None])[0] for part in x])
        return head(x[:, 0])

    with pytest.raises(ValueError, match="a Python loop"):
        method(forward).attribute(token_ids(2, 5), target=1)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP])
def test_a_truth_value_is_no_target(method):
    with pytest.raises(ValueError, match=r"target=True is no index.*such as 1"):
        method(TorchEncoder()).attribute(token_ids(), target=True)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, CheferRelevance])
@pytest.mark.parametrize("baseline", [999, -1, torch.full((2, 10), 999)])
def test_baselines_beyond_the_vocabulary_are_named(method, baseline):
    """Also of methods that take no path from them."""
    least = int(torch.as_tensor(baseline).min())
    wanted = rf"ids from {least} to {least}.*50 rows; give ids from 0 to 49"
    with pytest.raises(ValueError, match=wanted):
        method(TorchEncoder()).attribute(token_ids(), baseline, target=1)
    layer = getattr(captum_attnflow, f"Layer{method.__name__}")
    model = bert(torch.float32)
    with pytest.raises(ValueError, match=wanted):
        layer(lambda ids: model(ids).logits, model.bert.embeddings).attribute(
            token_ids(), baseline, target=1
        )


def test_baselines_of_ids_in_two_tables_are_of_each_its_own():
    """Of words and of their kinds, side by side in one input."""
    model, kinds = bert(torch.float32), nn.Embedding(2, 32)

    def forward(pairs):
        words = model.bert.embeddings.word_embeddings(pairs[..., 0])
        return model(inputs_embeds=words + kinds(pairs[..., 1])).logits

    pairs = torch.stack([token_ids(), torch.ones(2, 10, dtype=torch.long)], -1)
    baselines = torch.tensor([4, 0]).expand(2, 10, 2)
    flow = AttentionFlow(forward)
    expected = flow.attribute(pairs, target=1)
    assert torch.equal(flow.attribute(pairs, baselines, target=1), expected)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, CheferRelevance, SLALOM])
@pytest.mark.parametrize("target", [[0], [], [(0,)], torch.tensor([0, 1, 0])])
def test_a_target_for_other_examples_than_there_are_is_refused(method, target):
    wanted = rf"is for {len(target)} examples?, but there are 2; give an integer or"
    attribution, ids = method(TorchEncoder()), token_ids()
    with pytest.raises(ValueError, match=wanted):
        attribution.attribute(ids, target=target)
    for several in ("explain_targets", "score_targets"):
        if hasattr(attribution, several):
            with pytest.raises(ValueError, match=wanted):
                list(getattr(attribution, several)(ids, [target]))
    if method is RelevanceFlow:  # along a path, whose rows are several per example
        with pytest.raises(ValueError, match=wanted):
            list(attribution.explain_targets(ids, [target], baselines=3))


def test_outputs_that_depend_on_other_examples_are_to_leave_the_function():
    model = bert()

    def forward(ids):
        logits = model(ids).logits
        return logits - logits.mean(0)

    with pytest.raises(
        UnsupportedAttentionError,
        match=r"leads to other examples.*y\.mean\(0\), out of",
    ):
        AttentionFlow(forward).attribute(token_ids(4), target=1)


@pytest.mark.parametrize("method", [*METHODS, AttnLRP, CheferRelevance])
@pytest.mark.parametrize("part", ["feed-forward", "layers"])
def test_reentrant_checkpoints_are_refused_in_words(method, part):
    """Torch's own error is about ``.grad()``, which nobody called."""
    model = TorchEncoder()

    def forward(ids):
        hidden = model.embedding(ids)
        for layer in model.encoder.layers:
            if part == "layers":
                hidden = checkpoint(layer, hidden, use_reentrant=True)
                continue
            mixed = hidden + layer.self_attn(hidden, hidden, hidden)[0]
            inner = checkpoint(layer.linear1, mixed, use_reentrant=True)
            hidden = mixed + layer.linear2(inner.relu())
        return model.head(hidden[:, 0])

    words = r"use_reentrant=True.* Checkpoint with use_reentrant=False"
    if part == "layers" and method is not AttnLRP:
        words = r"attention calls ran under torch.no_grad.* use_reentrant=False"
    with pytest.raises(UnsupportedAttentionError, match=words):
        method(forward).attribute(token_ids(), target=1)


@every_method
def test_keys_of_an_earlier_layer_are_refused(method):
    """The queries' tokens had no score: the sequence was held by no input."""
    model = TorchEncoder()

    def forward(ids):
        embedded = model.embedding(ids)
        first, second, _ = model.encoder.layers
        hidden = embedded + first.self_attn(embedded, embedded, embedded)[0]
        hidden = hidden + second.self_attn(hidden, embedded, embedded)[0]
        return model.head(hidden[:, 0])

    with pytest.raises(UnsupportedAttentionError, match="one tensor makes the tokens"):
        method(forward).attribute(token_ids(), target=1)
