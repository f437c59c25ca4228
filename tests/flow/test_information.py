import pytest
import torch
from models import bert, token_ids

from captum_attnflow import GeneralizedAttentionFlow
from captum_attnflow.capture import (
    AttentionRecord,
    DenseLayer,
    UnsupportedAttentionError,
    capture_attention,
)
from captum_attnflow.flow import (
    INFORMATION,
    add_residual,
    build_network,
    information_tensor,
)


def a_dense_record(weights, gradients) -> AttentionRecord:
    layers = tuple(map(DenseLayer, weights, gradients))
    return AttentionRecord(layers, torch.zeros(len(weights[0])))


def a_record(n_layers: int = 2, n_heads: int = 3, n_tokens: int = 4) -> AttentionRecord:
    shape = (2, n_heads, n_tokens, n_tokens)
    weights = tuple(torch.randn(shape).softmax(-1) for _ in range(n_layers))
    for layer in weights:
        layer[1, :, :, -1] = 0  # the last token of the second example is masked
    gradients = tuple(torch.randn(shape) for _ in range(n_layers))
    gradients[-1][:, :, 1:] = 0  # read out at the first position
    return a_dense_record(weights, gradients)


DEFINITIONS = {
    "AF": lambda a, g: a,
    "GF": lambda a, g: max(g, 0.0) if a > 0 else 0.0,
    "AGF": lambda a, g: max(a * g, 0.0),
    "relevance": lambda a, g: a * g,
    "counter-relevance": lambda a, g: -a * g,
}


@pytest.mark.parametrize("information", INFORMATION)
def test_information_tensor_equals_its_definition_entry_by_entry(information):
    record = a_record()
    tensor = information_tensor(record, information)
    assert tensor.dtype == torch.float64
    assert tensor.shape == (2, 2, 4, 4)
    for example, layer, query, key in torch.cartesian_prod(
        *(torch.arange(size) for size in tensor.shape)
    ).tolist():
        heads = [
            DEFINITIONS[information](
                record.weights[layer][example, head, query, key].item(),
                record.gradients[layer][example, head, query, key].item(),
            )
            for head in range(3)
        ]
        expected = sum(heads) / len(heads)
        if "relevance" in information:  # positive after the mean, the others before
            expected = max(expected, 0.0)
        assert tensor[example, layer, query, key].item() == pytest.approx(expected)


@pytest.mark.parametrize("information", INFORMATION)
def test_masked_keys_have_no_capacity(information):
    assert not information_tensor(a_record(), information)[1, ..., -1].any()


def test_half_precision_products_do_not_underflow():
    record = a_record(n_layers=1)
    tiny = a_dense_record(
        [(weights * 1e-3).half() for weights in record.weights],
        [(gradients.abs() * 1e-5).half() for gradients in record.gradients],
    )
    assert information_tensor(tiny, "AGF")[0, 0, 0].all()


def test_fraction_of_residual_is_abnar_and_zuidemas_on_attention():
    attention = torch.randn(1, 2, 4, 4).double().softmax(-1)
    expected = 0.5 * attention + 0.5 * torch.eye(4).double()
    torch.testing.assert_close(add_residual(attention, 0.5), expected)


def test_fraction_of_residual_does_not_depend_on_the_scale_of_capacities():
    capacity = torch.rand(1, 2, 4, 4).double()
    capacity[0, 1, 2] = 0  # a row without capacity becomes its residual edge
    mixed = add_residual(capacity, 0.3)
    torch.testing.assert_close(mixed, add_residual(1e-9 * capacity, 0.3))
    torch.testing.assert_close(mixed.sum(-1), torch.ones(1, 2, 4).double())
    assert mixed[0, 1, 2].tolist() == [0, 0, 1, 0]


def test_free_residual_never_binds_and_changes_no_other_edge():
    capacity = torch.rand(1, 2, 3, 3)
    free = add_residual(capacity, "free")
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert free.diagonal(dim1=-2, dim2=-1).isinf().all()
    assert torch.equal(free[..., off_diagonal], capacity[..., off_diagonal])


def test_no_residual_leaves_capacities_alone():
    capacity = torch.rand(1, 2, 3, 3)
    assert torch.equal(add_residual(capacity, None), capacity)


@pytest.mark.parametrize("residual", [0, 1, 1.5, -0.2, "half", True])
def test_unknown_residual_is_refused(residual):
    with pytest.raises(ValueError, match=r"residual=.*is unknown; give None"):
        add_residual(torch.rand(1, 1, 2, 2), residual)


def test_network_reads_out_where_the_gradient_of_the_last_layer_lives():
    network = build_network(a_record(), "AF", None)
    assert network.sink.tolist() == [[True, False, False, False]] * 2
    assert network.source.all()


def test_read_out_positions_are_no_sources_of_free_residuals():
    network = build_network(a_record(), "AGF", "free")
    assert network.source.tolist() == [[False, True, True, True]] * 2


def test_maps_of_different_tokens_are_refused_with_their_shapes():
    shapes = [(1, 1, 4, 4), (1, 1, 2, 4)]
    maps = tuple(torch.rand(shape) for shape in shapes)
    record = a_dense_record(maps, maps)
    with pytest.raises(UnsupportedAttentionError, match=r"\(2, 4\)"):
        information_tensor(record, "AF")


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_a_new_information_tensor_is_a_function_and_a_line(monkeypatch, kind):
    """As norms of weighted values (Kobayashi et al. 2020)."""

    def weighted_values(maps):
        return maps.weights * maps.values.double().norm(dim=-1)[:, :, None]

    monkeypatch.setitem(INFORMATION, "weighted values", weighted_values)
    model, ids = bert(implementation=kind), token_ids(2, 5)
    attention = model.bert.encoder.layer[0].attention.self
    values = []
    attention.value.register_forward_hook(lambda *args: values.append(args[2]))
    gaf = GeneralizedAttentionFlow(
        lambda ids: model(ids).logits, information="weighted values"
    )
    found = gaf.explain(ids, target=1).network.capacity[:, 0]
    weights = capture_attention(lambda ids: model(ids).logits, (ids,), 1).weights[0]
    of_heads = values[0].unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    expected = (weights * of_heads.norm(dim=-1)[:, :, None]).mean(1)
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=1e-5)
