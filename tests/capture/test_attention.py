from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from models import (
    ENCODERS,
    FUSED_ENCODERS,
    VOCABULARY,
    HandWritten,
    TorchEncoder,
    bert,
    classifier,
    token_ids,
)
from torch import Tensor, nn

from captum_attnflow import (
    AttentionRollout,
    CheferRelevance,
    GeneralizedAttentionFlow,
    RelevanceFlow,
)
from captum_attnflow.capture import UnsupportedAttentionError, capture_attention


def eager_attention(family, ids, target):
    """Attention and gradients by the library's own output and autograd."""
    model = classifier(family, "eager", torch.float64)
    output = model(ids, output_attentions=True)
    gradients = torch.autograd.grad(
        output.logits[:, target].sum(), output.attentions, allow_unused=True
    )
    return output.attentions, gradients


@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, "eager") for family in ENCODERS]
    + [(family, "sdpa") for family in FUSED_ENCODERS],
)
def test_maps_and_gradients_equal_those_of_the_eager_model(family, implementation):
    ids = token_ids()
    model = classifier(family, implementation, torch.float64)
    model.requires_grad_(False)
    record = capture_attention(lambda ids: model(ids).logits, (ids,), 1)
    weights, gradients = eager_attention(family, ids, 1)
    assert len(record.weights) == len(weights)
    for mine, theirs in zip(record.weights, weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    if family == "XLNet":
        # It returns copies that its output does not depend on; see the test below.
        assert all(gradient is None for gradient in gradients)
        return
    largest = max(gradient.abs().max() for gradient in gradients)
    for mine, theirs in zip(record.gradients, gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * largest


def test_gradients_of_xlnet_equal_finite_differences():
    model = classifier("XLNet", dtype=torch.float64)
    ids = token_ids(1, 6)
    record = capture_attention(lambda ids: model(ids).logits, (ids,), 1)

    def output_with(shift):
        calls = iter(range(3))
        einsum = torch.einsum

        def shifted(equation, *operands):
            if equation == "bnij,jbnd->ibnd" and next(calls) == 1:
                probabilities = operands[0].clone()
                probabilities[0, 2, 3, 4] += shift
                operands = (probabilities, *operands[1:])
            return einsum(equation, *operands)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(torch, "einsum", shifted)
            return model(ids).logits[0, 1]

    slope = (output_with(1e-5) - output_with(-1e-5)) / 2e-5
    torch.testing.assert_close(record.gradients[1][0, 2, 3, 4], slope)


def torch_encoder_reference(model, ids, padding=None):
    """nn.TransformerEncoder written out, attention maps as leaves."""
    hidden, maps = model.embedding(ids), []
    for layer in model.encoder.layers:
        attention = layer.self_attn
        query, key, value = (
            part.unflatten(-1, (4, 8)).transpose(1, 2)
            for part in F.linear(
                hidden, attention.in_proj_weight, attention.in_proj_bias
            ).chunk(3, -1)
        )
        scores = query @ key.mT / 8**0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        maps.append(scores.softmax(-1))
        maps[-1].retain_grad()
        mixed = (maps[-1] @ value).transpose(1, 2).flatten(2)
        hidden = layer.norm1(hidden + attention.out_proj(mixed))
        hidden = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).relu()))
    model.head(hidden[:, 0])[:, 1].sum().backward()
    return maps


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_torch_transformer_encoder_equals_its_formula(frozen, batch_first, padded):
    model, ids = TorchEncoder(batch_first), token_ids()
    padding = None
    if padded:
        padding = torch.zeros(2, 10, dtype=torch.bool)
        padding[1, 7:] = True
    maps = torch_encoder_reference(model, ids, padding)
    model.requires_grad_(not frozen)
    record = capture_attention(model, (ids,), 1, (padding,))
    for mine, gradient, expected in zip(
        record.weights, record.gradients, maps, strict=True
    ):
        torch.testing.assert_close(mine, expected.detach())
        torch.testing.assert_close(gradient, expected.grad)


def test_multihead_attention_with_and_without_weights_is_captured():
    attention = nn.MultiheadAttention(32, 4, batch_first=True).double()
    embedding = nn.Embedding(50, 32).double()

    def forward(ids):
        hidden = embedding(ids)
        mixed, average = attention(hidden, hidden, hidden, need_weights=True)
        forward.average = average
        hidden = hidden + mixed
        hidden = hidden + attention(hidden, hidden, hidden, need_weights=False)[0]
        return hidden.sum((1, 2))

    record = capture_attention(forward, (token_ids(),))
    assert [tuple(weights.shape) for weights in record.weights] == [(2, 4, 10, 10)] * 2
    torch.testing.assert_close(record.weights[0].mean(1), forward.average.detach())


@pytest.mark.filterwarnings("ignore:.* not seen to weigh values")
@pytest.mark.parametrize("n_experts", [5, 10])
def test_a_gate_of_experts_is_no_attention(n_experts):
    record = capture_attention(HandWritten(n_experts), (token_ids(),), 0)
    assert [tuple(weights.shape) for weights in record.weights] == [(2, 1, 10, 10)] * 2


def test_a_map_that_weighs_two_values_is_one_layer_with_the_gradient_of_both():
    x = torch.randn(2, 5, 8).double()

    def forward(x):
        weights = (x @ x.mT).softmax(-1)
        return (weights @ x + 0.5 * (weights @ x.tanh())).sum((1, 2))

    record = capture_attention(forward, (x,))
    assert len(record.weights) == 1
    values = (x + 0.5 * x.tanh()).sum(-1)
    torch.testing.assert_close(
        record.gradients[0][:, 0], values[:, None].expand(-1, 5, -1)
    )


@pytest.mark.parametrize(
    "product",
    [
        lambda w, x: torch.matmul(w, other=x),
        lambda w, x: torch.matmul(input=w, other=x),
        lambda w, x: torch.bmm(input=w, mat2=x),
        lambda w, x: torch.einsum("bij,bjd->bid", [w, x]),
        lambda w, x: (w / w.sum(-1, keepdim=True)) @ x,
        lambda w, x: (w / 1.0).clamp(0, 1) @ x,
        lambda w, x: F.dropout(w.float().double(), 0.0) @ x,
    ],
)
def test_every_way_to_write_the_product_is_seen(product):
    x = torch.randn(2, 5, 8).double()
    record = capture_attention(
        lambda x: product((x @ x.mT).softmax(-1), x).sum((1, 2)), (x,)
    )
    assert len(record.weights) == 1


def test_other_products_by_keyword_are_left_alone():
    x = torch.randn(2, 5, 8).double()
    project = torch.randn(8, 8).double()

    def forward(x):
        x = torch.matmul(input=x, other=project)
        return ((x @ x.mT).softmax(-1) @ x).sum((1, 2))

    assert len(capture_attention(forward, (x,)).weights) == 1


def test_a_softmax_that_meets_no_values_warns():
    x = torch.randn(2, 5, 8).double()

    def forward(x):
        x = x + (x @ x.mT).softmax(-1) @ x
        return (x + torch.exp((x @ x.mT).softmax(-1).log()) @ x).sum((1, 2))

    with pytest.warns(UserWarning, match="1 softmaxes of the shape.*1 were"):
        capture_attention(forward, (x,))


def test_grouped_and_causal_sdpa_equals_the_fused_kernel():
    query, key, value = (torch.randn(2, heads, 6, 8).double() for heads in (4, 2, 2))

    def forward(query):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        ).sum((1, 2, 3))

    record = capture_attention(forward, (query,))
    torch.testing.assert_close(record.output, forward(query))
    assert record.weights[0].shape == (2, 4, 6, 6)
    assert not record.weights[0].triu(1).any()


def test_rows_that_mask_every_key_are_zero_as_in_the_fused_kernel():
    query = torch.randn(1, 1, 3, 4).double()
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, :] = False
    record = capture_attention(
        lambda query: F.scaled_dot_product_attention(
            query, query, query, attn_mask=mask
        ).sum((1, 2, 3)),
        (query,),
    )
    assert not record.weights[0][0, 0, 1].any()


def test_minibatches_inside_the_forward_function_are_joined():
    model, ids = bert(), token_ids(5)

    def in_chunks(ids):
        return torch.cat([model(chunk).logits for chunk in ids.split(2)])

    whole = capture_attention(lambda ids: model(ids).logits, (ids,), 1)
    chunked = capture_attention(in_chunks, (ids,), 1)
    for mine, theirs in zip(
        chunked.weights + chunked.gradients,
        whole.weights + whole.gradients,
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("forward", ["module", "function", "partial", "no parameters"])
def test_any_kind_of_forward_function_is_taken(forward):
    import functools

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = bert()

        def forward(self, ids):
            return self.model(ids).logits

    module, ids = Wrapped(), token_ids()
    forms = {
        "module": module,
        "function": lambda ids: module(ids),
        "partial": functools.partial(module.forward),
        "no parameters": lambda: module(ids),
    }
    assert len(capture_attention(forms[forward], (ids,), 1).weights) == 3


def test_read_out_is_cls_of_a_classifier_and_everything_under_mean_pooling():
    model, ids = bert(), token_ids()
    record = capture_attention(lambda ids: model(ids).logits, (ids,), 1)
    assert record.read_out().tolist() == [[True] + [False] * 9] * 2
    head = torch.randn(32).double()
    record = capture_attention(lambda ids: (model.bert(ids)[0] @ head).mean(1), (ids,))
    assert record.read_out().all()


def state_of(model):
    return {
        "parameters": [
            (p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()
        ],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
        ],
        "training": [m.training for m in model.modules()],
        "config": model.config.to_dict(),
        "functions": (F.softmax, F.scaled_dot_product_attention, torch.matmul),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left_also_after_an_error(fails):
    model = bert()
    embeddings = torch.randn(2, 10, 32).double()

    def forward(embeddings):
        logits = model(inputs_embeds=embeddings).logits
        if fails:
            raise KeyError("of the user")
        return logits

    before = state_of(model)
    if fails:
        with pytest.raises(KeyError, match="of the user"):
            capture_attention(forward, (embeddings,), 1)
    else:
        capture_attention(forward, (embeddings,), 1)
    after = state_of(model)
    for (mine, *flags), (theirs, *other) in zip(
        after.pop("parameters"), before.pop("parameters"), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert flags == other
    assert after == before
    assert not embeddings.requires_grad
    assert embeddings.grad is None


class TestRefusals:
    def test_no_attention(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        with pytest.raises(UnsupportedAttentionError, match=r"no attention map.*eager"):
            capture_attention(model, (torch.randn(3, 4),), 1)

    def test_torchscript(self):
        class Script(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (torch.softmax(x @ x.mT, -1) @ x).sum((1, 2))

        model = torch.jit.trace(Script(), torch.randn(2, 3, 4))
        with pytest.raises(UnsupportedAttentionError, match="TorchScript"):
            capture_attention(model, (torch.randn(2, 3, 4),))

    def test_worker_threads(self):
        from concurrent.futures import ThreadPoolExecutor

        model = bert()

        def forward(ids):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: model(ids).logits).result()

        with pytest.raises(UnsupportedAttentionError, match="worker threads"):
            capture_attention(forward, (token_ids(),), 1)

    def test_two_passes_of_one_model(self):
        model = bert()

        def siamese(ids):
            one, other = (model.bert(x).pooler_output for x in (ids, ids.flip(1)))
            return (one * other).sum(-1)

        with pytest.raises(UnsupportedAttentionError, match="several passes per input"):
            capture_attention(siamese, (token_ids(),))

    @pytest.mark.parametrize("n_rows", [2, 3])
    def test_two_passes_of_attention_with_folded_heads(self, n_rows):
        attention = nn.MultiheadAttention(32, 4, batch_first=True).double()
        embedding = nn.Embedding(50, 32).double()

        def twice(ids):
            hidden = [embedding(x) for x in (ids, ids.flip(1))]
            return sum(attention(x, x, x)[0].sum((1, 2)) for x in hidden)

        with pytest.raises(UnsupportedAttentionError, match="several passes per input"):
            capture_attention(twice, (token_ids(n_rows),))

    @pytest.mark.filterwarnings("ignore:.* not seen to weigh values")
    def test_two_passes_of_a_hand_written_model(self):
        model = HandWritten()
        with pytest.raises(UnsupportedAttentionError, match="several passes per input"):
            capture_attention(
                lambda ids: model(ids) + model(ids.flip(1)), (token_ids(),), 1
            )

    def test_two_towers_of_different_depth(self):
        deep, shallow = TorchEncoder(), TorchEncoder()
        shallow.encoder.layers = shallow.encoder.layers[:2]
        with pytest.raises(UnsupportedAttentionError, match=r"of \[2, 3\] layers"):
            capture_attention(lambda ids: deep(ids) + shallow(ids), (token_ids(),), 1)

    def test_model_output_objects(self):
        with pytest.raises(ValueError, match=r"SequenceClassifierOutput.*\.logits"):
            capture_attention(bert(), (token_ids(),), 1)

    def test_output_under_no_grad(self):
        model = bert()

        def forward(ids):
            with torch.no_grad():
                return model(ids).logits

        with pytest.raises(ValueError, match="no_grad"):
            capture_attention(forward, (token_ids(),), 1)

    @pytest.mark.parametrize("target", [2, -3, torch.tensor([0, 7]), (0, 0)])
    def test_target_out_of_range(self, target):
        model = bert()
        with pytest.raises(ValueError, match=r"target=.*classes: 0 to 1"):
            capture_attention(lambda ids: model(ids).logits, (token_ids(),), target)

    def test_missing_target(self):
        model = bert()
        with pytest.raises(ValueError, match=r"Pass target.*argmax"):
            capture_attention(lambda ids: model(ids).logits, (token_ids(),))

    def test_output_without_rows(self):
        model = bert()
        with pytest.raises(ValueError, match="one row per input"):
            capture_attention(lambda ids: model(ids).logits.sum(), (token_ids(),))

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_nan_or_inf_in_the_attention(self, bad):
        def forward(x):
            weights = torch.softmax(x @ x.mT, -1) * bad
            return (weights @ x).sum((1, 2))

        with pytest.raises(ValueError, match=r"layer 0 hold NaN or infinite"):
            capture_attention(forward, (torch.rand(2, 3, 4),))


class HeadsAnywhere(nn.Module):
    """Attention whose heads stand before or behind the examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(VOCABULARY, 32)
        self.maps = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.head = nn.Linear(32, 3)
        self.double()

    def forward(self, ids: Tensor, order: str, fused: bool = False) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.maps:
            q, k, v = (_split_heads(part, order) for part in layer(x).chunk(3, -1))
            if fused:
                mixed = F.scaled_dot_product_attention(q, k, v)
            else:
                mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
            x = x + _join_heads(mixed, order, len(ids))
        return self.head(x.mean(1))


def _split_heads(x: Tensor, order: str) -> Tensor:
    heads = x.unflatten(-1, (4, 8)).movedim(2, 0 if order.startswith("heads") else 1)
    return heads.flatten(0, 1) if order.endswith("folded") else heads


def _join_heads(x: Tensor, order: str, n_rows: int) -> Tensor:
    if order.endswith("folded"):
        x = x.unflatten(0, (4, n_rows) if order.startswith("heads") else (n_rows, 4))
    return x.movedim(0 if order.startswith("heads") else 1, 2).flatten(2)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", ["heads", "heads, folded", "rows, folded"])
@pytest.mark.parametrize(
    "method",
    [AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow, CheferRelevance],
)
def test_heads_may_stand_before_the_examples(method, order, fused, n_rows):
    """Also where there are as many heads as examples, and sizes tell nothing."""
    model, ids = HeadsAnywhere(), token_ids(n_rows, 7)
    usual = method(lambda ids: model(ids, "rows")).attribute(ids, target=1)
    found = method(lambda ids: model(ids, order, fused)).attribute(ids, target=1)
    torch.testing.assert_close(found, usual)


def test_heads_that_do_not_show_for_want_of_a_gradient_are_refused():
    """One example has nothing to be told from."""
    model = HeadsAnywhere()
    rollout = AttentionRollout(lambda ids: model(ids, "heads, folded") * 0)
    with pytest.raises(ValueError, match="does not show where the examples"):
        rollout.attribute(token_ids(2, 7), target=1)
    with pytest.warns(UserWarning, match="all token scores of the examples .0. are 0"):
        rollout.attribute(token_ids(1, 7), target=1)


class Hybrid(nn.Module):
    """A layer that mixes positions by itself, between two of attention or elsewhere."""

    def __init__(self, mix, place: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(VOCABULARY, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 48, 0.0, batch_first=True)
            for _ in range(2)
        )
        self.mix, self.place = mix, place

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for place, layer in zip(("before", "between"), self.layers, strict=True):
            x = layer(self.mix(x) if self.place == place else x)
        return (self.mix(x) if self.place == "behind" else x).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(32, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def convolution(width: int) -> nn.Module:
    layer = nn.Conv1d(32, 32, width, padding="same")

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mT).mT

    return Transposed()


MIXING = {
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "cumsum": lambda x: x.cumsum(1),
    "fft_r2c": lambda x: torch.fft.fft(x, dim=1).real,
    "gru": Recurrent(),
    "convolution": convolution(3),
}
FEATURES_ALONE = {
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip(2),
    "cumsum": lambda x: x.cumsum(dim=-1),
    "convolution": convolution(1),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("method", [GeneralizedAttentionFlow, RelevanceFlow])
@pytest.mark.parametrize("place", ["before", "between"])
def test_layers_that_mix_positions_without_attention_are_named(method, name, place):
    """What passes through them is missing from a flow over attention."""
    model, ids = Hybrid(MIXING[name], place), token_ids(2, 6)
    with pytest.warns(
        UserWarning, match=rf"{name}.* mix(es)? positions beside the attention"
    ):
        method(model).attribute(ids, target=1)


@pytest.mark.parametrize(
    ("name", "mix", "place"),
    [(name, mix, "behind") for name, mix in MIXING.items()]
    + [(name, mix, "between") for name, mix in FEATURES_ALONE.items()],
)
def test_where_flows_miss_nothing_nothing_is_named(name, mix, place):
    model, ids = Hybrid(mix, place), token_ids(2, 6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix(es)? positions")
        RelevanceFlow(model).attribute(ids, target=1)


def test_a_mask_without_heads_is_that_of_the_rows():
    """Of queries (H, B, T, D), where a mask (B, Tq, Tk) meets every head."""
    q, k, v = torch.randn(3, 3, 3, 5, 4, dtype=torch.float64)
    mask = torch.rand(3, 5, 5) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)
    x = torch.randn(3, 5, 4, dtype=torch.float64)

    def forward(x: Tensor, heads_first: bool) -> Tensor:
        queries = q + x  # heads, rows, tokens
        if heads_first:
            mixed = F.scaled_dot_product_attention(queries, k, v, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                *(part.transpose(0, 1) for part in (queries, k, v)), mask[:, None]
            ).transpose(0, 1)
        return mixed.sum((0, 2))

    one, other = (
        capture_attention(
            lambda x, first=first: forward(x, first), (x,), 1, rules="attnlrp"
        )
        for first in (True, False)
    )
    torch.testing.assert_close(one.weights, other.weights)
    torch.testing.assert_close(one.gradients, other.gradients)


@pytest.mark.parametrize("n_rows", [2, 3, 4])
def test_heads_first_may_be_folded_behind_the_softmax(n_rows):
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, 12).double(), nn.Linear(12, 3).double()

    def forward(ids: Tensor, folds: bool) -> Tensor:
        x = embedding(ids)
        heads = torch.stack(x.chunk(3, -1))  # (H, B, T, D)
        weights = (heads @ heads.mT).softmax(-1)
        if folds:
            mixed = weights.flatten(0, 1) @ heads.flatten(0, 1)
            mixed = mixed.unflatten(0, (3, len(ids)))
        else:
            mixed = weights.transpose(0, 1) @ heads.transpose(0, 1)
            mixed = mixed.transpose(0, 1)
        return head(torch.cat(mixed.unbind(), -1).mean(1))

    ids = token_ids(n_rows, 6)
    folded, plain = (
        GeneralizedAttentionFlow(lambda ids, folds=folds: forward(ids, folds))
        for folds in (True, False)
    )
    torch.testing.assert_close(
        folded.explain(ids, target=1).scores, plain.explain(ids, target=1).scores
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_told_in_half_precision(dtype):
    """As many rows as heads, and deep: rounding must not hide them."""
    model, ids = HeadsAnywhere().to(dtype), token_ids(4, 7)
    found = AttentionRollout(lambda ids: model(ids, "heads")).attribute(ids, target=1)
    usual = AttentionRollout(lambda ids: model(ids, "rows")).attribute(ids, target=1)
    torch.testing.assert_close(found, usual, rtol=0.02, atol=0.01)


def test_an_option_of_autograd_may_not_cut_off_what_is_needed():
    model, ids = HeadsAnywhere(), token_ids(4, 7)
    options = {"retain_graph": False, "allow_unused": False}
    capture_attention(lambda ids: model(ids, "rows"), (ids,), 1, None, options)


def test_a_linear_layer_that_cuts_gradients_off_is_named_by_its_weight():
    """However its arguments are given; such weights choose kernels on integers."""

    class Rounded(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            output = super().__torch_function__(func, types, args, kwargs)
            if func is nn.functional.linear:
                return output.as_subclass(torch.Tensor).detach()
            return output

    model, weight = Hybrid(nn.Identity(), "between"), torch.randn(3, 32)
    weight = weight.as_subclass(Rounded)

    def forward(ids):
        return nn.functional.linear(weight=weight, input=model(ids))

    with pytest.raises(UnsupportedAttentionError, match="linear by Rounded"):
        RelevanceFlow(forward).attribute(token_ids(2, 6), target=1)
