"""Attention by rules, in the ways that it is written; what is refused; families."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FUSED_DECODERS,
    FUSED_ENCODERS,
    VISION_MODELS,
    VOCABULARY,
    HandWritten,
    TorchEncoder,
    TorchTransformer,
    bert,
    classifier,
    decoder,
    encoder_decoder,
    image_captioner,
    mixture_of_experts,
    token_ids,
    vision_model,
)
from reference.lrp import Replica, causal
from torch import Tensor, nn

from captum_attnflow import GeneralizedAttentionFlow, RelevanceFlow
from captum_attnflow.attr.attn_lrp import AttnLRP
from captum_attnflow.capture import UnsupportedAttentionError, capture_attention
from captum_attnflow.flow import message_tensor

SHARES = {"attnlrp": 0.5, "cp-lrp": 0.0}
N_TOKENS, N_HEADS, SIZE = 5, 2, 4


class Head:
    """Random constants of one attention layer over floats ``(2, 5, 8)``."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.maps = random(3, 8, 8)
        self.bias = random(N_HEADS, N_TOKENS, N_TOKENS)
        self.sinks = random(N_HEADS)
        self.reader = random(N_TOKENS, 8)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            (x @ matrix).unflatten(-1, (N_HEADS, SIZE)).transpose(1, 2)
            for matrix in self.maps
        )

    def read(self, mixed: Tensor) -> Tensor:
        return (mixed * self.reader).sum((1, 2))


HEAD = Head()
SCALE = SIZE**-0.5


def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * SCALE + HEAD.bias).softmax(-1) @ v


def changed_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores /= 1 / SCALE
    scores += HEAD.bias
    return scores.softmax(-1) @ v


def changed_in_place_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT)
    folded = scores.view(-1, N_TOKENS, N_TOKENS)
    folded.mul_(SCALE).add_(HEAD.bias.repeat(2, 1, 1))
    return torch.matmul(folded.view_as(scores).softmax(-1), v)


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.bmm(q * SCALE, k.mT).view(2, N_HEADS, N_TOKENS, N_TOKENS)
    weights = (scores + HEAD.bias).softmax(-1)
    return torch.bmm(weights.flatten(0, 1), v).unflatten(0, (2, N_HEADS))


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    bias = HEAD.bias.repeat(2, 1, 1)
    scores = torch.baddbmm(bias, q, k.mT, beta=1.0, alpha=SCALE)
    weights = scores.view(2, N_HEADS, N_TOKENS, N_TOKENS).softmax(-1)
    return weights @ v.unflatten(0, (2, N_HEADS))


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * SCALE + HEAD.bias
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def keys_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((k @ q.mT).mT * SCALE + HEAD.bias).softmax(-1) @ v


def keys_first_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (k @ q.transpose(-1, -2)) * SCALE
    return (scores.permute(0, 1, 3, 2) + HEAD.bias).softmax(-1) @ v


def heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bijh", q, k) / (1 / SCALE)
    return (scores.movedim(-1, 1) + HEAD.bias).softmax(-1) @ v


def two_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q[..., :2] @ k[..., :2].mT + q[..., 2:] @ k[..., 2:].mT
    return (scores * SCALE + HEAD.bias).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, HEAD.bias)


WAYS = [
    matmul,
    changed_in_place,
    changed_in_place_through_a_view,
    folded,
    baddbmm,
    einsum,
    keys_first,
    keys_first_scaled,
    heads_last,
    two_products,
    fused,
]


def messages_of(attend: Callable[..., Tensor], x: Tensor, rules: str) -> Tensor:
    def forward(x: Tensor) -> Tensor:
        mixed = attend(*HEAD.project(x))
        return HEAD.read(mixed.transpose(1, 2).flatten(2))

    return message_tensor(capture_attention(forward, (x,), rules=rules))[:, 0]


@pytest.mark.parametrize("rules", SHARES)
@pytest.mark.parametrize("attend", WAYS)
def test_messages_do_not_depend_on_how_attention_is_written(attend, rules):
    """What is added to scores, a bias of positions or a mask, is no part of them."""
    x = torch.randn(2, N_TOKENS, 8, dtype=torch.float64)
    replica = Replica(SHARES[rules])
    query, key, value = HEAD.project(replica.enter(x))
    mixed = replica.attend(query, key, value, SCALE, HEAD.bias)
    (attention,) = replica.attentions
    expected = attention.messages(HEAD.read(mixed).sum(), SHARES[rules])
    torch.testing.assert_close(messages_of(attend, x, rules), expected)


def test_scores_that_cannot_be_followed_are_named():
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q[:, :, :, None] * k[:, :, None]).sum(-1) * SCALE
        return scores.softmax(-1) @ v

    x = torch.randn(2, N_TOKENS, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="1 of 1 attention layers.*keys get no share"):
        messages_of(attend, x, "attnlrp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        messages_of(attend, x, "cp-lrp")  # has none to follow


@pytest.mark.parametrize("rules", SHARES)
def test_masks_written_in_place_pass_nothing_on(rules):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).masked_fill_(causal(N_TOKENS) < 0, -torch.inf)
        return scores.softmax(-1) @ v

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

    x = torch.randn(2, N_TOKENS, 8, dtype=torch.float64)
    found = messages_of(attend, x, rules)
    torch.testing.assert_close(found, messages_of(expected, x, rules))
    assert not found.triu(1).any()


@pytest.mark.parametrize("rules", SHARES)
def test_attention_sinks_are_a_column_of_their_own(rules):
    """A logit more that takes part in the softmax and mixes no value, as in gpt-oss."""
    x = torch.randn(2, N_TOKENS, 8, dtype=torch.float64)
    sinks = HEAD.sinks[:, None, None].expand(2, N_HEADS, N_TOKENS, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.cat([q @ k.mT * SCALE, sinks], -1)
        scores = scores - scores.max(-1, keepdim=True).values
        return F.softmax(scores, -1)[..., :-1] @ v

    def with_a_key_of_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same by a key that is orthogonal to all queries, with a value of 0."""
        nothing = torch.zeros(2, N_HEADS, 1, SIZE, dtype=torch.float64)
        mask = torch.cat(
            [torch.zeros_like(q[..., :1]).expand(*q.shape[:3], 5), sinks], -1
        )
        k, v = torch.cat([k, nothing], 2), torch.cat([v, nothing], 2)
        return F.scaled_dot_product_attention(q, k, v, mask)

    def forward(x: Tensor) -> Tensor:
        mixed = with_a_key_of_nothing(*HEAD.project(x))
        return HEAD.read(mixed.transpose(1, 2).flatten(2))

    (layer,) = capture_attention(forward, (x,), rules=rules).layers
    expected = layer.messages().sum(1)[..., :-1]
    torch.testing.assert_close(messages_of(attend, x, rules), expected)


@pytest.mark.parametrize("rules", SHARES)
def test_weights_that_do_not_depend_on_the_tokens_leave_all_to_the_values(rules):
    weights = HEAD.bias.softmax(-1)
    x = torch.randn(2, N_TOKENS, 8, dtype=torch.float64)

    def forward(x: Tensor) -> Tensor:
        value = HEAD.project(x)[2]
        mixed = HEAD.bias.expand(2, -1, -1, -1).softmax(-1) @ value
        return HEAD.read(mixed.transpose(1, 2).flatten(2))

    record = capture_attention(forward, (x,), rules=rules)
    readers = HEAD.reader.unflatten(-1, (N_HEADS, SIZE)).transpose(0, 1)
    expected = (weights * (readers @ HEAD.project(x)[2].mT)).sum(1)
    torch.testing.assert_close(message_tensor(record)[:, 0], expected)
    torch.testing.assert_close(
        AttnLRP(forward, rules=rules).attribute(x).sum((1, 2)), record.output
    )


# -- families


def _text(model: nn.Module, **options) -> Callable[..., Tensor]:
    def forward(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = model(ids, attention_mask=mask, **options).logits
        return logits if logits.dim() == 2 else logits[:, -1]

    return forward


def _vision(name: str) -> Callable[..., Tensor]:
    model = vision_model(name)
    return lambda pixels: model(pixels).last_hidden_state[:, 0]


def _pair(model: nn.Module) -> Callable[..., Tensor]:
    return lambda ids, decoder_ids: model(
        input_ids=ids, decoder_input_ids=decoder_ids
    ).logits[:, -1, 2:]  # BART's padding token has a logit of 0


def _caption() -> Callable[..., Tensor]:
    model = image_captioner()
    return lambda pixels, ids: model(pixel_values=pixels, decoder_input_ids=ids).logits[
        :, -1
    ]


def _ids() -> tuple[Tensor, ...]:
    return (token_ids(2, 7),)


def _pixels() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, dtype=torch.float64),)


def _pairs() -> tuple[Tensor, ...]:
    return token_ids(2, 6), token_ids(2, 4)


EVERY = {
    **{
        f"{family}, eager": (lambda f=family: _text(classifier(f, "eager")), _ids)
        for family in ENCODERS.keys() - {"Funnel"}
    },
    **{
        f"{family}, sdpa": (lambda f=family: _text(classifier(f, "sdpa")), _ids)
        for family in FUSED_ENCODERS
    },
    **{
        f"{family}, eager": (lambda f=family: _text(decoder(f, "eager")), _ids)
        for family in DECODERS
    },
    **{
        f"{family}, sdpa": (lambda f=family: _text(decoder(f, "sdpa")), _ids)
        for family in FUSED_DECODERS
    },
    **{
        f"{family}, experts": (lambda f=family: _text(mixture_of_experts(f)), _ids)
        for family in ("mixtral", "gpt_oss", "deepseek_v3", "llama4_text")
    },
    **{name: (lambda n=name: _vision(n), _pixels) for name in VISION_MODELS},
    **{
        f"{family}, {implementation}": (
            lambda f=family, i=implementation: _pair(encoder_decoder(f, i)),
            _pairs,
        )
        for family in ENCODER_DECODERS
        for implementation in ("eager", "sdpa")
    },
    "captioner": (_caption, lambda: (*_pixels(), token_ids(2, 4))),
    "nn.TransformerEncoder": (TorchEncoder, _ids),
    "nn.Transformer": (TorchTransformer, _pairs),
    "by hand": (HandWritten, _ids),
}


@pytest.mark.filterwarnings("ignore:.*follow the position:UserWarning")
@pytest.mark.parametrize("rules", SHARES)
@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_operation_of_every_family_is_known_and_scores_sum_to_the_output(
    name, rules
):
    make, inputs = EVERY[name]
    forward, given = make(), inputs()
    given = given[0] if len(given) == 1 else given
    flow = RelevanceFlow(forward, rules=rules).explain(given, target=1)
    assert not flow.diagnostics.propagation.unknown
    size = flow.output.abs().double()
    assert (flow.diagnostics.imbalance <= 1e-6 * size).all()
    assert ((flow.scores.sum(1) - flow.output).abs() <= 1e-6 * size).all()
    parts = given if isinstance(given, tuple) else (given,)
    torch.testing.assert_close(flow.output, forward(*parts)[:, 1].detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = AttnLRP(forward, rules=rules).attribute(given, target=1)
    assert all(x.any() for x in (scores if isinstance(scores, tuple) else (scores,)))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "Bert, eager": {
            "normalisation: layer_norm": 7,
            "uniform: matmul": 3,
            "attention: matmul": 3,
            "identity: gelu": 3,
            "identity: tanh": 1,
        },
        "Bert, sdpa": {
            "normalisation: layer_norm": 7,
            "attention: scaled_dot_product_attention": 3,
            "identity: gelu": 3,
            "identity: tanh": 1,
        },
        "llama, eager": {
            "identity: pow": 7,
            "normalisation: rsqrt": 7,
            "uniform: matmul": 3,
            "attention: matmul": 3,
            "identity: silu": 3,
            "uniform: mul": 3,
        },
        "bloom, eager": {
            "normalisation: layer_norm": 8,
            "uniform: baddbmm": 3,
            "attention: matmul": 3,
            "identity: GeLUFunctionBackward": 3,
        },
        "mixtral, experts": {
            "identity: pow": 7,
            "normalisation: rsqrt": 7,
            "uniform: matmul": 3,
            "attention: matmul": 3,
            "normalisation: div": 3,
            "gate: mul": 3,
            "identity: silu": 3,
            "uniform: mul": 3,
        },
    }.items(),
)
def test_rules_meet_as_many_operations_as_the_model_has(name, expected):
    if name.endswith("experts") and not hasattr(torch, "_grouped_mm"):
        pytest.skip(f"torch {torch.__version__} runs the experts one after the other")
    make, inputs = EVERY[name]
    record = capture_attention(make(), inputs(), 1, rules="attnlrp")
    assert record.propagation.counts == expected


FAMILIES = ["Bert, eager", "Bert, sdpa", "gpt2, eager", "llama, sdpa", "gemma2, eager"]
MODELS = {name: EVERY[name][0]() for name in FAMILIES}


@pytest.mark.filterwarnings("ignore:.*follow the position:UserWarning")
@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(FAMILIES),
    rules=st.sampled_from(sorted(SHARES)),
    lengths=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_texts_of_any_length_are_explained_as_alone(name, rules, lengths, seed):
    longest, is_decoder = max(lengths), not name.startswith("Bert")
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):  # decoders read the last position
        mask[row, slice(-length, None) if is_decoder else slice(length)] = 1
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    flow = RelevanceFlow(MODELS[name], rules=rules)
    together = flow.explain(ids, target=1, additional_forward_args=(mask,))
    size = together.output.abs().double()
    assert (together.diagnostics.imbalance <= 1e-6 * size).all()
    assert ((together.scores.sum(1) - together.output).abs() <= 1e-6 * size).all()
    assert not together.scores[mask == 0].any()
    for row in range(len(lengths)):
        one = slice(row, row + 1)
        alone = flow.explain(ids[one], target=1, additional_forward_args=(mask[one],))
        scale = alone.scores.abs().max()
        assert (together.scores[one] - alone.scores).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("rules", SHARES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom"])
def test_tokens_behind_the_read_out_have_no_score(family, rules):
    model = decoder(family)
    flow = RelevanceFlow(lambda ids: model(ids).logits[:, 3], rules=rules)
    scores = flow.explain(token_ids(2, 7), target=1).scores
    assert scores[:, :4].all()
    assert not scores[:, 4:].any()


@pytest.mark.parametrize("rules", SHARES)
def test_frozen_parameters_change_nothing_and_no_trace_is_left(rules):
    model, ids = bert(implementation="eager"), token_ids(2, 6)
    forward = _text(model)
    trained = AttnLRP(forward, rules=rules).attribute(ids, target=1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    frozen = AttnLRP(forward, rules=rules).attribute(ids, target=1)
    torch.testing.assert_close(frozen, trained, rtol=0, atol=0)


# -- what is refused


def test_rules_end_and_models_are_as_before_also_after_an_error():
    model, ids = bert(), token_ids(2, 6)
    expected = model(ids).logits
    hooks = [len(module._forward_hooks) for module in model.modules()]
    model.eval()

    def failing(ids: Tensor) -> Tensor:
        model(ids)
        raise ArithmeticError("of the model")

    for method in (AttnLRP, RelevanceFlow):
        with pytest.raises(ArithmeticError, match="of the model"):
            method(failing).attribute(ids, target=1)
        with pytest.raises(ValueError, match="target"):
            method(_text(model)).attribute(ids, target=9)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module.training for module in model.modules())
    x = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((x * x).sum(), x)
    assert (gradient == 2).all()  # 1 under rules
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


def test_torchscript_is_refused():
    scripted = torch.jit.trace(Classifier(), torch.randn(2, 8))
    with pytest.raises(UnsupportedAttentionError, match=r"GeluBackward0.*TorchScript"):
        AttnLRP(scripted).attribute(torch.randn(2, 8), target=1)


@pytest.mark.parametrize("n_calls_before", [0, 3])
def test_a_scripted_part_is_refused_at_every_call(n_calls_before):
    """After some calls TorchScript fuses operations into nodes of its own."""
    middle = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))
    middle = torch.jit.script(middle)
    x = torch.randn(2, N_TOKENS, 8, requires_grad=True)
    for _ in range(n_calls_before):
        middle(x).sum().backward()
    with pytest.raises(UnsupportedAttentionError, match="TorchScript"):
        AttnLRP(lambda x: middle(x).sum(1)).attribute(x, target=1)


@pytest.mark.parametrize("method", [AttnLRP, RelevanceFlow, GeneralizedAttentionFlow])
def test_compiled_models_are_explained_as_the_model_itself(method):
    """At every call: what compiles modes would run their work without them later."""
    model, ids = TorchEncoder(), token_ids(1, 6)
    expected = method(model).attribute(ids, target=1)
    compiled = torch.compile(model, backend="eager")
    compiled(ids)
    for _ in range(2):
        found = method(compiled).attribute(ids, target=1)
        torch.testing.assert_close(found, expected)
    calls = torch._dynamo.utils.counters["frames"]["total"]
    compiled(ids)  # compiled as before
    assert torch._dynamo.utils.counters["frames"]["total"] == calls


@pytest.mark.parametrize("method", [AttnLRP, RelevanceFlow, GeneralizedAttentionFlow])
def test_dropout_is_named(method):
    model = TorchEncoder().train()
    with pytest.warns(UserWarning, match=r"dropout is active.*model\.eval"):
        method(model).attribute(token_ids(1, 6), target=1)


def test_a_detached_output_is_refused():
    model = Classifier()
    message = "does not depend on the inputs through autograd"
    with pytest.raises(ValueError, match=message):
        AttnLRP(lambda x: model(x.detach())).attribute(torch.randn(2, 8), target=1)
    with pytest.raises(ValueError, match=message):
        AttnLRP(lambda x: model(x).detach()).attribute(torch.randn(2, 8), target=1)


def test_gradients_that_are_nan_are_refused():
    model = Classifier()

    def forward(x: Tensor) -> Tensor:
        return model(x / (x - x).norm(dim=-1, keepdim=True))

    with pytest.raises(ValueError, match="NaN or infinite"):
        AttnLRP(forward).attribute(torch.randn(2, 8), target=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_integer_kernels_are_refused():
    quantised = torch.ao.quantization.quantize_dynamic(
        Classifier().eval(), {nn.Linear}, dtype=torch.qint8
    )
    with pytest.raises(ValueError, match=r"[Ii]nteger-quantised kernels"):
        AttnLRP(quantised).attribute(torch.randn(2, 8), target=1)


def test_unknown_operations_are_named_in_one_warning():
    model = Classifier()

    def forward(x: Tensor) -> Tensor:
        return model(x.cumprod(-1) + x.sinh() + torch.cumprod(x, -1))

    with pytest.warns(UserWarning, match="knows cumprod, so that") as caught:
        AttnLRP(forward).attribute(torch.randn(2, 8), target=1)
    assert len(caught) == 1


def test_values_of_the_forward_pass_are_those_of_the_model():
    seen = []
    model = bert()

    def forward(ids: Tensor) -> Tensor:
        seen.append(model(ids).logits)
        return seen[-1]

    ids = token_ids(2, 6)
    AttnLRP(forward).attribute(ids, target=1)
    torch.testing.assert_close(seen[0].detach(), model(ids).logits.detach())
    assert not math.isnan(seen[0].sum().item())
