from __future__ import annotations

import gc
import re
import weakref

import networkx as nx
import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from models import bert, causal_language_model, token_ids, vision_classifier
from torch import nn

from captum_attnflow import LayerRelevanceFlow, RelevanceFlow


@pytest.fixture(scope="module")
def model():
    return bert().double()


@pytest.fixture
def forward(model):
    return lambda ids: model(ids).logits


def flow_over(relevance: torch.Tensor, token: int) -> float:
    """networkx' maximum flow to the first position; residual edges never bind."""
    n_layers, n_tokens, _ = relevance.shape
    graph = nx.DiGraph()
    for layer in range(n_layers):
        for head in range(n_tokens):
            for tail in range(n_tokens):
                edge = (layer, tail), (layer + 1, head)
                if head == tail:
                    graph.add_edge(*edge)
                else:
                    graph.add_edge(*edge, capacity=float(relevance[layer, head, tail]))
    return nx.maximum_flow_value(graph, (0, token), (n_layers, 0))


def relevance_by_autograd(model, ids, target):
    output = model(ids, output_attentions=True)
    gradients = torch.autograd.grad(output.logits[:, target].sum(), output.attentions)
    product = [a * g for a, g in zip(output.attentions, gradients, strict=True)]
    return torch.stack([layer.mean(1) for layer in product], 1).detach()


@pytest.mark.parametrize("sign", ["both", "positive"])
def test_scores_without_a_path_are_networkx_flows_over_relevance(sign):
    model = bert(implementation="eager").double()
    ids = token_ids(2, 5)
    relevance = relevance_by_autograd(model, ids, 1)
    flow = RelevanceFlow(lambda ids: model(ids).logits, path_steps=0, sign=sign)
    scores = flow.explain(ids, target=1).scores
    for row in range(2):
        assert scores[row, 0] == 0  # the read-out position sends nothing
        for token in range(1, 5):
            expected = flow_over(relevance[row].clamp_min(0), token)
            if sign == "both":
                expected -= flow_over((-relevance[row]).clamp_min(0), token)
            assert scores[row, token].item() == pytest.approx(expected, rel=1e-9)


class TestDirectEdges:
    def test_they_are_integrated_gradients_of_the_embeddings(self, model, forward):
        ids, baseline = token_ids(2, 6), torch.full((2, 6), 3)
        direct = RelevanceFlow(forward).explain(ids, baseline, target=1).direct
        expected = LayerIntegratedGradients(
            forward, model.bert.embeddings.word_embeddings
        ).attribute(ids, baseline, target=1, n_steps=2, method="riemann_middle")
        assert_proportional(direct, expected.sum(-1))

    def test_at_a_layer_they_are_layer_integrated_gradients(self, model, forward):
        ids, baseline = token_ids(2, 6), torch.full((2, 6), 3)
        layer = model.bert.embeddings
        direct = LayerRelevanceFlow(forward, layer).explain(ids, baseline, target=1)
        expected = LayerIntegratedGradients(forward, layer).attribute(
            ids, baseline, target=1, n_steps=2, method="riemann_middle"
        )
        assert_proportional(direct.direct, expected.sum(-1))

    def test_behind_attention_they_are_those_of_the_input(self, model, forward):
        ids, baseline = token_ids(2, 6), torch.full((2, 6), 3)
        layer = LayerRelevanceFlow(forward, model.bert.encoder.layer[1])
        torch.testing.assert_close(
            layer.explain(ids, baseline, target=1).scores,
            RelevanceFlow(forward).explain(ids, baseline, target=1).scores,
        )

    def test_no_hook_is_left_behind(self, model, forward):
        layer = model.bert.embeddings
        before = len(layer._forward_hooks)
        LayerRelevanceFlow(forward, layer).attribute(token_ids(2, 6), 3, target=1)
        with pytest.raises(ValueError, match="target"):
            LayerRelevanceFlow(forward, layer).attribute(token_ids(2, 6), 3, target=9)
        assert len(layer._forward_hooks) == before

    @pytest.mark.parametrize("target", [[0, 9], torch.tensor([0, 9])])
    def test_a_wrong_target_is_told_as_it_was_given(self, forward, target):
        told = rf"target={re.escape(repr(target))} .* output of shape \(2, 2\)"
        with pytest.raises(ValueError, match=told):
            RelevanceFlow(forward).attribute(token_ids(2, 6), 3, target=target)

    def test_embeddings_as_inputs_are_moved_themselves(self, model):
        embeddings = model.bert.embeddings.word_embeddings(token_ids(2, 6)).detach()

        def forward(embeddings):
            return model(inputs_embeds=embeddings).logits

        direct = RelevanceFlow(forward, path_steps=5).explain(embeddings, target=1)
        expected = IntegratedGradients(forward).attribute(
            embeddings, target=1, n_steps=5, method="riemann_middle"
        )
        assert_proportional(direct.direct, expected.sum(-1))

    def test_pixels_are_summed_over_their_patch(self):
        model = vision_classifier().double()
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)

        def forward(pixels):
            return model(pixels).logits

        explanation = RelevanceFlow(forward).explain(pixels, target=1)
        expected = IntegratedGradients(forward).attribute(
            pixels, target=1, n_steps=2, method="riemann_middle"
        )
        side = model.config.patch_size
        patches = nn.functional.avg_pool2d(expected.sum(1, keepdim=True), side)
        assert not explanation.direct[:, 0].any()  # [CLS] has no pixels
        assert_proportional(explanation.direct[:, 1:], patches.flatten(1))

    def test_they_carry_as_much_as_the_attention(self, forward):
        ids = token_ids(2, 6)
        whole = RelevanceFlow(forward).explain(ids, 3, target=1)
        flows = RelevanceFlow(forward, path_steps=0).explain(ids, target=1).scores
        torch.testing.assert_close(whole.scores, flows + whole.direct)
        torch.testing.assert_close(whole.direct.abs().sum(1), flows.abs().sum(1))

    def test_an_input_at_its_baseline_has_none(self, forward):
        ids = token_ids(2, 6)
        at_baseline = RelevanceFlow(forward).explain(ids, ids, target=1)
        no_path = RelevanceFlow(forward, path_steps=0).explain(ids, target=1)
        assert not at_baseline.direct.any()
        torch.testing.assert_close(at_baseline.scores, no_path.scores)


def assert_proportional(left: torch.Tensor, right: torch.Tensor) -> None:
    normalised = [part / part.abs().sum(1, keepdim=True) for part in (left, right)]
    torch.testing.assert_close(*normalised)


def test_a_token_that_speaks_for_the_target_only_has_no_negative_score(forward):
    scores = RelevanceFlow(forward, sign="positive").explain(token_ids(3, 8), 3, 1)
    assert (scores.scores >= 0).all()
    assert scores.against is None


def test_scores_are_there_where_every_position_is_read_out(model):
    """Tokens are scored by what they send to the others' read-outs."""
    hidden = model.bert
    flow = RelevanceFlow(lambda ids: hidden(ids).last_hidden_state.mean(1)[:, :2])
    explanation = flow.explain(token_ids(2, 6), 3, target=1)
    assert explanation.scores.all()
    torch.testing.assert_close(explanation.flow_value, explanation.scores.sum(1))


@pytest.mark.parametrize("order", [("position", "word"), ("segment", "word")])
def test_the_path_is_that_of_the_words_whatever_is_looked_up_first(model, order):
    tables = {
        "word": model.bert.embeddings.word_embeddings,
        "position": model.bert.embeddings.position_embeddings,
        "segment": model.bert.embeddings.token_type_embeddings,
    }

    def forward(ids):
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        indices = {"word": ids, "position": positions, "segment": ids * 0}
        looked_up = {name: tables[name](indices[name]) for name in order}
        return model(inputs_embeds=looked_up["word"]).logits

    ids = token_ids(2, 6)
    direct = RelevanceFlow(forward).explain(ids, 3, target=1).direct
    expected = RelevanceFlow(lambda ids: model(ids).logits).explain(ids, 3, target=1)
    torch.testing.assert_close(direct, expected.direct)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_baseline_of_another_dtype_is_taken_as_captum_takes_it(model, dtype):
    embeddings = model.bert.embeddings.word_embeddings(token_ids(2, 6)).detach()

    def forward(embeddings):
        return model(inputs_embeds=embeddings).logits

    zeros = torch.zeros_like(embeddings)
    expected = RelevanceFlow(forward).attribute(embeddings, zeros, target=1)
    given = RelevanceFlow(forward).attribute(embeddings, zeros.to(dtype), target=1)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_internal_batch_size_bounds_the_rows_and_changes_nothing(model, batch_size):
    rows = []

    def forward(ids):
        output = model(ids).logits
        rows.append(len(ids))
        return output

    ids = token_ids(3, 6)
    whole = RelevanceFlow(forward).attribute(ids, 3, target=[0, 1, 1])
    assert rows == [9]  # one pass; the baseline's stops at the lookup
    rows.clear()
    parts = RelevanceFlow(forward).attribute(
        ids, 3, target=[0, 1, 1], internal_batch_size=batch_size
    )
    assert max(rows) <= batch_size
    torch.testing.assert_close(parts, whole)


def test_what_a_part_of_the_path_held_is_let_go_before_the_next(model):
    outputs = []

    def forward(ids):
        gc.collect()
        assert all(output() is None for output in outputs)
        logits = model(ids).logits
        outputs.append(weakref.ref(logits))
        return logits

    flow = RelevanceFlow(forward, path_steps=3)
    flow.attribute(token_ids(1, 6), 3, target=1, internal_batch_size=1)
    assert len(outputs) == 4


def test_arguments_of_one_row_per_example_follow_the_path(model):
    ids, mask = token_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    positions = torch.arange(6)[None]

    def forward(ids, mask, positions, scale):
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
        return scale * logits

    explanation = RelevanceFlow(forward).explain(
        ids, 3, target=1, additional_forward_args=(mask, positions, 2.0)
    )
    assert not explanation.scores[1, 4:].any()


def test_generated_text_is_no_part_of_the_path():
    model = causal_language_model(50).double()
    ids, generated = token_ids(1, 5), torch.tensor([[7, 9]])

    def forward(ids):
        joined = torch.cat([ids, generated.expand(len(ids), -1)], 1)
        return model(joined).logits[:, -1]

    direct = RelevanceFlow(forward).explain(ids, 3, target=4).direct
    assert direct.shape == (1, 7)
    assert direct[0, :5].all()
    assert not direct[0, 5:].any()


def test_ids_that_are_never_looked_up_are_refused(model):
    weight = model.bert.embeddings.word_embeddings.weight

    def forward(ids):
        one_hot = nn.functional.one_hot(ids, len(weight)).to(weight)
        return model(inputs_embeds=one_hot @ weight).logits

    with pytest.raises(ValueError, match=r"never looked up.*path_steps=0"):
        RelevanceFlow(forward).attribute(token_ids(1, 6), 3, target=1)
    scores = RelevanceFlow(forward, path_steps=0).attribute(token_ids(1, 6), target=1)
    assert scores.any()


@pytest.mark.parametrize("given", [-1, 2.0, None])
def test_a_path_of_no_number_of_steps_is_refused(forward, given):
    with pytest.raises(ValueError, match=r"path_steps=.*natural number"):
        RelevanceFlow(forward, path_steps=given)


def test_unknown_sign_is_refused(model, forward):
    with pytest.raises(ValueError, match=r"sign='negative'.*both"):
        LayerRelevanceFlow(forward, model.bert.embeddings, sign="negative")
