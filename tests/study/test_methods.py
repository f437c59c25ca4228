from __future__ import annotations

import math

import pytest
import torch
from reference.chefer import relevance_of
from transformers import AutoModelForSequenceClassification

from captum_attnflow import LayerRelevanceFlow
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.pipelines.methods import METHODS as OWN_METHODS
from captum_attnflow.study.adapters import TextBatch, count_passes, lime_kernel
from captum_attnflow.study.methods import METHODS

TEXTS = ["a gripping , funny film", "dull and very boring , though well acted", "great"]
GRADIENT_FREE = ["feature-ablation", "shapley-value-sampling", "kernel-shap", "lime"]


@pytest.fixture(scope="module")
def batch(demo) -> TextBatch:
    return TextBatch.encode(demo, TEXTS, "mask").predict()


@pytest.fixture(scope="module")
def eager():
    return AutoModelForSequenceClassification.from_pretrained(
        DEMO_MODEL_PATH, attn_implementation="eager"
    ).eval()


def scores_of(name: str, batch: TextBatch, **settings):
    torch.manual_seed(0)
    method = METHODS[name]
    return method.scores(batch, **{**method.settings, **settings}).double()


def removable(batch: TextBatch):
    return ~(batch.special | batch.padding)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].batched])
def test_scores_do_not_depend_on_batch_company(batch, name):
    together = scores_of(name, batch)
    for row in range(len(TEXTS)):
        alone = scores_of(name, batch.rows([row]))[0]
        torch.testing.assert_close(
            together[row, : len(alone)], alone, rtol=1e-3, atol=1e-5 * alone.abs().max()
        )


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].batched])
def test_methods_without_batches_follow_the_seed(batch, name):
    single = batch.rows([0])
    assert torch.equal(scores_of(name, single), scores_of(name, single))


# SLALOM has another seed for each text.
@pytest.mark.parametrize("name", [name for name in OWN_METHODS if name != "slalom"])
def test_methods_of_the_package_are_those_of_explain(demo, batch, name):
    explained = demo.explain(TEXTS, name)
    scores = scores_of(name, batch)
    for row, result in enumerate(explained):
        wanted = torch.tensor(result.scores, dtype=torch.float64)
        torch.testing.assert_close(
            scores[row, : len(wanted)], wanted, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("name", [n for n in METHODS if n.startswith("layer-relev")])
def test_layer_methods_are_the_layer_forms_with_the_same_settings(batch, name):
    settings = METHODS[name].settings
    assert settings == METHODS[name.removeprefix("layer-")].settings
    layer = batch.model.bert.embeddings
    flow = LayerRelevanceFlow(batch.forward, layer, **settings)
    wanted = flow.attribute(
        batch.ids,
        batch.reference_ids,
        target=batch.predicted,
        additional_forward_args=batch.arguments,
    ).sum(-1)
    torch.testing.assert_close(scores_of(name, batch), wanted.double())


def test_chefer_relevance_equals_its_definition(batch, eager):
    scores = scores_of("chefer-relevance", batch)
    for row, length in enumerate(batch.lengths):
        ids, target = batch.ids[row, :length], int(batch.predicted[row])
        wanted = torch.tensor(relevance_of(eager, ids, (target,))[0])
        torch.testing.assert_close(scores[row, :length], wanted, rtol=1e-4, atol=1e-6)


def test_last_layer_attention_is_that_of_the_first_token(batch, eager):
    scores = scores_of("last-layer-attention", batch)
    for row, length in enumerate(batch.lengths):
        with torch.no_grad():
            output = eager(batch.ids[row : row + 1, :length], output_attentions=True)
        wanted = output.attentions[-1].mean(1)[0, 0].double()
        torch.testing.assert_close(scores[row, :length], wanted, rtol=1e-4, atol=1e-6)


def logit_falls(batch: TextBatch):
    """Fall of the predicted class's logit from the text to reference tokens."""
    rows = torch.arange(len(batch))
    with torch.no_grad():
        full = batch.forward(batch.ids, *batch.arguments)
        empty = batch.forward(batch.reference_ids, *batch.arguments)
    return (full - empty)[rows, batch.predicted].double()


@pytest.mark.parametrize("name", ["integrated-gradients", "layer-integrated-gradients"])
def test_integrated_gradients_sum_to_the_fall_of_the_logit(batch, name):
    short = batch.rows([0, 2])
    scores = scores_of(name, short)
    torch.testing.assert_close(
        (scores * removable(short)).sum(1), logit_falls(short), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("name", ["shapley-value-sampling", "kernel-shap"])
def test_shapley_values_sum_to_the_fall_of_the_logit(batch, name):
    single = batch.rows([0])
    total = (scores_of(name, single) * removable(single)).sum(1)
    torch.testing.assert_close(total, logit_falls(single), rtol=1e-3, atol=1e-3)


def test_feature_ablation_is_the_fall_without_each_token(batch):
    single = batch.rows([1])
    scores = scores_of("feature-ablation", single)
    target = int(single.predicted)
    with torch.no_grad():
        before = single.forward(single.ids, *single.arguments)[0, target]
        for position in removable(single)[0].nonzero()[:, 0].tolist():
            ids = single.ids.clone()
            ids[0, position] = single.reference_id
            after = single.forward(ids, *single.arguments)[0, target]
            fall = (before - after).item()
            assert scores[0, position].item() == pytest.approx(fall, abs=1e-5)


def test_lime_finds_the_weights_of_an_additive_model(batch):
    single = batch.rows([1])
    n_tokens = single.ids.shape[1]
    weights = torch.linspace(-1, 2, n_tokens)

    class Additive:
        def __call__(self, input_ids, **_):
            present = (input_ids == single.ids).float()
            logit = (present * weights).sum(1)
            return type("Output", (), {"logits": torch.stack([-logit, logit], 1)})

    additive = TextBatch(
        **{**vars(single), "model": Additive(), "predicted": torch.tensor([1])}
    )
    found = scores_of("lime", additive, alpha=1e-4)[0][removable(single)[0]]
    wanted = weights[removable(single)[0]].double()
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_kernel_of_lime_is_that_of_its_text_explainer():
    kept = torch.tensor([[1.0, 0, 0, 0]])  # cosine 1/2 to all ones, distance 50
    assert lime_kernel(kept, kernel_width=25) == pytest.approx(math.exp(-(2**2) / 2))
    assert lime_kernel(torch.ones(1, 4), kernel_width=25) == 1


def test_random_scores_are_uniform(batch):
    scores = scores_of("random", batch)
    assert 0 <= scores.min() < scores.max() <= 1
    assert len(scores.unique()) == scores.numel()


# Shapley sampling evaluates each of 25 orders of 5 tokens, and the reference text.
ROWS = {
    "attention-flow": (1, 1),
    "attention-rollout": (1, 1),
    "chefer-relevance": (1, 1),
    "decompx": (1, 0),
    "deep-lift": (2, 2),
    "feature-ablation": (6, 0),
    "generalized-attention-flow": (1, 1),
    "generalized-attention-flow-free": (1, 1),
    "ifr": (1, 0),
    "input-x-gradient": (1, 1),
    "relevance-flow": (2, 2),
    "relevance-flow-0": (1, 1),
    "layer-relevance-flow": (2, 2),
    "layer-relevance-flow-0": (1, 1),
    "integrated-gradients": (50, 50),
    "kernel-shap": (200, 0),
    "last-layer-attention": (1, 1),
    "layer-integrated-gradients": (52, 50),
    "lime": (200, 0),
    "random": (0, 0),
    "saliency": (1, 1),
    "shapley-value-sampling": (126, 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_passes_are_counted_by_rows(batch, name):
    part = batch if METHODS[name].batched else batch.rows([0])
    with count_passes(batch.model) as count:
        scores_of(name, part)
    rows = (count.forward / len(part), count.backward / len(part))
    assert rows == ROWS[name]


def state(model):
    """Names of attributes, and hooks: transformers keeps some of its own."""
    return [
        (
            set(vars(module)),
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
            module.training,
        )
        for module in model.modules()
    ]


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_left_as_it_was(batch, name):
    before = state(batch.model)
    with count_passes(batch.model):
        scores_of(name, batch.rows([0]))
    assert state(batch.model) == before
    assert all(p.grad is None for p in batch.model.parameters())


def test_counting_ends_after_an_error(batch):
    def fail():
        with count_passes(batch.model):
            raise RuntimeError("on purpose")

    before = state(batch.model)
    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert state(batch.model) == before


class TestTextBatch:
    def test_special_tokens_frame_the_text_and_unknown_words_are_words(self, demo):
        batch = TextBatch.encode(demo, ["a \u4e2d film [MASK]", "dull"], "mask")
        assert batch.lengths == [6, 3]
        assert batch.special.int().tolist() == [[1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0]]
        assert batch.padding.int().tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1]]
        unknown = demo.tokenizer.unk_token_id
        assert int(batch.ids[0, 2]) == unknown

    def test_rows_are_cut_to_their_longest_text(self, batch):
        short = batch.rows([2, 0])
        assert short.ids.shape == (2, 7)
        assert short.predicted.tolist() == batch.predicted[[2, 0]].tolist()
        assert all(other.shape == (2, 7) for other in short.others.values())

    @pytest.mark.parametrize(
        ("name", "token"), [("mask", "[MASK]"), ("pad", "[PAD]"), ("film", "film")]
    )
    def test_reference_tokens_are_found(self, demo, name, token):
        batch = TextBatch.encode(demo, ["great"], name)
        assert batch.reference_id == demo.tokenizer.convert_tokens_to_ids(token)

    def test_unknown_reference_token_is_refused(self, demo):
        with pytest.raises(ValueError, match="no reference token 'maks'"):
            TextBatch.encode(demo, ["great"], "maks")
