"""Attention written otherwise has the scores of the plain way, in every method."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_methods import METHODS
from torch import Tensor, nn

import captum_attnflow
from captum_attnflow import (
    AttentionRollout,
    GeneralizedAttentionFlow,
    LayerAttnLRP,
    LayerRelevanceFlow,
    RelevanceFlow,
    UnsupportedAttentionError,
)
from captum_attnflow.capture import capture_attention

N_ROWS, N_HEADS, N_TOKENS, SIZE = 2, 4, 7, 8

every_method = pytest.mark.parametrize("method", METHODS)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / SIZE**0.5


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-1) @ v


def exponentials(q: Tensor, k: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return (scores - scores.amax(-1, keepdim=True)).exp()


def divided(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def divided_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores_of(q, k).exp_()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def by_reciprocal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = exponentials(q, k)
    return (weights * weights.sum(-1)[..., None].reciprocal()) @ v


def by_log_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def by_log_of_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return (scores - scores.exp().sum(-1, keepdim=True).log()).exp() @ v


def summed(weights: Tensor, v: Tensor) -> Tensor:
    return (weights[..., None] * v[:, :, None]).sum(-2)


def keys_before_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (k @ q.mT / SIZE**0.5).softmax(-2)
    return (v.mT @ weights).mT


def heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bijh", q, k) / SIZE**0.5
    return torch.einsum("bijh,bhjd->bhid", scores.softmax(2), v)


def heads_last_moved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bijh", q, k).div(SIZE**0.5).softmax(2)
    return (
        weights.permute(0, 3, 1, 2)
        .reshape(-1, N_TOKENS, N_TOKENS)
        .bmm(v.flatten(0, 1))
        .view_as(v)
    )


def tokens_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
    scores = torch.einsum("ibnd,jbnd->ijbn", q, k) / SIZE**0.5
    mixed = torch.einsum("ijbn,jbnd->ibnd", scores.softmax(1), v)
    return mixed.permute(1, 2, 0, 3)


def by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->hbij", q, k) / SIZE**0.5
    return torch.einsum("bhij,bhjd->bhid", scores.transpose(0, 1).softmax(-1), v)


def masked_exponentials(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = exponentials(q, k) * torch.ones(N_TOKENS, N_TOKENS, dtype=q.dtype)
    return (weights / (weights.sum(-1, keepdim=True) + 1e-18)) @ v


WAYS: dict[str, Attend] = {
    "map on the right": lambda q, k, v: (v.mT @ scores_of(q, k).softmax(-1).mT).mT,
    "map on the right, transposed by dimensions": lambda q, k, v: torch.matmul(
        v.transpose(-1, -2), scores_of(q, k).softmax(-1).transpose(2, 3)
    ).transpose(-1, -2),
    "map on the right, folded": lambda q, k, v: (
        torch.bmm(v.mT.flatten(0, 1), scores_of(q, k).softmax(-1).mT.flatten(0, 1))
        .view(-1, N_HEADS, SIZE, N_TOKENS)
        .mT
    ),
    "values first in einsum": lambda q, k, v: torch.einsum(
        "bhjd,bhij->bhid", v, scores_of(q, k).softmax(-1)
    ),
    "einsum with an ellipsis": lambda q, k, v: torch.einsum(
        "...jd,...ij->...id", v, scores_of(q, k).softmax(-1)
    ),
    "einsum of three": lambda q, k, v: torch.einsum(
        "bhij,bhjd,de->bhie", scores_of(q, k).softmax(-1), v, torch.eye(SIZE).to(v)
    ),
    "keys before queries": keys_before_queries,
    "heads last": heads_last,
    "heads last, moved": heads_last_moved,
    "tokens first": tokens_first,
    "by head": by_head,
    "exponentials by their sum": lambda q, k, v: divided(exponentials(q, k)) @ v,
    "exponentials in place": divided_in_place,
    "exponentials by a reciprocal": by_reciprocal,
    "exponentials normalised": lambda q, k, v: (
        F.normalize(exponentials(q, k), p=1, dim=-1) @ v
    ),
    "exponentials under a mask": masked_exponentials,
    "log_softmax": lambda q, k, v: scores_of(q, k).log_softmax(-1).exp() @ v,
    "logsumexp": by_log_sum,
    "logarithm of a sum": by_log_of_sum,
    "multiplied and summed": lambda q, k, v: summed(scores_of(q, k).softmax(-1), v),
    "special.softmax": lambda q, k, v: torch.special.softmax(scores_of(q, k), -1) @ v,
    "softmin": lambda q, k, v: F.softmin(-scores_of(q, k), dim=-1) @ v,
    "exponentials, summed": lambda q, k, v: summed(divided(exponentials(q, k)), v),
}


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys in chunks, as flash kernels take them."""
    highest, total, mixed = torch.full_like(q[..., :1], -1e9), 0.0, 0.0
    for keys, values in zip(k.split(3, 2), v.split(3, 2), strict=True):
        scores = scores_of(q, keys)
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, kept = (scores - higher).exp(), (highest - higher).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        mixed, highest = mixed * kept + weights @ values, higher
    return mixed / total


def divided_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = exponentials(q, k)
    return torch.einsum("bhij,bhjd->bhid", weights, v) / weights.sum(-1, keepdim=True)


def put_together_by_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts, sums = [], []
    for keys, values in zip(k.split(3, 2), v.split(3, 2), strict=True):
        scores = scores_of(q, keys)
        parts.append(scores.softmax(-1) @ values)
        sums.append(scores.logsumexp(-1))
    return (torch.stack(sums).softmax(0)[..., None] * torch.stack(parts)).sum(0)


def keys_of_two_kinds(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1)
    return weights[..., :3] @ v[:, :, :3] + weights[..., 3:] @ v[:, :, 3:]


def queries_written_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = torch.empty_like(q)
    for start in range(0, N_TOKENS, 3):
        chunk = slice(start, start + 3)
        mixed[:, :, chunk] = plain(q[:, :, chunk], k, v)
    return mixed


# Attention in several calls, by what each has a part of.
PARTS: dict[str, tuple[str, Attend]] = {
    "queries": (
        "part of its queries",
        lambda q, k, v: torch.cat([plain(some, k, v) for some in q.split(3, 2)], 2),
    ),
    "queries in place": ("part of its queries", queries_written_in_place),
    "queries, fused": (
        "part of its queries",
        lambda q, k, v: torch.cat(
            [F.scaled_dot_product_attention(some, k, v) for some in q.split(3, 2)], 2
        ),
    ),
    "flash": ("attended to in parts", flash),
    "divided afterwards": ("attended to in parts", divided_afterwards),
    "put together by sums": ("part of its keys", put_together_by_sums),
    "keys of two kinds": ("part of its keys", keys_of_two_kinds),
    "heads": (
        "part of its heads or examples",
        lambda q, k, v: torch.stack(
            [
                plain(*one)
                for one in zip(*(x.unbind(1) for x in (q, k, v)), strict=True)
            ],
            1,
        ),
    ),
    "examples": (
        "part of its heads or examples",
        lambda q, k, v: torch.cat(
            [plain(*one) for one in zip(*(x.split(1) for x in (q, k, v)), strict=True)]
        ),
    ),
}
# Those that propagation rules take for something else.
WITHOUT_ALL_KEYS = {"flash", "divided afterwards", "put together by sums"}


class Model(nn.Module):
    """Two layers of attention and a head on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, N_HEADS * SIZE)
        self.maps = nn.ModuleList(
            nn.ModuleList(nn.Linear(N_HEADS * SIZE, N_HEADS * SIZE) for _ in range(4))
            for _ in range(2)
        )
        self.head = nn.Linear(N_HEADS * SIZE, 2)
        self.double().eval()

    def forward(self, ids: Tensor, attend: Attend = plain) -> Tensor:
        return self.run(self.embedding(ids), attend)

    def run(self, hidden: Tensor, attend: Attend = plain) -> Tensor:
        for query, key, value, out in self.maps:
            heads = [
                project(hidden).unflatten(-1, (N_HEADS, SIZE)).transpose(1, 2)
                for project in (query, key, value)
            ]
            hidden = hidden + out(attend(*heads).transpose(1, 2).flatten(2))
        return self.head(hidden[:, 0])


@every_method
@pytest.mark.parametrize("way", WAYS)
def test_scores_do_not_depend_on_how_attention_is_written(way, method):
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = (
            METHODS[method](lambda ids, attend=attend: model(ids, attend))
            .explain(ids, target=1)
            .scores
            for attend in (plain, WAYS[way])
        )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "method", [AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow]
)
@pytest.mark.parametrize("way", PARTS)
def test_a_layer_in_several_calls_is_refused_by_what_each_has(way, method):
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))
    reason, attend = PARTS[way]
    torch.testing.assert_close(model(ids, attend), model(ids))
    with pytest.raises(UnsupportedAttentionError, match=f"{reason}.* Let "):
        method(lambda ids: model(ids, attend)).attribute(ids, target=1)


@pytest.mark.parametrize("way", PARTS)
def test_rules_follow_a_layer_in_several_calls_or_warn(way):
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))
    attend = PARTS[way][1]
    expected = LayerAttnLRP(model, model.embedding).attribute(ids, target=1)
    method = LayerAttnLRP(lambda ids: model(ids, attend), model.embedding)
    if way in WITHOUT_ALL_KEYS:
        with pytest.warns(UserWarning, match="attention runs over parts of its keys"):
            method.attribute(ids, target=1)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = method.attribute(ids, target=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "method", [AttentionRollout, GeneralizedAttentionFlow, RelevanceFlow]
)
@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("folded", [False, True])
def test_windows_beside_the_heads_are_refused(method, n_rows, folded):
    """They were taken for heads, and the tokens of all for those of the first."""
    model, ids = Model(), torch.randint(0, 50, (n_rows, 8))

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x.unflatten(2, (2, 4)) for x in (q, k, v)]
        if folded:
            mixed = plain(*(x.flatten(0, 2) for x in parts))
            return mixed.unflatten(0, parts[0].shape[:3]).flatten(2, 3)
        return plain(*parts).flatten(2, 3)

    for attribution in (
        method(lambda ids: model(ids, windowed)),
        getattr(captum_attnflow, f"Layer{method.__name__}")(
            lambda ids: model(ids, windowed), model.embedding
        ),
    ):
        with pytest.raises(UnsupportedAttentionError, match="in windows of 4 tokens"):
            attribution.attribute(ids, target=1)


def test_windows_that_overlap_are_refused():
    """The first of them has most of the tokens."""
    model, ids = Model(), torch.randint(0, 50, (2, 8))

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x.unfold(2, 7, 1).transpose(-1, -2) for x in (q, k, v)]
        mixed = plain(*parts)  # (rows, heads, 2 windows, 7 tokens, features)
        return torch.cat([mixed[:, :, 0, :4], mixed[:, :, 1, 3:]], 2)

    with pytest.raises(UnsupportedAttentionError, match="in windows of 7 tokens"):
        RelevanceFlow(lambda ids: model(ids, windowed)).attribute(ids, target=1)


def test_a_head_that_has_nothing_of_most_tokens_is_no_window():
    model = Model()
    embeddings = model.embedding(torch.randint(0, 50, (2, 8))).detach()

    def with_idle_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        idle = torch.ones(v.shape[1], 8, 1)
        idle[0, 2:] = 0
        return plain(q, k, v * idle)

    scores = RelevanceFlow(
        lambda embeddings: model.run(embeddings, with_idle_head)
    ).attribute(embeddings, target=1)
    assert bool(scores.abs().sum() > 0)


def test_linear_attention_and_gates_are_no_parts_of_a_softmax():
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))

    def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.exp() @ (k.exp().mT @ v) / 99

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="attention runs over parts")
        LayerAttnLRP(lambda ids: model(ids, linear), model.embedding).attribute(
            ids, target=1
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_path_ends_before_attention_however_it_is_written(way):
    """Beside the embeddings, a layer behind the attention was taken for its place."""
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))
    expected, found = (
        LayerRelevanceFlow(
            lambda ids, attend=attend: model(ids, attend), model.maps[0][3]
        )
        .explain(ids, 0, target=1)
        .scores
        for attend in (plain, WAYS[way])
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_patches_are_found_however_attention_is_written(way):
    model = Model()
    model.embedding = nn.Linear(2, N_HEADS * SIZE).double()

    def forward(pixels: Tensor) -> Tensor:
        return model(pixels.reshape(len(pixels), N_TOKENS, 2), WAYS[way])

    pixels = torch.rand(1, 1, 2, N_TOKENS, dtype=torch.float64)
    found = capture_attention(forward, (pixels,), 1).elements[0]
    torch.testing.assert_close(
        found, (torch.arange(2 * N_TOKENS) // 2).view(1, 1, 2, N_TOKENS)
    )


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda weights, hidden: (weights.mT @ hidden).flatten(1),
    "einsum": lambda weights, hidden: torch.einsum(
        "bti,btd->bid", weights, hidden
    ).flatten(1),
    "sum": lambda weights, hidden: torch.stack(
        [(one * hidden).sum(1) for one in weights.split(1, -1)], 1
    ).flatten(1),
}


@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_that_pools_by_a_softmax_over_tokens_is_no_layer(pooling, n_queries):
    model, ids = Model(), torch.randint(0, 50, (N_ROWS, N_TOKENS))
    scorer = nn.Linear(N_HEADS * SIZE, n_queries).double()

    def forward(ids: Tensor) -> Tensor:
        hidden = model.embedding(ids)
        hidden = hidden + plain(hidden[:, None], hidden[:, None], hidden[:, None])[:, 0]
        weights = scorer(hidden).softmax(1)
        return POOLINGS[pooling](weights, hidden)

    (layer,) = capture_attention(forward, (ids,), 1).layers
    assert layer.shape == (N_ROWS, 1, N_TOKENS, N_TOKENS)
