from __future__ import annotations

import gc
import re
import weakref

import networkx as nx
import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from models import (
    bert,
    causal_language_model,
    decoder,
    encoder_decoder,
    token_ids,
    vision_classifier,
)
from torch import nn

from captum_attnflow import (
    AttnLRP,
    LayerAttnLRP,
    LayerRelevanceFlow,
    RelevanceFlow,
)
from captum_attnflow.capture import capture_attention
from captum_attnflow.capture.record import FusedLayer
from captum_attnflow.demo import load_demo_model


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


def test_maximum_flows_are_networkx_flows_over_signed_relevance():
    model = bert(implementation="eager").double()
    ids = token_ids(2, 5)
    relevance = relevance_by_autograd(model, ids, 1)
    method = RelevanceFlow(
        lambda ids: model(ids).logits, flow="maximum", rules="gradient"
    )
    scores = method.explain(ids, target=1).scores  # the plain gradient has no rules
    for row in range(2):
        assert scores[row, 0] == 0  # the read-out position sends nothing
        for token in range(1, 5):
            expected = flow_over(relevance[row].clamp_min(0), token)
            expected -= flow_over((-relevance[row]).clamp_min(0), token)
            assert scores[row, token].item() == pytest.approx(expected, rel=1e-9)


class TestConservation:
    @pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp", "gradient"])
    @pytest.mark.parametrize("baseline", [None, 3])
    def test_scores_sum_to_the_output(self, model, forward, rules, baseline):
        ids = token_ids(3, 7)
        explanation = RelevanceFlow(forward, rules=rules).explain(
            ids, baseline, target=[0, 1, 1]
        )
        output = model(ids).logits.gather(1, torch.tensor([[0], [1], [1]]))[:, 0]
        torch.testing.assert_close(explanation.scores.sum(1), output)
        torch.testing.assert_close(explanation.flow_value, output)
        assert explanation.delta.abs().max() < 1e-12

    @pytest.mark.parametrize("baseline", [None, 3])
    def test_nothing_is_lost_at_any_node(self, forward, baseline):
        explanation = RelevanceFlow(forward).explain(token_ids(3, 7), baseline, 1)
        arriving, leaving = explanation.flow.sum(-1), explanation.flow.sum(-2)
        torch.testing.assert_close(arriving[:, :-1], leaving[:, 1:])
        sent = explanation.scores - explanation.direct
        torch.testing.assert_close(leaving[:, 0], sent)
        # [CLS] is read alone.
        assert not arriving[:, -1, 1:].any()
        assert explanation.diagnostics.imbalance.max() < 1e-12

    def test_flow_is_what_attention_carries_beside_the_residual_edges(self):
        """By CP-LRP an edge carries attention times its gradient, summed over heads."""
        model = bert(implementation="eager").double()
        ids = token_ids(2, 6)
        explanation = RelevanceFlow(
            lambda ids: model(ids).logits, rules="cp-lrp", path_steps=0
        ).explain(ids, target=1)
        record = capture_attention(
            lambda ids: model(ids).logits, (ids,), 1, rules="cp-lrp"
        )
        carried = torch.stack(
            [
                (weights * gradients).sum(1)
                for weights, gradients in zip(
                    record.weights, record.gradients, strict=True
                )
            ],
            1,
        )
        between = ~torch.eye(6, dtype=torch.bool)
        # Half of the output goes by direct edges.
        torch.testing.assert_close(
            2 * explanation.flow[..., between], carried[..., between]
        )

    def test_several_read_outs_share_the_output_by_their_streams(self, model):
        """Under mean pooling each position starts with what its stream says."""
        weight = torch.randn(model.config.hidden_size, dtype=torch.float64)

        def forward(ids):
            return (model.bert(ids).last_hidden_state @ weight).mean(1, keepdim=True)

        ids = token_ids(2, 6)
        explanation = RelevanceFlow(forward, path_steps=0).explain(ids)
        torch.testing.assert_close(explanation.scores.sum(1), forward(ids)[:, 0])
        at_top = explanation.flow[:, -1].sum(-1)
        # As many rows as tokens: what is the batch is found out, not guessed.
        square = token_ids(6, 6)
        square[:2] = ids
        explanation = RelevanceFlow(forward, path_steps=0).explain(square)
        torch.testing.assert_close(explanation.flow[:2, -1].sum(-1), at_top)

    def test_tokens_behind_the_read_out_and_padding_get_exactly_nothing(self):
        model = causal_language_model(50).double()
        ids = token_ids(2, 8)
        scores = RelevanceFlow(lambda ids: model(ids).logits[:, 4]).explain(
            ids, target=7
        )
        assert scores.scores[:, :5].all()
        assert not scores.scores[:, 5:].any()

    def test_an_encoder_and_its_decoder_share_the_output(self):
        model = encoder_decoder("T5").double()
        encoder_ids, decoder_ids = token_ids(2, 6), token_ids(2, 4)

        def forward(encoder_ids, decoder_ids):
            return model(input_ids=encoder_ids, decoder_input_ids=decoder_ids).logits[
                :, -1
            ]

        explanation = RelevanceFlow(forward).explain(
            (encoder_ids, decoder_ids), None, 5
        )
        output = forward(encoder_ids, decoder_ids)[:, 5]
        torch.testing.assert_close(explanation.scores.sum(1), output)
        assert explanation.scores.shape == (2, 10)
        assert explanation.scores.all()


def test_scores_change_as_layers_are_randomised_from_the_top():
    """Adebayo et al. (2018): an explanation of the model depends on its weights."""
    model, tokenizer = load_demo_model()
    text = "a gripping , funny film that never bores and always moves its audience"
    ids = tokenizer(text, return_tensors="pt").input_ids
    trained = RelevanceFlow(lambda ids: model(ids).logits).explain(
        ids, tokenizer.mask_token_id, target=1
    )
    torch.manual_seed(0)
    parts = [model.classifier, model.bert.pooler, *reversed(model.bert.encoder.layer)]
    for part in [*parts, model.bert.embeddings]:
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)
    randomised = RelevanceFlow(lambda ids: model(ids).logits).explain(
        ids, tokenizer.mask_token_id, target=1
    )
    ranks = [e.scores[0, 1:-1].argsort().argsort() for e in (trained, randomised)]
    assert torch.corrcoef(torch.stack(ranks).double())[0, 1] < 0.5


class TestDirectEdges:
    """Half of a score is input times gradient by the rules."""

    @pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp"])
    def test_without_baselines_they_are_attnlrps_scores(self, model, forward, rules):
        ids = token_ids(2, 6)
        flow = RelevanceFlow(forward, rules=rules).explain(ids, target=1)
        expected = AttnLRP(forward, rules=rules).attribute(ids, target=1)
        torch.testing.assert_close(
            2 * flow.direct, expected.double(), rtol=1e-5, atol=1e-7
        )

    def test_at_a_layer_they_are_those_of_its_output(self, model, forward):
        ids, layer = token_ids(2, 6), model.bert.embeddings
        flow = LayerRelevanceFlow(forward, layer).explain(ids, target=1)
        expected = LayerAttnLRP(forward, layer).attribute(ids, target=1).sum(-1)
        torch.testing.assert_close(2 * flow.direct, expected)

    def test_by_the_plain_gradient_they_are_integrated_gradients(self, model, forward):
        ids, baseline = token_ids(2, 6), torch.full((2, 6), 3)
        method = RelevanceFlow(forward, rules="gradient", path_steps=2)
        expected = LayerIntegratedGradients(
            forward, model.bert.embeddings.word_embeddings
        ).attribute(ids, baseline, target=1, n_steps=2, method="riemann_middle")
        torch.testing.assert_close(
            2 * method.explain(ids, baseline, target=1).direct, expected.sum(-1)
        )

    def test_at_a_layer_they_are_layer_integrated_gradients(self, model, forward):
        ids, baseline = token_ids(2, 6), torch.full((2, 6), 3)
        layer = model.bert.embeddings
        method = LayerRelevanceFlow(forward, layer, rules="gradient", path_steps=2)
        expected = LayerIntegratedGradients(forward, layer).attribute(
            ids, baseline, target=1, n_steps=2, method="riemann_middle"
        )
        torch.testing.assert_close(
            2 * method.explain(ids, baseline, target=1).direct, expected.sum(-1)
        )

    @pytest.mark.parametrize("baseline", [None, 3])
    def test_behind_attention_they_are_those_of_the_input(
        self, model, forward, baseline
    ):
        ids = token_ids(2, 6)
        layer = LayerRelevanceFlow(forward, model.bert.encoder.layer[1])
        torch.testing.assert_close(
            layer.explain(ids, baseline, target=1).scores,
            RelevanceFlow(forward).explain(ids, baseline, target=1).scores,
        )

    def test_no_hook_is_left_behind(self, model, forward):
        layer = model.bert.embeddings
        before = len(layer._forward_hooks)
        for baseline in (None, 3):
            method = LayerRelevanceFlow(forward, layer)
            method.attribute(token_ids(2, 6), baseline, target=1)
            with pytest.raises(ValueError, match="target"):
                method.attribute(token_ids(2, 6), baseline, target=9)
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

        method = RelevanceFlow(forward, rules="gradient", path_steps=5)
        expected = IntegratedGradients(forward).attribute(
            embeddings, target=1, n_steps=5, method="riemann_middle"
        )
        direct = method.explain(embeddings, 0.0, target=1).direct
        torch.testing.assert_close(2 * direct, expected.sum(-1))

    def test_pixels_are_summed_over_their_patch(self):
        model = vision_classifier().double()
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)

        def forward(pixels):
            return model(pixels).logits

        method = RelevanceFlow(forward, rules="gradient", path_steps=2)
        explanation = method.explain(pixels, 0.0, target=1)
        expected = IntegratedGradients(forward).attribute(
            pixels, target=1, n_steps=2, method="riemann_middle"
        )
        side = model.config.patch_size
        patches = nn.functional.avg_pool2d(expected.sum(1, keepdim=True), side)
        assert not explanation.direct[:, 0].any()  # [CLS] has no pixels
        torch.testing.assert_close(
            2 * explanation.direct[:, 1:], patches.flatten(1) * side**2
        )

    def test_beside_maximum_flows_they_carry_as_much_in_all(self, forward):
        ids = token_ids(2, 6)
        whole = RelevanceFlow(forward, flow="maximum").explain(ids, 3, target=1)
        flows = whole.scores - whole.direct
        torch.testing.assert_close(whole.direct.abs().sum(1), flows.abs().sum(1))

    def test_an_input_at_its_baseline_has_none(self, forward):
        ids = token_ids(2, 6)
        at_baseline = RelevanceFlow(forward).explain(ids, ids, target=1)
        assert not at_baseline.direct.any()
        torch.testing.assert_close(
            at_baseline.scores.sum(1), forward(ids)[:, 1].detach()
        )


def test_scores_are_there_where_every_position_is_read_out(model):
    """Tokens are scored by what they send to the others' read-outs."""
    hidden = model.bert
    flow = RelevanceFlow(
        lambda ids: hidden(ids).last_hidden_state.mean(1)[:, :2], flow="maximum"
    )
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


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_internal_batch_size_bounds_the_rows_and_changes_nothing(model, batch_size):
    rows = []

    def forward(ids):
        output = model(ids).logits
        rows.append(len(ids))
        return output

    ids = token_ids(3, 6)
    whole = RelevanceFlow(forward).attribute(ids, 3, target=[0, 1, 1])
    assert rows == [6]  # one pass; the baseline's stops at the lookup
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
    explanation = RelevanceFlow(forward).explain(token_ids(1, 6), target=1)
    assert explanation.direct is None
    assert explanation.scores.any()


@pytest.mark.parametrize("given", [-1, 2.0, None])
def test_a_path_of_no_number_of_steps_is_refused(forward, given):
    with pytest.raises(ValueError, match=r"path_steps=.*natural number"):
        RelevanceFlow(forward, path_steps=given)


def test_unknown_options_are_refused(model, forward):
    with pytest.raises(ValueError, match=r"rules='lrp'.*attnlrp"):
        LayerRelevanceFlow(forward, model.bert.embeddings, rules="lrp")
    with pytest.raises(ValueError, match=r"flow='joint'.*conserved"):
        RelevanceFlow(forward, flow="joint")


SUMMED = {
    "BERT, fused": lambda: bert(implementation="sdpa"),
    "BERT, written out": lambda: bert(implementation="eager"),
    "grouped keys": lambda: decoder("llama", "sdpa"),
    "soft-capped scores": lambda: decoder("gemma2", "eager"),
    "windows": lambda: decoder("mistral", "sdpa"),
}


@pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp", "gradient"])
@pytest.mark.parametrize("has_path", [False, True])
@pytest.mark.parametrize("name", SUMMED)
def test_scores_without_a_network_are_those_of_the_flow(name, has_path, rules):
    model = SUMMED[name]()

    def forward(ids):
        logits = model(ids).logits
        return logits if logits.dim() == 2 else logits[:, -1]

    method = RelevanceFlow(forward, rules=rules)
    given = {"baselines": 3, "target": [1, 0]} if has_path else {"target": [1, 0]}
    ids = token_ids(2, 7)
    expected = method.explain(ids, **given)
    found, delta = method.attribute(ids, **given, return_convergence_delta=True)
    assert expected.flow is not None
    torch.testing.assert_close(
        found, expected.scores.to(found), rtol=1e-5, atol=1e-6 * found.abs().max()
    )
    torch.testing.assert_close(delta.double(), expected.delta, rtol=0, atol=1e-5)


def test_scores_form_the_maps_of_the_last_layer_alone(monkeypatch):
    """Where the output is read shows there."""
    formed, form = [], FusedLayer._form
    monkeypatch.setattr(
        FusedLayer, "_form", lambda *given: formed.append(given) or form(*given)
    )
    model = decoder("llama", "sdpa")
    method = RelevanceFlow(lambda ids: model(ids).logits[:, -1])
    method.attribute(token_ids(1, 9), target=1)
    assert len(formed) == 1
    method.explain(token_ids(1, 9), target=1)
    assert len(formed) == 1 + 1 + model.config.num_hidden_layers
