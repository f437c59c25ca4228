"""AttnLRP in Captum's place; the rules themselves are tested beside the capture."""

from __future__ import annotations

import copy

import pytest
import torch
from captum.attr import InputXGradient, NoiseTunnel
from models import bert, causal_language_model, encoder_decoder, token_ids
from torch import nn

from captum_attnflow import AttnLRP, LayerAttnLRP, UnsupportedAttentionError

both_rules = pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp"])


@pytest.fixture(scope="module")
def model():
    return bert(dtype=torch.float32)


@pytest.fixture
def forward(model):
    return lambda ids, mask=None: model(ids, attention_mask=mask).logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@both_rules
def test_a_network_of_linear_layers_and_relu_has_input_times_gradient(rules):
    """There the identity rule is the gradient itself."""
    network, inputs = mlp(), torch.randn(4, 5, requires_grad=True)
    torch.testing.assert_close(
        AttnLRP(network, rules=rules).attribute(inputs, target=1),
        InputXGradient(network).attribute(inputs, target=1).detach(),
    )


def test_without_biases_scores_sum_to_the_output():
    network = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.GELU(), nn.Linear(8, 3, bias=False)
    )
    inputs = torch.randn(4, 5)
    scores, delta = AttnLRP(network).attribute(
        inputs, target=2, return_convergence_delta=True
    )
    torch.testing.assert_close(scores.sum(1), network(inputs)[:, 2].detach())
    assert delta.shape == (4,)
    assert delta.abs().max() < 1e-6


@both_rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_have_the_shape_of_the_input_and_captums_dtypes(rules, dtype):
    network, inputs = mlp().to(dtype), torch.randn(4, 5, dtype=dtype)
    scores = AttnLRP(network, rules=rules).attribute(inputs, target=1)
    assert scores.shape == inputs.shape
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert scores.dtype == expected
    assert not scores.requires_grad


def test_ids_are_scored_by_the_embeddings_looked_up_for_them(model, forward):
    ids = token_ids(2, 6)
    words = model.bert.embeddings.word_embeddings
    of_ids = AttnLRP(forward).attribute(ids, target=1)
    of_embeddings = AttnLRP(lambda e: model(inputs_embeds=e).logits).attribute(
        words(ids).detach(), target=1
    )
    at_layer = LayerAttnLRP(forward, words).attribute(ids, target=1)
    assert of_ids.shape == ids.shape
    assert of_ids.dtype == torch.float32
    torch.testing.assert_close(of_ids, of_embeddings.sum(-1))
    torch.testing.assert_close(of_ids, at_layer.sum(-1))


def test_the_gradient_alone_is_given_without_multiplying(model, forward):
    ids, layer = token_ids(2, 6), model.bert.embeddings
    found = []
    handle = layer.register_forward_hook(lambda _, __, output: found.append(output))
    forward(ids)
    handle.remove()
    alone = LayerAttnLRP(forward, layer, multiply_by_inputs=False)
    product = LayerAttnLRP(forward, layer)
    assert (alone.multiplies_by_inputs, product.multiplies_by_inputs) == (False, True)
    torch.testing.assert_close(
        alone.attribute(ids, target=1) * found[0].detach(),
        product.attribute(ids, target=1),
    )


def test_a_tuple_gives_a_tuple_and_both_sides_have_scores():
    model = encoder_decoder("T5")
    encoder_ids, decoder_ids = token_ids(2, 6), token_ids(2, 4)

    def forward(encoder_ids, decoder_ids):
        outputs = model(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
        return outputs.logits[:, -1]

    scores = AttnLRP(forward).attribute((encoder_ids, decoder_ids), target=5)
    assert [part.shape for part in scores] == [(2, 6), (2, 4)]
    assert all(part.any() for part in scores)


def test_a_list_of_layers_gives_a_list(model, forward):
    layers = [model.bert.embeddings, model.bert.encoder.layer[0]]
    scores, delta = LayerAttnLRP(forward, layers).attribute(
        token_ids(2, 6), target=1, return_convergence_delta=True
    )
    assert isinstance(scores, list)
    assert [part.shape for part in scores] == [(2, 6, 32), (2, 6, 32)]
    assert delta.shape == (2,)


def test_delta_is_what_scores_exceed_the_output_by(model, forward):
    ids = token_ids(3, 6)
    method = AttnLRP(forward)
    scores, delta = method.attribute(ids, target=1, return_convergence_delta=True)
    expected = scores.sum(1) - forward(ids)[:, 1].detach()
    torch.testing.assert_close(delta, expected)
    torch.testing.assert_close(
        method.compute_convergence_delta(scores, 0, ids, target=1), expected
    )
    assert method.has_convergence_delta()


@both_rules
@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_do_not_depend_on_their_company(forward, rules, batch_size):
    ids, mask = token_ids(3, 7), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    method = AttnLRP(forward, rules=rules)
    together = method.attribute(ids, None, [0, 1, 1], (mask,))
    parts = method.attribute(
        ids, None, [0, 1, 1], (mask,), internal_batch_size=batch_size
    )
    alone = method.attribute(ids[1:2, :4], None, 1, (mask[1:2, :4],))
    torch.testing.assert_close(together, parts, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together[1:2, :4], alone, rtol=1e-4, atol=1e-6)
    assert not together[1, 4:].any()


def test_tokens_behind_a_causal_read_out_get_exactly_nothing():
    model = causal_language_model(50)
    scores = AttnLRP(lambda ids: model(ids).logits[:, 3]).attribute(
        token_ids(2, 7), target=9
    )
    assert scores[:, :4].all()
    assert not scores[:, 4:].any()


def test_it_runs_without_gradients_around_and_frozen(model, forward):
    ids = token_ids(2, 6)
    expected = AttnLRP(forward).attribute(ids, target=1)
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        scores = AttnLRP(lambda ids: frozen(ids).logits).attribute(ids, target=1)
    torch.testing.assert_close(scores, expected)


def test_nothing_is_left_behind_also_after_an_error(model, forward):
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    method = LayerAttnLRP(forward, model.bert.embeddings)
    method.attribute(token_ids(2, 6), target=1)
    with pytest.raises(ValueError, match="target=9"):
        method.attribute(token_ids(2, 6), target=9)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.overrides._get_current_function_mode() is None


def test_captums_wrappers_take_it():
    network = mlp()
    noisy = NoiseTunnel(copy.copy(AttnLRP(network))).attribute(
        torch.randn(2, 5), nt_samples=3, target=1
    )
    assert noisy.shape == (2, 5)


class TestRefusals:
    def test_unknown_rules(self):
        with pytest.raises(ValueError, match=r"rules='gradient'.*attnlrp"):
            AttnLRP(mlp(), rules="gradient")

    def test_torchscript_whose_operations_are_hidden(self):
        inputs = torch.randn(2, 5)
        script = torch.jit.trace(mlp(), inputs)
        with pytest.raises(UnsupportedAttentionError, match="TorchScript"):
            AttnLRP(lambda x: script(x)).attribute(inputs, target=1)

    def test_an_output_without_gradient(self):
        network = mlp()
        with pytest.raises(ValueError, match="through autograd"):
            AttnLRP(lambda x: network(x).detach()).attribute(torch.randn(2, 5), None, 1)

    def test_ids_that_are_not_looked_up(self, model):
        weight = model.bert.embeddings.word_embeddings.weight

        def forward(ids):
            one_hot = nn.functional.one_hot(ids, len(weight)).to(weight)
            return model(inputs_embeds=one_hot @ weight).logits

        with pytest.raises(ValueError, match=r"looked up.*LayerAttnLRP"):
            AttnLRP(forward).attribute(token_ids(2, 6), target=1)

    def test_a_layer_that_does_not_run_or_runs_often(self, model, forward):
        ids = token_ids(2, 6)
        with pytest.raises(ValueError, match="Linear did not run"):
            LayerAttnLRP(forward, nn.Linear(3, 3)).attribute(ids, target=1)
        twice = nn.Sequential(shared := nn.Linear(5, 5), nn.ReLU(), shared)
        with pytest.raises(ValueError, match="ran 2 times"):
            LayerAttnLRP(twice, shared).attribute(torch.randn(2, 5), target=1)
        with pytest.raises(ValueError, match="is no module"):
            LayerAttnLRP(forward, "embeddings").attribute(ids, target=1)

    def test_gradients_that_are_no_numbers(self):
        class Broken(nn.Module):
            def forward(self, x):
                return (x * torch.full_like(x, torch.inf)).cumsum(1)

        with pytest.raises(ValueError, match="NaN or infinite"):
            AttnLRP(Broken()).attribute(torch.randn(2, 5), target=1)
